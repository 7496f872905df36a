"""Muon for matrices and AdamW for the rest, in one optimizer.

A step does, for every matrix W with gradient G (Keller Jordan, 2024; Moonlight, arXiv 2502.16982):

    M <- momentum M + G
    O  = orthogonalise(G + momentum M)      with Nesterov; orthogonalise(M) without
    W <- W (1 - lr weight_decay) - lr scale(W) O

where a parameter may hold many matrices (`lichen.nn.roles.Role`). Matrices of one shape, wherever they
come from, go through Newton-Schulz as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.optim import recipes
from lichen.optim.newton_schulz import EPSILON, method_for, orthogonalize, scaled
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.sinkhorn import sinkhorn_balanced
from lichen.optim.table import ParameterTable, Row, recipe_options

# Matrix entries that go through Newton-Schulz together. On a CPU the working memory should stay in the
# second-level cache; elsewhere it should fill the machine and stay small beside the model.
CHUNK_ENTRIES = {"cpu": 1 << 18}
CHUNK_ENTRIES_ELSEWHERE = 1 << 28


class Matrices(NamedTuple):
    """Equally shaped matrices of one parameter, each (matrices, rows, columns)."""

    parameter: Tensor
    gradient: Tensor
    momentum: Tensor


class Muon(torch.optim.Optimizer):
    """Updates every parameter of `table` as `recipe` says.

    Parameters that share a learning rate and a weight decay form a group of `param_groups`, with `lr` and
    `initial_lr`: both `torch.optim.lr_scheduler` and a trainer that writes
    `group["lr"] = group["initial_lr"] * factor` can drive it. Parameters without a gradient are left
    alone. State is fp32; a parameter in lower precision is updated in fp32 and rounded once.
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
        self._rows: dict[Tensor, Row] = {}
        super().__init__([{"params": table}], {})

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy: PyTorch's own list of attributes leaves out what a subclass adds."""
        return super().__getstate__() | {"recipe": self.recipe, "_rows": self._rows}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take more parameters: `{"params": table}`, or `(name, parameter)` pairs in place of a table.

        `lr` and `weight_decay` in the group replace the recipe's. Without a table, parameters of two or
        more dimensions are matrices and the others vectors. Raises LichenError for a parameter without a
        name, and for one that is already here.
        """
        rows = _rows(param_group["params"])
        names = {row.name for row in self._rows.values()}
        for row in rows:
            if row.parameter in self._rows or row.name in names:
                raise LichenError(f"optimizer: parameter {row.name} is already in the optimizer")
        groups: dict[tuple[float, float], list[Row]] = {}
        for row in rows:
            self._rows[row.parameter] = row
            lr, weight_decay = recipe_options(row, self.recipe)
            options = (param_group.get("lr", lr), param_group.get("weight_decay", weight_decay))
            groups.setdefault(options, []).append(row)
        for (lr, weight_decay), members in groups.items():
            super().add_param_group(
                {
                    "params": [(row.name, row.parameter) for row in members],
                    "lr": lr,
                    "initial_lr": lr,
                    "weight_decay": weight_decay,
                }
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            rows: dict[str, list[Row]] = {"muon": [], "sinkhorn": [], "adamw": []}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    row = self._rows[parameter]
                    rows[self.recipe.algorithm(row.role.kind)].append(row)
            self._muon(rows["muon"], group)
            self._sinkhorn(rows["sinkhorn"], group)
            self._adamw(rows["adamw"], group)
        return loss

    def _momentum(self, row: Row) -> Tensor:
        state = self.state[row.parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(row.parameter, dtype=torch.float32)
        return state["momentum_buffer"]

    def _muon(self, rows: list[Row], group: dict[str, Any]) -> None:
        batches: dict[tuple[torch.device, torch.Size], list[Matrices]] = {}
        for row in rows:
            views = (
                row.matrices(tensor, per_head=self.recipe.per_head)
                for tensor in (row.parameter, _gradient(row), self._momentum(row))
            )
            for matrices in map(Matrices, *views):
                batches.setdefault((row.parameter.device, matrices.parameter.shape[1:]), []).append(matrices)
        for batch in batches.values():
            muon_update(batch, self.recipe, lr=group["lr"], weight_decay=group["weight_decay"])

    def _sinkhorn(self, rows: list[Row], group: dict[str, Any]) -> None:
        recipe, lr = self.recipe, group["lr"]
        for row in rows:
            direction = _advance(self._momentum(row), _gradient(row), recipe)
            average = direction * (1 - recipe.momentum)  # the direction is a sum of gradients
            step = sinkhorn_balanced(average).mul_(-lr * (recipe.update_rms or 1.0))
            row.parameter.copy_(step.add_(row.parameter, alpha=1 - lr * group["weight_decay"]))

    def _adamw(self, rows: list[Row], group: dict[str, Any]) -> None:
        """Decoupled-weight-decay Adam (arXiv 1711.05101) by PyTorch's own kernels."""
        by_device: dict[torch.device, list[Row]] = {}
        for row in rows:
            by_device.setdefault(row.parameter.device, []).append(row)
        for device, here in by_device.items():
            for row in here:
                state = self.state[row.parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                    state["exp_avg"] = torch.zeros_like(row.parameter, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(row.parameter, dtype=torch.float32)
            masters = [row.parameter.float() for row in here]
            states = [self.state[row.parameter] for row in here]
            adamw(
                masters,
                [_gradient(row).float() for row in here],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=device.type in _get_fused_kernels_supported_devices(),
                amsgrad=False,
                beta1=self.recipe.adamw_betas[0],
                beta2=self.recipe.adamw_betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.recipe.adamw_eps,
                maximize=False,
            )
            for row, master in zip(here, masters, strict=True):
                if master is not row.parameter:
                    row.parameter.copy_(master)

    def state_bytes(self) -> int:
        """Bytes of optimizer state held now (none before the first step)."""
        return sum(tensor.nbytes for state in self.state.values() for tensor in state.values())

    def state_dict(self) -> dict[str, Any]:
        """State by parameter name: {"state": {name: {...tensors}}, "param_groups": [...]}.

        Apart from the tensors in "state" it is made of numbers and strings. The tensors are the
        optimizer's own, not copies.
        """
        return {
            "state": {row.name: dict(self.state[p]) for p, row in self._rows.items() if p in self.state},
            "param_groups": [
                {key: value for key, value in group.items() if key not in ("params", "param_names")}
                | {"params": list(group["param_names"])}
                for group in self.param_groups
            ],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a `state_dict()` whose groups may be cut differently.

        Learning rates and weight decays are this optimizer's own; `lr` moves to the place on its schedule
        that the saved one had reached. Raises LichenError if the saved parameters are not these.
        """
        saved_group = {name: group for group in state_dict["param_groups"] for name in group["params"]}
        rows = {row.name: row for row in self._rows.values()}
        if missing := rows.keys() - saved_group.keys():
            raise LichenError(f"optimizer state: nothing is saved for {', '.join(sorted(missing))}")
        if unknown := saved_group.keys() - rows.keys():
            raise LichenError(f"optimizer state: {', '.join(sorted(unknown))} is not in this optimizer")
        for name, saved in state_dict["state"].items():
            row = rows[name]
            expected = _state_names(self.recipe.algorithm(row.role.kind))
            if saved.keys() != expected:
                raise LichenError(
                    f"optimizer state: {name} was updated with {', '.join(sorted(saved))}, but recipe "
                    f"{self.recipe.name!r} needs {', '.join(sorted(expected))}; load it with the recipe it "
                    "was saved with"
                )
            for key, tensor in saved.items():
                if key != "step" and tensor.shape != row.parameter.shape:
                    raise LichenError(
                        f"optimizer state: {key} of {name} has shape {tuple(tensor.shape)}, the parameter "
                        f"{tuple(row.parameter.shape)}"
                    )

        self.state.clear()
        for name, saved in state_dict["state"].items():
            parameter = rows[name].parameter
            self.state[parameter] = {
                key: torch.empty_like(
                    tensor if key == "step" else parameter, dtype=torch.float32, device=parameter.device
                ).copy_(tensor)
                for key, tensor in saved.items()
            }
        for group in self.param_groups:
            saved = saved_group[group["param_names"][0]]
            same = saved["initial_lr"] == group["initial_lr"] or saved["initial_lr"] == 0
            group["lr"] = saved["lr"] if same else group["initial_lr"] * (saved["lr"] / saved["initial_lr"])


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


def _state_names(algorithm: str) -> set[str]:
    return {"step", "exp_avg", "exp_avg_sq"} if algorithm == "adamw" else {"momentum_buffer"}


def _gradient(row: Row) -> Tensor:
    gradient = row.parameter.grad
    if gradient is None or gradient.is_sparse or gradient.is_complex():
        raise LichenError(f"optimizer: {row.name} needs a dense, real gradient")
    return gradient


def muon_update(
    batch: Sequence[Matrices], recipe: OptimizerRecipe, *, lr: float, weight_decay: float
) -> None:
    """Update momentum and parameters of matrices that all have one shape and one device."""
    _, rows, columns = batch[0].parameter.shape
    device = batch[0].parameter.device
    dtype, gram_form = method_for(device, rows, columns)
    limit = max(1, CHUNK_ENTRIES.get(device.type, CHUNK_ENTRIES_ELSEWHERE) // (rows * columns))
    for chunk in _chunks(batch, limit):
        sizes = [matrices.parameter.size(0) for matrices in chunk]
        x = torch.empty(sum(sizes), rows, columns, dtype=dtype, device=device)
        for (_, gradient, momentum), slot in zip(chunk, x.split(sizes), strict=True):
            direction = _advance(momentum, gradient, recipe)
            norm = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
            torch.div(direction, norm.add_(EPSILON), out=slot)
        schedule = scaled(recipe.ns_schedule, -lr * recipe.scale(rows, columns))
        x = orthogonalize(x, schedule, gram_form=gram_form)
        for (parameter, _, _), step in zip(chunk, x.split(sizes), strict=True):
            if parameter.dtype == torch.float32:
                torch.add(step, parameter, alpha=1 - lr * weight_decay, out=parameter)
            else:
                parameter.copy_(torch.add(step.float(), parameter, alpha=1 - lr * weight_decay))


def _advance(momentum: Tensor, gradient: Tensor, recipe: OptimizerRecipe) -> Tensor:
    """Take `gradient` into `momentum`; returns the direction of the step, which may be `momentum` itself."""
    torch.add(gradient, momentum, alpha=recipe.momentum, out=momentum)
    return torch.add(gradient, momentum, alpha=recipe.momentum) if recipe.nesterov else momentum


def _chunks(batch: Sequence[Matrices], limit: int) -> Iterator[list[Matrices]]:
    """Cut a batch into lists of at most `limit` matrices in all."""
    chunk: list[Matrices] = []
    room = limit
    for matrices in batch:
        start, count = 0, matrices.parameter.size(0)
        while start < count:
            stop = min(start + room, count)
            chunk.append(Matrices(*(tensor[start:stop] for tensor in matrices)))
            room -= stop - start
            start = stop
            if room == 0:
                yield chunk
                chunk, room = [], limit
    if chunk:
        yield chunk
