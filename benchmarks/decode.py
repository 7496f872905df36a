"""Generating tokens one by one, against transformers' `generate` on the same weights.

    python -m benchmarks.decode [--batch 1 8] [--threads 1] [--json FILE]

Greedy, after a prompt of 512 tokens, in bf16 and in fp32; the texts of the two fp32 contenders must be equal.
Turns alternate between the prompt with one token and the prompt with many: the difference is the decoding.

A token's floor is the time to read, once, the weights that it uses and the cache, at the rate at which this
machine reads as many bytes as the model has.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.race import Contender, Result, Step, race
from benchmarks.report import Report
from lichen.arch.cache import cache_bytes
from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import weights
from lichen.kv.contiguous import Contiguous
from lichen.machine.precision import matmul_dtype
from lichen.machine.rates import memory_rate
from lichen.weights.load import load_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def prompts(batch: int, length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def new_tokens(turn: int, many: int) -> int:
    """Even turns generate one token, which the prompt's own pass gives; odd turns `many` more."""
    return 1 + many * (turn % 2)


def fingerprint(tokens: Tensor) -> float:
    """A number that two different texts are unlikely to share."""
    return float((tokens.double() * torch.arange(1, tokens.shape[1] + 1)).sum())


def ours(folder: Path, dtype: torch.dtype, batch: int, length: int, many: int) -> Step:
    model = load_model(folder, dtype, param_dtype=dtype).eval()
    prompt = prompts(batch, length, model.spec.vocab_size)

    @torch.inference_mode()
    def step(turn: int) -> float:
        storage = Contiguous(model.spec, batch, length + many, dtype)

        def next_logits(tokens: Tensor) -> Tensor:
            at = storage.take([tokens.shape[1]] * batch)
            return model.logits(model(tokens.flatten(), at).view(*tokens.shape, -1)[:, -1])

        logits = next_logits(prompt)
        tokens = [logits.argmax(-1, keepdim=True)]
        while len(tokens) < new_tokens(turn, many):
            logits = next_logits(tokens[-1])
            tokens.append(logits.argmax(-1, keepdim=True))
        return fingerprint(torch.cat(tokens, 1))

    return step


def theirs(folder: Path, dtype: torch.dtype, batch: int, length: int, many: int) -> Step:
    from transformers import DeepseekV3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
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


def memory(n_bytes: int) -> Step:
    """The rate of reading that many bytes, in bytes per second, measured anew at every turn."""
    return lambda _: memory_rate(n_bytes, torch.device("cpu"))


def bytes_per_step(spec: ModelSpec, size: int, batch: int, context: int) -> float:
    """Bytes that one step of `batch` sequences reads, at `size` bytes per number.

    Weights once and the cache of every sequence. Of the experts as many count as a router without
    preferences is expected to choose for the whole batch.
    """
    numbers = cache_bytes(spec, context, layout="fp32", sequences=batch).ideal / DTYPES["fp32"].itemsize
    for weight in weights(spec):
        idle = (1 - weight.active / weight.count) ** batch
        numbers += weight.parameters * (1 - idle)
    return numbers * size


def phases(result: Result, many: int) -> tuple[float, float]:
    """Median CPU seconds of the prompt, and of one step of the text after it."""
    short, long = result.laps[0::2], result.laps[1::2]
    prompt = median(lap.cpu for lap in short)
    return prompt, (median(lap.cpu for lap in long) - prompt) / many


def check_texts(results: list[Result]) -> None:
    """Stop if the fp32 contenders write different texts."""
    texts = {r.name: r.values for r in results if r.name.endswith("fp32")}
    if len({tuple(values) for values in texts.values()}) > 1:
        raise SystemExit(f"error: {' and '.join(texts)} do not write the same text")


def compare(report: Report, folder: Path, batch: int, threads: int, options: argparse.Namespace) -> None:
    title = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
    report.heading(title)
    spec = load_spec(folder)
    length, many = options.prompt, options.tokens
    native = matmul_dtype("cpu")
    dtypes = {name: dtype for name, dtype in DTYPES.items() if not options.quick or dtype == native}
    entrants = [
        Contender(f"{who} {name}", setup, (folder, dtype, batch, length, many))
        for who, setup in (("lichen", ours), ("transformers", theirs))
        for name, dtype in dtypes.items()
    ]
    held = sum(weight.parameters for weight in weights(spec))
    entrants += [Contender(name, memory, (held * dtype.itemsize,)) for name, dtype in dtypes.items()]
    found = race(entrants, rounds=2 * options.rounds, warmup=2, threads=threads)
    results, limits = found[: -len(dtypes)], found[-len(dtypes) :]
    check_texts(results)
    rates = {r.name: max(r.values) for r in limits}
    rows = []
    for r in results:
        name = r.name.split()[-1]
        prompt, step = phases(r, many)
        read = bytes_per_step(spec, DTYPES[name].itemsize, batch, length + many // 2)
        rows.append(
            {
                "contender": r.name,
                "prompt tokens/s": batch * length / prompt,
                "tokens/s": batch / step,
                "ms per step": 1e3 * step,
                "MB read per step": read / 1e6,
                "% of memory rate": 100 * read / (step / threads) / rates[name],
                "peak MB": r.peak_bytes and r.peak_bytes / 1e6,
            }
        )
    report.table(title, rows)
    read_at = "; ".join(
        f"{held * dtypes[name].itemsize / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s"
        for name, rate in rates.items()
    )
    report.say(f"\nThis machine reads {read_at}. Tokens per second are per second of CPU time.\n")
    speed = {row["contender"]: row["tokens/s"] for row in rows}
    for name in dtypes:
        ratio = speed[f"lichen {name}"] / speed[f"transformers {name}"]
        report.target(f"{title}: tokens/s over transformers, {name}", ratio, at_least=3.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=512, help="tokens in the cache")
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated after the first")
    parser.add_argument("--rounds", type=int, default=5, help="counted texts of every contender")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    config = models.DECODE_CONFIG
    if options.quick:
        config = config | models.QUICK
        options.batch, options.prompt, options.tokens, options.rounds = [2], 16, 8, 3
    report = Report("decode", packages=["transformers"])
    report.begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(config, folder)
        for batch in options.batch:
            for threads in options.threads:
                compare(report, folder, batch, threads, options)
    report.end(options.json)


if __name__ == "__main__":
    main()
