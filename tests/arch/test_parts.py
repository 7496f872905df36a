"""Every part answers every question that is asked of its kind, and the sums hold nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lichen.arch import spec as protocols
from lichen.arch.cache import LAYOUTS, cache_bytes, native_layout
from lichen.arch.declaration import ROWS, Entries, Read, State, Weight
from lichen.arch.families import load_spec, read_config
from lichen.arch.flops import flops_per_token
from lichen.arch.parts.attention_residuals import AttentionResiduals
from lichen.arch.parts.compressed import Compressed
from lichen.arch.parts.csa2 import CSA2
from lichen.arch.parts.delta import KDA, GatedDeltaNet
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.hyper_connections import HyperConnections
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import total_parameters, weights
from lichen.errors import SpecError

from .conftest import SMALL

SPECS: list[ModelSpec] = [*map(load_spec, named_models()), *map(read_config, SMALL)]
ATTENTION = list(dict.fromkeys(layer.attention for spec in SPECS for layer in spec.all_layers))
FEED_FORWARD = list(dict.fromkeys(layer.feed_forward for spec in SPECS for layer in spec.all_layers))
RESIDUAL = list(dict.fromkeys(spec.residual for spec in SPECS if spec.residual))
HIDDEN = 96


def kind(part: Any) -> str:
    return type(part).__name__


def test_every_part_is_among_them() -> None:
    assert set(map(type, ATTENTION)) == {GQA, MLA, Compressed, CSA2, GatedDeltaNet, KDA}
    assert set(map(type, FEED_FORWARD)) == {Dense, MoE}
    assert set(map(type, RESIDUAL)) == {HyperConnections, AttentionResiduals}


@pytest.mark.parametrize("part", ATTENTION, ids=kind)
def test_attention_answers(part: Any) -> None:
    assert answered(part, protocols.Attention)
    check_weights(part.weights(HIDDEN))
    assert part.page_tokens > 0
    assert part.cache_layout in LAYOUTS
    check_words(part.title)
    check_words(part.words())
    assert all(read.numbers > 0 for decode in (False, True) for read in part.reads(decode))
    assert all(isinstance(read, Read) for decode in (False, True) for read in part.reads(decode))
    for item in part.stores():
        match item:
            case Entries():
                assert item.width > 0
                assert item.every > 0
                assert item.window is None or item.window > 0
            case State():
                assert item.numbers >= 0
            case _:
                raise AssertionError(item)
    assert part.stores()
    assert part.reads(True)


@pytest.mark.parametrize("part", FEED_FORWARD, ids=kind)
def test_feed_forward_answers(part: Any) -> None:
    assert answered(part, protocols.FeedForward)
    check_weights(part.weights(HIDDEN))
    check_words(part.words())
    assert (part.router is None) == (kind(part) == "Dense")
    assert part.n_shared_experts >= 0


@pytest.mark.parametrize("part", RESIDUAL, ids=kind)
def test_residuals_answer(part: Any) -> None:
    assert answered(part, protocols.Residual)
    check_weights(part.weights(HIDDEN))
    check_words(part.words())
    assert part.streams > 0
    assert all(isinstance(weight, Weight) for weight in part.last_weights(HIDDEN))


def answered(part: Any, protocol: type) -> bool:
    return all(hasattr(part, name) for name in vars(protocol) if not name.startswith("_"))


def check_weights(found: Any) -> None:
    assert found
    for weight in found:
        assert weight.part in ROWS
        assert all(size > 0 for size in weight.shape)
        assert weight.count >= weight.active >= 0


def check_words(words: str) -> None:
    assert words.strip() == words
    assert words
    assert "\n" not in words


@given(st.sampled_from(SPECS), st.integers(1, 5000))
def test_a_layer_more_costs_what_its_parts_answer(spec: ModelSpec, context: int) -> None:
    """Parameters, numbers read and bytes kept of a model grow by those of the layer that is added."""
    layer, hidden = spec.layers[-1], spec.hidden_size
    deeper = replace(spec, layers=(*spec.layers, layer))
    added = [*layer.attention.weights(hidden), *layer.feed_forward.weights(hidden)]
    added += [Weight("norms", (hidden,))] * (4 if layer.sandwich_norms else 2)
    if spec.residual:
        added += 2 * list(spec.residual.weights(hidden))
    assert total_parameters(deeper) - total_parameters(spec) == sum(weight.parameters for weight in added)
    assert {weight.part for weight in weights(deeper)} == {weight.part for weight in weights(spec)}

    products = sum(2 * weight.active_parameters for weight in added if weight.is_matrix)
    reads = sum(2 * read.numbers * read.of_last(context) for read in layer.attention.reads(decode=True))
    more = flops_per_token(deeper, context).decode - flops_per_token(spec, context).decode
    assert more == products + reads

    assert native_layout(deeper) == native_layout(spec)
    kept = 0
    for item in layer.attention.stores():
        match item:
            case Entries():
                kept += item.width * item.kept(context)
            case State():
                kept += item.numbers
    grown, before = (cache_bytes(one, context, layout="fp32").ideal for one in (deeper, spec))
    assert grown - before == 4 * kept


@given(st.sampled_from(ATTENTION), st.integers(1, 400))
def test_a_whole_pass_reads_what_its_tokens_read_one_by_one(part: Any, context: int) -> None:
    for read in part.reads(decode=False):
        assert read.of_all(context) == sum(read.of_last(last) for last in range(1, context + 1))


def test_a_part_that_nobody_described_is_an_error() -> None:
    spec = load_spec("llama-3.1-8b")
    unknown = replace(spec.layers[0], attention="linear")  # type: ignore[arg-type]
    for answer in (weights, native_layout, lambda model: flops_per_token(model, 9)):
        with pytest.raises(AttributeError):
            answer(replace(spec, layers=(unknown,)))


@pytest.mark.parametrize("part", [*ATTENTION, *FEED_FORWARD, *RESIDUAL], ids=kind)
def test_numbers_that_make_no_sense_are_refused(part: Any) -> None:
    """Every whole number of a part is a size or a choice of one: none of them may be negative."""
    numbers = [name for name, value in vars(part).items() if type(value) is int]
    for name in numbers:
        with pytest.raises(SpecError, match="-1"):
            replace(part, **{name: -1})
