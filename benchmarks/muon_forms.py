"""Which form of Newton-Schulz, in which number format, is fastest by shape: what `METHODS` is read from."""

from __future__ import annotations

import time
from statistics import median

import torch

from benchmarks.report import Report
from lichen.ops.precision import matmul_dtype
from lichen.optim.muon import CHUNK_ENTRIES
from lichen.optim.newton_schulz import KELLER_JORDAN, method_for, orthogonalize

SHORTER = (8, 16, 32, 64, 128, 256, 512, 1024)
RATIOS = (1, 2, 3, 4, 8)
CPU = torch.device("cpu")


def forms(report: Report, threads: int, rounds: int) -> None:
    """CPU ms of five steps on one chunk, all forms in turn; speeds over the plain form in bf16."""
    key = f"forms, {threads} thread{'s' * (threads > 1)}"
    report.heading(key)
    torch.set_num_threads(threads)
    half = matmul_dtype(CPU)
    variants = {
        f"{str(dtype).removeprefix('torch.')} {'Gram' if gram_form else 'plain'}": (dtype, gram_form)
        for dtype in dict.fromkeys((half, torch.float32))
        for gram_form in (False, True)
    }
    rows = []
    for shorter in SHORTER[: 2 if rounds == 2 else None]:
        for ratio in RATIOS:
            count = max(1, CHUNK_ENTRIES["cpu"] // (shorter * shorter * ratio))
            matrices = torch.randn(count, shorter, shorter * ratio)
            matrices /= torch.linalg.matrix_norm(matrices, keepdim=True)
            laps: dict[str, list[float]] = {name: [] for name in variants}
            for _ in range(rounds):
                for name, (dtype, gram_form) in variants.items():
                    x = matrices.to(dtype, copy=True)
                    start = time.process_time()
                    orthogonalize(x, KELLER_JORDAN, gram_form=gram_form)
                    laps[name].append(time.process_time() - start)
            seconds = {name: median(times) for name, times in laps.items()}
            first, *others = seconds
            method = method_for(CPU, shorter, shorter * ratio)
            chosen = next(name for name, variant in variants.items() if variant == method)
            rows.append(
                {
                    "shorter side": shorter,
                    "ratio": ratio,
                    "matrices": count,
                    f"{first}, ms": 1e3 * seconds[first],
                    **{f"{name}, speed": seconds[first] / seconds[name] for name in others},
                    "chosen": chosen,
                    "time over the fastest's": seconds[chosen] / min(seconds.values()),
                }
            )
    report.table(key, rows)
