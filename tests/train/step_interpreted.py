"""Takes whole steps as a GPU takes them, every Triton kernel in Triton's interpreter, and as a CPU does.

    TRITON_INTERPRET=1 python step_interpreted.py

prints, as JSON, how far losses, gradients, largest logits and updated weights are apart.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn.transformer import Transformer
from lichen.ops import (
    attention,
    cross_entropy,
    experts,
    experts_grouped,
    native,
    norm,
    rope,
    swiglu,
)
from lichen.optim import Muon, newton_schulz, parameter_table, recipes, rules
from lichen.train.objective import NextToken

ROPE = Rope(10000.0, True)
MOE = MoE(Router(8, 2, aux_loss_alpha=0.05), moe_intermediate_size=8, n_shared_experts=1)
LATENT = MLA(2, 12, 8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, rope=ROPE)
SPECS = {
    "deepseek": ModelSpec(
        "deepseek_v3",
        40,
        16,
        (LayerSpec(LATENT, Dense(24)), LayerSpec(LATENT, MOE)),
        64,
        mtp=(LayerSpec(LATENT, MOE),),
    ),
    "qwen3": ModelSpec(
        "qwen3", 40, 16, (LayerSpec(GQA(4, 2, 6, Rope(10000.0, False), qk_norm=True), Dense(24)),) * 2, 64
    ),
}


def result(spec: ModelSpec, recipe: recipes.OptimizerRecipe) -> dict[str, dict[str, Tensor]]:
    """Of two steps over packed documents: the last loss, gradients and logits, and the weights after it."""
    model = Transformer(spec)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(15 if parameter.ndim > 1 else 1)
    optimizer = Muon(parameter_table(model), recipe)
    tokens = torch.randint(40, (2, 17), generator=torch.Generator().manual_seed(1))
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], 1)
    segments = (torch.arange(17) >= torch.tensor([[7], [1]])).int()
    for _ in range(2):
        optimizer.zero_grad()
        output = NextToken(0.3, routing=True, max_logits=True)(model, tokens, targets, segments)
        output.loss.backward()
        optimizer.step(found_inf=torch.zeros(()))
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(found_inf=torch.ones(()))
    assert all(torch.equal(p, held[name]) for name, p in model.named_parameters())
    return {
        "loss": {"loss": output.loss.detach()},
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "largest logits": dict(output.max_logits),
        "weights": held,
    }


def main() -> None:
    rules_of = {"deepseek": recipes.muonclip, "qwen3": recipes.deepseek_v4_1}  # without Nesterov, and with it
    cases = [(name, spec, replace(rules_of[name], lr=0.05)) for name, spec in SPECS.items()]
    plain = [result(spec, recipe) for _, spec, recipe in cases]
    for module in (attention, cross_entropy, experts_grouped, norm, rope, rules, swiglu):
        module.runs_triton = lambda device_type: True
    newton_schulz.runs_triton = lambda device_type: False  # symmetric products have a test of their own
    for module in (attention, cross_entropy, experts, native):
        module.is_accelerator = lambda device: True
    found = {}
    for (name, spec, recipe), theirs in zip(cases, plain, strict=True):
        for kind, ours in result(spec, recipe).items():
            assert ours.keys() == theirs[kind].keys()
            found[f"{name}, {recipe.name}, {kind}"] = max(
                float((ours[key] - theirs[kind][key]).norm() / theirs[kind][key].norm().clamp(min=1e-9))
                for key in ours
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
