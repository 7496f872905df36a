"""Whether a model fits on a machine, what is left for its cache, and how fast it could be at best.

The speeds are a roofline, an upper bound that nobody reaches: every byte of weights and cache is read once
per step at the full bandwidth, every FLOP is done at the full rate, and several devices share the work
evenly without talking to each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil

from lichen.arch.cache import cache_bytes, longest_context, most_sequences
from lichen.arch.declaration import Weight
from lichen.arch.flops import flops_per_token
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import DTYPES, EXPERTS_ONLY, has_experts, released_dtype, weight_bytes, weights
from lichen.errors import LichenError
from lichen.machine.devices import MOST_DEVICES, Machine

# Bits per weight of llama.cpp's blocks, scales included: 18 and 34 bytes for 32 weights, 210 for 256
# (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
GGUF_BITS = {"q4": 4.5, "q6": 6.5625, "q8": 8.5}

SHORTEST_CONTEXT = 1024  # tokens; less is offered to nobody

# What the speeds take for granted, for whoever is shown them.
ASSUMPTIONS = (
    "what a step uses of the weights, and the whole cache, is read once at the full bandwidth",
    "all products are done at the full rate, in FP8 for weights in fp8 or fp4 and in bf16 for others",
    "each token meets experts at random, so a batch reads as many as it meets on average",
    "several devices share the work evenly and exchange nothing",
    "decode is of all sequences together, each with its whole context behind it",
)


@dataclass(frozen=True)
class Fit:
    """Bytes, tokens and tokens per second, those of `decode` for all sequences together.

    None: the contexts where the weights alone do not fit, the speeds where the whole does not; `prefill` also
    where the device's rate is not published, and then `decode` is bounded by bytes alone. The USD are of a
    million tokens at these speeds, the least that they can be; None also where no price is given.
    """

    fits: bool
    quant: str
    weight_bytes: int
    cache_bytes: int
    memory: int
    longest_context: int | None
    most_sequences: int | None
    decode: float | None
    prefill: float | None
    decode_usd: float | None
    prefill_usd: float | None

    @property
    def left(self) -> int:
        """Bytes that the weights leave for the cache; negative: what is missing for the weights alone."""
        return self.memory - self.weight_bytes


def fits(
    spec: ModelSpec,
    machine: Machine,
    quant: str | None,
    context: int,
    batch: int = 1,
    price_per_hour: float | None = None,
) -> Fit:
    """`batch` sequences of `context` tokens on `machine`, the weights as `quant` (None: as released).

    quant: fp32, bf16, fp8, int4, fp4, mxfp4 as checkpoints have them, or q4, q6, q8 as GGUF files do.
    price_per_hour: USD per device and hour.
    Raises LichenError for a context the model does not have, a storage that it cannot have, a negative price.
    """
    stored = storage(spec, quant)
    if not 1 <= context <= spec.max_position_embeddings:
        raise LichenError(f"context is {context}; this model has 1 to {spec.max_position_embeddings} tokens")
    if batch < 1:
        raise LichenError(f"batch is {batch}; at least 1 sequence is needed")
    if price_per_hour is not None and price_per_hour < 0:
        raise LichenError(f"the price per hour is {price_per_hour:g}; it cannot be negative")
    held = bytes_of(weights(spec), stored)
    cached = cache_bytes(spec, context, sequences=batch)
    left = machine.memory - held
    fit = cached.reserved <= left
    decode = prefill = None
    if fit:
        flops, rate = flops_per_token(spec, context), machine.flops(fp8=stored in ("fp8", "fp4"))
        read = bytes_of(_met(weights(spec), batch), stored) + cached.ideal
        decode = batch / max(read / machine.bandwidth, batch * flops.decode / rate if rate else 0.0)
        prefill = rate / flops.forward if rate else None
    return Fit(
        fits=fit,
        quant=stored,
        weight_bytes=held,
        cache_bytes=cached.reserved,
        memory=machine.memory,
        longest_context=longest_context(spec, left, sequences=batch) if left > 0 else None,
        most_sequences=most_sequences(spec, left, context) if left > 0 else None,
        decode=decode,
        prefill=prefill,
        decode_usd=_usd(decode, machine, price_per_hour),
        prefill_usd=_usd(prefill, machine, price_per_hour),
    )


@dataclass(frozen=True)
class Alternative:
    """What would fit: so many devices of the machine's sort, a storage of the weights, tokens of context, and
    sequences."""

    count: int
    quant: str
    context: int
    batch: int


def alternatives(
    spec: ModelSpec, machine: Machine, quant: str | None, context: int, batch: int = 1
) -> list[Alternative]:
    """What would fit where `fits` says no to the same.

    On as many devices: the finest storage in which it does; the longest context, `context` halved again and
    again; the most sequences; where none of them is enough, a storage together with one of the others. With
    nothing else changed: how many devices; where nothing helps on as many as there are, also the fewest that
    do in another storage. Where no number of devices holds the whole batch, as much of it as fits on those
    that hold one sequence.
    """
    stored = storage(spec, quant)
    held = {name: bytes_of(weights(spec), name) for name in _storages(spec)}
    smaller = sorted((name for name in held if held[name] < held[stored]), key=lambda name: -held[name])
    contexts = [context >> n for n in range(1, context.bit_length()) if context >> n >= SHORTEST_CONTEXT]
    here = partial(Alternative, machine.count)

    def needed(name: str, length: int, sequences: int) -> int:
        return held[name] + cache_bytes(spec, length, sequences=sequences).reserved

    def first(ways: Iterable[Alternative]) -> list[Alternative]:
        fitting = (way for way in ways if needed(way.quant, way.context, way.batch) <= machine.memory)
        return list(islice(fitting, 1))

    def sequences(name: str) -> int:
        return most_sequences(spec, machine.memory - held[name], context)

    def devices(name: str, sequences: int = batch) -> int:
        return ceil(needed(name, context, sequences) / (machine.device.memory * machine.usable.share))

    found = first(here(name, context, batch) for name in smaller)
    found += first(here(stored, length, batch) for length in contexts)
    found += first(here(name, context, most) for name in [stored] if (most := sequences(name)))
    if not found:
        found = first(here(name, length, batch) for length in contexts for name in smaller)
        found += first(here(name, context, most) for name in smaller if (most := sequences(name)))
    more = [stored]
    if not found:
        more += [name for name in sorted(smaller, key=devices)[:1] if devices(name) < devices(stored)]
    found += [Alternative(devices(name), name, context, batch) for name in more]
    found = [way for way in found if way.count <= MOST_DEVICES]
    if not found:
        many = replace(machine, count=devices(stored, 1))
        most = most_sequences(spec, many.memory - held[stored], context)
        found = [Alternative(many.count, stored, context, most)]
    return found


def _storages(spec: ModelSpec) -> list[str]:
    """Those that `bytes_of` can count for the model."""
    coarse = () if has_experts(weights(spec)) else EXPERTS_ONLY
    return [name for name in (*DTYPES, *GGUF_BITS) if name not in coarse]


def _usd(rate: float | None, machine: Machine, price_per_hour: float | None) -> float | None:
    if rate is None or price_per_hour is None:
        return None
    return machine.count * price_per_hour / 3600 / rate * 1e6


def check_quant(quant: str | None) -> str | None:
    """`quant` itself. Raises LichenError if it is no storage of weights."""
    if quant not in (None, *DTYPES, *GGUF_BITS):
        raise LichenError(f"weights cannot be stored as {quant!r}: take {', '.join((*DTYPES, *GGUF_BITS))}")
    return quant


def storage(spec: ModelSpec, quant: str | None) -> str:
    """How the weights are stored: as `quant`, or as released. Raises LichenError for what is not counted."""
    stored = check_quant(quant) or released_dtype(spec)
    if stored is None:
        raise LichenError("the storage of the released weights is not one that can be counted: name another")
    return stored


def bytes_of(found: Iterable[Weight], stored: str) -> int:
    """Bytes of weights in one of the storages of `fits`. Raises SpecError where they cannot have it."""
    if stored in GGUF_BITS:
        return round(sum(weight.parameters for weight in found) * GGUF_BITS[stored] / 8)
    return weight_bytes(found, stored)


def _met(found: Iterable[Weight], batch: int) -> list[Weight]:
    """What a step of `batch` tokens reads: of `count` experts of which each token takes `active` at random,
    count * (1 - (1 - active / count)^batch) on average."""
    return [
        replace(weight, count=round(weight.count * (1 - (1 - weight.active / weight.count) ** batch)))
        for weight in found
    ]
