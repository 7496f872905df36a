"""The optimizer step alone: time, state and correctness of Lichen's Muon beside other implementations.

    python -m benchmarks.muon_step [--case tiny k2-layer] [--threads 1] [--rounds 15] [--json FILE]

Everyone updates the same matrices with the same gradients, five Newton-Schulz steps each. "spread" is the
ratio of the largest to the smallest singular value in one expert's first update, the worst of four experts:
below 2 when every expert is orthogonalised by itself, well above when a stack of experts is taken for one
matrix. pytorch_optimizer and heavyball take part if they are installed.

The floor is the three products of every Newton-Schulz step, as plain batched products of the very same
shapes in the very same chunks, measured in the same race.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config

from benchmarks import models
from benchmarks.race import Contender, Step, apart, race
from benchmarks.report import Report
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.ops.precision import matmul_dtype
from lichen.optim import Muon, ParameterTable, parameter_table, recipes
from lichen.optim.muon import CHUNK_ENTRIES
from lichen.optim.newton_schulz import KELLER_JORDAN
from lichen.optim.table import Row
from lichen.spec.families import load_spec, read_config
from lichen.spec.model import ModelSpec, MoE

OURS, REFERENCE, FLOOR = "lichen", "torch.optim.Muon", "floor"
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


def expert_stack() -> ParameterTable:
    """Four experts of (32, 64) whose gradients differ in size."""
    stack = nn.Parameter(torch.zeros(4, 32, 64))
    sizes = torch.tensor([1.0, 3.0, 0.3, 0.1]).view(4, 1, 1)
    stack.grad = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(2)) * sizes
    return ParameterTable((Row("experts", stack, Role("matrix")),))


def matrices_of(table: ParameterTable) -> list[nn.Parameter]:
    return [row.parameter for row in table if row.role.kind == "matrix"]


def separate_matrices_of(table: ParameterTable) -> list[nn.Parameter]:
    """Every logical matrix as a parameter of its own: what an optimizer for 2-D parameters needs."""
    separate = []
    for row in table:
        gradient = row.parameter.grad
        if row.role.kind == "matrix" and gradient is not None:
            batches = (row.matrices(tensor, per_head=False) for tensor in (row.parameter.detach(), gradient))
            for weights, gradients in zip(*batches, strict=True):
                for weight, its_gradient in zip(weights, gradients, strict=True):
                    parameter = nn.Parameter(weight)
                    parameter.grad = its_gradient
                    separate.append(parameter)
    return separate


# ------------------------------------------------------------------------------------------- the peers


class KellerJordanMuon(torch.optim.Optimizer):
    """The published algorithm, one matrix at a time, in bf16."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.02, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                x = weight.grad.lerp(momentum, group["momentum"]).bfloat16()
                tall = x.size(0) > x.size(1)
                x = x.mT if tall else x
                x = x / (x.norm() + 1e-7)
                for a, b, c in KELLER_JORDAN:
                    gram = x @ x.mT
                    x = a * x + (b * gram + c * gram @ gram) @ x
                x = x.mT if tall else x
                weight.add_(x, alpha=-group["lr"] * max(1, weight.size(0) / weight.size(1)) ** 0.5)


def lichen(table: ParameterTable) -> torch.optim.Optimizer:
    return Muon(table, recipes.moonlight)


def torch_muon(table: ParameterTable) -> torch.optim.Optimizer:
    return torch.optim.Muon(separate_matrices_of(table), adjust_lr_fn="match_rms_adamw")


def keller_jordan(table: ParameterTable) -> torch.optim.Optimizer:
    return KellerJordanMuon(separate_matrices_of(table))


def pytorch_optimizer(table: ParameterTable) -> torch.optim.Optimizer:
    from pytorch_optimizer import Muon as Theirs  # type: ignore[import-not-found]

    return Theirs([{"params": matrices_of(table), "use_muon": True}])


def heavyball(table: ParameterTable) -> torch.optim.Optimizer:
    from heavyball import Muon as Theirs  # type: ignore[import-not-found]

    return Theirs(matrices_of(table))


def fused_adamw(table: ParameterTable) -> torch.optim.Optimizer:
    return torch.optim.AdamW(matrices_of(table), fused=True)


Make = Callable[[ParameterTable], torch.optim.Optimizer]
PEERS: dict[str, Make] = {
    OURS: lichen,
    REFERENCE: torch_muon,
    "Keller Jordan's, one matrix at a time": keller_jordan,
    "pytorch_optimizer": pytorch_optimizer,
    "heavyball": heavyball,
    "fused AdamW": fused_adamw,
}


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


def spread(make: Make) -> float:
    """Largest over smallest singular value of an expert's first update, the worst of four experts."""
    optimizer = make(expert_stack())
    optimizer.step()
    moved = [p.detach().reshape(-1, 32, 64) for group in optimizer.param_groups for p in group["params"]]
    values = torch.linalg.svdvals(torch.cat(moved).double())
    return float((values[:, 0] / values[:, -1]).max())


def floor(case: str) -> Step:
    counts: dict[tuple[int, int], int] = {}
    for row in table_of(case):
        if row.role.kind == "matrix":
            for batch in row.matrices(row.parameter.detach(), per_head=False):
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


def compare(report: Report, case: str, threads: int, rounds: int) -> None:
    key = f"{case}, {threads} thread{'s' * (threads > 1)}"
    report.heading(key)
    if case == "k2-layer":
        report.say(f"One layer of Kimi K2 with {K2_EXPERTS} of its 384 experts.\n")
    peers = {name: make for name, make in PEERS.items() if _installed(name)}
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
    mine, adamw = results[OURS], results["fused AdamW"]
    report.target(f"{key}: time over {REFERENCE}", mine.cpu / results[REFERENCE].cpu, at_most=0.6)
    report.target(f"{key}: time over the floor", mine.cpu / bound, at_most=1.15)
    report.target(f"{key}: matrix state over AdamW's", mine.values[-1] / adamw.values[-1], at_most=0.5)


def _installed(name: str) -> bool:
    return name not in ("pytorch_optimizer", "heavyball") or find_spec(name) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=("tiny", "k2-layer"), nargs="+", default=["tiny"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds")
    options = parser.parse_args()
    report = Report("muon_step", packages=("pytorch_optimizer", "heavyball"))
    report.begin()
    for case in ["quick"] if options.quick else options.case:
        for threads in options.threads:
            compare(report, case, threads, 2 if options.quick else options.rounds)
    report.end(options.json)


if __name__ == "__main__":
    main()
