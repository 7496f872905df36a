"""`lichen doctor`: what somebody who helps would ask for, and whether a folder of Lichen's is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lichen.cli.output import print_json, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.train.whole import Checked

LIBRARIES = (
    "torch",
    "triton",
    "numpy",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "pydantic",
    "typer",
    "genai-prices",
    "transformers",
)

Found = tuple[str, str, Any]
"""What a line is about, what it says, and the same for a program."""


def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="A run, checkpoint, export, prepared data or model to be checked."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Versions, processor, memory, devices, where files are; and whether FOLDER is whole."""
    if folder is not None and not folder.is_dir():
        raise LichenError(
            f"there is no folder {folder}; name a run, checkpoint, export, prepared data or model"
        )
    content: dict[str, Any] = {}
    for about, words, value in chain(_versions(), _machine(), _files(), _multipliers()):
        content[about] = value
        if not as_json:
            say_whole(f"{about:>12}: {words}")
    checked = []
    for each in _checked(folder):
        checked.append(each)
        if not as_json:
            state = f"damaged: {each.problem}" if each.problem else "whole"
            say_whole(f"\n{each.path}: {each.what}, {state}")
            say_whole(*(f"  no hash vouches for {name}" for name in each.unchecked))
            if each.doubt:
                say_whole(f"  {each.doubt}")
    if as_json:
        print_json(content | {"checked": [asdict(each) for each in checked]})
    if damaged := [each for each in checked if each.problem]:
        raise LichenError("; ".join(f"{each.path}: {each.problem}" for each in damaged))


def _checked(folder: Path | None) -> Iterator[Checked]:
    if folder is not None:
        from lichen.train.whole import check_folder

        yield from check_folder(folder)


def _versions() -> Iterator[Found]:
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    import lichen

    def of(library: str) -> str | None:
        try:
            return version(library)
        except PackageNotFoundError:
            return None

    found = {library: of(library) for library in LIBRARIES}
    at = str(Path(lichen.__file__).parent)
    yield "lichen", f"{lichen.__version__} in {at}", {"version": lichen.__version__, "folder": at}
    python = platform.python_version()
    yield "python", f"{python}, {sys.executable}", {"version": python, "executable": sys.executable}
    yield "libraries", ", ".join(f"{name} {at or 'not installed'}" for name, at in found.items()), found
    yield "system", platform.platform(), platform.platform()


def _machine() -> Iterator[Found]:
    import os

    from lichen.atlas.market.words import UNKNOWN, size
    from lichen.machine.about import cores, instructions, memory, processor

    yield "processor", processor(), processor()
    yield "instructions", " ".join(instructions()) or UNKNOWN, instructions()
    yield "cores", f"{cores()} of {os.cpu_count()}", {"usable": cores(), "all": os.cpu_count()}
    bytes_of = memory()
    total, free = (UNKNOWN if each is None else size(each) for each in (bytes_of.total, bytes_of.free))
    yield "memory", f"{total}, {free} free", {"total": bytes_of.total, "free": bytes_of.free}


def _files() -> Iterator[Found]:
    """Where they are, and the room there."""
    import shutil
    import warnings

    from lichen.atlas.catalogue.model import load, user_folder
    from lichen.atlas.market.words import size

    here = Path.cwd()
    free = shutil.disk_usage(here).free
    yield "disk", f"{size(free)} free in {here}", {"folder": str(here), "free": free}
    with warnings.catch_warnings(record=True) as problems:
        warnings.simplefilter("always")
        load()
    folder, left_out = str(user_folder()), [str(each.message) for each in problems]
    yield "own atlas", "; ".join([folder, *left_out]), {"folder": folder, "problems": left_out}


def _multipliers() -> Iterator[Found]:
    """What PyTorch computes with here: its import takes most of the command's time."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "pytorch", f"cannot be imported: {error}", None
        return
    from lichen.machine.precision import PAYS_FROM
    from lichen.machine.rates import speedup

    yield "threads", f"{torch.get_num_threads()} of PyTorch", torch.get_num_threads()
    devices = dict(_devices())
    yield "devices", ", ".join(devices) or "none but the processor", list(devices.values())
    factor = speedup(torch.bfloat16, torch.device("cpu"))
    verdict = "pays" if factor >= PAYS_FROM else "does not pay"
    yield "bf16", f"{verdict} on the processor: {factor:.2g} times the speed of fp32", factor
    yield _kernels()


def _kernels() -> Found:
    import subprocess

    from lichen.ops.native import cache_folder, compiled, compiler

    kernels, command = [], compiler()
    state = "none, for there is no C++ compiler"
    if command:
        try:
            kernels = compiled(command)
            state = f"{'compiled' if kernels else 'compiled when they are needed'} by {' '.join(command)}"
        except (OSError, subprocess.SubprocessError) as error:
            state = f"none, for {' '.join(command)} does not answer: {error}"
    cache = str(cache_folder())
    about = {"compiler": command, "cache": cache, "compiled": bool(kernels)}
    return "kernels", f"{state}, kept in {cache}", about


def _devices() -> Iterator[tuple[str, dict[str, Any]]]:
    import torch

    from lichen.atlas.market.words import size

    if (kind := torch.accelerator.current_accelerator(check_available=True)) is None:
        return
    driver = Path("/proc/driver/nvidia/version")
    version = driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else None
    for index in range(torch.accelerator.device_count()):
        properties = getattr(torch.get_device_module(kind), "get_device_properties", lambda _: None)(index)
        name, memory = (getattr(properties, field, None) for field in ("name", "total_memory"))
        words = f"{index}: {name or kind.type} {size(memory) if memory else ''} {version or ''}"
        yield " ".join(words.split()), {"name": name, "kind": kind.type, "memory": memory, "driver": version}
