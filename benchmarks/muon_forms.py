"""Which form of Newton-Schulz, in which number format, is fastest by shape: what `METHODS` is read from."""

from __future__ import annotations

import time
from statistics import median

import torch

from benchmarks.report import Report
from lichen.optim.newton_schulz import KELLER_JORDAN, TOGETHER, Form, form_for, orthogonalize
from lichen.optim.rules import CHUNK_ENTRIES

SHORTER = (8, 16, 32, 64, 128, 256, 512, 1024)
RATIOS = (1, 2, 3, 4, 8)
TALL_RATIO = 2
CPU = torch.device("cpu")


def forms(report: Report, threads: int, rounds: int) -> None:
    """CPU ms of five steps on one chunk, all forms in turn; speeds over the plain form in bf16."""
    torch.set_num_threads(threads)
    counted = f"{threads} thread{'s' * (threads > 1)}"
    variants = {
        f"{str(dtype).removeprefix('torch.')} {'plain' if together == 1 else 'Gram'}": Form(
            dtype, together, transpose=False
        )
        for dtype in (torch.bfloat16, torch.float32)
        for together in (1, TOGETHER[dtype])
    }
    shorter_sides = SHORTER[: 2 if rounds == 2 else None]
    report.heading(f"forms, {counted}")
    report.table(
        f"forms, {counted}",
        [_row(rounds, variants, shorter, shorter * ratio) for shorter in shorter_sides for ratio in RATIOS],
    )
    report.heading(f"tall matrices, {counted}")
    tall = [(shorter * TALL_RATIO, shorter) for shorter in shorter_sides]
    report.table(
        f"tall matrices, {counted}",
        [
            _row(
                rounds,
                {
                    name: form_for(CPU, *shape)._replace(transpose=transpose)
                    for name, transpose in (("transposed", True), ("as they are", False))
                },
                *shape,
            )
            for shape in tall
        ],
    )


def _row(rounds: int, variants: dict[str, Form], rows: int, columns: int) -> dict[str, object]:
    count = max(1, CHUNK_ENTRIES["cpu"] // (rows * columns))
    matrices = torch.randn(count, rows, columns)
    matrices /= torch.linalg.matrix_norm(matrices, keepdim=True)
    laps: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, form in variants.items():
            x = matrices.to(form.dtype, copy=True)
            start = time.process_time()
            orthogonalize(x, KELLER_JORDAN, together=form.together, transpose=form.transpose)
            laps[name].append(time.process_time() - start)
    seconds = {name: median(times) for name, times in laps.items()}
    first, *others = seconds
    chosen = next(name for name, form in variants.items() if form == form_for(CPU, rows, columns))
    return {
        "rows": rows,
        "columns": columns,
        "matrices": count,
        f"{first}, ms": 1e3 * seconds[first],
        **{f"{name}, speed": seconds[first] / seconds[name] for name in others},
        "chosen": chosen,
        "time over the fastest's": seconds[chosen] / min(seconds.values()),
    }
