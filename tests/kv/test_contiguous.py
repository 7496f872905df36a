"""What inference keeps: its bytes, its limits, and every kind of storage that a part can declare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lichen.arch.cache import cache_bytes
from lichen.arch.declaration import Entries, State
from lichen.arch.families import load_spec
from lichen.arch.published import named_models
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.ops import latent_attention
from lichen.ops.sequences import Sequences
from tests.conftest import logits_of, read
from tests.nn.conftest import DEEPSEEK, LLAMA, make_model, random_tokens

LAYOUTS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    # DeepSeek-V3 and Kimi K2: 61 layers of 512 + 64 numbers; Llama: 2 x 8 key heads of 128
    [
        ("deepseek-v3", 61 * 576 * 2),
        ("kimi-k2.6", 61 * 576 * 2),
        ("llama-3.1-8b", 32 * 2 * 1024 * 2),
        ("llama-3.1-405b", 126 * 2 * 1024 * 2),
    ],
)
def test_bytes_of_published_models(name: str, bytes_per_token: int) -> None:
    storage = Contiguous(load_spec(name), slots=3, capacity=1000, dtype=torch.bfloat16, device="meta")
    assert storage.nbytes == 3 * 1000 * bytes_per_token


@pytest.mark.parametrize("dtype", LAYOUTS)
@pytest.mark.parametrize("capacity", [1, 100, 5000])
@pytest.mark.parametrize("name", named_models())
def test_bytes_are_those_of_the_account(name: str, capacity: int, dtype: torch.dtype) -> None:
    """Of every model, those without weights too: windows, blocks and states are laid out as declared."""
    spec = load_spec(name)
    storage = Contiguous(spec, slots=2, capacity=capacity, dtype=dtype, device="meta")
    assert storage.nbytes == cache_bytes(spec, capacity, layout=LAYOUTS[dtype], sequences=2).ideal


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
@pytest.mark.parametrize("dtype", LAYOUTS)
def test_bytes_are_what_the_parts_declare(spec: ModelSpec, dtype: torch.dtype) -> None:
    storage = Contiguous(spec, slots=2, capacity=7, dtype=dtype)
    numbers = sum(entry.width for layer in spec.layers for entry in layer.attention.stores())
    assert storage.nbytes == 2 * 7 * numbers * dtype.itemsize


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_a_full_cache_says_so_and_stays_as_it_is(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(2, 12)
    storage = Contiguous(spec, slots=2, capacity=11)
    read(model, tokens[:, :9], storage)
    with pytest.raises(LichenError, match="holds 11 tokens per sequence; 9 are in use and 3 more do not fit"):
        read(model, tokens[:, 9:], storage)
    assert storage.lengths == [9, 9]
    expected = logits_of(model, tokens[:, :11])[:, -1]
    torch.testing.assert_close(read(model, tokens[:, 9:11], storage)[:, -1], expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------- one sequence and another


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_a_sequence_comes_back_and_its_place_is_given_to_another(spec: ModelSpec) -> None:
    model, (first, second) = make_model(spec), random_tokens(2, 16)
    expected = [logits_of(model, tokens[None])[0] for tokens in (first, second)]
    storage = Contiguous(spec, slots=3, capacity=16)

    @torch.no_grad()
    def go_on(slot: int, tokens: Tensor) -> Tensor:
        return model.logits(model(tokens, storage.take([len(tokens)], [slot])))

    go_on(1, first[:9])
    saved = storage.snapshot(1)
    go_on(1, first[9:14])
    storage.restore(1, saved)  # as after tokens that were drafted and refused
    torch.testing.assert_close(go_on(1, first[9:]), expected[0][9:], rtol=1e-4, atol=1e-5)
    storage.free(1)
    torch.testing.assert_close(go_on(1, second), expected[1], rtol=1e-4, atol=1e-5)
    storage.restore(2, saved)
    torch.testing.assert_close(go_on(2, first[9:12]), expected[0][9:12], rtol=1e-4, atol=1e-5)
    assert storage.lengths == [0, 16, 12]


# ------------------------------------------------------------------------------------------ kinds of storage


@dataclass(frozen=True)
class Declared:
    """A part that is nothing but its declaration."""

    kept: tuple[Entries | State, ...]

    def stores(self) -> tuple[Entries | State, ...]:
        return self.kept


WINDOW, EVERY = 5, 4
EVERYTHING = Declared(
    (
        Entries("key_value", 3, window=WINDOW),
        Entries("rope_key", 2, window=WINDOW),
        Entries("key_value", 3, every=EVERY),
        Entries("index_key", 1, every=EVERY),
        Entries("latent", 2),
        State("recurrent", 6),
        State("pending", 4),
    )
)
KINDS = replace(LLAMA, layers=(LayerSpec(EVERYTHING, LLAMA.layers[0].feed_forward),))  # type: ignore[arg-type]


def content(slot: int, numbers: range, width: int) -> Tensor:
    """Entries that tell whose they are and where they belong."""
    column = torch.arange(width) / 10
    return torch.tensor([[1000.0 * slot + number] for number in numbers]).reshape(-1, 1) + column


def of_window(slot: int, length: int) -> Tensor:
    last = range(max(0, length - WINDOW), length)
    return torch.cat([content(slot, last, 3), content(slot, last, 2)], 1)


@settings(max_examples=60, derandomize=True)
@given(steps=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_every_kind_gives_back_what_it_should_hold(steps: list[list[int]]) -> None:
    """Any new tokens of three sequences, some with none: all tokens, the last of a window, whole blocks."""
    storage = Contiguous(KINDS, slots=3, capacity=60)
    for step in steps:
        before = list(storage.lengths)
        slots = [slot for slot in (2, 0, 1) if step[slot]]
        if not slots:
            continue
        at = storage.take([step[slot] for slot in slots], slots)
        tokens = {slot: range(before[slot], before[slot] + step[slot]) for slot in slots}
        blocks = {slot: range(before[slot] // EVERY, (before[slot] + step[slot]) // EVERY) for slot in slots}

        def of(numbers: dict[int, range], width: int) -> Tensor:
            return torch.cat([content(slot, numbers[slot], width) for slot in slots])  # noqa: B023

        at.keep(0, latent=of(tokens, 2))
        windows = at.kept(0, "key_value", "rope_key")
        assert windows is not None
        for slot, window in zip(slots, windows, strict=True):  # what the first new token still sees
            assert torch.equal(window, of_window(slot, before[slot]))
        at.keep(0, key_value=of(tokens, 3), rope_key=of(tokens, 2))
        at.keep(0, every=EVERY, key_value=of(blocks, 3))
        at.keep(0, every=EVERY, index_key=of(blocks, 1))
        states = at.states(0)
        assert states is not None
        recurrent, pending = states
        for slot in slots:
            recurrent[slot] += step[slot]
            pending[slot] = slot

    def check(slot: int, length: int) -> None:
        whole = range(length // EVERY)
        assert torch.equal(storage.read(0, slot, ("latent",)), content(slot, range(length), 2))
        assert torch.equal(storage.read(0, slot, ("key_value", "rope_key")), of_window(slot, length))
        assert torch.equal(storage.read(0, slot, ("key_value",), every=EVERY), content(slot, whole, 3))
        assert torch.equal(storage.read(0, slot, ("index_key",), every=EVERY), content(slot, whole, 1))
        assert torch.equal(storage.states(0)[0][slot], torch.full((6,), float(length)))

    lengths = [sum(step[slot] for step in steps) for slot in range(3)]
    for slot, length in enumerate(lengths):
        check(slot, length)
    saved = storage.snapshot(1)
    storage.free(1)
    check(1, 0)
    storage.restore(1, saved)
    for slot, length in enumerate(lengths):
        check(slot, length)


def test_what_a_part_did_not_declare_is_not_kept() -> None:
    at = Contiguous(KINDS, slots=1, capacity=60).take([2])
    for names, every in ((("value",), 1), (("latent",), EVERY), (("latent", "key_value"), 1)):
        with pytest.raises(ValueError, match=f"layer 0 declares no {' and '.join(names)} side by side"):
            at.keep(0, every=every, **dict.fromkeys(names, torch.zeros(2, 3)))


def test_slots_are_there_and_named_once() -> None:
    storage = Contiguous(LLAMA, slots=2, capacity=8)
    for slots in ([0, 0], [-1, 0], [1, 2]):
        with pytest.raises(LichenError, match="name each of 0 to 1 at most once"):
            storage.take([5, 5], slots)
    assert storage.lengths == [0, 0]


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
def test_what_a_freed_sequence_left_reaches_no_other(spec: ModelSpec) -> None:
    """Masked entries count 0 times, and 0 times NaN would be NaN."""
    model, tokens = make_model(spec), random_tokens(2, 8)
    storage = Contiguous(spec, slots=2, capacity=8)
    read(model, tokens[:, :6], storage)
    for part in storage._parts(1, 6):
        part.fill_(torch.nan)
    storage.free(1)
    with torch.no_grad():
        model(tokens[1, :2], storage.take([2], [1]))
        last = model.logits(model(torch.stack([tokens[0, 6], tokens[1, 2]]), storage.take([1, 1])))
    expected = [logits_of(model, tokens[:1, :7])[0, -1], logits_of(model, tokens[1:, :3])[0, -1]]
    torch.testing.assert_close(last, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_ring_holds_its_window_and_no_more() -> None:
    storage = Contiguous(KINDS, slots=1, capacity=60)
    per_token = 2 * 60 + 5 * WINDOW + 4 * (60 // EVERY) + 6 + 4
    assert storage.nbytes == 4 * per_token


# -------------------------------------------------------------------------------------- latent attention


def spec_with_latent_attention(**changes: Any) -> ModelSpec:
    """Two dense layers with MLA: no router, whose near ties fall the other way in bf16."""
    attention, feed_forward = DEEPSEEK.layers[0].attention, DEEPSEEK.layers[0].feed_forward
    layer = LayerSpec(replace(attention, **changes), feed_forward)
    return replace(DEEPSEEK, layers=(layer, layer), mtp=())


def distance(logits: Tensor, exact: Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


@pytest.mark.parametrize("spec", [spec_with_latent_attention(), LLAMA], ids=["deepseek", "llama"])
def test_bf16_storage_of_an_fp32_model_rounds_what_it_stores(spec: ModelSpec) -> None:
    model, tokens = make_model(spec), random_tokens(2, 40)
    storage = Contiguous(spec, 2, 40, torch.bfloat16)
    read(model, tokens[:, :30], storage)
    logits = read(model, tokens[:, 30:], storage)
    with torch.no_grad():
        assert 0 < distance(logits, logits_of(model, tokens)[:, 30:]) < 2**-7


@pytest.mark.parametrize("absorbs", [True, False], ids=["absorbed", "expanded"])
@pytest.mark.parametrize("q_lora_rank", [12, None])
def test_both_forms_of_latent_attention_are_forward(
    q_lora_rank: int | None, absorbs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For chunks and single tokens: equal in fp32, no farther from fp32 than a training pass is in bf16."""
    monkeypatch.setattr(latent_attention, "absorbs", lambda *sizes: absorbs)
    spec, tokens = spec_with_latent_attention(q_lora_rank=q_lora_rank), random_tokens(2, 30)
    distances = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, storage = make_model(spec, dtype), Contiguous(spec, 2, 30, dtype)
        parts = [read(model, part, storage) for part in tokens.split([20, 1, 1, 8], 1)]
        with torch.no_grad():
            forward, exact = logits_of(model, tokens), logits_of(make_model(spec), tokens)
        distances[dtype] = distance(torch.cat(parts, 1), exact), distance(forward, exact)
    assert distances[torch.float32][0] < 1e-6
    assert distances[torch.bfloat16][0] < 1.5 * distances[torch.bfloat16][1]


def test_the_cheaper_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In FLOPs of a whole pass of one layer in V3's proportions, with 2,000 tokens in storage."""
    spec = spec_with_latent_attention(
        num_attention_heads=4, kv_lora_rank=32, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    )
    model = make_model(spec)
    decide = latent_attention.absorbs

    def flops(new_tokens: int, absorbs: bool) -> int:
        monkeypatch.setattr(latent_attention, "absorbs", lambda *sizes: absorbs)
        storage = Contiguous(spec, 1, 2100)
        storage.lengths[0] = 2000
        with FlopCounterMode(display=False) as counter:
            read(model, random_tokens(1, new_tokens), storage)
        return counter.get_total_flops()

    decisions = []
    for new_tokens in (1, 2, 4, 8, 9, 12, 16, 32, 64):
        absorbed, expanded = flops(new_tokens, True), flops(new_tokens, False)
        decisions.append(decide(new_tokens, content=8, latent=32, value=8))
        if abs(absorbed - expanded) > 0.05 * expanded:
            assert decisions[-1] == (absorbed < expanded), f"{new_tokens} tokens"
    assert decisions[0]
    assert not decisions[-1]


def test_the_list_is_cut_only_where_it_must_be() -> None:
    """Equal pieces of neighbours are one batch; ragged pieces, or slots out of order, one each."""
    together = Sequences([2, 2], [5, 9], [1, 2]).batches
    assert [(batch.shape, batch.longest, batch.slots) for batch in together] == [((2, 2), 11, slice(1, 3))]
    for apart in (Sequences([2, 3], [5, 9], [1, 2]), Sequences([2, 2], [5, 9], [2, 1])):
        assert [batch.shape[0] for batch in apart.batches] == [1, 1]
