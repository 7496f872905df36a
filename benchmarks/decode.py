"""Generating tokens one by one, against transformers' `generate` and llama.cpp on the same weights.

    python -m benchmarks.decode [--batch 1 8] [--threads 1] [--formats fp32 int8] [--json FILE]

Greedy, after a prompt of 512 tokens, with weights kept in each of FORMATS; the texts of the fp32 contenders
must be equal. Turns alternate between the prompt, with the first token, and the tokens after it, for which
transformers has to read the prompt again: there the difference is the decoding. llama.cpp takes part where
`gguf` and `llama-cpp-python` are installed.

A token's floor is the time to read, once, the weights that it uses and the cache, at the rate at which this
machine reads as many bytes as the model has.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import llama_cpp, models
from benchmarks.profile import REMAINDER, VIEWS, cpu_seconds
from benchmarks.race import Contender, Result, Step, apart, race
from benchmarks.report import Report
from lichen.arch.cache import cache_bytes
from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import weights
from lichen.kv.contiguous import Contiguous
from lichen.machine.precision import multiplies_bf16
from lichen.machine.rates import memory_rate
from lichen.nn.transformer import Transformer
from lichen.ops.native import library
from lichen.serve.decode import Decoder
from lichen.serve.formats import Formats, Weights, formats_for
from lichen.serve.sampling import SamplingParams
from lichen.weights.load import load_model
from lichen.weights.pack import pack_weights


@dataclass(frozen=True)
class Format:
    """A value of `lichen sample --weights`: bytes per weight, with the scale of its block, and llama.cpp's
    format of as many."""

    bytes: float
    llama_cpp: str


FORMATS: dict[Weights, Format] = {
    "fp32": Format(4, "F32"),
    "bf16": Format(2, "BF16"),
    "fp16": Format(2, "F16"),
    "int8": Format(1 + 2 / 32, "Q8_0"),
    "int4": Format((1 + 1 / 8) / 2, "Q4_K"),
}
TRANSFORMERS = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if multiplies_bf16("cpu") else {})
CPU = torch.device("cpu")

OURS, THEIRS, LLAMA_CPP = "lichen", "transformers", "llama.cpp"
Rows = dict[tuple[str, Weights], dict[str, Any]]
"""A table's rows by who takes part and the format."""


def prompts(batch: int, length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def fingerprint(tokens: Tensor) -> float:
    """A number that two different texts are unlikely to share."""
    return float((tokens.double() * torch.arange(1, tokens.shape[1] + 1)).sum())


def formats_of_ours(folder: Path, name: Weights) -> Formats:
    return formats_for(name, load_spec(folder).dtype, CPU)


def open_ours(folder: Path, name: Weights) -> Transformer:
    """As `lichen sample` opens it, without a tokenizer."""
    formats = formats_of_ours(folder, name)
    model = load_model(folder, formats.compute, param_dtype=formats.load).eval()
    if formats.pack is not None:
        pack_weights(model, formats.pack)
    return model


@torch.inference_mode()
def first_logits(model: Transformer, prompt: Tensor, storage: Contiguous) -> Tensor:
    """Read `prompt` (batch, length) into `storage`; the logits after it, (batch, vocab_size)."""
    batch, length = prompt.shape
    hidden = model(prompt.flatten(), storage.take([length] * batch))
    return model.logits(hidden.view(batch, length, -1)[:, -1])


def decoder(model: Transformer, prompt: Tensor, many: int) -> Decoder:
    """What continues `prompt` (batch, length) greedily, by at most `many` tokens after the first."""
    batch, length = prompt.shape
    storage = Contiguous(model.spec, batch, length + many, model.compute_dtype)
    greedy = SamplingParams(temperature=0)
    found = Decoder(model, storage, greedy, greedy.generator(CPU))
    found.enter(first_logits(model, prompt, storage))
    return found


def ours(folder: Path, name: Weights, batch: int, length: int, many: int) -> Step:
    model = open_ours(folder, name)
    prompt = prompts(batch, length, model.spec.vocab_size)

    text = decoder(model, prompt, many)

    def step(turn: int) -> float:
        nonlocal text
        if turn % 2 == 0:
            text = decoder(model, prompt, many)
            return fingerprint(text.next_B.unsqueeze(1))
        return fingerprint(torch.tensor(list(text.texts(many))).T)

    return step


def theirs(folder: Path, name: Weights, batch: int, length: int, many: int) -> Step:
    from transformers import DeepseekV3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=TRANSFORMERS[name]).eval()
    prompt = prompts(batch, length, model.config.vocab_size)

    def step(turn: int) -> float:
        count = 1 + many * (turn % 2)
        text = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
        )
        return fingerprint(text[:, length:])

    return step


def llama(file: Path, batch: int, length: int, many: int) -> Step:
    sequences = llama_cpp.Sequences(file, batch, length + many)
    prompt = prompts(batch, length, sequences.vocab_size)

    tokens: list[Tensor] = []

    def step(turn: int) -> float:
        if turn % 2 == 0:
            sequences.clear()
            tokens[:] = [sequences.next_logits(prompt).argmax(-1, keepdim=True)]
        else:
            for _ in range(many):
                tokens.append(sequences.next_logits(tokens[-1]).argmax(-1, keepdim=True))
        return fingerprint(torch.cat(tokens, 1))

    return step


def memory(n_bytes: int) -> Step:
    """The rate of reading that many bytes, in bytes per second, measured anew at every turn."""
    return lambda _: memory_rate(n_bytes, CPU)


def profile(folder: Path, name: Weights, length: int, many: int) -> dict[str, float]:
    """CPU seconds of one step of ours by kind of operation."""
    model = open_ours(folder, name)
    text = decoder(model, prompts(1, length, model.spec.vocab_size), 3 * many)

    def step(_: int) -> float:
        text.step()
        return float(text.next_B)

    for turn in range(many):
        step(turn)
    return cpu_seconds(step, turns=many)


def bytes_per_step(spec: ModelSpec, weight_bytes: float, cache: str, batch: int, context: int) -> float:
    """Bytes that one step of `batch` sequences reads, with so many per weight and a cache in that format.

    Weights once and the cache of every sequence. Of the experts as many count as a router without
    preferences is expected to choose for the whole batch.
    """
    read = float(cache_bytes(spec, context, layout=cache, sequences=batch).ideal)
    for weight in weights(spec):
        idle = (1 - weight.active / weight.count) ** batch
        read += weight.parameters * (1 - idle) * weight_bytes
    return read


def phases(result: Result, many: int, again: bool) -> tuple[float, float]:
    """Median CPU seconds of the prompt, and of one step of the text after it; again: the text's turns read
    the prompt too."""
    prompt = median(lap.cpu for lap in result.laps[0::2])
    text = median(lap.cpu for lap in result.laps[1::2])
    return prompt, (text - prompt * again) / many


def logits_differ(folder: Path, file: Path, length: int) -> float:
    """How far llama.cpp's fp32 logits after a prompt are from ours, relative to their norm."""
    model = open_ours(folder, "fp32")
    prompt = prompts(1, length, model.spec.vocab_size)
    mine = first_logits(model, prompt, Contiguous(model.spec, 1, length))
    theirs = llama_cpp.Sequences(file, 1, length, exact=True).next_logits(prompt)
    return float((theirs - mine).norm() / mine.norm())


def check_weights(report: Report, folder: Path, length: int) -> None:
    """Stop if llama.cpp's file does not hold the same model.

    Texts would not show it: flash attention, with which it races, rounds keys and values to fp16.
    """
    file = llama_cpp.convert(folder, FORMATS["fp32"].llama_cpp)
    difference = logits_differ(folder, file, length)
    report.say(f"\nllama.cpp's logits, in fp32 throughout, differ from ours by {difference:.1e}.")
    if difference > 1e-5:
        raise SystemExit("error: llama.cpp does not compute the same model")


def check_texts(results: Iterable[Result]) -> None:
    """Stop if ours and transformers write different texts in fp32."""
    texts = {r.name: r.values for r in results if r.name.endswith("fp32")}
    if len({tuple(values) for values in texts.values()}) > 1:
        raise SystemExit(f"error: {' and '.join(texts)} do not write the same text")


def contenders(folder: Path, batch: int, options: argparse.Namespace) -> dict[tuple[str, Weights], Contender]:
    """By who takes part and the format."""
    found: dict[tuple[str, Weights], Contender] = {}
    size = (batch, options.prompt, options.tokens)
    for name in options.formats:
        found[OURS, name] = Contender(f"{OURS} {name}", ours, (folder, name, *size))
        if name in TRANSFORMERS:
            found[THEIRS, name] = Contender(f"{THEIRS} {name}", theirs, (folder, name, *size))
        if llama_cpp.INSTALLED:
            kept = FORMATS[name].llama_cpp
            file = llama_cpp.convert(folder, kept)
            found[LLAMA_CPP, name] = Contender(f"{LLAMA_CPP} {kept}", llama, (file, *size))
    return found


def compare(report: Report, folder: Path, batch: int, threads: int, options: argparse.Namespace) -> None:
    title = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
    report.heading(title)
    spec = load_spec(folder)
    length, many = options.prompt, options.tokens
    entrants = contenders(folder, batch, options)
    parameters = sum(weight.parameters for weight in weights(spec))
    held = {name: int(parameters * FORMATS[name].bytes) for name in options.formats}
    limits = [Contender(name, memory, (n_bytes,)) for name, n_bytes in held.items()]
    found = race([*entrants.values(), *limits], rounds=2 * options.rounds, warmup=2, threads=threads)
    results = dict(zip(entrants, found, strict=False))
    check_texts(results.values())
    rates = {r.name: max(r.values) for r in found[len(entrants) :]}
    rows: Rows = {}
    for (who, name), result in results.items():
        prompt, step = phases(result, many, again=who == THEIRS)
        cached = {OURS: formats_of_ours(folder, name).compute, THEIRS: TRANSFORMERS.get(name)}.get(who)
        cache = "fp32" if cached == torch.float32 else "bf16"  # of 16 bits
        read = bytes_per_step(spec, FORMATS[name].bytes, cache, batch, length + many // 2)
        rows[who, name] = {
            "contender": result.name,
            "prompt tokens/s": batch * length / prompt,
            "tokens/s": batch / step,
            "ms per step": 1e3 * step,
            "MB read per step": read / 1e6,
            "% of memory rate": 100 * read / (step / threads) / rates[name],
            "peak MB": result.peak_bytes and result.peak_bytes / 1e6,
        }
    report.table(title, list(rows.values()))
    read_at = "; ".join(f"{held[name] / 1e6:.0f} MB at {rates[name] / 1e9:.1f} GB/s" for name in held)
    report.say(f"\nThis machine reads {read_at}. Tokens per second are per second of CPU time.\n")
    for name in held:
        targets(report, title, batch, name, rows)


def targets(report: Report, title: str, batch: int, name: Weights, rows: Rows) -> None:
    """How many times as fast as its peers ours is with weights in one format, beside the goals."""
    mine = rows[OURS, name]

    def over(peer: tuple[str, Weights], column: str, at_least: float) -> None:
        if peer in rows:
            what = f"{title}: {column} of {mine['contender']} over {rows[peer]['contender']}"
            report.target(what, mine[column] / rows[peer][column], at_least=at_least)

    over((LLAMA_CPP, name), "tokens/s", 1.0 if batch == 1 else 1.3)
    over((LLAMA_CPP, name), "prompt tokens/s", 1.2)
    over((THEIRS, name), "tokens/s", 3.0)
    if name not in TRANSFORMERS and batch == 1:
        over((THEIRS, "fp32"), "tokens/s", 4.0)


def bounds(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Say where the time of a step of ours goes, at batch 1 on one thread."""
    report.heading("Where the CPU time of a step goes: batch 1, 1 thread")
    found = {
        f"{OURS} {name}": apart(profile, folder, name, options.prompt, options.tokens, threads=1)
        for name in options.formats
    }
    report.table(
        "profile of a step",
        [
            {"kind": kind} | {f"{who}, ms": 1e3 * seconds[kind] for who, seconds in found.items()}
            for kind in next(iter(found.values()))
            if any(seconds[kind] for seconds in found.values())
        ],
    )
    report.say("")
    for who, seconds in found.items():
        share = (seconds[REMAINDER] + seconds[VIEWS]) / sum(seconds.values())
        report.target(f"{who}, batch 1: share of {REMAINDER} and {VIEWS} in a step", share, at_most=0.15)


def usual() -> list[Weights]:
    """The formats that are no detour here: bf16 where it is multiplied fast, fewer bits with kernels."""
    native: list[Weights] = ["fp32", "bf16"] if multiplies_bf16("cpu") else ["fp32"]
    return native if library() is None else [*native, "fp16", "int8", "int4"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=usual(), help="of the weights")
    parser.add_argument("--prompt", type=int, default=512, help="tokens in the cache")
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated after the first")
    parser.add_argument("--rounds", type=int, default=5, help="counted texts of every contender")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    config = models.DECODE_CONFIG
    if options.quick:
        config = config | models.QUICK
        options.formats = ["bf16" if multiplies_bf16("cpu") else "fp32"]
        options.batch, options.prompt, options.tokens, options.rounds = [2], 16, 8, 3
    report = Report("decode", packages=["transformers", "llama_cpp_python"])
    report.begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(config, folder)
        if llama_cpp.INSTALLED:
            check_weights(report, folder, options.prompt)
        for batch in options.batch:
            for threads in options.threads:
                compare(report, folder, batch, threads, options)
        if 1 in options.batch or options.quick:
            bounds(report, folder, options)
    report.end(options.json)


if __name__ == "__main__":
    main()
