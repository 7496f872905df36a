"""One training step, forward + backward + AdamW, against transformers.

    python -m benchmarks.train_step [--model v3 | v4] [--compile] [--threads 1 2] [--shapes 2x512 1x2048]
    [--rounds 9] [--json FILE]

The same model (12.2 M parameters of DeepSeek-V3's parts, or 14.4 M of V4's), weights, tokens and optimizer
(PyTorch's fused AdamW) on both sides; the losses are compared before the times are. Ours keeps fp32 master
weights and multiplies in the format that `auto` takes here, and in fp32; transformers runs its grouped_mm
experts in fp32 and, where the processor multiplies bf16 fast, with bf16 weights and in fp32 under bf16
autocast, eager and, with --compile, compiled (which takes minutes per contender). For V4 nano-deepseek-v4,
in fp32, takes part where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.profile import cpu_seconds
from benchmarks.race import Contender, Result, Step, apart, race
from benchmarks.report import Report
from lichen.arch.families import load_spec
from lichen.arch.flops import training_flops_per_token
from lichen.machine.allocator import keep_freed_memory
from lichen.machine.precision import matmul_dtype, multiplies_bf16
from lichen.machine.rates import matrix_rate
from lichen.nn.transformer import Transformer
from lichen.train.objective import NextToken
from lichen.train.parallel import Threads
from lichen.weights.load import load_model
from lichen.weights.save import save_weights

CPU = torch.device("cpu")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
NATIVE = matmul_dtype(CPU)
OURS = f"lichen {NAMES[NATIVE]}"


@dataclass(frozen=True)
class Shape:
    """A batch of `rows` sequences of `length` tokens."""

    rows: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        rows, _, length = text.partition("x")
        return cls(int(rows), int(length))

    def __str__(self) -> str:
        return f"{self.rows} x {self.length}"

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def batch(self, turn: int, vocab_size: int) -> torch.Tensor:
        """The random tokens of a turn."""
        generator = torch.Generator().manual_seed(turn)
        return torch.randint(vocab_size, (self.rows, self.length), generator=generator)


@dataclass(frozen=True)
class Precision:
    weights: torch.dtype
    autocast: bool = False


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "bf16": Precision(torch.bfloat16),
    "autocast": Precision(torch.float32, autocast=True),
}


def ours(folder: Path, shape: Shape, dtype: torch.dtype) -> Step:
    keep_freed_memory()  # as `lichen train` does
    model = load_model(folder, dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    replicas = Threads(model, shape.rows)
    normalizer = shape.rows * (shape.length - 1)
    objective = NextToken(routing=True)

    def differentiate(model: Transformer, tokens: torch.Tensor, targets: torch.Tensor) -> float:
        loss = objective(model, tokens, targets, normalizer=normalizer).loss
        loss.backward()
        return float(loss.detach())

    def step(turn: int) -> float:
        tokens = shape.batch(turn, model.spec.vocab_size)
        targets = torch.full_like(tokens, -100)
        targets[:, :-1] = tokens[:, 1:]
        optimizer.zero_grad()
        loss = sum(replicas.map(differentiate, (tokens, targets)))
        optimizer.step()
        return loss

    return step


def theirs(folder: Path, shape: Shape, precision: str, compiled: bool) -> Step:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if compiled:  # the time to the first step is that of a machine that has not compiled this before
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
    wanted = PRECISIONS[precision]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=wanted.weights, experts_implementation="grouped_mm"
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(turn: int) -> float:
        tokens = shape.batch(turn, model.config.vocab_size)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=wanted.autocast):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def nano(folder: Path, shape: Shape) -> Step:
    """nano-deepseek-v4 with the same weights, which it reads under the published names."""
    from nano_deepseek_v4.checkpoint import load_deepseek_official_checkpoint
    from nano_deepseek_v4.config import DeepSeekV4Config
    from nano_deepseek_v4.modeling import DeepSeekV4ForCausalLM

    config = models.V4_CONFIG | json.loads((folder / "config.json").read_text())
    known = {field.name for field in fields(DeepSeekV4Config)} & models.V4_CONFIG.keys()
    given = DeepSeekV4Config(**{name: config[name] for name in known if config[name] is not None})
    model = DeepSeekV4ForCausalLM(given)
    with tempfile.TemporaryDirectory() as published:
        save_weights(load_model(folder), published, torch.float32)
        found = load_deepseek_official_checkpoint(model, published)
    parameters = dict(model.named_parameters()).keys()
    if unread := parameters & set(found.missing_keys) or found.unexpected_keys:
        raise SystemExit(f"error: nano-deepseek-v4 has other weights: {', '.join(unread)}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(turn: int) -> float:
        tokens = shape.batch(turn, model.config.vocab_size)
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def ceiling() -> Step:
    """The matrix rate in FLOP/s, measured anew at every turn."""
    return lambda _: matrix_rate.__wrapped__(NATIVE, CPU)


def profile(setup: Callable[..., Step], *arguments: Any) -> dict[str, float]:
    """CPU seconds of a warm step by kind of operation."""
    step = setup(*arguments)
    for turn in range(3):
        step(turn)
    return cpu_seconds(step, turns=4)


def contenders(folder: Path, shape: Shape, options: argparse.Namespace) -> list[Contender]:
    dtypes = dict.fromkeys([NATIVE] if options.quick else [NATIVE, torch.float32])
    mine = [Contender(f"lichen {NAMES[dtype]}", ours, (folder, shape, dtype)) for dtype in dtypes]
    modes = {"eager": False} | ({"compiled": True} if options.compile else {})
    peers = [
        Contender(f"transformers {precision} {mode}", theirs, (folder, shape, precision, compiled))
        for mode, compiled in modes.items()
        for precision in (PRECISIONS if multiplies_bf16("cpu") and not options.quick else ["fp32"])
    ]
    if options.model == "v4" and find_spec("nano_deepseek_v4"):
        peers.append(Contender("nano-deepseek-v4 fp32 eager", nano, (folder, shape)))
    return mine + peers


def compare(report: Report, folder: Path, shape: Shape, threads: int, options: argparse.Namespace) -> None:
    title = f"{shape}, {threads} thread{'s' * (threads > 1)}"
    report.heading(title)
    entrants = [*contenders(folder, shape, options), Contender("ceiling", ceiling)]
    *results, limit = race(entrants, rounds=options.rounds, warmup=2, threads=threads)
    check_losses(results)
    rate = max(limit.values)
    flops = training_flops_per_token(load_spec(folder), shape.length) * shape.tokens
    mine, theirs = results[0], [r for r in results if not r.name.startswith("lichen")]

    def seconds(result: Result) -> float:
        """CPU time, which others' work disturbs least; of several threads the time until all are done."""
        return result.cpu if threads == 1 else result.wall

    share = flops / seconds(mine) / rate
    report.table(
        title,
        [
            {
                "contender": r.name,
                "CPU ms": 1e3 * r.cpu,
                "wall ms": 1e3 * r.wall,
                "tokens/s": shape.tokens / seconds(r),
                "first step s": r.first_step,
                "peak MB": r.peak_bytes and r.peak_bytes / 1e6,
                "ours / it": seconds(mine) / seconds(r),
            }
            for r in results
        ],
    )
    report.say(
        f"\nThe model's own products: {flops / 1e9:.1f} GFLOP per step. {NAMES[NATIVE]} matrix rate of "
        f"{threads} thread{'s' * (threads > 1)} in the same minutes: {rate / 1e9:,.0f} GFLOP/s.\n"
    )
    for mode in ("eager", "compiled"):
        if peers := [r for r in theirs if r.name.endswith(mode)]:
            best = min(peers, key=seconds)
            ratio = seconds(mine) / seconds(best)
            report.target(f"{title}: time over {best.name}", ratio, at_most=goal(options.model, shape, mode))
    if mine.peak_bytes is not None:
        smallest = min(theirs, key=lambda r: r.peak_bytes or 0)
        report.target(
            f"{title}: peak memory over {smallest.name}",
            mine.peak_bytes / (smallest.peak_bytes or 1),
            at_most=0.5 if options.model == "v4" and shape.length >= 4096 else 1.0,
        )
    report.target(f"{title}: seconds of the first step", mine.first_step, at_most=3.0)
    report.target(f"{title}: share of the {NAMES[NATIVE]} matrix rate", share, at_least=0.5)


def goal(model: str, shape: Shape, mode: str) -> float | None:
    """How much of their best time ours may take; None where nothing was set."""
    if model == "v4":
        return 0.45 if mode == "eager" else None
    goals = {
        torch.bfloat16: {(512, "eager"): 0.55, (512, "compiled"): 0.6, (2048, "eager"): 0.28},
        torch.float32: {(512, "eager"): 0.7},
    }
    return goals.get(NATIVE, {}).get((shape.length, mode))


def check_losses(results: list[Result]) -> None:
    """Stop if the contenders do not compute the same thing, to the precision that each computes in."""
    exact = next(r.values[0] for r in results if "fp32" in r.name)
    for r in results:
        if abs(r.values[0] - exact) > 5e-3 * exact:
            raise SystemExit(f"error: {r.name} has loss {r.values[0]:.5f} where fp32 has {exact:.5f}")


def bounds(report: Report, folder: Path, shape: Shape) -> None:
    """Say where the time goes, on one thread."""
    report.heading(f"Where the CPU time goes: {shape}, 1 thread")
    peer = "autocast" if multiplies_bf16("cpu") else "fp32"
    found = {
        OURS: apart(profile, ours, folder, shape, NATIVE, threads=1),
        f"transformers {peer} eager": apart(profile, theirs, folder, shape, peer, False, threads=1),
    }
    report.table(
        f"profile {shape}",
        [
            {"kind": kind} | {f"{name}, ms": 1e3 * seconds[kind] for name, seconds in found.items()}
            for kind in found[OURS]
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", choices=["v3", "v4"], default="v3")
    parser.add_argument("--compile", action="store_true", help="compiled peers too: minutes for each")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", type=Shape.parse, nargs="+")
    parser.add_argument("--rounds", type=int, default=9, help="counted steps of every contender")
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    config, quick = models.TRAIN_CONFIG, models.QUICK
    if options.model == "v4":
        config, quick = models.V4_CONFIG, models.QUICK_V4
    if not options.shapes:
        options.shapes = [Shape(2, 512), Shape(1, 4096 if options.model == "v4" else 2048)]
    if options.quick:
        config = config | quick
        options.threads, options.shapes, options.rounds = [1], [Shape(2, 64)], 2
    report = Report("train_step", packages=["transformers", "nano_deepseek_v4"])
    report.begin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(config, folder)
        for shape in options.shapes:
            for threads in options.threads:
                compare(report, folder, shape, threads, options)
            bounds(report, folder, shape)
    report.end(options.json)


if __name__ == "__main__":
    main()
