"""Every benchmark runs from end to end on a tiny model and writes what it found."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, file: Path) -> tuple[dict[str, Any], str]:
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
        ("train_step", "CPU ms", {"lichen bf16", "transformers fp32 eager"}),
        ("decode", "tokens/s", {"lichen bf16", "transformers bf16", "lichen fp32", "transformers fp32"}),
        ("muon_step", "CPU ms", {"lichen", "torch.optim.Muon", "fused AdamW"}),
    ],
)
def test_quick(name: str, column: str, contenders: set[str], tmp_path: Path) -> None:
    found, printed = run(name, tmp_path / "found.json")
    rows = next(value for key, value in found.items() if "thread" in key)
    measured = {row.get("contender", row.get("optimizer")): row[column] for row in rows}
    assert contenders <= measured.keys()
    assert all(math.isfinite(value) for value in measured.values())
    assert all(contender in printed for contender in contenders)
    assert {"machine", "date", "command", "targets"} <= found.keys()
    assert all(math.isfinite(target["value"]) for target in found["targets"])
