"""The optimizer step alone: time, state and correctness of Lichen's Muon beside other implementations.

    python -m benchmarks.muon_step [--case tiny k2-layer] [--peers ...] [--threads 1] [--json FILE]

Everyone updates the same matrices with the same gradients, five Newton-Schulz steps each. "spread" is the
ratio of the largest to the smallest singular value in one expert's first update, the worst of four experts:
below 2 when every expert is orthogonalised by itself, well above when a stack of experts is taken for one
matrix. pytorch_optimizer and heavyball take part if they are installed (pip install --no-deps).

The floor is the three products of every Newton-Schulz step, as plain batched products of the very same
shapes in the very same chunks, measured in the same race. After the race of the tiny model come the cost of
QK-clip and the forms of Newton-Schulz by shape. A GPU's figures come from `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config

from benchmarks import models
from benchmarks.muon_forms import forms
from benchmarks.muon_peers import OPTIONAL, OURS, PEERS, REFERENCE, Make, installed, matrices_of, spread
from benchmarks.muon_qk_clip import cost
from benchmarks.race import Contender, Step, apart, race
from benchmarks.report import Report
from lichen.arch.families import load_spec, read_config
from lichen.arch.parts.moe import MoE
from lichen.arch.spec import ModelSpec
from lichen.machine.precision import matmul_dtype
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, ParameterTable, parameter_table
from lichen.optim.newton_schulz import KELLER_JORDAN
from lichen.optim.rules import CHUNK_ENTRIES

FLOOR = "floor"
K2_EXPERTS = 2  # of Kimi K2's 384


# ------------------------------------------------------------------------------------------- the cases


def spec_of(case: str) -> ModelSpec:
    if case != "k2-layer":
        config = models.TRAIN_CONFIG | (models.QUICK if case == "quick" else {})
        return read_config(DeepseekV3Config(**config).to_dict())
    spec = load_spec("kimi-k2")
    layer = spec.layers[-1]
    assert isinstance(layer.feed_forward, MoE)
    router = replace(layer.feed_forward.router, n_routed_experts=K2_EXPERTS, num_experts_per_tok=1)
    few = replace(layer, feed_forward=replace(layer.feed_forward, router=router))
    return replace(spec, vocab_size=8, layers=(few,))


def table_of(case: str) -> ParameterTable:
    """Parameters with gradients drawn from a normal distribution."""
    model = Transformer(spec_of(case))
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
    return parameter_table(model)


# ---------------------------------------------------------------------------------------- measurements


def stepper(make: Make, case: str) -> Step:
    """Steps of the matrices, and of the rest by fused AdamW; returns the bytes of the matrices' state."""
    table = table_of(case)
    optimizers = [make(table)]
    matrices = {p for group in optimizers[0].param_groups for p in group["params"]}
    if isinstance(optimizers[0], Muon):
        matrices = set(matrices_of(table))
    else:
        rest = [row.parameter for row in table if row.role.kind != "matrix"]
        optimizers.append(torch.optim.AdamW(rest, fused=True))
    gradients = [(p, p.grad) for o in optimizers for group in o.param_groups for p in group["params"]]

    def step(turn: int) -> float:
        for parameter, gradient in gradients:
            parameter.grad = gradient  # heavyball takes them away
        for optimizer in optimizers:
            optimizer.step()
        return float(sum(t.nbytes for matrix in matrices for t in _tensors(optimizers[0].state[matrix])))

    return step


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)


def floor(case: str) -> Step:
    counts: dict[tuple[int, int], int] = {}
    for row in table_of(case):
        if row.role.kind == "matrix":
            for batch in row.batches(row.parameter.detach(), per_head=False):
                short, long = sorted(batch.shape[1:])
                counts[short, long] = counts.get((short, long), 0) + batch.size(0)
    chunks: list[Tensor] = []
    for (short, long), count in counts.items():
        limit = max(1, CHUNK_ENTRIES["cpu"] // (short * long))
        batch = torch.randn(count, short, long).div_(long).to(matmul_dtype("cpu"))
        chunks += batch.split(limit)
    squares = {x.shape: (x @ x.mT, x @ x.mT, torch.empty_like(x)) for x in chunks}

    def step(turn: int) -> float:
        for x in chunks:
            gram, polynomial, y = squares[x.shape]
            for _ in KELLER_JORDAN:
                torch.bmm(x, x.mT, out=gram)
                torch.bmm(gram, gram, out=polynomial)
                torch.bmm(polynomial, x, out=y)
        return 0.0

    return step


def compare(report: Report, case: str, names: set[str], threads: int, rounds: int) -> None:
    key = f"{case}, {threads} thread{'s' * (threads > 1)}"
    report.heading(key)
    if case == "k2-layer":
        report.say(f"One layer of Kimi K2 with {K2_EXPERTS} of its 384 experts.\n")
    peers = {name: make for name, make in PEERS.items() if name in names and installed(name)}
    contenders = [Contender(name, stepper, (make, case)) for name, make in peers.items()]
    contenders.append(Contender(FLOOR, floor, (case,)))
    results = {r.name: r for r in race(contenders, rounds=rounds, warmup=2, threads=threads)}
    bound = results.pop(FLOOR).cpu
    report.table(
        key,
        [
            {
                "optimizer": name,
                "CPU ms": 1e3 * r.cpu,
                "wall ms": 1e3 * r.wall,
                "over torch.optim.Muon": r.cpu / results[REFERENCE].cpu,
                "over the floor": r.cpu / bound,
                "matrix state MB": r.values[-1] / 1e6,
                "spread": "" if name == "fused AdamW" else apart(spread, peers[name], threads=threads),
            }
            for name, r in results.items()
        ],
    )
    report.say(f"\nFloor: {1e3 * bound:.1f} CPU ms.\n")
    mine, adamw = results[OURS], results.get("fused AdamW")
    report.target(f"{key}: time over {REFERENCE}", mine.cpu / results[REFERENCE].cpu, at_most=0.6)
    report.target(f"{key}: time over the floor", mine.cpu / bound, at_most=1.15)
    if adamw is not None:
        report.target(f"{key}: matrix state over AdamW's", mine.values[-1] / adamw.values[-1], at_most=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=("tiny", "k2-layer"), nargs="+", default=["tiny"])
    parser.add_argument(
        "--peers", choices=PEERS, nargs="+", default=list(PEERS), help="fewer need less memory"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    report = Report("muon_step", packages=OPTIONAL)
    report.begin()
    for threads in options.threads:
        for case in ["quick"] if options.quick else options.case:
            compare(report, case, {OURS, REFERENCE, *options.peers}, threads, rounds)
        if "tiny" in options.case:
            cost(report, threads, rounds, options.quick)
            forms(report, threads, rounds)
    report.end(options.json)


if __name__ == "__main__":
    main()
