"""The optimizers that `benchmarks.muon_step` lets run beside each other, and whether they are right."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from lichen.nn.roles import Role
from lichen.optim import Muon, ParameterTable, recipes
from lichen.optim.newton_schulz import KELLER_JORDAN
from lichen.optim.table import Row

OURS, REFERENCE = "lichen", "torch.optim.Muon"


def matrices_of(table: ParameterTable) -> list[nn.Parameter]:
    return [row.parameter for row in table if row.role.kind == "matrix"]


def separate_matrices_of(table: ParameterTable) -> list[nn.Parameter]:
    """Every logical matrix as a parameter of its own: what an optimizer for 2-D parameters needs."""
    separate = []
    for row in table:
        gradient = row.parameter.grad
        if row.role.kind == "matrix" and gradient is not None:
            batches = (row.batches(tensor, per_head=False) for tensor in (row.parameter.detach(), gradient))
            for weights, gradients in zip(*batches, strict=True):
                for weight, its_gradient in zip(weights, gradients, strict=True):
                    parameter = nn.Parameter(weight)
                    parameter.grad = its_gradient
                    separate.append(parameter)
    return separate


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
    from pytorch_optimizer import Muon as Theirs

    return Theirs([{"params": matrices_of(table), "use_muon": True}])


def heavyball(table: ParameterTable) -> torch.optim.Optimizer:
    from heavyball import Muon as Theirs

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
OPTIONAL = ("pytorch_optimizer", "heavyball")


def installed(name: str) -> bool:
    return name not in OPTIONAL or find_spec(name) is not None


def expert_stack() -> ParameterTable:
    """Four experts of (32, 64) whose gradients differ in size."""
    stack = nn.Parameter(torch.zeros(4, 32, 64))
    sizes = torch.tensor([1.0, 3.0, 0.3, 0.1]).view(4, 1, 1)
    stack.grad = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(2)) * sizes
    return ParameterTable((Row("experts", stack, Role("matrix")),))


def spread(make: Make) -> float:
    """Largest over smallest singular value of an expert's first update, the worst of four experts."""
    optimizer = make(expert_stack())
    optimizer.step()
    moved = [p.detach().reshape(-1, 32, 64) for group in optimizer.param_groups for p in group["params"]]
    values = torch.linalg.svdvals(torch.cat(moved).double())
    return float((values[:, 0] / values[:, -1]).max())
