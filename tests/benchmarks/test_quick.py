"""Every benchmark runs from end to end on a tiny model and writes what it found."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from lichen.machine import accelerator
from lichen.machine.precision import multiplies_bf16

ROOT = Path(__file__).parents[2]
NATIVE = "bf16" if multiplies_bf16("cpu") else "fp32"  # a format that is emulated would take minutes


@functools.cache
def run(name: str, *options: str) -> tuple[dict[str, Any], str]:
    """What a benchmark wrote and what it printed; every benchmark runs once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options, "--quick", "--json", str(file)],
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
        ("train_step --model v4", "CPU ms", {f"lichen {NATIVE}", "transformers fp32 eager"}),
        ("decode", "tokens/s", {f"lichen {NATIVE}", f"transformers {NATIVE}"}),
        ("muon_step", "CPU ms", {"lichen", "torch.optim.Muon", "fused AdamW"}),
    ],
)
def test_quick(name: str, column: str, contenders: set[str]) -> None:
    found, printed = run(*name.split())
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


def test_formats_of_weights_are_timed_by_size() -> None:
    found, _ = run("weight_formats")
    rows = [(row["matrix"], row["rows"]) for row in found["sizes"]]
    assert rows == [("96 x 192", 1), ("96 x 192", 8), ("256 x 256", 1), ("256 x 256", 8)]
    assert all(row[name] > 0 for row in found["sizes"] for name in ("PyTorch fp32", "fp32", "fp16", "int4"))


def test_muon_says_which_peers_there_were() -> None:
    found, _ = run("muon_step")
    for package in ("pytorch_optimizer", "heavyball"):
        assert (found["machine"][package] == "not installed") == (find_spec(package) is None)
    assert {"forms, 1 thread", "QK-clip, 2 x 64, 1 thread"} <= found.keys()


def test_gpu_runs_every_part_and_says_which_failed() -> None:
    """On a machine without one, a CPU is taken for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--quick", "--json", str(file)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        found = {figure["figure"]: figure for figure in json.loads(file.read_text())}
    assert not [figure for name, figure in found.items() if name.endswith("failed")]
    for name, goal in {
        "train: forward and backward with the largest logits": 60,
        "train: Muon's step over the model": 18,
        "train: over transformers' forward and backward": 0.35,
        "decode: batch 1, a step": 2,
        "decode: batch 32, a step": 4,
    }.items():
        assert found[name]["at_most"] == goal
        assert f"| {name} " in done.stdout
    for name in ("train: share of the matrix rate", "demo: recipes/demo.toml"):
        assert found[name]["value"] > 0
        assert found[name]["at_least"] > 0
    assert found["train: the same step has the same bits"]["value"] is True
    assert all(found[f"{part}: took"]["value"] > 0 for part in gpu.PARTS)
    assert sum(gpu.SECONDS.values()) <= 7 * 60


def test_a_part_that_fails_or_hangs_is_told_and_the_others_go_on(monkeypatch) -> None:
    monkeypatch.setattr(accelerator, "is_accelerator", accelerator.is_accelerator)  # to have it back
    monkeypatch.setitem(gpu.PARTS, "kernels", lambda quick: 1 / 0)
    with pytest.raises(SystemExit):
        gpu.one_part("kernels", True)
    figures = gpu.run("machine", True, limit=0.2)
    assert [figure["value"] for figure in figures if figure["figure"] == "machine: failed"] == [
        "not done in 0 s"
    ]
    assert gpu.goals(figures)[0]["met"] == "FAILED"
