"""Steps on sharded parameters against the step of a single process, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from lichen.optim import recipes
from lichen.optim.rules import muon_steps

SCRIPT = Path(__file__).parent / "sharded_ranks.py"


def test_every_case_has_the_bits_of_a_single_process(tmp_path: Path) -> None:
    """2, then 4 processes, then one: replicated, sharded, mixed; checkpoints go from each to the next."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(reports) == {"2.0", "2.1", "4.0", "4.1", "4.2", "4.3", "1.0"}
    assert all(reports.values())
    wrong = [
        f"{report.replace('.', ' processes, rank ')}: {case}: {what}"
        for report, cases in reports.items()
        for case, differences in cases.items()
        for what in differences
    ]
    assert not wrong, "\n".join(wrong)


def test_a_matrix_has_the_same_bits_in_any_batch() -> None:
    """Owners batch other matrices together than a single process does."""
    for rows, columns in ((128, 256), (256, 128), (33, 17), (7, 40), (64, 512), (100, 300)):
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(12, rows, columns, generator=generator)
        (together,) = muon_steps([batch], [batch], recipes.moonlight)
        for size in (1, 2, 5):
            parts = batch.split(size)
            alone = [muon_steps([part], [part], recipes.moonlight)[0] for part in parts]
            assert torch.equal(torch.cat(alone), together), (rows, columns, size)
