"""Muon for matrices and AdamW for the rest, in one optimizer.

A parameter may hold many matrices (`lichen.nn.roles.Role`). Those of one shape, wherever they come from, go
through Newton-Schulz as one batch (`lichen.optim.rules`). A sharded parameter (a DTensor) that holds no whole
matrices has them computed by owners (`lichen.optim.owners`).
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from lichen.optim.saved import SavedParameter, saved_parameters
from lichen.optim.shards import holds_whole_matrices, local, place_like
from lichen.optim.table import ParameterTable, Row, recipe_options


class Muon(torch.optim.Optimizer):
    """Updates every parameter of `table` as `recipe` says.

    Parameters that share a learning rate and a weight decay form a group of `param_groups`, with `lr` and
    `peak_lr`: both `torch.optim.lr_scheduler` and a trainer that writes
    `group["lr"] = group["peak_lr"] * factor` can drive it. Parameters without a gradient are left
    alone: a layer that is frozen now is trained from the step on in which it has one. State is fp32, for
    float64 parameters float64; a parameter in lower precision is updated in fp32 and rounded once.

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
        if not any(row.parameter.requires_grad for row in table):
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
            group = {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            super().add_param_group(group)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, *, found_inf: Tensor | None = None
    ) -> Tensor | None:
        """Update every parameter that has a gradient; `closure` recomputes the loss first.

        Raises LichenError, with nothing updated, for gradients that are sparse or complex, and for a
        parameter that Muon was not made with.

        found_inf: a 0-d fp32 tensor where the parameters are: 1 if nothing is to be changed, as where a
        gradient is not finite, else 0. So nobody has to wait for a GPU to know. Cut matrices (DTensors) do
        not heed it.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        if self.sent_bytes:  # torch.compile of PyTorch 2.11 cannot set an attribute of an optimizer
            self.sent_bytes = 0
        for group, rows in [(group, self._sorted_rows(group)) for group in self.param_groups]:
            self._muon(rows["muon", True], group, found_inf)
            self._by_owners(rows["muon", False], group)
            self._sinkhorn(rows["sinkhorn", True], group, found_inf)
            self._by_owners(rows["sinkhorn", False], group)
            self._adamw(rows["adamw", True], group, found_inf)
        return loss

    def _sorted_rows(self, group: dict[str, Any]) -> dict[tuple[str, bool], list[Row]]:
        """Rows of the group with a gradient, by algorithm and whether their update needs no other rank."""
        rows: dict[tuple[str, bool], list[Row]] = defaultdict(list)
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None:
                row = self._row(parameter)
                if gradient.is_sparse or gradient.is_complex():
                    found = "sparse" if gradient.is_sparse else "complex"
                    raise LichenError(
                        f"optimizer: {row.name} has a {found} gradient, and Muon needs a dense, real one (an "
                        "embedding gives it with sparse=False); nothing was updated"
                    )
                algorithm = self.recipe.algorithm(row.role.kind)
                here = algorithm == "adamw" or holds_whole_matrices(parameter, stacked=row.stacked)
                rows[algorithm, here].append(row)
        return rows

    @torch.no_grad()
    def initialize_state(self) -> None:
        """Allocate the state of what is trained as it is before the first step, for `state_dict` to show.

        Loaders that fill a state in place need it, such as `torch.distributed.checkpoint.load`.
        """
        for row in self._rows.values():
            if row.parameter.requires_grad:
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
            rules.move(local(row.parameter), self._balanced(row, direction), group, found_inf)

    def _balanced(self, row: Row, direction: Tensor) -> Tensor:
        """The balanced step of an embedding or output layer, whose rows may lie in columns or be kernels."""
        if row.role.layout == "columns":
            return rules.sinkhorn_step(direction.mT, self.recipe).mT
        rows = direction.flatten(1) if row.role.layout == "kernel" else direction
        return rules.sinkhorn_step(rows, self.recipe).view_as(direction)

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
                    steps.append(self._balanced(rows[number], whole))
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
    def load_state_dict(self, state_dict: dict[str, Any], *others: dict[str, Any]) -> None:
        """Take over the state of a `state_dict()` whose groups may be cut differently.

        Parameters are found by name: by their group's `param_names`, or as what they are saved under. As
        in PyTorch's optimizers, groups take over all that the saved ones hold: learning rate, weight decay
        and what schedulers put there. State of `torch.optim.Muon`, `AdamW` and `Adam` is converted; give
        several state dicts in `others` where several optimizers shared the parameters.

        Groups whose parameters were saved in groups that differ are cut. Raises LichenError, with nothing
        loaded, if the saved parameters are not these, if they followed another rule than the recipe's, and
        if a group that a scheduler drives would be cut.
        """
        given = []
        for each in (state_dict, *others):
            for before in self._optimizer_load_state_dict_pre_hooks.values():
                each = before(self, each) or each
            given.append(each)
        saved = saved_parameters(given)
        rows = {row.name: row for row in self._rows.values()}
        if missing := {name for name, row in rows.items() if row.parameter.requires_grad} - saved.keys():
            raise LichenError(f"optimizer state: nothing is saved for {', '.join(sorted(missing))}")
        if unknown := saved.keys() - rows.keys():
            raise LichenError(
                f"optimizer state: {', '.join(sorted(map(str, unknown)))} is not in this optimizer"
            )
        converted = {name: each.convert(self.recipe, rows[name].role.kind) for name, each in saved.items()}
        for name, entry in converted.items():
            self._check(rows[name], entry)
        groups = [cut for group in self.param_groups for cut in _cut(group, saved)]
        if len(groups) > len(self.param_groups) and hasattr(self.step, "_wrapped_by_lr_sched"):
            raise LichenError(
                "optimizer state: parameters that share a group here were saved in groups that differ, and a "
                "scheduler drives the groups; load the state first, then make the scheduler"
            )

        self.state.clear()
        for name, entry in converted.items():
            if entry:
                for key, tensor in self._state(rows[name]).items():
                    value = torch.as_tensor(entry[key])  # PyTorch 1 counted steps in Python
                    tensor.copy_(value if key == "step" else place_like(value, tensor))
        self.param_groups[:] = groups
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _check(self, row: Row, entry: dict[str, Tensor]) -> None:
        """Refuse saved state that is not what the recipe keeps of this parameter."""
        expected = self._state_names(row)
        if entry and entry.keys() != set(expected):
            raise LichenError(
                f"optimizer state: {row.name} was updated with {', '.join(sorted(entry))}, but recipe "
                f"{self.recipe.name!r} needs {', '.join(expected)}; load it with the recipe it "
                "was saved with"
            )
        for key, tensor in entry.items():
            if key != "step" and tensor.shape != row.parameter.shape:
                raise LichenError(
                    f"optimizer state: {key} of {row.name} has shape {tuple(tensor.shape)}, the parameter "
                    f"{tuple(row.parameter.shape)}"
                )


def _cut(group: dict[str, Any], saved: Mapping[str, SavedParameter]) -> list[dict[str, Any]]:
    """The group with what its parameters were saved with, in parts if that differs."""
    cuts: list[dict[str, Any]] = []
    unsaved: list[tuple[str, Tensor]] = []  # frozen
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        if name not in saved:
            unsaved.append((name, parameter))
            continue
        settings = saved[name].settings
        known = (cut for cut in cuts if all(cut.get(key) == value for key, value in settings.items()))
        cut = next(known, None)
        if cut is None:
            cut = {"params": [], "param_names": []} | copy.deepcopy(settings)
            cuts.append(cut)
        cut["params"].append(parameter)
        cut["param_names"].append(name)
    if not cuts:
        return [group]
    for name, parameter in unsaved:
        cuts[0]["params"].append(parameter)
        cuts[0]["param_names"].append(name)
    return cuts


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
    assert gradient is not None
    if isinstance(gradient, DTensor) and isinstance(row.parameter, DTensor):
        return gradient.redistribute(placements=row.parameter.placements).to_local()
    return gradient
