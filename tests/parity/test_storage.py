"""Inference with storage against transformers: split prompts, ragged lists of tokens, greedy text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lichen.errors import LichenError
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.weights.load import load_model
from tests.conftest import logits_of, read

from .conftest import Oracle
from .test_forward import assert_same_logits


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> Transformer:
    return load_model(oracle.folder)


@settings(max_examples=12, derandomize=True)
@given(cuts=st.sets(st.integers(1, 79), max_size=8))
def test_any_split_of_a_prompt(model: Transformer, oracle: Oracle, tokens: Tensor, cuts: set[int]) -> None:
    storage = Contiguous(model.spec, slots=2, capacity=80)
    edges = [0, *sorted(cuts), 80]
    logits = [read(model, tokens[:, start:end], storage) for start, end in pairwise(edges)]
    assert_same_logits(torch.cat(logits, 1), oracle.logits(tokens))
    assert storage.lengths == [80, 80]


def test_token_by_token(model: Transformer, oracle: Oracle, tokens: Tensor) -> None:
    storage = Contiguous(model.spec, slots=2, capacity=100)
    expected = oracle.logits(tokens)
    for t in range(tokens.shape[1]):
        assert_same_logits(read(model, tokens[:, t : t + 1], storage)[:, -1], expected[:, t])


@settings(max_examples=12, derandomize=True)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), more=st.integers(1, 12))
def test_sequences_of_different_lengths(
    model: Transformer, oracle: Oracle, lengths: list[int], more: int
) -> None:
    """Prompts in one flat list, then as many tokens more of each, then some of each in another order."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(model.spec.vocab_size, (n + more + 3,), generator=generator) for n in lengths]
    storage = Contiguous(model.spec, slots=len(rows), capacity=max(lengths) + more + 3)
    order = list(reversed(range(len(rows))))
    steps = [
        [(slot, row[:n]) for slot, (row, n) in enumerate(zip(rows, lengths, strict=True))],
        [(slot, row[n : n + more]) for slot, (row, n) in enumerate(zip(rows, lengths, strict=True))],
        [(slot, rows[slot][lengths[slot] + more :][: 1 + slot % 3]) for slot in order],
    ]
    found: list[list[Tensor]] = [[] for _ in rows]
    for step in steps:
        slots, pieces = zip(*step, strict=True)
        at = storage.take([len(piece) for piece in pieces], slots)
        with torch.no_grad():
            logits = model.logits(model(torch.cat(pieces), at))
        for slot, part in zip(slots, logits.split([len(piece) for piece in pieces]), strict=True):
            found[slot].append(part)
    for row, parts in zip(rows, found, strict=True):
        ours = torch.cat(parts)
        assert_same_logits(ours, oracle.logits(row[None, : len(ours)])[0])


def test_greedy_continuation(model: Transformer, oracle: Oracle, tokens: Tensor) -> None:
    prompt = tokens[:, :16]
    expected = oracle.model.generate(prompt, do_sample=False, max_new_tokens=64, min_new_tokens=64)[:, 16:]
    storage = Contiguous(model.spec, slots=2, capacity=16 + 64)
    logits = read(model, prompt, storage)[:, -1]
    continuation = []
    for _ in range(64):
        continuation.append(logits.argmax(-1, keepdim=True))
        if len(continuation) < 64:
            logits = read(model, continuation[-1], storage)[:, -1]
    assert torch.equal(torch.cat(continuation, 1), expected)
    assert expected.unique().numel() > 8, "a continuation that stands still compares little"


def test_a_full_cache_is_one_sentence(model: Transformer, tokens: Tensor) -> None:
    storage = Contiguous(model.spec, slots=2, capacity=16)
    read(model, tokens[:, :10], storage)
    with pytest.raises(LichenError, match="holds 16 tokens per sequence; 10 are in use and 7 more"):
        read(model, tokens[:, :7], storage)
    assert_same_logits(read(model, tokens[:, 10:16], storage)[:, -1], logits_of(model, tokens[:, :16])[:, -1])
