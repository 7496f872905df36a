import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lichen.errors import LichenError
from lichen.serve.sampling import SamplingParams, candidates, sample


def reference_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits).softmax(-1)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**31),
    vocab_size=st.integers(2, 500),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 600),
    top_p=st.floats(0.01, 1),
)
def test_candidates_are_those_of_transformers(seed, vocab_size, temperature, top_k, top_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = 3 * torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(seed))
    ids, probabilities = candidates(logits, params)
    ours = torch.zeros_like(logits).scatter(-1, ids, probabilities)
    theirs = reference_probabilities(logits, params)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_draws_follow_the_probabilities():
    params = SamplingParams(temperature=0.7, top_k=5, top_p=0.9, seed=1)
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(2)).expand(40_000, -1)
    drawn = sample(logits, params, params.generator(logits.device))
    frequencies = torch.bincount(drawn, minlength=20) / drawn.numel()
    expected = reference_probabilities(logits[:1], params)[0]
    assert (frequencies[expected == 0] == 0).all()
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.01)


def test_temperature_zero_takes_the_most_likely_token():
    logits = torch.randn(7, 100)
    params = SamplingParams(temperature=0, top_k=3, top_p=0.1)
    assert torch.equal(sample(logits, params, params.generator(logits.device)), logits.argmax(-1))


def test_a_seed_repeats_its_draws_and_another_does_not():
    logits = torch.zeros(64, 1000)

    def draw(seed):
        params = SamplingParams(seed=seed)
        return sample(logits, params, params.generator(logits.device))

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
    assert not torch.equal(draw(None), draw(None))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(value, temperature):
    logits = torch.zeros(2, 10)
    logits[1, 3] = value
    params = SamplingParams(temperature=temperature)
    with pytest.raises(LichenError, match="not a number"):
        sample(logits, params, params.generator(logits.device))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("max_tokens", 0),
        ("seed", 2**64),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(LichenError, match=field.replace("_", "."), check=lambda e: "\n" not in str(e)):
        SamplingParams(**{field: value})
