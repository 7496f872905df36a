"""Traces (`lichen.nn.trace`) in numbers, on the disk, and side by side.

A trace is a folder:

    trace.safetensors    every tensor by its name, and `tokens`, those that went in
    trace.json           what it is of, statistics of every tensor in the order of computation, and size and
                         SHA-256 of the other file

What another program computes can be compared as a safetensors file with the same names alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lichen
from lichen.errors import LichenError
from lichen.files.replace import whole_folder
from lichen.files.scan import require_file
from lichen.files.sealed import find_damage, seal
from lichen.weights.folder import DTYPE_CODES, Outgoing, StoredTensor, headers_of, read_tensor, write_file

TENSORS, SUMMARY, TOKENS = "trace.safetensors", "trace.json", "tokens"
READ_CODES = set(DTYPE_CODES.values())


# ---------------------------------------------------------------------------------------------- in numbers


@dataclass(frozen=True)
class Statistics:
    """Of a tensor: `mean`, `rms` and `largest` magnitude of its finite numbers; `zeros` and `not_finite` (NaN
    or infinity): shares of all."""

    shape: tuple[int, ...]
    dtype: str
    mean: float
    rms: float
    largest: float
    zeros: float
    not_finite: float


def statistics(tensor: Tensor) -> Statistics:
    values = tensor.double().flatten()
    finite = values[values.isfinite()]
    some = finite if len(finite) else values.new_zeros(1)
    return Statistics(
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        mean=some.mean().item(),
        rms=some.square().mean().sqrt().item(),
        largest=some.abs().max().item(),
        zeros=(values == 0).sum().item() / max(len(values), 1),
        not_finite=(len(values) - len(finite)) / max(len(values), 1),
    )


# --------------------------------------------------------------------------------------------- on the disk


def write_trace(
    out: Path, tensors: Mapping[str, Tensor], tokens: Sequence[int], said: dict[str, Any]
) -> None:
    """Write a trace of `tokens`, with what is `said` of it, to the folder `out`; an earlier one is replaced.

    Raises LichenError as `check_replaceable`, and where the disk is full or cannot be written.
    """
    everything = {TOKENS: torch.tensor(tokens), **tensors}
    with whole_folder(out) as building:
        outgoing = {name: Outgoing(tensor, tensor.dtype) for name, tensor in everything.items()}
        write_file(building / TENSORS, outgoing, finite=False)
        described = {name: asdict(statistics(tensor)) for name, tensor in tensors.items()}
        seal(building, SUMMARY, {"lichen": lichen.__version__, **said, "tensors": described})
        check_replaceable(out)


def check_replaceable(out: Path) -> None:
    """Raise LichenError if `out` holds anything else than an earlier trace."""
    if not out.exists():
        return
    if not out.is_dir():
        raise LichenError(f"{out} is a file; name a folder for the trace")
    present = {entry.name for entry in out.iterdir()}
    if present and (SUMMARY not in present or present - {SUMMARY, TENSORS}):
        raise LichenError(f"{out} holds something else than an earlier trace; name another folder")


@dataclass(frozen=True)
class Stored:
    """What was computed before, or elsewhere, at `path`: `tensors` by name, and of which `tokens`, where it
    says so."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    tokens: tuple[int, ...] | None


def open_trace(path: Path) -> Stored:
    """The trace in the folder `path`, or a safetensors file of another program.

    Raises LichenError for what cannot be read or is not as it was written.
    """
    _check_whole(path)
    file = path / TENSORS if path.is_dir() else path
    try:
        require_file(file)
    except FileNotFoundError:
        raise LichenError(f"there is no {file}; name a trace's folder or a safetensors file") from None
    tensors = headers_of(file)
    tokens = tensors.pop(TOKENS, None)
    if tokens is None:
        return Stored(path, tensors, None)
    if tokens.dtype not in ("I64", "I32"):
        raise LichenError(f"{file}: {TOKENS} is stored as {tokens.dtype}; they are numbers in int64")
    return Stored(path, tensors, tuple(read_tensor(tokens).flatten().tolist()))


def _check_whole(path: Path) -> None:
    if path.is_dir() and (reason := find_damage(path, (TENSORS,), SUMMARY)):
        raise LichenError(f"{path} is no whole trace: {reason}; write it again with --out")


# --------------------------------------------------------------------------------------------- side by side


@dataclass(frozen=True)
class Difference:
    """Of one tensor here and there. difference: the largest between two numbers, over the largest magnitude
    there; of choices (integers): the share of tokens that chose others, in whatever order. cosine: of the
    angle between both as vectors. Both None where `problem` says why there is none."""

    name: str
    difference: float | None
    cosine: float | None
    problem: str | None = None

    def words(self) -> str:
        if self.problem or self.difference is None:
            return str(self.problem)
        if self.cosine is None:
            return f"{self.difference:.2%} of the tokens chose others"
        return f"the difference is {self.difference:.2g} of its largest number"

    def exceeds(self, bound: float) -> bool:
        return self.difference is None or self.difference > bound


def compare(tensors: Mapping[str, Tensor], there: Stored) -> list[Difference]:
    """Of every tensor that has a name in common with one `there`, in the order of `tensors`.

    Dimensions of size 1, such as those of a batch, make no difference. Raises LichenError where no name is
    common to both, and as `open_trace`.
    """
    common = [name for name in tensors if name in there.tensors]
    if not common:
        theirs = f"the first is {min(there.tensors)}" if there.tensors else "there is none"
        raise LichenError(
            f"{there.path} has no tensor by a name that is traced: {theirs}, where the first here is "
            f"{next(iter(tensors))}; name tensors by the modules that return them"
        )
    differences = [_difference(name, tensors[name], there.tensors[name]) for name in common]
    _check_whole(there.path)  # which may have changed while the model computed
    return differences


def _difference(name: str, ours: Tensor, stored: StoredTensor) -> Difference:
    here, elsewhere = ([size for size in shape if size != 1] for shape in (ours.shape, stored.shape))
    if here != elsewhere:
        return Difference(name, None, None, f"{times(ours.shape)} here, {times(stored.shape)} there")
    if stored.dtype not in READ_CODES:
        return Difference(name, None, None, f"stored as {stored.dtype}, which is not compared")
    theirs = read_tensor(stored).reshape(ours.shape)
    if not ours.is_floating_point() and not theirs.is_floating_point():
        others = (ours.sort(-1).values != theirs.sort(-1).values).any(-1)
        return Difference(name, others.double().mean().item(), None)
    a, b = ours.double().flatten(), theirs.double().flatten()
    if where := [word for word, x in (("here", a), ("there", b)) if not x.isfinite().all()]:
        return Difference(name, None, None, f"NaN or infinity {' and '.join(where)}")
    if not len(a) or torch.equal(a, b):
        return Difference(name, 0.0, 1.0)
    scale = b.abs().max() or a.abs().max()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    return Difference(name, ((a - b).abs().max() / scale).item(), cosine.item())


def times(shape: Sequence[int]) -> str:
    """As people write it: 9 x 64."""
    return " x ".join(map(str, shape)) or "one number"
