"""Kernels in C++ for the processor at hand: compiled where they run, for the instructions that it has.

The sources lie in `lichen/ops/kernels`. The first process that needs them calls the system's C++ compiler,
which takes some seconds, and keeps the library in the user's cache; later ones load it. Without a compiler
PyTorch's operators do the same work more slowly: every operation that has a kernel has a form without one.

A kernel takes one block of 64-bit arguments: whole numbers, addresses and reals.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lichen.machine.accelerator import is_accelerator

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How kernels number the formats of numbers."""
PLAIN = (Tensor, nn.Parameter)
"""What has its numbers in memory: not so a distributed tensor."""
FEW = 64
"""Tokens of a pass that the kernels of a decoding step serve."""


def few(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels of a decoding step serve x (tokens, ...), or what of `dtype` will be made of it: a
    few tokens of inference in fp32, on a CPU."""
    return (
        (dtype or x.dtype) == torch.float32
        and x.shape[0] <= FEW
        and x.stride(-1) == 1
        and type(x) in PLAIN
        and not torch.is_grad_enabled()
        and not is_accelerator(x.device)
        and library() is not None
    )


def has_kernels(device: torch.device) -> bool:
    """Whether kernels of ours compute on `device`, a CPU with a compiler; compiles them if need be."""
    return device.type == "cpu" and library() is not None


def trains(x: Tensor) -> bool:
    """Whether the kernels of a training step serve x: on a CPU, in fp32 or bf16."""
    known = FORMATS.get(x.dtype, 2) < 2 and type(x) in PLAIN
    return known and not is_accelerator(x.device) and library() is not None


class Kernel:
    """A kernel by name; `layout`, as in `struct`: q for a whole number or a tensor, d for a real number."""

    def __init__(self, name: str, layout: str) -> None:
        self._name, self._pack = name, Struct(layout).pack
        self._function: Callable[[bytes], None] | None = None

    def __call__(self, *arguments: Tensor | int | float) -> None:
        block = self._pack(*[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments])
        if self._function is None:
            self._function = getattr(library(), self._name)
        self._function(block)
        if _recording.stack:
            _recording.stack[-1].calls.append((self._function, block))


class NotRecorded(Exception):
    """An operation that is no kernel computed something; `args` name it."""


class Recording(TorchDispatchMode):
    """The kernels that were called within a `with`, to be called again with the same memory.

    What they read from memory, such as tokens and positions, may have changed by then. Raises NotRecorded
    where PyTorch's own operators compute something, which would not be repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, bytes]] = []
        self._made: list[Any] = []  # whose memory the calls use
        self._list: ctypes.Array | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (func.is_view or func.overloadpacket in _ALLOCATE):
            raise NotRecorded(str(func))
        made = func(*args, **(kwargs or {}))
        self._made.append(made)
        return made

    def __enter__(self) -> "Recording":
        _recording.stack.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _recording.stack.pop()
        super().__exit__(*error)

    def play(self) -> None:
        """Call them all again."""
        if self._list is None:
            self._list = (ctypes.c_void_p * (2 * len(self.calls)))()
            for i, (function, block) in enumerate(self.calls):
                self._list[2 * i] = ctypes.cast(function, ctypes.c_void_p).value
                self._list[2 * i + 1] = ctypes.cast(ctypes.c_char_p(block), ctypes.c_void_p).value
        _play(ctypes.addressof(self._list), len(self.calls))


_play = Kernel("play", "2q")


class _Recordings(threading.local):
    """Those of each thread that are going on."""

    def __init__(self) -> None:
        self.stack: list[Recording] = []


_recording = _Recordings()
_ALLOCATE = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty}


def compiler() -> list[str]:
    """The command of the system's C++ compiler; empty where there is none."""
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")
    return shlex.split(os.environ.get("CXX") or found)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning that says why, where they cannot be had."""
    if not (command := compiler()):
        warnings.warn(
            "there is no C++ compiler, so PyTorch's operators compute what kernels would, which takes longer "
            "(decoding several times as long); install one (Debian and Ubuntu: apt-get install g++; macOS: "
            "xcode-select --install)",
            stacklevel=2,
        )
        return None
    try:
        return _load(command)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None)
        reason = told.decode(errors="replace").strip() if told else error
        warnings.warn(
            f"the kernels could not be compiled with {shlex.join(command)}, so PyTorch's operators compute "
            f"what they would, which takes longer (decoding several times as long): {reason}",
            stacklevel=2,
        )
        return None


def compiled(command: list[str]) -> list[Path]:
    """Where the cache has the kernels that this compiler would make here, whole. Raises OSError or
    subprocess.SubprocessError for a compiler that does not answer."""
    return _compiled(_identity(command))


def _compiled(identity: str) -> list[Path]:
    found = cache_folder().glob(f"kernels-{identity}-*.so")
    return [path for path in found if path.name == _name(identity, path)]


def _identity(command: list[str]) -> str:
    """Of what a compiler would make here: a hash of all that it depends on."""
    # The compiler's version and the processor's instructions, among others.
    macros = _output([*command, *_flags(), "-dM", "-E", "-x", "c++", os.devnull])
    content = b"".join(source.read_bytes() for source in sorted(SOURCES.iterdir()))
    return hashlib.sha256(b" ".join([content, macros, *map(str.encode, _flags())])).hexdigest()[:16]


def _load(command: list[str]) -> ctypes.CDLL:
    """The library from the cache, where it is whole, or compiled now."""
    identity = _identity(command)
    for path in _compiled(identity):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    folder = cache_folder()
    print("compiling the kernels for this processor (once)", file=sys.stderr)
    handle, name = tempfile.mkstemp(prefix=".kernels-", dir=folder)
    os.close(handle)
    building = Path(name)
    try:
        units = map(str, sorted(SOURCES.glob("*.cpp")))
        _output([*command, *_flags(), *units, "-o", name])
        path = folder / _name(identity, building)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _name(identity: str, path: Path) -> str:
    """What the library is called: with its size, by which one that was cut short is known."""
    return f"kernels-{identity}-{path.stat().st_size}.so"


def _output(command: list[str]) -> bytes:
    """Of a compiler that Ctrl-C does not reach: it stops us, not half of our work."""
    return subprocess.run(
        command, capture_output=True, check=True, timeout=600, start_new_session=True
    ).stdout


def _flags() -> list[str]:
    return [*FLAGS, *_instructions(), *_threads()]


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


def cache_folder() -> Path:
    """The user's cache, or where it cannot be written a folder for this process alone."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lichen"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return Path(_own_folder().name)


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="lichen-")
