"""The router against transformers' routers, and the behaviour of its selection bias."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, Qwen3MoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from lichen.arch.parts.moe import Router
from lichen.nn.forward import Pass
from lichen.nn.router import TopK, update_selection_bias
from lichen.ops.sequences import Sequences
from tests.conftest import loss_of

from .conftest import DEEPSEEK, make_model, next_tokens, random_tokens

HIDDEN, EXPERTS, TOKENS = 16, 16, 300


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed))


def update(gate: TopK, counts: Tensor, rate: float) -> None:
    update_selection_bias(gate, {"": counts}, rate)


def make_gate(spec: Router) -> TopK:
    generator = torch.Generator().manual_seed(1)
    gate = TopK(spec, HIDDEN)
    for tensor in gate.state_dict().values():
        tensor.normal_(0.0, 0.3, generator=generator)
    return gate


def routed(gate: TopK, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, chosen experts and their weights."""
    at = Pass(Sequences([len(x)]), observe=["routing"])
    experts, weights = gate(x, at)
    _, scores, recorded = at.records["routing"][gate]
    assert torch.equal(recorded, experts)
    return scores, experts, weights


def spread(experts: Tensor, weights: Tensor) -> Tensor:
    """(N, E): the weight of each expert, 0 for those not chosen; the order of the chosen does not count."""
    return torch.zeros(len(experts), EXPERTS).scatter(1, experts, weights)


def assert_same_routing(gate: TopK, theirs: torch.nn.Module) -> None:
    """Same experts, same weights, same gradient of the router's matrix."""
    theirs.load_state_dict(gate.state_dict())
    x = tokens()
    _, experts, weights = routed(gate, x)
    ours = spread(experts, weights)
    _, their_weights, their_experts = theirs(x)
    reference = spread(their_experts, their_weights)
    assert torch.equal(ours > 0, reference > 0)
    torch.testing.assert_close(ours, reference)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    for routing in (ours, reference):
        (routing * upstream).sum().backward()
    torch.testing.assert_close(gate.weight.grad, theirs.get_parameter("weight").grad)


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (4, 4), (8, 3)])
@pytest.mark.parametrize("norm", [True, False])
def test_sigmoid_router_is_deepseek_v3s(n_group: int, topk_group: int, norm: bool) -> None:
    choices = {
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "n_group": n_group,
        "topk_group": topk_group,
        "norm_topk_prob": norm,
        "routed_scaling_factor": 2.5,
    }
    gate = make_gate(Router(**choices))
    gate.state_dict()["e_score_correction_bias"].sub_(1)  # biased scores may all be negative
    config = DeepseekV3Config(hidden_size=HIDDEN, **choices)
    assert_same_routing(gate, DeepseekV3TopkRouter(config))
    unbiased = routed(gate, tokens())[0].topk(4).indices
    assert not torch.equal(
        spread(routed(gate, tokens())[1], torch.ones(TOKENS, 4)), spread(unbiased, torch.ones(TOKENS, 4))
    )


def test_softmax_router_is_deepseek_v2s() -> None:
    spec = Router(EXPERTS, 4, "softmax", selection_bias=False, norm_topk_prob=False, routed_scaling_factor=16)
    config = DeepseekV2Config(
        hidden_size=HIDDEN,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=4,
        routed_scaling_factor=16.0,
        topk_method="greedy",
    )
    assert_same_routing(make_gate(spec), DeepseekV2TopkRouter(config))


def test_softmax_router_with_normalised_weights_is_qwen3s() -> None:
    spec = Router(EXPERTS, 4, "softmax", selection_bias=False)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=4, norm_topk_prob=True
    )
    assert_same_routing(make_gate(spec), Qwen3MoeTopKRouter(config))


def test_routing_is_fp32_whatever_the_compute_dtype() -> None:
    gate, x = make_gate(Router(EXPERTS, 4)), tokens().bfloat16()
    for ours, exact in zip(routed(gate, x), routed(gate, x.float()), strict=True):
        assert torch.equal(ours, exact)


def test_the_bias_chooses_but_does_not_weigh() -> None:
    gate = make_gate(Router(EXPERTS, 4, norm_topk_prob=False))
    assert gate.e_score_correction_bias is not None
    gate.e_score_correction_bias.zero_()
    gate.e_score_correction_bias[3] = 10.0
    scores, experts, weights = routed(gate, tokens())
    assert torch.all((experts == 3).any(1))
    torch.testing.assert_close(weights, scores.gather(1, experts))


@pytest.mark.parametrize(
    ("counts", "moves"),
    [
        ([10, 0, 5, 5], [-1.0, 1.0, 0.0, 0.0]),
        ([9, 1, 1, 1], [-1.5, 0.5, 0.5, 0.5]),
        ([0, 0, 0, 400], [0.5, 0.5, 0.5, -1.5]),
        ([7, 7, 7, 7], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_sign_rule_recentred(counts: list[int], moves: list[float]) -> None:
    gate = make_gate(Router(4, 2))
    before = gate.state_dict()["e_score_correction_bias"].clone()
    update(gate, torch.tensor(counts), 0.01)
    change = gate.state_dict()["e_score_correction_bias"] - before
    torch.testing.assert_close(change, 0.01 * torch.tensor(moves))
    assert change.sum().abs() < 1e-7


def test_without_a_bias_there_is_nothing_to_update() -> None:
    gate = make_gate(Router(4, 2, selection_bias=False))
    before = gate.weight.clone()
    update(gate, torch.tensor([4, 0, 0, 0]), 0.01)
    assert gate.e_score_correction_bias is None
    assert torch.equal(gate.weight, before)


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2)])
def test_updates_balance_a_skewed_router(n_group: int, topk_group: int) -> None:
    """Tokens share a direction that three experts like: without a bias these get nearly all of them.

    Every update sees other tokens; the balance is measured on tokens that no update saw.
    """
    spec = Router(EXPERTS, 2, n_group=n_group, topk_group=topk_group)
    gate = make_gate(spec)
    gate.load_state_dict({"weight": gate.weight, "e_score_correction_bias": torch.zeros(EXPERTS)})
    shared = F.normalize(gate.weight.detach()[[0, 5, 9]].sum(0), dim=0)

    def load(seed: int) -> Tensor:
        with torch.no_grad():
            _, experts, _ = routed(gate, tokens(seed) + 4 * shared)
        return torch.bincount(experts.flatten(), minlength=EXPERTS)

    def imbalance() -> float:
        counts = sum((load(seed) for seed in range(1000, 1010)), torch.zeros(EXPERTS)).float()
        return float(counts.max() / counts.mean())

    assert imbalance() > 4
    for step in range(600):
        update(gate, load(step), rate=0.002)
    assert imbalance() < 1.15
    bias = gate.state_dict()["e_score_correction_bias"]
    assert bias.abs().max() > 0.1
    assert bias.mean().abs() < 1e-5


def test_the_model_updates_every_router_by_its_own_load() -> None:
    model = make_model(DEEPSEEK)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tokens = random_tokens(2, 30)
    output = loss_of(model, tokens, next_tokens(tokens), mtp_weight=0.1)
    update_selection_bias(model, output.routing, rate=0.25)
    after = dict(model.named_buffers())
    assert set(output.routing) == {f"model.layers.{i}.mlp.gate" for i in (1, 2, 3)}
    for name, counts in output.routing.items():
        buffer = f"{name}.e_score_correction_bias"
        sign = torch.sign(counts.float().mean() - counts)
        torch.testing.assert_close(after[buffer], before[buffer] + 0.25 * (sign - sign.mean()))
