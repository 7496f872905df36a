"""Every benchmark runs from end to end on a tiny model and writes what it found."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lichen.machine.precision import multiplies_bf16

ROOT = Path(__file__).parents[2]
NATIVE = "bf16" if multiplies_bf16("cpu") else "fp32"  # a format that is emulated would take minutes


@functools.cache
def run(name: str) -> tuple[dict[str, Any], str]:
    """What a benchmark wrote and what it printed; every benchmark runs once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(file.read_text()), done.stdout


@pytest.mark.parametrize(
    ("name", "column", "contenders"),
    [
        ("train_step", "CPU ms", {f"lichen {NATIVE}", "transformers fp32 eager"}),
        ("decode", "tokens/s", {f"lichen {NATIVE}", f"transformers {NATIVE}"}),
        ("muon_step", "CPU ms", {"lichen", "torch.optim.Muon", "fused AdamW"}),
    ],
)
def test_quick(name: str, column: str, contenders: set[str]) -> None:
    found, printed = run(name)
    rows = next(value for key, value in found.items() if "thread" in key)
    measured = {row.get("contender", row.get("optimizer")): row[column] for row in rows}
    assert contenders <= measured.keys()
    assert all(math.isfinite(value) for value in measured.values())
    assert all(contender in printed for contender in contenders)
    assert {"machine", "date", "command", "targets"} <= found.keys()
    assert all(math.isfinite(target["value"]) for target in found["targets"])


def test_decode_says_whether_llama_cpp_took_part() -> None:
    found, printed = run("decode")
    raced = {row["contender"] for row in found["batch 2, 1 thread"]}
    assert (found["machine"]["llama_cpp_python"] == "not installed") == (find_spec("llama_cpp") is None)
    assert any(name.startswith("llama.cpp") for name in raced) == ("llama.cpp's logits" in printed)


def test_muon_says_what_it_did_not_measure() -> None:
    found, printed = run("muon_step")
    assert ("not measured: no CUDA device" in printed) != torch.cuda.is_available()
    for package in ("pytorch_optimizer", "heavyball"):
        assert (found["machine"][package] == "not installed") == (find_spec(package) is None)
    assert {"forms, 1 thread", "QK-clip, 2 x 64, 1 thread"} <= found.keys()
