"""The parameter table: for every parameter of a model, which matrices it holds and how it is updated.

Models of Lichen state it themselves (`parameter_roles`); for any other `torch.nn.Module` it is
inferred from module types, names and shapes. Print a table before trusting it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from lichen.errors import LichenError
from lichen.nn.roles import Role


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter.

    lr_scale multiplies the recipe's learning rate. weight_decay None leaves the choice to the recipe.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    lr_scale: float = 1.0
    weight_decay: bool | None = None

    def __post_init__(self) -> None:
        shape, splits, heads = tuple(self.parameter.shape), self.role.splits, self.role.heads
        if self.role.kind == "matrix" and len(shape) < 2:
            raise LichenError(f"optimizer table: {self.name} of shape {shape} cannot be a matrix")
        if splits and sum(splits) != shape[-2]:
            raise LichenError(
                f"optimizer table: {self.name} has {shape[-2]} rows, but its splits {splits} add up to "
                f"{sum(splits)}"
            )
        if heads > 1 and shape[-2] % heads:
            raise LichenError(
                f"optimizer table: {self.name} has {shape[-2]} rows, which {heads} heads cannot share equally"
            )
        if splits and heads > 1:
            raise LichenError(f"optimizer table: {self.name} has both splits and heads; give one of them")

    def matrices(self, tensor: Tensor, *, per_head: bool) -> list[Tensor]:
        """Views of `tensor`, shaped like the parameter, as batches (matrices, rows, columns)."""
        stack = tensor.reshape(-1, *tensor.shape[-2:])
        if self.role.splits:
            return list(stack.split(self.role.splits, dim=1))
        if per_head and self.role.heads > 1:
            return [stack.reshape(-1, stack.size(1) // self.role.heads, stack.size(2))]
        return [stack]


class Override(NamedTuple):
    """A row of changes to the table, for every parameter whose name matches the glob `pattern`.

    A plain `(pattern, role)` tuple is one too. `role` None keeps the role that the model or the
    inference gave.
    """

    pattern: str
    role: Role | None = None
    lr_scale: float = 1.0
    weight_decay: bool | None = None


@dataclass(frozen=True)
class ParameterTable:
    """Rows in the model's order, every parameter exactly once."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        by_name: dict[str, int] = {}
        by_parameter: dict[int, str] = {}
        for row in self.rows:
            if row.name in by_name:
                raise LichenError(f"optimizer table: {row.name} is listed twice")
            if id(row.parameter) in by_parameter:
                raise LichenError(
                    f"optimizer table: {row.name} and {by_parameter[id(row.parameter)]} are the same tensor; "
                    "list it once"
                )
            by_name[row.name] = id(row.parameter)
            by_parameter[id(row.parameter)] = row.name

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        lines = [("parameter", "shape", "role", "matrices")]
        for row in self.rows:
            views = row.matrices(row.parameter, per_head=False) if row.role.kind == "matrix" else []
            matrices = " + ".join(
                f"{n} x ({rows}, {columns})" for n, rows, columns in (v.shape for v in views)
            )
            lines.append((row.name, str(tuple(row.parameter.shape)), row.role.kind, matrices))
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def parameter_table(
    model: nn.Module, overrides: Iterable[Override | tuple[str, Role]] = ()
) -> ParameterTable:
    """The table of every parameter of `model` that requires a gradient.

    Tied parameters appear once, under their first name. Of several overrides that match a parameter the
    first one counts. Raises LichenError, listing them, for parameters that the model's own
    `parameter_roles()` does not cover, for roles of parameters that do not exist, and for overrides that
    decide nothing.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name.replace("_orig_mod.", ""))
    stated = _stated_roles(model, [name for aliases in names.values() for name in aliases])

    changes = [Override(*override) for override in overrides]
    unused = {change.pattern for change in changes}
    rows = []
    for parameter, aliases in names.items():
        row = Row(aliases[0], parameter, stated[aliases[0]])
        for change in changes:
            if any(fnmatchcase(name, change.pattern) for name in aliases):
                unused.discard(change.pattern)
                row = replace(
                    row,
                    role=change.role or row.role,
                    lr_scale=change.lr_scale,
                    weight_decay=change.weight_decay,
                )
                break
        if parameter.requires_grad:
            rows.append(row)
    if unused:
        raise LichenError(
            f"optimizer table: no parameter is left for the override {_listed(unused)}; patterns are matched "
            "against whole names (`*` is any text) and the first match counts"
        )
    return ParameterTable(tuple(rows))


def _stated_roles(model: nn.Module, names: Sequence[str]) -> Mapping[str, Role]:
    parameter_roles: Callable[[], Mapping[str, Role]] | None = getattr(model, "parameter_roles", None)
    if parameter_roles is None:
        return infer_roles(model)
    stated = parameter_roles()
    missing, unknown = set(names) - set(stated), set(stated) - set(names)
    if missing:
        raise LichenError(f"optimizer table: the model gives no role to {_listed(missing)}")
    if unknown:
        raise LichenError(
            f"optimizer table: the model has no parameter {_listed(unknown)}, but gives it a role"
        )
    return stated


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def infer_roles(model: nn.Module) -> dict[str, Role]:
    """Roles by module type, name and shape, for a model that does not state its own."""
    head = _output_layer(model)
    roles: dict[str, Role] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            roles[name.replace("_orig_mod.", "")] = _infer(module, leaf, parameter, is_head=module is head)
    return roles


def _infer(module: nn.Module, leaf: str, parameter: nn.Parameter, *, is_head: bool) -> Role:
    if parameter.ndim < 2:
        if "bias" in leaf:
            return Role("bias")
        return Role("norm" if "norm" in type(module).__name__.lower() else "vector")
    if isinstance(module, nn.Embedding):
        return Role("embedding")
    if is_head:
        return Role("head")
    if leaf == "gate_up_proj":
        half = parameter.size(-2) // 2
        return Role("matrix", splits=(half, half))
    return Role("matrix")


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer whose outputs are the model's: what `transformers` says it is, else a last `nn.Linear`."""
    get_output_embeddings: Callable[[], nn.Module | None] | None = getattr(
        model, "get_output_embeddings", None
    )
    if get_output_embeddings is not None:
        return get_output_embeddings()
    children = list(model.children())
    return children[-1] if len(children) > 1 and isinstance(children[-1], nn.Linear) else None
