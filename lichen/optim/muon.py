"""Muon for matrices and AdamW for the rest, in one optimizer.

A parameter may hold many matrices (`lichen.nn.roles.Role`). Those of one shape, wherever they come from, go
through Newton-Schulz as one batch (`lichen.optim.rules`). A sharded parameter (a DTensor) that holds no whole
matrices has them computed by owners (`lichen.optim.owners`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lichen.errors import LichenError
from lichen.machine.precision import at_least_fp32
from lichen.nn.roles import Role
from lichen.optim import recipes, rules
from lichen.optim.newton_schulz import form_for, products_per_step
from lichen.optim.owners import Job, updates_by_owners
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.shards import holds_whole_matrices, local, place_like
from lichen.optim.table import ParameterTable, Row, recipe_options


class Muon(torch.optim.Optimizer):
    """Updates every parameter of `table` as `recipe` says.

    Parameters that share a learning rate and a weight decay form a group of `param_groups`, with `lr` and
    `initial_lr`: both `torch.optim.lr_scheduler` and a trainer that writes
    `group["lr"] = group["initial_lr"] * factor` can drive it. Parameters without a gradient are left
    alone. State is fp32, for float64 parameters float64; a parameter in lower precision is updated in fp32
    and rounded once.

    Parameters may be DTensors (FSDP2's `fully_shard`, tensor parallelism); their state is sharded as they
    are, and every rank calls `step`, with gradients of the same parameters. `sent_bytes` is what the last
    step sent from this rank to others.
    """

    def __init__(self, table: ParameterTable, recipe: OptimizerRecipe = recipes.moonlight) -> None:
        if not isinstance(table, ParameterTable):
            raise LichenError(
                "optimizer: Muon has to know which matrices the parameters hold; give it "
                "parameter_table(model) in place of the model or its parameters"
            )
        if not len(table):
            raise LichenError("optimizer: the model has no parameter that requires a gradient")
        self.recipe = recipe
        self.sent_bytes = 0
        self._rows: dict[Tensor, Row] = {}
        super().__init__([{"params": table}], {})

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy: PyTorch's own list of attributes leaves out what a subclass adds."""
        return super().__getstate__() | {"recipe": self.recipe, "sent_bytes": 0, "_rows": self._rows}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take more parameters: `{"params": table}`, or `(name, parameter)` pairs in place of a table.

        `lr` and `weight_decay` in the group replace the recipe's. Without a table, parameters of two or
        more dimensions are matrices and the others vectors. Raises LichenError for a parameter without a
        name, one that is already here, and any other option: the rest is the recipe's.
        """
        if unknown := param_group.keys() - {"params", "lr", "weight_decay"}:
            raise LichenError(
                f"optimizer: a group takes lr and weight_decay, not {', '.join(sorted(unknown))}; everything "
                "else is the recipe's"
            )
        rows = _rows(param_group["params"])
        names = {row.name for row in self._rows.values()}
        for row in rows:
            if row.parameter in self._rows or row.name in names:
                raise LichenError(f"optimizer: parameter {row.name} is already in the optimizer")
        groups: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
        for row in rows:
            self._rows[row.parameter] = row
            lr, weight_decay = recipe_options(row, self.recipe)
            options = (param_group.get("lr", lr), param_group.get("weight_decay", weight_decay))
            groups.setdefault(options, []).append((row.name, row.parameter))
        for (lr, decay), members in groups.items():
            group = {"params": members, "lr": lr, "initial_lr": lr, "weight_decay": decay}
            super().add_param_group(group)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, *, found_inf: Tensor | None = None
    ) -> Tensor | None:
        """Update every parameter that has a gradient; `closure` recomputes the loss first.

        found_inf: a 0-d fp32 tensor where the parameters are: 1 if nothing is to be changed, as where a
        gradient is not finite, else 0. So nobody has to wait for a GPU to know. Cut matrices (DTensors) do
        not heed it.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        if self.sent_bytes:  # torch.compile of PyTorch 2.11 cannot set an attribute of an optimizer
            self.sent_bytes = 0
        for group in self.param_groups:
            rows: dict[tuple[str, bool], list[Row]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    row = self._row(parameter)
                    algorithm = self.recipe.algorithm(row.role.kind)
                    here = algorithm == "adamw" or holds_whole_matrices(parameter, stacked=row.stacked)
                    rows[algorithm, here].append(row)
            self._muon(rows["muon", True], group, found_inf)
            self._by_owners(rows["muon", False], group)
            self._sinkhorn(rows["sinkhorn", True], group, found_inf)
            self._by_owners(rows["sinkhorn", False], group)
            self._adamw(rows["adamw", True], group, found_inf)
        return loss

    @torch.no_grad()
    def initialize_state(self) -> None:
        """Allocate the state of every parameter as it is before the first step, for `state_dict` to show.

        Loaders that fill a state in place need it, such as `torch.distributed.checkpoint.load`.
        """
        for row in self._rows.values():
            self._state(row)

    def _row(self, parameter: Tensor) -> Row:
        row = self._rows.get(parameter)
        if row is None:
            raise LichenError(
                f"optimizer: a parameter of shape {tuple(parameter.shape)} was put in the place of one that "
                "Muon was made with; make Muon after the model is wrapped, sharded or moved"
            )
        return row

    def _state_names(self, row: Row) -> tuple[str, ...]:
        adamw = self.recipe.algorithm(row.role.kind) == "adamw"
        return ("exp_avg", "exp_avg_sq", "step") if adamw else ("momentum_buffer",)

    def _state(self, row: Row) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[row.parameter]
        if not state:
            for name in self._state_names(row):
                state[name] = (
                    torch.zeros((), device=row.parameter.device)
                    if name == "step"
                    else torch.zeros_like(row.parameter, dtype=at_least_fp32(row.parameter.dtype))
                )
        return state

    def _momentum(self, row: Row) -> Tensor:
        return local(self._state(row)["momentum_buffer"])

    def _matrices(self, row: Row, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The matrices of tensors that are shaped like the parameter, side by side."""
        return zip(*(row.batches(each, per_head=self.recipe.per_head) for each in tensors), strict=True)

    def _muon(self, rows: list[Row], group: dict[str, Any], found_inf: Tensor | None) -> None:
        matrices: list[tuple[Tensor, ...]] = []
        for row in rows:
            matrices += self._matrices(row, local(row.parameter), _gradient(row), self._momentum(row))
        rules.muon_update(matrices, self.recipe, group, found_inf)

    def _sinkhorn(self, rows: list[Row], group: dict[str, Any], found_inf: Tensor | None) -> None:
        for row in rows:
            direction = rules.advance(self._momentum(row), _gradient(row), self.recipe, found_inf)
            rules.move(local(row.parameter), rules.sinkhorn_step(direction, self.recipe), group, found_inf)

    def _by_owners(self, rows: list[Row], group: dict[str, Any]) -> None:
        """Update sharded parameters whose matrices are cut."""
        if not rows:
            return

        def compute(owned: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
            steps: list[Tensor] = []
            matrices: list[tuple[Tensor, ...]] = []
            for number, whole in owned:
                if rows[number].role.kind == "matrix":
                    steps.append(torch.empty_like(whole, dtype=jobs[number].dtype))
                    matrices += self._matrices(rows[number], whole, steps[-1])
                else:
                    steps.append(rules.sinkhorn_step(whole, self.recipe))
            for chunk in rules.chunks(matrices):
                directions, targets = zip(*chunk, strict=True)
                computed = rules.muon_steps(directions, targets, self.recipe)
                for target, step in zip(targets, computed, strict=True):
                    target.copy_(step)
            return steps

        jobs = [self._job(row) for row in rows]
        steps, sent = updates_by_owners(jobs, compute)
        self.sent_bytes += sent
        for row, step in zip(rows, steps, strict=True):
            rules.move(local(row.parameter), step, group)

    def _job(self, row: Row) -> Job:
        """Advance the momentum of a sharded parameter, whose update is for owners to compute."""
        assert isinstance(row.parameter, DTensor)
        direction = rules.advance(self._momentum(row), _gradient(row), self.recipe)
        dtype, work = direction.dtype, row.parameter.numel()
        if row.role.kind == "matrix":
            shapes = row.batch_shapes(per_head=self.recipe.per_head)
            dtypes = {form_for(direction.device, rows, columns).dtype for _, rows, columns in shapes}
            dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
            work = sum(count * products_per_step(rows, columns) for count, rows, columns in shapes)
        return Job(row.parameter, direction, row.stacked, dtype, work)

    def _adamw(self, rows: list[Row], group: dict[str, Any], found_inf: Tensor | None) -> None:
        tensors = []
        for row in rows:
            state = self._state(row)
            averages = (local(state["exp_avg"]), local(state["exp_avg_sq"]))
            tensors.append((local(row.parameter), _gradient(row), *averages, state["step"]))
        if tensors:
            rules.adamw_update(tensors, self.recipe, group, found_inf)

    def state_bytes(self) -> int:
        """Bytes of optimizer state that this process holds now (none before the first step)."""
        return sum(local(tensor).nbytes for state in self.state.values() for tensor in state.values())

    def named_state(self) -> dict[str, dict[str, Tensor]]:
        """The state of every parameter that has one, by the parameter's name; not copies."""
        return {row.name: dict(self.state[p]) for p, row in self._rows.items() if p in self.state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a `state_dict()` whose groups may be cut differently.

        Parameters are found by name: by their group's `param_names`, or as what they are saved under.
        Learning rates and weight decays are this optimizer's own; `lr` moves to the place on its schedule
        that the saved one had reached. Raises LichenError if the saved parameters are not these.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        names = {
            key: group["param_names"][number] if isinstance(key, int) and "param_names" in group else key
            for group in state_dict["param_groups"]
            for number, key in enumerate(group["params"])
        }
        saved_group = {names[key]: group for group in state_dict["param_groups"] for key in group["params"]}
        saved_state = {names.get(key, key): saved for key, saved in state_dict["state"].items()}
        rows = {row.name: row for row in self._rows.values()}
        if missing := rows.keys() - saved_group.keys():
            raise LichenError(f"optimizer state: nothing is saved for {', '.join(sorted(missing))}")
        if unknown := (saved_group.keys() | saved_state.keys()) - rows.keys():
            raise LichenError(
                f"optimizer state: {', '.join(sorted(map(str, unknown)))} is not in this optimizer"
            )
        for name, saved in saved_state.items():
            row = rows[name]
            expected = self._state_names(row)
            if saved.keys() != set(expected):
                raise LichenError(
                    f"optimizer state: {name} was updated with {', '.join(sorted(saved))}, but recipe "
                    f"{self.recipe.name!r} needs {', '.join(expected)}; load it with the recipe it "
                    "was saved with"
                )
            for key, tensor in saved.items():
                if key != "step" and tensor.shape != row.parameter.shape:
                    raise LichenError(
                        f"optimizer state: {key} of {name} has shape {tuple(tensor.shape)}, the parameter "
                        f"{tuple(row.parameter.shape)}"
                    )

        self.state.clear()
        for name, saved in saved_state.items():
            for key, tensor in self._state(rows[name]).items():
                tensor.copy_(saved[key] if key == "step" else place_like(saved[key], tensor))
        for group in self.param_groups:
            saved = saved_group[group["param_names"][0]]
            same = saved["initial_lr"] == group["initial_lr"] or saved["initial_lr"] == 0
            group["lr"] = saved["lr"] if same else group["initial_lr"] * (saved["lr"] / saved["initial_lr"])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)


def _rows(params: ParameterTable | Iterable[tuple[str, nn.Parameter]]) -> ParameterTable:
    if isinstance(params, ParameterTable):
        return params
    rows = []
    for named in params:
        if not isinstance(named, tuple):
            raise LichenError(
                "optimizer: state is kept by name, so give (name, parameter) pairs such as "
                "model.named_parameters(), or a parameter_table"
            )
        name, parameter = named
        rows.append(Row(name, parameter, Role("matrix" if parameter.ndim >= 2 else "vector")))
    return ParameterTable(tuple(rows))


def _gradient(row: Row) -> Tensor:
    """What this rank needs of the gradient for its shard of the parameter."""
    gradient = row.parameter.grad
    if gradient is None or gradient.is_sparse or gradient.is_complex():
        raise LichenError(f"optimizer: {row.name} needs a dense, real gradient")
    if isinstance(gradient, DTensor) and isinstance(row.parameter, DTensor):
        return gradient.redistribute(placements=row.parameter.placements).to_local()
    return gradient
