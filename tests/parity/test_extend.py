"""Inference with a cache against transformers: split prompts, rows of different lengths, greedy text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lichen.errors import LichenError
from lichen.nn.cache import Cache
from lichen.nn.transformer import Transformer
from lichen.weights.checkpoint import load_model

from .conftest import Oracle
from .test_forward import assert_same_logits


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> Transformer:
    return load_model(oracle.folder)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, 79), max_size=8))
def test_any_split_of_a_prompt(model: Transformer, oracle: Oracle, tokens: Tensor, cuts: set[int]) -> None:
    cache = Cache(model.spec, batch=2, capacity=80)
    edges = [0, *sorted(cuts), 80]
    logits = [model.extend(tokens[:, start:end], cache, all_logits=True) for start, end in pairwise(edges)]
    assert_same_logits(torch.cat(logits, 1), oracle.logits(tokens))
    assert cache.lengths.tolist() == [80, 80]


def test_token_by_token(model: Transformer, oracle: Oracle, tokens: Tensor) -> None:
    cache = Cache(model.spec, batch=2, capacity=100)
    expected = oracle.logits(tokens)
    for t in range(tokens.shape[1]):
        assert_same_logits(model.extend(tokens[:, t : t + 1], cache), expected[:, t])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), more=st.integers(1, 12))
def test_rows_of_different_lengths(model: Transformer, oracle: Oracle, lengths: list[int], more: int) -> None:
    """Prompts padded on the right; what follows takes the place of the padding."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(model.spec.vocab_size, (n + more,), generator=generator) for n in lengths]
    prompts = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for prompt, row, n in zip(prompts, rows, lengths, strict=True):
        prompt[:n] = row[:n]
    cache = Cache(model.spec, batch=len(rows), capacity=max(lengths) + more)
    first = model.extend(prompts, cache, all_logits=True)
    cache.lengths.copy_(torch.tensor(lengths))
    then = model.extend(torch.stack([row[-more:] for row in rows]), cache, all_logits=True)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        expected = oracle.logits(row[None])[0]
        assert_same_logits(first[i, :n], expected[:n])
        assert_same_logits(then[i], expected[n:])


def test_greedy_continuation(model: Transformer, oracle: Oracle, tokens: Tensor) -> None:
    prompt = tokens[:, :16]
    expected = oracle.model.generate(prompt, do_sample=False, max_new_tokens=64, min_new_tokens=64)[:, 16:]
    cache = Cache(model.spec, batch=2, capacity=16 + 64)
    logits = model.extend(prompt, cache)
    continuation = []
    for _ in range(64):
        continuation.append(logits.argmax(-1, keepdim=True))
        if len(continuation) < 64:
            logits = model.extend(continuation[-1], cache)
    assert torch.equal(torch.cat(continuation, 1), expected)
    assert expected.unique().numel() > 8, "a continuation that stands still compares little"


def test_a_full_cache_is_one_sentence(model: Transformer, tokens: Tensor) -> None:
    cache = Cache(model.spec, batch=2, capacity=16)
    model.extend(tokens[:, :10], cache)
    with pytest.raises(LichenError, match="holds 16 tokens per sequence; 10 are in use and 7 more"):
        model.extend(tokens[:, :7], cache)
    assert_same_logits(model.extend(tokens[:, 10:16], cache), model(tokens[:, :16])[:, -1])
