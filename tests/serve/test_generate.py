import dataclasses

import pytest
import torch

from lichen.arch.parts.dense import Dense
from lichen.arch.parts.mla import MLA
from lichen.arch.parts.moe import MoE, Router
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.errors import LichenError
from lichen.nn.transformer import Transformer
from lichen.serve import generate as generate_module
from lichen.serve.generate import generate
from lichen.serve.sampling import SamplingParams
from tests.conftest import logits_of

ROPE = Rope(10_000, interleaved=True)
SPEC = ModelSpec(
    family="deepseek_v3",
    vocab_size=60,
    hidden_size=32,
    layers=(
        LayerSpec(MLA(2, 16, 16, 8, 8, 8, ROPE), Dense(48)),
        LayerSpec(MLA(2, 16, 16, 8, 8, 8, ROPE), MoE(Router(4, 2), 16, n_shared_experts=1)),
    ),
    max_position_embeddings=40,
    initializer_range=0.2,
)
PROMPT = [3, 14, 15, 9, 26, 5, 35]
GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(SPEC)
    model.initialize(seed=1)
    return model


def continuation(model, prompt=PROMPT, params=GREEDY, eos_ids=()):
    return list(generate(model, prompt, params, eos_ids=eos_ids))


@torch.no_grad()
def by_forward(model, prompt, count):
    """The greedy continuation, from scratch for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_text_is_that_of_the_training_pass(model):
    assert continuation(model) == by_forward(model, PROMPT, 20)


def test_a_prompt_read_in_pieces_continues_the_same(model, monkeypatch):
    whole = continuation(model)
    monkeypatch.setattr(generate_module, "PREFILL_CHUNK", 3)
    assert continuation(model) == whole


def test_generation_ends_before_an_end_token(model):
    whole = continuation(model)
    end = whole[7]
    assert continuation(model, eos_ids={end}) == whole[: whole.index(end)]


def test_the_context_is_filled_and_not_exceeded(model):
    params = dataclasses.replace(GREEDY, max_tokens=1000)
    assert len(continuation(model, params=params)) == SPEC.max_position_embeddings - len(PROMPT)
    assert len(continuation(model, prompt=[1] * 39, params=params)) == 1


def test_a_seed_decides_the_text(model):
    def draw(seed):
        return continuation(model, params=SamplingParams(max_tokens=20, seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(LichenError, match="prompt has 40 tokens and the model's context 40"):
        continuation(model, prompt=[1] * 40)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(LichenError, match="prompt is empty"):
        continuation(model, prompt=[])
