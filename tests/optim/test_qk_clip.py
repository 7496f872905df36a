"""QK-clip by hand, head by head, and on the logits of the next forward pass."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.rope import Rope, Yarn
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.optim import Muon, parameter_table, qk_clip, recipes
from tests.conftest import loss_of

HEADS, HIDDEN, VOCABULARY = 4, 32, 50
ROPE = Rope(10000.0, interleaved=True, scaling=Yarn(4.0, 64, mscale=1.0, mscale_all_dim=1.0))
ATTENTION = {
    "mla": MLA(
        HEADS, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, rope=ROPE
    ),
    "mla without q_lora": MLA(
        HEADS,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        rope=ROPE,
    ),
    "gqa": GQA(HEADS, num_key_value_heads=2, head_dim=8, rope=ROPE),
    "gqa with bias": GQA(HEADS, num_key_value_heads=2, head_dim=8, rope=ROPE, attention_bias=True),
}
NAME = "model.layers.0.self_attn"


def build(attention: MLA | GQA) -> Transformer:
    """One layer, so that clipping changes nothing before the attention it is applied to."""
    family = "deepseek_v3" if isinstance(attention, MLA) else "llama"
    model = Transformer(
        ModelSpec(
            family=family,
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            layers=(LayerSpec(attention, Dense(16)),),
            max_position_embeddings=256,
        )
    )
    model.initialize(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name and parameter.ndim == 2:
                parameter.mul_(60)
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model


def largest_logits(model: Transformer) -> dict[str, Tensor]:
    tokens = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))
    return loss_of(model, tokens, tokens, max_logits=True).max_logits


@pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION.keys())
def test_logits_are_capped_at_tau_after_the_clip(attention: MLA | GQA) -> None:
    model = build(attention)
    before = largest_logits(model)
    tau = before[NAME].sort().values[1:3].mean().item()  # two heads above, two below
    assert qk_clip(model, before, tau) == {NAME: 2}
    torch.testing.assert_close(largest_logits(model)[NAME], before[NAME].clamp(max=tau), rtol=1e-4, atol=0)
    assert qk_clip(model, before, 1e6) == {NAME: 0}


@pytest.mark.parametrize("q_lora_rank", [12, None])
def test_mla_rows_by_hand(q_lora_rank: int | None) -> None:
    spec = replace(ATTENTION["mla"], q_lora_rank=q_lora_rank)
    model = build(spec)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = torch.tensor([50.0, 400.0, 100.0, -3.0])
    qk_clip(model, {NAME: logits}, tau=100.0)

    query = f"{NAME}.q_proj.weight" if q_lora_rank is None else f"{NAME}.q_b_proj.weight"
    key_value = f"{NAME}.kv_b_proj.weight"
    expected = {name: weight.clone() for name, weight in old.items()}
    # Only head 1 is above 100: gamma = 1/4. Queries have 6 + 4 rows per head, keys and values 6 + 5.
    expected[query][10:16] *= 0.5
    expected[query][16:20] *= 0.25
    expected[key_value][11:17] *= 0.5
    for name, weight in model.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_gqa_rows_by_hand() -> None:
    """A key is shared by two query heads here, so a clipped head's query takes the whole factor."""
    model = build(ATTENTION["gqa with bias"])
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    qk_clip(model, {NAME: torch.tensor([40.0, 5.0, 10.0, 20.0])}, tau=10.0)
    expected = {name: weight.clone() for name, weight in old.items()}
    for leaf in ("weight", "bias"):
        expected[f"{NAME}.q_proj.{leaf}"][0:8] *= 0.25
        expected[f"{NAME}.q_proj.{leaf}"][24:32] *= 0.5
    for name, weight in model.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_a_clipped_step_ends_near_tau() -> None:
    """In training the factor comes from the forward pass before the step: exact up to what the step moved."""
    model = build(ATTENTION["mla"])
    recipe = replace(recipes.muonclip, lr=1e-5, qk_clip_tau=5.0)
    optimizer = Muon(parameter_table(model), recipe)
    tokens = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))
    out = loss_of(model, tokens, tokens, max_logits=True)
    assert out.max_logits[NAME].min() > 5.0
    out.loss.backward()
    optimizer.step()
    assert recipe.qk_clip_tau is not None
    assert qk_clip(model, out.max_logits, recipe.qk_clip_tau) == {NAME: HEADS}
    torch.testing.assert_close(largest_logits(model)[NAME], torch.full((HEADS,), 5.0), rtol=0.01, atol=0)


def test_a_compiled_model_is_clipped_by_its_plain_names() -> None:
    model = build(ATTENTION["mla"])
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    logits = {NAME: torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert qk_clip(torch.compile(model, backend="eager"), logits, tau=2.0) == {NAME: 2}


@pytest.mark.parametrize(
    ("name", "logits", "tau", "words"),
    [
        (NAME, [1.0, 2.0, float("nan"), 3.0], 100.0, "are not finite"),
        (NAME, [1.0, 2.0, float("inf"), 3.0], 100.0, "are not finite"),
        (NAME, [1.0, 2.0], 100.0, r"has 4 heads, but its largest logits have shape \(2,\)"),
        ("model.layers.7.self_attn", [1.0] * 4, 100.0, "is not multi-head latent or grouped-query attention"),
        ("model.layers.0.mlp", [1.0] * 4, 100.0, "is not multi-head latent or grouped-query attention"),
        (NAME, [1.0] * 4, 0.0, "tau is 0.0"),
    ],
)
def test_what_cannot_be_clipped_is_refused(name: str, logits: list[float], tau: float, words: str) -> None:
    model = build(ATTENTION["mla"])
    old = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(LichenError, match=words):
        qk_clip(model, {name: torch.tensor(logits)}, tau)
    assert all(map(torch.equal, old, model.parameters()))
