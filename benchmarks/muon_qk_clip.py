"""What QK-clip costs: a training step with and without it, the largest logits of every head included."""

from __future__ import annotations

import torch
from transformers import DeepseekV3Config

from benchmarks import models
from benchmarks.race import Contender, Step, race
from benchmarks.report import Report
from lichen.arch.families import read_config
from lichen.machine.allocator import keep_freed_memory
from lichen.machine.precision import matmul_dtype
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, parameter_table, qk_clip, recipes
from lichen.train.objective import NextToken

TAU = 100.0


def step_of(quick: bool, rows: int, length: int, clips: bool) -> Step:
    keep_freed_memory()  # as `lichen train` does
    torch.manual_seed(0)
    config = models.TRAIN_CONFIG | (models.QUICK if quick else {})
    model = Transformer(read_config(DeepseekV3Config(**config).to_dict()), matmul_dtype("cpu")).train()
    model.initialize(0)
    optimizer = Muon(parameter_table(model), recipes.muonclip)
    objective = NextToken(routing=True, max_logits=clips)

    def step(turn: int) -> float:
        generator = torch.Generator().manual_seed(turn)
        tokens = torch.randint(model.spec.vocab_size, (rows, length), generator=generator)
        out = objective(model, tokens, tokens)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if clips:
            qk_clip(model, out.max_logits, TAU)
        return float(out.loss.detach())

    return step


def cost(report: Report, threads: int, rounds: int, quick: bool) -> None:
    for rows, length in ((2, 64),) if quick else ((2, 512), (1, 2048)):
        key = f"QK-clip, {rows} x {length}, {threads} thread{'s' * (threads > 1)}"
        report.heading(key)
        contenders = [
            Contender(name, step_of, (quick, rows, length, clips))
            for name, clips in (("muonclip without QK-clip", False), ("muonclip", True))
        ]
        without, clipped = race(contenders, rounds=rounds, warmup=2, threads=threads)
        table = [{"optimizer": r.name, "CPU ms": 1e3 * r.cpu} for r in (without, clipped)]
        report.table(key, table)
        report.target(f"{key}: share of the step", clipped.cpu / without.cpu - 1, at_most=0.03)
