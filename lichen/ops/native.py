"""Kernels in C++ for the processor at hand: compiled where they run, for the instructions that it has.

The sources lie in `lichen/ops/kernels`. The first process that needs them calls the system's C++ compiler,
which takes some seconds, and keeps the library in the user's cache; later ones load it. Without a compiler
PyTorch's operators do the same work more slowly: every operation that has a kernel has a form without one.

A kernel takes one block of 64-bit arguments: whole numbers, addresses and reals.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from struct import Struct

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.uint8: 4}
"""How kernels call the formats of numbers; of uint8, two numbers of four bits in a byte."""


def trains(x: Tensor) -> bool:
    """Whether the kernels of a training step serve x: on a CPU, in fp32 or bf16."""
    return x.device.type == "cpu" and FORMATS.get(x.dtype, 2) < 2 and library() is not None


class Kernel:
    """A kernel by name; `layout` has a letter for each argument: q whole number or tensor, d real."""

    def __init__(self, name: str, layout: str) -> None:
        self._name, self._pack = name, Struct(layout).pack
        self._function: Callable[[bytes], None] | None = None

    def __call__(self, *arguments: Tensor | int | float) -> None:
        block = self._pack(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments))
        if self._function is None:
            self._function = getattr(library(), self._name)
        self._function(block)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning that says why, where they cannot be had."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        warnings.warn(
            "there is no C++ compiler, so PyTorch's operators compute what kernels would, which takes longer "
            "(decoding several times as long); install one (Debian and Ubuntu: apt-get install g++; macOS: "
            "xcode-select --install)",
            stacklevel=2,
        )
        return None
    try:
        return _load(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None)
        reason = told.decode(errors="replace").strip() if told else error
        warnings.warn(
            f"the kernels could not be compiled with {compiler}, so PyTorch's operators compute what they "
            f"would, which takes longer (decoding several times as long): {reason}",
            stacklevel=2,
        )
        return None


def _load(compiler: str) -> ctypes.CDLL:
    flags = [*FLAGS, *_instructions(), *_threads()]
    macros = subprocess.run(
        [compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=True, timeout=60
    ).stdout  # the compiler's version and the processor's instructions, among others
    sources = sorted(SOURCES.iterdir())
    content = b"".join(source.read_bytes() for source in sources)
    name = (
        f"kernels-{hashlib.sha256(b' '.join([content, macros, *map(str.encode, flags)])).hexdigest()[:16]}.so"
    )
    path = _cache() / name
    if not path.exists():
        print("compiling the kernels for this processor (once)", file=sys.stderr)
        handle, building = tempfile.mkstemp(prefix=name, dir=path.parent)
        os.close(handle)
        try:
            units = [str(source) for source in sources if source.suffix == ".cpp"]
            subprocess.run(
                [compiler, *flags, *units, "-o", building], capture_output=True, check=True, timeout=600
            )
            os.replace(building, path)
        finally:
            Path(building).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _instructions() -> list[str]:
    """All that the processor has, or what PyTorch was told to keep to."""
    if "ATEN_CPU_CAPABILITY" in os.environ:
        return {"AVX2": ["-mavx2", "-mfma", "-mf16c"], "DEFAULT": []}.get(
            torch.backends.cpu.get_cpu_capability(), ["-march=native"]
        )
    return ["-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"]


def _threads() -> list[str]:
    """OpenMP, of which PyTorch has a copy of its own that must be the only one in the process."""
    return [] if sys.platform == "darwin" else ["-fopenmp"]


def _cache() -> Path:
    """The user's cache, or where it cannot be written a folder of this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lichen"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lichen-"))
