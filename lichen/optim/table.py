"""The parameter table: for every parameter of a model, which matrices it holds and how it is updated.

Models of Lichen state it themselves (`parameter_roles`); for any other `torch.nn.Module` it is
inferred (`lichen.optim.infer`). Print a table before trusting it.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite, prod
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lichen.errors import LichenError
from lichen.nn.roles import Kind, Layout, Role
from lichen.optim.infer import Inferred, infer_roles
from lichen.optim.places import WRAPPERS
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.shards import holds_whole_matrices, local


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter. `lr_scale` multiplies its learning rate; `weight_decay` None is as the recipe says.

    `why` is what decided on its role, in a few words.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    lr_scale: float = 1.0
    weight_decay: bool | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise LichenError(f"optimizer table: {self.name} {problem}")
        # Of matrices that are cut, owners lay out the memory anew.
        if self.role.kind == "matrix" and holds_whole_matrices(self.parameter, stacked=self.stacked):
            here = local(self.parameter.detach())
            batches = self.batches(here, per_head=True)
            if len({each.untyped_storage().data_ptr() for each in (here, *batches)}) > 1:
                raise LichenError(
                    f"optimizer table: the matrices of {self.name} are not in one piece of memory; make the "
                    "parameter contiguous"
                )

    def _problem(self) -> str | None:
        """What is wrong with the row, to be read after the parameter's name."""
        role, shape = self.role, tuple(self.parameter.shape)
        for field, known in (("kind", get_args(Kind)), ("layout", get_args(Layout))):
            if (value := getattr(role, field)) not in known:
                return f"has a role of {field} {value!r}; choose one of {', '.join(known)}"
        if not (isfinite(self.lr_scale) and self.lr_scale >= 0):
            return f"has lr_scale {self.lr_scale}; it must be 0 or more"
        if self.weight_decay not in (None, True, False):
            return (
                f"has weight_decay {self.weight_decay}; it only switches the recipe's weight decay on (True) "
                "or off (False)"
            )
        if role.kind != "matrix":
            return None
        if len(shape) < 2 or 0 in shape:
            return f"of shape {shape} cannot be a matrix"
        if min(role.heads, role.groups, *role.splits) < 1:
            return (
                f"has splits {role.splits}, {role.groups} groups and {role.heads} heads; all of these must "
                "be 1 or more"
            )
        rows = {
            "rows": shape[-2],
            "columns": shape[-1],
            "kernel": shape[0],
            "kernel_columns": prod(shape[1:]),
        }[role.layout]
        if role.splits and sum(role.splits) != rows:
            return f"has {rows} rows, but its splits {role.splits} add up to {sum(role.splits)}"
        if role.splits and role.heads not in (1, role.groups):
            return "has both splits and heads; give it one of them, or as many groups as heads"
        if any(count % role.groups for count in role.splits) or (role.groups > 1 and not role.splits):
            return f"has {role.groups} groups, which its splits {role.splits} cannot share equally"
        if rows % role.heads:
            return f"has {rows} rows, which {role.heads} heads cannot share equally"
        return None

    @property
    def stacked(self) -> bool:
        """Whether dimensions before the last two stack independent matrices."""
        return self.role.kind == "matrix" and self.role.layout in ("rows", "columns")

    def batch_shapes(self, *, per_head: bool) -> list[tuple[int, int, int]]:
        """(matrices, rows, columns) of every batch that `batches` returns for the whole parameter."""
        like = torch.empty(self.parameter.shape, device="meta")
        return [(m.size(0), prod(m.shape[1:-1]), m.size(-1)) for m in self.batches(like, per_head=per_head)]

    def batches(self, tensor: Tensor, *, per_head: bool) -> list[Tensor]:
        """The logical matrices in `tensor`, which is shaped like the parameter, or like a part of its stack.

        Returns batches (matrices, rows, columns), or (matrices, groups, rows of a group, columns) where no
        view has the rows of a matrix in one dimension. They are views if the memory of `tensor` is laid
        out like the parameter's.
        """
        role = self.role
        if self.stacked:
            stack = tensor.reshape(-1, *tensor.shape[-2:])
        else:
            # What is not dimension 0 may come in any order, so take the one of the memory (a convolution's
            # may be channels-last).
            order = sorted(range(1, tensor.ndim), key=self.parameter.stride, reverse=True)
            stack = tensor.permute(0, *order).reshape(1, tensor.size(0), -1)
        if role.layout in ("columns", "kernel_columns"):
            stack = stack.mT
        if not role.splits:
            heads = role.heads if per_head else 1
            return [stack.reshape(-1, stack.size(1) // heads, stack.size(2))]
        in_group = [rows // role.groups for rows in role.splits]
        parts = stack.unflatten(1, (role.groups, -1)).split(in_group, dim=2)
        if per_head and role.heads > 1:
            return [part.flatten(0, 1) for part in parts]
        return [part.flatten(1, 2) if 1 in part.shape[1:3] else part for part in parts]


class Override(NamedTuple):
    """A change to the row of every parameter whose name matches the glob `pattern`.

    A plain `(pattern, role)` tuple is one too. `role` None keeps the role that the model or the
    inference gave.
    """

    pattern: str
    role: Role | None = None
    lr_scale: float = 1.0
    weight_decay: bool | None = None


@dataclass(frozen=True, eq=False)
class ParameterTable:
    """Rows in the model's order, every parameter exactly once.

    doubts: sentences about what the inference is not sure of, which overrides decide.
    """

    rows: tuple[Row, ...]
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str | nn.Parameter, str] = {}
        for row in self.rows:
            if row.name in seen:
                raise LichenError(f"optimizer table: {row.name} is listed twice")
            if other := seen.get(row.parameter):
                raise LichenError(
                    f"optimizer table: {other} and {row.name} are the same tensor; list it once"
                )
            seen |= {row.name: row.name, row.parameter: row.name}

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        lines = [("parameter", "shape", "role", "matrices", "why")]
        for row in self.rows:
            shape = str(tuple(row.parameter.shape))
            why = row.why if row.parameter.requires_grad else f"frozen; {row.why}"
            lines.append((row.name, shape, row.role.kind, _matrices(row, per_head=False), why))
        return "\n".join([_aligned(lines), *(f"not sure: {doubt}" for doubt in self.doubts)])

    def describe(self, recipe: OptimizerRecipe) -> str:
        """The table as `recipe` uses it: what updates each parameter, in which matrices and how far."""
        lines = [("parameter", "shape", "update", "lr", "weight decay", "matrices")]
        for row in self.rows:
            lr, weight_decay = recipe_options(row, recipe)
            algorithm = recipe.algorithm(row.role.kind)
            matrices = _matrices(row, per_head=recipe.per_head) if algorithm == "muon" else ""
            shape = str(tuple(row.parameter.shape))
            update = algorithm if row.parameter.requires_grad else f"{algorithm}, frozen"
            lines.append((row.name, shape, update, f"{lr:g}", f"{weight_decay:g}", matrices))
        return _aligned(lines)


def recipe_options(row: Row, recipe: OptimizerRecipe) -> tuple[float, float]:
    """Peak learning rate and weight decay of a parameter under `recipe`."""
    kind = row.role.kind
    lr = recipe.lr if recipe.algorithm(kind) != "adamw" or recipe.adamw_lr is None else recipe.adamw_lr
    decays = kind in recipe.decayed if row.weight_decay is None else row.weight_decay
    return lr * row.lr_scale, recipe.weight_decay if decays else 0.0


def _matrices(row: Row, *, per_head: bool) -> str:
    if row.role.kind != "matrix":
        return ""
    shapes = row.batch_shapes(per_head=per_head)
    if len(shapes) > 4 and len(set(shapes)) == 1:  # a convolution of many groups
        shapes = [(len(shapes) * shapes[0][0], *shapes[0][1:])]
    return " + ".join(f"{count} x ({rows}, {columns})" for count, rows, columns in shapes)


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def parameter_table(
    model: nn.Module, overrides: Iterable[Override | tuple[str, Role]] = ()
) -> ParameterTable:
    """The table of every parameter of `model` that has a gradient or can have one: frozen layers too.

    Tied parameters appear once, under their first name. Names are those of the plain model, without what
    `torch.compile`, data parallelism or activation checkpointing wrap around it. Of several overrides that
    match a parameter the first one counts. Warns of everything that the inference is not sure of and no
    override decides. Raises LichenError, listing them, for parameters that the
    model's own `parameter_roles()` does not cover, for roles of parameters that do not exist, and for
    overrides that decide nothing.
    """
    model = unwrapped(model)
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(plain_name(name))
    roles, sentences = _roles(model, names.values())

    changes = [_change(override) for override in overrides]
    unused = dict(enumerate(change.pattern for change in changes))
    rows = []
    doubts: dict[str, list[str]] = {}
    for parameter, aliases in names.items():
        matching = (
            (number, change)
            for number, change in enumerate(changes)
            if any(fnmatchcase(name, change.pattern) for name in aliases)
        )
        number, change = next(matching, (-1, Override("")))
        unused.pop(number, None)
        if parameter.is_floating_point() or parameter.is_complex():  # others, such as quantised ones, cannot
            role, why, doubt = roles[aliases[0]]
            if change.role is not None:
                role, why, doubt = change.role, f"override {change.pattern}", ""
            rows.append(Row(aliases[0], parameter, role, change.lr_scale, change.weight_decay, why))
            if doubt and parameter.requires_grad:
                doubts.setdefault(doubt, []).append(aliases[0])
    if unused:
        raise LichenError(
            f"optimizer table: no parameter is left for the override {_listed(unused.values())}; a pattern "
            "must match a whole name (* is any text), and the first pattern that matches counts"
        )
    if any(change.role is not None and change.role.kind in ("head", "embedding") for change in changes):
        sentences = []  # of the output layer, which may be an embedding
    sentences += [f"{_patterns(named)} {doubt}" for doubt, named in doubts.items()]
    for sentence in sentences:
        warnings.warn(f"optimizer table: {sentence}; an override can decide it", stacklevel=2)
    return ParameterTable(tuple(rows), tuple(sentences))


def _change(override: Any) -> Override:
    if isinstance(override, tuple) and len(override) in (2, 3, 4):
        change = Override(*override)
        if isinstance(change.pattern, str) and isinstance(change.role, Role | None):
            return change
    raise LichenError(
        f"optimizer table: {override!r} is no override; give a list of (pattern, Role(...)) tuples or "
        "Override(...)s"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `torch.compile` and data parallelism."""
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif (compiled := getattr(model, "_orig_mod", None)) is not None:
            model = compiled
        else:
            return model


def plain_name(name: str) -> str:
    """The name without the marks of wrappers inside the model."""
    for mark in WRAPPERS:
        name = name.replace(f"{mark}.", "")
    return name


def _roles(model: nn.Module, names: Iterable[list[str]]) -> tuple[Mapping[str, Inferred], list[str]]:
    """First name of every parameter -> its role, as stated or inferred; and doubts about the whole model."""
    parameter_roles: Callable[[], Mapping[str, Role]] | None = getattr(model, "parameter_roles", None)
    doubts: list[str] = []
    if parameter_roles is None:
        given, doubts = infer_roles(model)
    else:
        given = {name: Inferred(role, "stated by the model") for name, role in parameter_roles().items()}
    stated = {plain_name(name): role for name, role in given.items()}
    roles: dict[str, Inferred] = {}
    missing: list[str] = []
    for aliases in names:
        known = [stated[name] for name in aliases if name in stated]
        if known:  # a weight that is tied to an embedding is one, whatever it is called first
            ends = [each for kind in ("embedding", "head") for each in known if each.role.kind == kind]
            roles[aliases[0]] = (ends or known)[0]
        else:
            missing.append(aliases[0])
    if missing:
        raise LichenError(f"optimizer table: the model gives no role to {_listed(missing)}")
    if unknown := set(stated).difference(*names):
        raise LichenError(
            f"optimizer table: the model gives a role to {_listed(unknown)}, but has no such parameter"
        )
    return roles, doubts


def _patterns(names: Iterable[str]) -> str:
    """The names, those that differ in a number only as one pattern."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(pattern if len(named) > 1 else named[0] for pattern, named in alike.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
