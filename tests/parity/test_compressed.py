"""DeepSeek-V4 beyond what all families are asked: several windows and whole blocks of 128, and the layer of
multi-token prediction."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

from lichen.arch.families import read_config
from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.ops import compressed_attention
from lichen.weights.load import load_model
from tests.conftest import logits_of, loss_of, read

from .conftest import CSA, HCA, V4, VOCAB_SIZE, WINDOW, Oracle, build, randomise, save
from .test_checkpoints import export
from .test_forward import assert_same_logits, shifted

LONG = V4 | {
    "compress_rates": {CSA: 4, HCA: 128},
    "index_topk": 16,
    # Rounding would decide which experts are chosen at a near tie, and derivatives at a limit that many
    # reach.
    "n_routed_experts": 4,
    "num_hash_layers": 0,
    "swiglu_limit": 10.0,
    "max_position_embeddings": 4096,
}
SCHEDULES = {
    "Flash": [WINDOW, WINDOW, CSA, HCA, CSA],
    "Pro": [HCA, HCA, CSA, HCA, CSA],
    "one kind": [CSA, CSA, CSA],
}


@pytest.fixture(scope="module", params=SCHEDULES)
def long(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    layers = SCHEDULES[request.param]
    sizes = {"layer_types": layers, "num_hidden_layers": len(layers)}
    model, folder = build(DeepseekV4Config(**LONG | sizes)), tmp_path_factory.mktemp("long")
    save(model, folder)
    return Oracle(model, folder)


@torch.no_grad()
def margin(model: DeepseekV4ForCausalLM, tokens: Tensor) -> float:
    """The least difference, relative to the best, between the last entry that an indexer chooses and the
    first that it does not."""
    found = [1.0]

    def note(scorer: torch.nn.Module, given: Any, scores_BST: Tensor) -> None:
        visible_S = (torch.arange(scores_BST.shape[1]) + 1) // 4
        hidden_ST = torch.arange(scores_BST.shape[2]) >= visible_S[:, None]
        best = scores_BST.masked_fill(hidden_ST, -torch.inf)[:, visible_S > topk].topk(topk + 1).values
        if best.numel():
            found.append(float(((best[..., -2] - best[..., -1]) / best[..., 0].abs()).min()))

    topk = model.config.index_topk
    scorers = [module for name, module in model.named_modules() if name.endswith("scorer")]
    hooks = [scorer.register_forward_hook(note) for scorer in scorers if tokens.shape[1] // 4 > topk]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return min(found)


def tokens_of(model: DeepseekV4ForCausalLM, *lengths: int, more: int = 0) -> Tensor:
    """Documents of these lengths, one after another and two at a time, the last of them with `more` tokens of
    greedy text, in which the indexers' choices do not hang on rounding."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        documents = [torch.randint(VOCAB_SIZE, (2, length), generator=generator) for length in lengths]
        if more:
            documents[-1] = model.generate(
                documents[-1], do_sample=False, max_new_tokens=more, min_new_tokens=more
            )
        if min(margin(model, document) for document in documents) > 1e-5:
            return torch.cat(documents, 1)
    raise AssertionError("no text without near ties")


@pytest.fixture(params=["by a kernel", "masked", "gathered"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How attention is computed, without a kernel with the chosen entries among all, or those alone."""
    if request.param != "by a kernel":
        monkeypatch.setattr(compressed_attention, "trains", lambda x: False)
        monkeypatch.setattr(compressed_attention, "GATHERED", {"masked": 10**6, "gathered": 0}[request.param])


@torch.no_grad()
@pytest.mark.parametrize("length", [7, 127, 128, 397])
def test_any_length(long: Oracle, form: None, length: int) -> None:
    tokens = tokens_of(long.model, length)
    assert_same_logits(logits_of(load_model(long.folder), tokens), long.logits(tokens))


@torch.no_grad()
def test_packed_documents_are_what_they_are_alone(long: Oracle, form: None) -> None:
    """Whose borders cut blocks of 4 and of 128."""
    tokens, ends = tokens_of(long.model, 3, 131, 133, 133), [0, 3, 134, 267, 400]
    segment_ids = torch.zeros_like(tokens)
    for number, (start, end) in enumerate(pairwise(ends)):
        segment_ids[:, start:end] = number
    ours = logits_of(load_model(long.folder), tokens, segment_ids)
    for start, end in pairwise(ends):
        assert_same_logits(ours[:, start:end], long.logits(tokens[:, start:end]))


def test_pieces_of_a_long_prompt_and_greedy_text(long: Oracle, form: None, monkeypatch) -> None:
    monkeypatch.setattr(compressed_attention, "SCORED", 7)
    model, text = load_model(long.folder), tokens_of(long.model, 330, more=64)
    expected = long.logits(text)
    storage = Contiguous(model.spec, slots=2, capacity=text.shape[1])
    edges = [0, 1, 130, 259, 330]
    logits = [read(model, text[:, start:end], storage) for start, end in pairwise(edges)]
    logits += [read(model, text[:, at : at + 1], storage) for at in range(330, text.shape[1])]
    assert_same_logits(torch.cat(logits, 1), expected)
    assert torch.equal(torch.cat(logits, 1)[:, 329:-1].argmax(-1), text[:, 330:])


@pytest.mark.parametrize("prefix", [128, 256, 131])
def test_a_warm_prefix_is_a_cold_one(long: Oracle, prefix: int) -> None:
    """Bit for bit: windows, entries, what is pending and overlapping halves come back with a snapshot."""
    model, tokens = load_model(long.folder), tokens_of(long.model, 330)[:1]
    with torch.no_grad():
        cold, warm = Contiguous(model.spec, 2, 400), Contiguous(model.spec, 3, 500)
        model(tokens[0, :prefix], cold.take([prefix], [0]))
        saved = cold.snapshot(0)
        model(torch.flip(tokens[0], [0]), warm.take([330], [2]))  # another text in the way
        warm.restore(2, saved)
        for piece in tokens[0, prefix:].split([60, 1, 330 - prefix - 61]):
            ours = [model(piece, kept.take([len(piece)], [slot])) for kept, slot in ((cold, 0), (warm, 2))]
            assert torch.equal(*ours)
    other = Contiguous(read_config(DeepseekV4Config(**LONG | {"layer_types": [CSA] * 4}).to_dict()), 1, 400)
    with pytest.raises(LichenError, match="the snapshot is of another model"):
        other.restore(0, saved)
    with pytest.raises(LichenError, match=f"the snapshot has {prefix} tokens, and the cache holds 100"):
        Contiguous(model.spec, 1, 100).restore(0, saved)


@torch.no_grad()
def test_of_equal_entries_the_first_is_chosen_in_any_form() -> None:
    """Two heads score many entries 0: packed, in pieces and whole the same ones are chosen."""
    few_heads = LONG | {"index_n_heads": 2, "index_topk": 5, "layer_types": [CSA] * 4}
    ours = Transformer(read_config(DeepseekV4Config(**few_heads).to_dict()))
    randomise(ours, seed=5)
    tokens = torch.randint(VOCAB_SIZE, (1, 300), generator=torch.Generator().manual_seed(1))
    segment_ids = (torch.arange(300) >= 41).int()[None]
    whole = logits_of(ours, tokens[:, 41:])
    assert_same_logits(logits_of(ours, tokens, segment_ids)[:, 41:], whole)
    storage = Contiguous(ours.spec, 1, 300)
    pieces = [read(ours, piece, storage) for piece in tokens[:, 41:].split([13, 1, 130, 115], 1)]
    assert_same_logits(torch.cat(pieces, 1), whole)


def test_gradients_of_a_long_text(long: Oracle, form: None) -> None:
    ours, theirs, tokens = load_model(long.folder), copy.deepcopy(long.model), tokens_of(long.model, 260)
    loss_of(ours, tokens, shifted(tokens)).loss.backward()
    logits = theirs(tokens).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = gradients[name]
        if expected is None:
            assert ".indexer." in name
        else:
            assert parameter.grad is not None, name
            difference = (parameter.grad - expected).norm() / expected.norm()
            # Of what joins the streams little is left: see `test_forward`.
            bound = 1e-3 if "_hc." in name or ".hc_" in name else 1e-4
            assert difference < bound, f"{name}: {difference:.1e}"


def test_memory_does_not_grow_with_what_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the text takes twice the memory, not four times: the largest tensor of a training pass."""
    spec = read_config(DeepseekV4Config(**LONG | {"layer_types": [CSA] * 4}).to_dict())
    model = Transformer(spec)
    model.initialize(0)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                self.size = max(self.size, made.untyped_storage().nbytes())
            return made

    sizes = []
    for length in (2048, 4096):
        tokens = torch.zeros(1, length, dtype=torch.int64)
        with Largest() as largest:
            loss_of(model, tokens, shifted(tokens)).loss.backward()
        sizes.append(largest.size)
    assert sizes[1] <= 2.1 * sizes[0]


# ------------------------------------------------------------------------------- multi-token prediction


def test_mtp_layer_of_transformers_own_parts(tmp_path: Path) -> None:
    """Its block is theirs with a window alone, and so is what joins the streams: the loss is ours."""
    config = DeepseekV4Config(**V4 | {"num_nextn_predict_layers": 1}).to_dict()
    ours = Transformer(read_config(config))
    randomise(ours, seed=3)
    export(ours, tmp_path)
    with_block = V4 | {"num_hidden_layers": 5, "layer_types": [*V4["layer_types"], WINDOW]}
    theirs = DeepseekV4ForCausalLM._from_config(
        DeepseekV4Config(**with_block), attn_implementation="eager", experts_implementation="eager"
    ).eval()
    state = ours.state_dict()
    missing, _ = theirs.load_state_dict(state, strict=False)
    assert not missing
    mtp = {name.removeprefix("model.layers.4."): tensor for name, tensor in state.items()}
    join = DeepseekV4HyperHead(theirs.config)
    join.load_state_dict({name: mtp[f"hc_head.{name}"] for name in ("hc_fn", "hc_base", "hc_scale")})
    tokens = tokens_of(theirs, 80)
    kept: dict[str, Any] = {}
    block, last = theirs.model.layers[4], theirs.model.layers[3]
    block.register_forward_pre_hook(lambda _, args, given: kept.update(given), with_kwargs=True)
    last.register_forward_hook(lambda _, args, streams: kept.update(streams=streams))

    def normed(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], mtp[name], theirs.config.rms_norm_eps)

    with torch.no_grad():
        theirs(tokens, use_cache=False)
        ahead = F.embedding(torch.roll(tokens, -1, 1), state["model.embed_tokens.weight"])
        x = F.linear(normed(ahead, "enorm.weight"), mtp["e_proj.weight"]).unsqueeze(2)
        x = x + F.linear(normed(kept.pop("streams"), "hnorm.weight"), mtp["h_proj.weight"])
        hidden = normed(join(block(x, **kept)), "shared_head.norm.weight")
        logits = F.linear(hidden, state["lm_head.weight"])[:, :-2]
        expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 2:].flatten(), reduction="sum")
        output = loss_of(ours, tokens, shifted(tokens), mtp_weight=0.3)
    assert output.mtp is not None
    assert output.mtp.item() * 2 * 79 == pytest.approx(expected.item(), rel=1e-6)


def test_mtp_layer_is_called_as_published(tmp_path: Path) -> None:
    from safetensors import safe_open

    ours = Transformer(read_config(DeepseekV4Config(**V4 | {"num_nextn_predict_layers": 1}).to_dict()))
    randomise(ours, seed=3)
    export(ours, tmp_path, shard=10**9)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
    for name in (
        "enorm.weight",
        "e_proj.weight",
        "hc_head_fn",
        "norm.weight",
        "attn.wq_a.weight",
        "hc_ffn_base",
    ):
        assert f"mtp.0.{name}" in names
    again = load_model(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
