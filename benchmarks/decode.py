"""Generating tokens one by one, against transformers' `generate` and llama.cpp on the same weights.

    python -m benchmarks.decode [--batch 1 8] [--threads 1] [--formats fp32 int8] [--json FILE]

Greedy, after a prompt of 512 tokens, with weights kept in each of FORMATS; the texts of the fp32 contenders
must be equal. Turns alternate between the prompt with one token and the prompt with many: the difference is
the decoding. llama.cpp takes part where `gguf` and `llama-cpp-python` are installed.

A token's floor is the time to read, once, the weights that it uses and the cache, at the rate at which this
machine reads as many bytes as the model has.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
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
from lichen.weights.load import load_model


@dataclass(frozen=True)
class Format:
    """How a weight is kept: in how many bytes, by Lichen in which dtype (None: it does not), and llama.cpp's
    counterpart, which adds the scales of its blocks."""

    bytes: float
    ours: torch.dtype | None
    llama_cpp: str


FORMATS = {
    "fp32": Format(4, torch.float32, "F32"),
    "bf16": Format(2, torch.bfloat16, "BF16"),
    "fp16": Format(2, None, "F16"),
    "int8": Format(1, None, "Q8_0"),
    "int4": Format(0.5, None, "Q4_K"),
}
TRANSFORMERS = ("fp32", "bf16")

OURS, THEIRS, LLAMA_CPP = "lichen", "transformers", "llama.cpp"

NextLogits = Callable[[Tensor], Tensor]
"""Reads more tokens of every sequence, (batch, new); returns the logits after the last, (batch, vocab)."""


def prompts(batch: int, length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def new_tokens(turn: int, many: int) -> int:
    """Even turns generate one token, which the prompt's own pass gives; odd turns `many` more."""
    return 1 + many * (turn % 2)


def greedy(next_logits: NextLogits, prompt: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens after each row of `prompt` (batch, length): (batch, count)."""
    tokens = [next_logits(prompt).argmax(-1, keepdim=True)]
    while len(tokens) < count:
        tokens.append(next_logits(tokens[-1]).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1)


def fingerprint(tokens: Tensor) -> float:
    """A number that two different texts are unlikely to share."""
    return float((tokens.double() * torch.arange(1, tokens.shape[1] + 1)).sum())


def open_ours(folder: Path, name: str) -> Transformer:
    dtype = FORMATS[name].ours
    assert dtype is not None
    return load_model(folder, dtype, param_dtype=dtype).eval()


def reader(model: Transformer, batch: int, capacity: int) -> NextLogits:
    """What reads `batch` new sequences of at most `capacity` tokens."""
    storage = Contiguous(model.spec, batch, capacity, model.compute_dtype)

    @torch.inference_mode()
    def next_logits(tokens: Tensor) -> Tensor:
        at = storage.take([tokens.shape[1]] * batch)
        return model.logits(model(tokens.flatten(), at).view(*tokens.shape, -1)[:, -1])

    return next_logits


def ours(folder: Path, name: str, batch: int, length: int, many: int) -> Step:
    model = open_ours(folder, name)
    prompt = prompts(batch, length, model.spec.vocab_size)
    return lambda turn: fingerprint(
        greedy(reader(model, batch, length + many), prompt, new_tokens(turn, many))
    )


def theirs(folder: Path, name: str, batch: int, length: int, many: int) -> Step:
    from transformers import DeepseekV3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = FORMATS[name].ours
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    prompt = prompts(batch, length, model.config.vocab_size)

    def step(turn: int) -> float:
        count = new_tokens(turn, many)
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

    def step(turn: int) -> float:
        sequences.clear()
        return fingerprint(greedy(sequences.next_logits, prompt, new_tokens(turn, many)))

    return step


def memory(n_bytes: int) -> Step:
    """The rate of reading that many bytes, in bytes per second, measured anew at every turn."""
    return lambda _: memory_rate(n_bytes, torch.device("cpu"))


def step_of_ours(folder: Path, name: str, length: int, turns: int) -> Step:
    """Steps of decoding a single sequence, `turns` at most, after `length` tokens."""
    model = open_ours(folder, name)
    next_logits = reader(model, 1, length + turns)
    token = next_logits(prompts(1, length, model.spec.vocab_size)).argmax(-1, keepdim=True)

    def step(_: int) -> float:
        nonlocal token
        token = next_logits(token).argmax(-1, keepdim=True)
        return float(token)

    return step


def profile(folder: Path, name: str, length: int, many: int) -> dict[str, float]:
    """CPU seconds of one step of ours by kind of operation."""
    step = step_of_ours(folder, name, length, 3 * many)
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


def phases(result: Result, many: int) -> tuple[float, float]:
    """Median CPU seconds of the prompt, and of one step of the text after it."""
    short, long = result.laps[0::2], result.laps[1::2]
    prompt = median(lap.cpu for lap in short)
    return prompt, (median(lap.cpu for lap in long) - prompt) / many


def logits_differ(folder: Path, file: Path, length: int) -> float:
    """How far llama.cpp's fp32 logits after a prompt are from ours, relative to their norm."""
    model = open_ours(folder, "fp32")
    prompt = prompts(1, length, model.spec.vocab_size)
    mine = reader(model, 1, length)(prompt)
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


def contenders(
    folder: Path, batch: int, options: argparse.Namespace
) -> dict[tuple[str, str], tuple[Contender, float]]:
    """By who takes part and the format; with each the bytes that it keeps per weight."""
    found = {}
    size = (batch, options.prompt, options.tokens)
    for name in options.formats:
        kept = FORMATS[name]
        if kept.ours is not None:
            mine = Contender(f"{OURS} {name}", ours, (folder, name, *size))
            found[OURS, name] = mine, kept.bytes
        if name in TRANSFORMERS:
            found[THEIRS, name] = Contender(f"{THEIRS} {name}", theirs, (folder, name, *size)), kept.bytes
        if llama_cpp.INSTALLED:
            file = llama_cpp.convert(folder, kept.llama_cpp)
            peer = Contender(f"{LLAMA_CPP} {kept.llama_cpp}", llama, (file, *size))
            found[LLAMA_CPP, name] = peer, file.stat().st_size / held_weights(load_spec(folder))
    return found


def held_weights(spec: ModelSpec) -> int:
    return sum(weight.parameters for weight in weights(spec))


def compare(report: Report, folder: Path, batch: int, threads: int, options: argparse.Namespace) -> None:
    title = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
    report.heading(title)
    spec = load_spec(folder)
    length, many = options.prompt, options.tokens
    entrants = contenders(folder, batch, options)
    formats = list(dict.fromkeys(name for _, name in entrants))
    held = {name: int(held_weights(spec) * FORMATS[name].bytes) for name in formats}
    racing = [contender for contender, _ in entrants.values()]
    limits = [Contender(name, memory, (held[name],)) for name in formats]
    found = race([*racing, *limits], rounds=2 * options.rounds, warmup=2, threads=threads)
    results = dict(zip(entrants, found, strict=False))
    check_texts(results.values())
    rates = {r.name: max(r.values) for r in found[len(entrants) :]}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for (who, name), result in results.items():
        prompt, step = phases(result, many)
        cache = "fp32" if (name, who) in (("fp32", OURS), ("fp32", THEIRS)) else "bf16"
        read = bytes_per_step(spec, entrants[who, name][1], cache, batch, length + many // 2)
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
    read_at = "; ".join(f"{held[name] / 1e6:.0f} MB at {rates[name] / 1e9:.1f} GB/s" for name in formats)
    report.say(f"\nThis machine reads {read_at}. Tokens per second are per second of CPU time.\n")
    for name in formats:
        targets(report, title, batch, name, rows)


def targets(
    report: Report, title: str, batch: int, name: str, rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """How many times as fast as its peers ours is with weights in one format, beside the goals."""
    if (OURS, name) not in rows:
        report.say(f"- {title}: {OURS} does not keep weights in {name}")
        return
    mine = rows[OURS, name]

    def over(peer: tuple[str, str], column: str, at_least: float) -> None:
        if peer in rows:
            what = f"{title}: {column} of {mine['contender']} over {rows[peer]['contender']}"
            report.target(what, mine[column] / rows[peer][column], at_least=at_least)

    over((LLAMA_CPP, name), "tokens/s", 1.0 if batch == 1 else 1.3)
    over((LLAMA_CPP, name), "prompt tokens/s", 1.2)
    over((THEIRS, name), "tokens/s", 3.0)
    if name not in TRANSFORMERS and batch == 1:
        over((THEIRS, "fp32"), "tokens/s", 4.0)


def bounds(report: Report, folder: Path, formats: list[str], options: argparse.Namespace) -> None:
    """Say where the time of a step of ours goes, at batch 1 on one thread."""
    report.heading("Where the CPU time of a step goes: batch 1, 1 thread")
    found = {
        f"{OURS} {name}": apart(profile, folder, name, options.prompt, options.tokens, threads=1)
        for name in formats
    }
    report.table(
        "profile of a step",
        [
            {"kind": kind} | {f"{who}, ms": 1e3 * seconds[kind] for who, seconds in found.items()}
            for kind in next(iter(found.values()))
        ],
    )
    report.say("")
    for who, seconds in found.items():
        share = (seconds[REMAINDER] + seconds[VIEWS]) / sum(seconds.values())
        report.target(f"{who}, batch 1: share of {REMAINDER} and {VIEWS} in a step", share, at_most=0.15)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    native = [name for name in FORMATS if name != "bf16" or multiplies_bf16("cpu")]
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=native, help="of the weights")
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
        kept = [name for name in options.formats if FORMATS[name].ours is not None]
        if kept and (1 in options.batch or options.quick):
            bounds(report, folder, kept, options)
    report.end(options.json)


if __name__ == "__main__":
    main()
