"""The training loss and what comes with it: by hand, against transformers' layers, and in parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3Model

from lichen.arch.families import write_config
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.nn.forward import Pass
from lichen.nn.router import TopK
from lichen.nn.transformer import Transformer
from lichen.ops.sequences import Sequences
from lichen.train.balance import balance_by_row, copies_by_row
from lichen.train.objective import LossOutput
from tests.conftest import logits_of, loss_of
from tests.nn.conftest import DEEPSEEK, LLAMA, ROUTER, make_model, next_tokens, random_tokens, with_router

BALANCED_ELSEWHERE = with_router(DEEPSEEK, replace(ROUTER, aux_loss_alpha=0.0))
MODULES = {f"model.layers.{i}.mlp.gate" for i in (1, 2, 3)}


def gradients(model: Transformer) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        difference = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert difference < tolerance, f"{name}: {difference:.1e}"


# ------------------------------------------------------------------------------------------ cross-entropy


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_cross_entropy_is_that_of_the_logits(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(3, 24)
    targets = next_tokens(tokens)
    targets[1, 5:9] = -100
    output = loss_of(model, tokens, targets)
    expected = F.cross_entropy(logits_of(model, tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.cross_entropy, expected)
    assert output.mtp is None
    assert (output.loss.shape, output.loss.dtype) == ((), torch.float32)


@pytest.mark.parametrize("attention", [DEEPSEEK, LLAMA], ids=["latent", "grouped"])
def test_a_pass_that_nobody_observes_waits_for_no_number(attention: ModelSpec) -> None:
    """Tensors without content can be computed with, and asked for no value."""
    layer = LayerSpec(attention.layers[0].attention, LLAMA.layers[0].feed_forward)
    with torch.device("meta"):
        model = Transformer(replace(LLAMA, layers=(layer, layer)))
        at = Pass(Sequences.packed(2, 24, device="meta"))
        hidden = model(torch.zeros(48, dtype=torch.int64), at)
    assert hidden.shape == (48, LLAMA.hidden_size)
    assert at.records == {}


def test_nothing_to_predict_is_no_loss() -> None:
    model, tokens = make_model(DEEPSEEK), random_tokens(2, 8)
    output = loss_of(model, tokens, torch.full_like(tokens, -100), mtp_weight=1.0)
    assert output.loss.item() == 0.0


def test_bf16_stays_near_fp32() -> None:
    """Every expert is chosen, so that no near tie turns into another choice.

    A matrix product of bf16 numbers is wrong by about 2^-8; a gradient has passed through a dozen of them.
    """
    everyone = replace(ROUTER, n_routed_experts=4, num_experts_per_tok=4, n_group=1, topk_group=1)
    spec, tokens = with_router(DEEPSEEK, everyone), random_tokens(4, 48)
    outputs, grads = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(spec, dtype)
        outputs.append(loss_of(model, tokens, next_tokens(tokens), mtp_weight=0.3))
        outputs[-1].loss.backward()
        grads.append(gradients(model))
        assert all(gradient.dtype == torch.float32 for gradient in grads[-1].values())
    assert outputs[1].loss.item() == pytest.approx(outputs[0].loss.item(), rel=2**-8)
    assert_same_gradients(grads[1], grads[0], tolerance=12 * 2**-8)


# -------------------------------------------------------------------------------------------- micro-batches


def test_accumulated_micro_batches_are_one_batch() -> None:
    """With the step's number of targets as normalizer: loss, parts, gradients, routing, largest logits."""
    model, tokens = make_model(DEEPSEEK), random_tokens(4, 24)
    segment_ids = (torch.arange(24) >= torch.tensor([[9], [24], [1], [15]])).int()
    targets = next_tokens(tokens)
    targets[0, 8] = targets[3, 14] = -100
    targets[1, 10:] = -100
    whole = loss_of(model, tokens, targets, segment_ids, max_logits=True, mtp_weight=0.3)
    whole.loss.backward()
    of_whole = gradients(model)
    parts: list[LossOutput] = []
    for rows in ([0], [1, 2, 3]):
        part = loss_of(
            model,
            tokens[rows],
            targets[rows],
            segment_ids[rows],
            max_logits=True,
            mtp_weight=0.3,
            normalizer=int((targets != -100).sum()),
        )
        part.loss.backward()
        parts.append(part)
    assert_same_gradients(gradients(model), of_whole)
    for name in ("loss", "cross_entropy", "mtp", "balance"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    for name, counts in whole.routing.items():
        assert torch.equal(sum((part.routing[name] for part in parts), torch.zeros_like(counts)), counts)
    for name, largest in whole.max_logits.items():
        of_parts = torch.stack([part.max_logits[name] for part in parts]).amax(0)
        torch.testing.assert_close(of_parts, largest)


def test_what_is_reported_adds_up() -> None:
    model, tokens = make_model(DEEPSEEK), random_tokens(2, 24)
    output = loss_of(model, tokens, next_tokens(tokens), mtp_weight=0.3)
    assert output.mtp is not None
    assert output.balance is not None
    torch.testing.assert_close(output.loss.detach(), output.cross_entropy + 0.3 * output.mtp + output.balance)
    assert output.loss.requires_grad
    assert not any(x.requires_grad for x in (output.cross_entropy, output.mtp, output.balance))
    assert output.routing.keys() == MODULES
    for counts in output.routing.values():
        assert (counts.shape, counts.dtype) == ((8,), torch.int64)
        assert counts.sum() == tokens.numel() * ROUTER.num_experts_per_tok
    assert output.max_logits == {}
    assert loss_of(model, tokens, next_tokens(tokens)).routing.keys() == {"model.layers.1.mlp.gate"}


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_largest_logits_are_named_by_module(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(2, 24)
    output = loss_of(model, tokens, next_tokens(tokens), max_logits=True, mtp_weight=0.3)
    assert len(output.max_logits) == len(spec.all_layers)
    for name, largest in output.max_logits.items():
        assert largest.shape == (model.get_submodule(name).spec.num_attention_heads,)
    doubled = make_model(spec)
    with torch.no_grad():
        attention = doubled.model.layers[0].self_attn
        (attention.q_b_proj if spec is DEEPSEEK else attention.q_proj).weight.mul_(2)
        if spec is LLAMA:
            attention.q_proj.bias.mul_(2)
    again = loss_of(doubled, tokens, next_tokens(tokens), max_logits=True)
    first = "model.layers.0.self_attn"
    torch.testing.assert_close(again.max_logits[first], 2 * output.max_logits[first])


# ------------------------------------------------------------------------------------------------ documents


def test_packed_documents_are_as_good_as_rows_of_their_own() -> None:
    """Same loss, same multi-token-prediction loss, same gradients; only the balance loss looks at rows."""
    model, documents = make_model(BALANCED_ELSEWHERE), [random_tokens(1, n, seed=n) for n in (17, 2, 29, 1)]
    for document in documents:
        loss_of(model, document, next_tokens(document), mtp_weight=0.3, normalizer=1).loss.backward()
    apart = gradients(model)
    tokens = torch.cat(documents, 1)
    targets = torch.cat([next_tokens(document) for document in documents], 1)
    lengths = torch.tensor([document.shape[1] for document in documents])
    segment_ids = torch.arange(len(documents)).repeat_interleave(lengths)[None]
    loss_of(model, tokens, targets, segment_ids, mtp_weight=0.3, normalizer=1).loss.backward()
    assert_same_gradients(gradients(model), apart)


# ----------------------------------------------------------------------------------- multi-token prediction


class TheirBlock:
    """Layer `index` of our model as transformers computes it."""

    def __init__(self, model: Transformer, index: int) -> None:
        spec = model.spec
        config = DeepseekV3Config(**write_config(spec) | {"num_hidden_layers": 1, "first_k_dense_replace": 0})
        self.model = DeepseekV3Model._from_config(config, dtype=torch.float32, experts_implementation="eager")
        self.model.norm = nn.Identity()
        prefix = f"model.layers.{index}."
        weights = {
            "layers.0." + name.removeprefix(prefix): tensor
            for name, tensor in model.state_dict().items()
            if name.startswith(prefix)
        }
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert missing == ["embed_tokens.weight"]
        beside = {"enorm", "hnorm", "eh_proj", "shared_head"}
        assert {name.removeprefix("layers.0.").partition(".")[0] for name in unexpected} == beside

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.model(inputs_embeds=hidden).last_hidden_state


def normed(x: Tensor, weight: Tensor, model: Transformer) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, model.spec.rms_norm_eps)


@pytest.mark.parametrize("masked", [False, True], ids=["all targets", "some targets masked"])
def test_multi_token_prediction(masked: bool) -> None:
    """DeepSeek-V3's equations 21-25 written out, with transformers' layers as the blocks."""
    model, tokens = make_model(DEEPSEEK), random_tokens(2, 20)
    state = model.state_dict()
    embedding, head = state["model.embed_tokens.weight"], state["lm_head.weight"]
    targets = next_tokens(tokens)
    if masked:
        targets[0, :7] = targets[1, 4] = -100
    hidden = model(tokens.flatten(), Pass(Sequences.packed(*tokens.shape))).unflatten(0, tokens.shape)
    total = torch.zeros(())
    for depth, index in ((1, 2), (2, 3)):
        prefix = f"model.layers.{index}."
        length = tokens.shape[1] - depth  # positions t whose token t + depth is known
        embedded = embedding[tokens[:, depth:]]
        pair = [
            normed(embedded, state[prefix + "enorm.weight"], model),
            normed(hidden[:, :length], state[prefix + "hnorm.weight"], model),
        ]
        hidden = TheirBlock(model, index)(torch.cat(pair, -1) @ state[prefix + "eh_proj.weight"].T)
        logits = normed(hidden, state[prefix + "shared_head.norm.weight"], model) @ head.T
        total += F.cross_entropy(logits.flatten(0, 1), targets[:, depth:].flatten(), reduction="sum")
    n_targets = int((targets != -100).sum())
    output = loss_of(model, tokens, targets, mtp_weight=0.3)
    torch.testing.assert_close(output.mtp, (total / 2 / n_targets).detach(), rtol=1e-5, atol=0)


def test_no_prediction_across_documents() -> None:
    """What a second document says changes nothing for the first, however far the prediction reaches."""
    model, tokens = make_model(BALANCED_ELSEWHERE), random_tokens(1, 20)
    segment_ids = (torch.arange(20) >= 12).int()[None]
    targets = next_tokens(tokens)
    targets[:, 11:] = -100
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 7) % 40
    ours, theirs = (loss_of(model, rows, targets, segment_ids, mtp_weight=0.3) for rows in (tokens, other))
    assert torch.equal(ours.loss, theirs.loss)


# ---------------------------------------------------------------------------------------------- balance loss


def routed(gate: TopK, x_BTH: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, E) and chosen experts (N, k)."""
    at = Pass(Sequences.packed(*x_BTH.shape[:2]), observe=["routing"])
    gate(x_BTH.flatten(0, 1), at)
    _, scores, experts = at.records["routing"][gate]
    return scores, experts


def load_and_balance(gate: TopK, x_BTH: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Copies per expert (E,) and the balance loss of every row (B,)."""
    real = torch.ones(x_BTH.shape[:2], dtype=torch.int64) if real_BT is None else real_BT
    scores, experts = routed(gate, x_BTH)
    copies = copies_by_row(experts, real, len(gate.weight))
    return copies.sum(0), balance_by_row(gate.spec, scores, copies, real)


def balance_by_hand(gate: TopK, x: Tensor) -> Tensor:
    """DeepSeek-V3's equations 17-20 for every row, symbol by symbol."""
    router, losses = gate.spec, []
    experts, k = router.n_routed_experts, router.num_experts_per_tok
    for row in x:
        scores, chosen = routed(gate, row[None])
        length = len(row)
        loss = torch.zeros(())
        for i in range(experts):
            f_i = experts / (k * length) * sum(1.0 for t in range(length) if i in chosen[t].tolist())
            p_i = sum(scores[t, i] / scores[t].sum() for t in range(length)) / length
            loss = loss + f_i * p_i
        losses.append(router.aux_loss_alpha * loss)
    return torch.stack(losses)


def gate_of(model: Transformer) -> TopK:
    gate = model.get_submodule("model.layers.1.mlp.gate")
    assert isinstance(gate, TopK)
    return gate


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_balance_loss_of_a_layer(scoring_func: str) -> None:
    gate = gate_of(make_model(with_router(DEEPSEEK, replace(ROUTER, scoring_func=scoring_func))))
    x = torch.randn(3, 15, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 0.5, 2.0])
    _, balance = load_and_balance(gate, x)
    ours = torch.autograd.grad((balance * weight).sum(), gate.weight)[0]
    expected = balance_by_hand(gate, x)
    theirs = torch.autograd.grad((expected * weight).sum(), gate.weight)[0]
    torch.testing.assert_close(balance, expected)
    torch.testing.assert_close(ours, theirs)


def test_padding_counts_in_no_statistics() -> None:
    """A row with padding behind it is to the routers what it is without; one of padding alone is nothing."""
    gate = gate_of(make_model(DEEPSEEK))
    x = torch.randn(3, 15, 16, generator=torch.Generator().manual_seed(0))
    real = (torch.arange(15) < torch.tensor([[15], [9], [0]])).long()
    counts, balance = load_and_balance(gate, x, real)
    alone = [load_and_balance(gate, row) for row in (x[:1], x[1:2, :9])]
    torch.testing.assert_close(balance, torch.cat([*(one[1] for one in alone), torch.zeros(1)]))
    assert torch.equal(counts, alone[0][0] + alone[1][0])
    assert counts.sum() == 24 * ROUTER.num_experts_per_tok

    model, tokens = make_model(DEEPSEEK), random_tokens(1, 20)
    tokens[0, 12:14] = tokens[0, :2]  # what its two MTP layers see ahead of the end of the short row
    targets = next_tokens(tokens)
    targets[0, 11:] = -100
    segments = torch.zeros(1, 20, dtype=torch.int32)
    segments[0, 12:] = -1
    whole = loss_of(model, tokens, targets, segments, mtp_weight=0.3)
    short = loss_of(model, tokens[:, :12], targets[:, :12], mtp_weight=0.3)
    torch.testing.assert_close(whole.loss, short.loss)
    for name, counts in short.routing.items():
        assert torch.equal(whole.routing[name], counts)


def test_balance_loss_of_a_batch() -> None:
    """Every layer's, a row in proportion to its targets, per target; it is part of the loss in training."""
    model, tokens = make_model(replace(DEEPSEEK, mtp=())), random_tokens(2, 20)
    targets = next_tokens(tokens)
    targets[1, 6:] = -100
    gate = gate_of(model)
    seen: list[Tensor] = []
    watching = gate.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].unflatten(0, (2, 20)))
    )
    output = loss_of(model, tokens, targets)
    watching.remove()
    expected = (balance_by_hand(gate, seen[0]) * torch.tensor([19 / 25, 6 / 25])).sum()
    torch.testing.assert_close(output.balance, expected.detach())
    torch.testing.assert_close(output.loss.detach(), output.cross_entropy + expected.detach())
    model.eval()
    assert loss_of(model, tokens, targets).balance is None
