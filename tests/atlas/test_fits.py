"""Fits: bytes against published sizes, speeds against the roofline done by hand."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.machine.devices import load, parse
from lichen.machine.fits import GGUF_BITS, Alternative, alternatives, fits

QWEN, KIMI, LLAMA = (load_spec(name) for name in ("qwen3.6-27b", "kimi-k2.6", "llama-3.1-8b"))


def test_a_machine_is_so_many_devices() -> None:
    eight = parse("h200:8")
    assert (eight.count, eight.bandwidth) == (8, 8 * 4.8e12)
    assert eight.memory == pytest.approx(0.9 * 8 * 141e9)
    assert parse("RTX5090").memory == pytest.approx(0.9 * 32e9)
    assert parse("mac-128g").flops() is None
    assert all(device.source.startswith("https://") for device in load().values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h201:8", "no device 'h201'; did you mean h200"),
        ("rtx4090x3", "no device 'rtx4090x3'; 3 of rtx4090 are written rtx4090:3"),
        ("8xh200", "no device '8xh200'; 8 of h200 are written h200:8"),
        ("8 * H200", "no device '8\\*h200'; 8 of h200 are written h200:8"),
        ("teapot", "no device 'teapot'; known are a100-80g"),
        ("h200:0", "after the colon comes how many"),
        ("h200:-1", "after the colon comes how many"),
        ("h200:", "after the colon comes how many"),
    ],
)
def test_a_machine_that_is_none(text: str, words: str) -> None:
    with pytest.raises(LichenError, match=words):
        parse(text)


def test_sizes_are_those_of_the_published_files() -> None:
    """Kimi K2.6's files are about 594 GB; 27 billion weights of 4.5 bits are 15.1 GB."""
    assert fits(KIMI, parse("h200:8"), None, 4096).weight_bytes == pytest.approx(594e9, rel=0.005)
    assert fits(QWEN, parse("rtx5090"), "q4", 4096).weight_bytes == pytest.approx(26.9e9 * 4.5 / 8, rel=0.005)


def test_what_fits_and_what_does_not() -> None:
    assert fits(QWEN, parse("rtx5090"), "q4", 32768).fits
    assert not fits(QWEN, parse("rtx5090"), "bf16", 32768).fits  # 53.8 GB
    assert not fits(KIMI, parse("h200:4"), None, 4096).fits
    assert fits(KIMI, parse("h200:8"), None, 262144).fits
    nothing = fits(KIMI, parse("rtx5090"), None, 4096)
    assert (nothing.longest_context, nothing.most_sequences, nothing.decode) == (None, None, None)


@pytest.mark.parametrize("spec", [QWEN, LLAMA])
def test_the_longest_context_fits_and_one_page_more_does_not(spec: ModelSpec) -> None:
    machine = parse("rtx4090")
    found = fits(spec, machine, "q4", 4096, batch=4)
    assert found.longest_context is not None
    assert 4096 < found.longest_context < spec.max_position_embeddings
    assert fits(spec, machine, "q4", found.longest_context, batch=4).fits
    assert not fits(spec, machine, "q4", found.longest_context + 64, batch=4).fits


def test_decoding_a_dense_model_reads_weights_and_cache_once() -> None:
    """Llama 3.1 8B in bf16: its weights but the embedding, and 131,072 bytes of cache a token."""
    context = 8192
    read = (8_030_261_248 - 128256 * 4096) * 2 + context * 131072
    found = fits(LLAMA, parse("h100"), "bf16", context)
    assert found.decode == pytest.approx(3.35e12 / read, rel=1e-6)


def test_prefill_is_bounded_by_flops() -> None:
    """Two FLOPs per weight and, for short prompts, little else."""
    found = fits(LLAMA, parse("h100:2"), "bf16", 128)
    assert found.prefill == pytest.approx(2 * 989.5e12 / (2 * 7.5e9), rel=0.01)
    assert fits(LLAMA, parse("mac-128g"), "bf16", 128).prefill is None


def test_a_batch_meets_more_experts_but_not_all() -> None:
    """64 tokens that each take 8 of 384 experts meet 74 % of them. Of K2.6's 594 GB, 571 GB are experts (60
    layers, three matrices of 2,048 x 7,168, 4.5 bits); 2.3 GB are the embedding, which is not read."""
    experts = 60 * 384 * 3 * 2048 * 7168 * 4.5 / 8
    met = 1 - (1 - 8 / 384) ** 64
    read = 594.2e9 - 163840 * 7168 * 2 - experts * (1 - met) + 64 * 1024 * 70272
    found = fits(KIMI, parse("h200:8"), None, 1024, batch=64)
    assert found.decode == pytest.approx(64 * 8 * 4.8e12 / read, rel=0.003)


@pytest.mark.parametrize(
    ("quant", "context", "words"),
    [
        ("q5", 4096, "weights cannot be stored as 'q5': take fp32, bf16"),
        ("int4", 4096, "int4 is the storage of routed experts"),
        ("q4", 0, "context is 0; this model has 1 to 262144 tokens"),
        ("q4", 262145, "context is 262145"),
    ],
)
def test_what_cannot_be_asked(quant: str, context: int, words: str) -> None:
    with pytest.raises(LichenError, match=words):
        fits(QWEN, parse("rtx5090"), quant, context)


def test_a_batch_of_nothing() -> None:
    with pytest.raises(LichenError, match="batch is 0; at least 1 sequence is needed"):
        fits(QWEN, parse("rtx5090"), "q4", 4096, batch=0)


def test_what_the_weights_leave() -> None:
    machine = parse("rtx5090")
    assert fits(QWEN, machine, "q4", 4096).left == machine.memory - fits(QWEN, machine, "q4", 1).weight_bytes
    assert fits(KIMI, machine, None, 4096).left < 0


TWO_OF_LLAMA = (2, "bf16", 65536, 1)


@pytest.mark.parametrize(
    ("spec", "machine", "quant", "context", "batch", "found"),
    [
        (QWEN, "rtx4090", None, 65536, 1, [(1, "q4", 65536, 1), (3, "bf16", 65536, 1)]),
        (QWEN, "rtx4090", "q4", 262144, 1, [(1, "q4", 65536, 1), (2, "q4", 262144, 1)]),
        (QWEN, "rtx4090", "q6", 262144, 1, [(1, "q4", 65536, 1), (2, "q6", 262144, 1)]),
        (QWEN, "mac-64g", None, 65536, 1, [(1, "fp8", 65536, 1), (2, "bf16", 65536, 1)]),
        (QWEN, "rtx4090", "q4", 32768, 9, [(1, "q4", 8192, 9), (1, "q4", 32768, 2), (2, "q4", 32768, 9)]),
        (QWEN, "rtx4090", "fp8", 65536, 9, [(1, "q4", 8192, 9), (1, "q4", 65536, 1), (4, "fp8", 65536, 9)]),
        (KIMI, "rtx4090", None, 4096, 1, [(28, "int4", 4096, 1), (26, "fp4", 4096, 1)]),
        (LLAMA, "rtx4090", "bf16", 65536, 1, [(1, "fp8", 65536, 1), (1, "bf16", 32768, 1), TWO_OF_LLAMA]),
    ],
)
def test_what_would_fit_does_and_a_little_more_does_not(spec, machine, quant, context, batch, found) -> None:
    ways = alternatives(spec, parse(machine), quant, context, batch)
    stored = fits(spec, parse(machine), quant, context).quant
    assert ways == [Alternative(*way) for way in found]
    sizes = {}
    for name in ("fp32", "bf16", "fp8", "int4", "fp4", "mxfp4", *GGUF_BITS):
        with contextlib.suppress(LichenError):  # the storage of routed experts
            sizes[name] = fits(spec, parse(machine), name, 1024).weight_bytes
    for way in ways:
        assert fits(spec, parse(f"{machine}:{way.count}"), way.quant, way.context, way.batch).fits
        if way.count > 1:
            fewer = parse(f"{machine}:{way.count - 1}")
            assert not fits(spec, fewer, way.quant, way.context, way.batch).fits
        if way.context < context:
            assert not fits(spec, parse(machine), way.quant, 2 * way.context, way.batch).fits
        if way.batch < batch:
            assert not fits(spec, parse(machine), way.quant, way.context, way.batch + 1).fits
        finer = [name for name, size in sizes.items() if sizes[way.quant] < size <= sizes[stored]]
        if way.quant != stored:
            others = finer if way.count == 1 else sizes
            count = max(1, way.count - 1)
            given = parse(f"{machine}:{count}")
            assert not any(fits(spec, given, name, way.context, way.batch).fits for name in others)


@given(
    st.sampled_from([QWEN, KIMI, LLAMA]),
    st.sampled_from(["rtx4090", "h200:2", "mac-64g"]),
    st.sampled_from([None, "fp32", "q4"]),
    st.integers(1, 131072),
    st.sampled_from([1, 7, 10**4, 10**12]),
)
def test_every_no_has_a_yes(spec, machine, quant, context, batch) -> None:
    asked = parse(machine)
    if not fits(spec, asked, quant, context, batch).fits:
        ways = alternatives(spec, asked, quant, context, batch)
        assert ways
        for way in ways:
            given = parse(f"{asked.device_name}:{way.count}")
            assert fits(spec, given, way.quant, way.context, way.batch).fits
