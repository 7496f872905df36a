"""Everything that only a GPU can tell, in one command and at most seven minutes: parts have 400 s in all.

    python -m benchmarks.gpu [--parts machine kernels ...] [--json FILE]

Needs PyTorch (2.11 or later), the packages that Lichen needs, and no network; `transformers` takes part if it
is installed. Every part runs in a process of its own with a time limit of its own, so that one that fails or
hangs costs the others nothing, and prints each figure as soon as it has it, as one line of JSON. The last
thing is a table of the figures that have a goal.

--quick takes the same way on a tiny model and, where there is no accelerator, on a CPU that is taken for one:
whether everything runs, not how fast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import markdown
from lichen.machine import accelerator

ROOT = Path(__file__).parents[1]
SECONDS = {  # that a part may take
    "machine": 40,
    "train": 80,
    "transformers": 60,
    "muon": 50,
    "decode": 60,
    "demo": 60,
    "kernels": 50,
}


def figure(what: str, value: Any, unit: str = "", **more: Any) -> None:
    """One line of JSON; `at_most` or `at_least` is the goal."""
    print(json.dumps({"figure": what, "value": value, "unit": unit} | more), flush=True)


# ------------------------------------------------------------------------------------------ the machine


def device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def wait() -> None:
    if device().type != "cpu":
        torch.accelerator.synchronize()


def seconds(step: Callable[[], object], rounds: int, warmup: int = 3) -> float:
    """Median of the wall clock, each step waited for."""
    times = []
    for turn in range(warmup + rounds):
        wait()
        start = time.perf_counter()
        step()
        wait()
        if turn >= warmup:
            times.append(time.perf_counter() - start)
    return median(times)


def peak_gigabytes() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device().type == "cuda" else None


@contextmanager
def waits_counted() -> Iterator[Counter[str]]:
    """How often the program waits for the device, by the line that does."""
    found: Counter[str] = Counter()
    if device().type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


def kernels(step: Callable[[], object], what: str, top: int = 14) -> None:
    """How many kernels a step launches, and which take longest."""
    if device().type != "cuda":
        step()
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    figure(f"{what}: kernels", sum(event.count for event in events), "launches")
    figure(f"{what}: time in kernels", sum(event.self_device_time_total for event in events) / 1e3, "ms")
    for event in events[:top]:
        figure(f"{what}: {event.key[:90]}", event.self_device_time_total / 1e3, "ms", launches=event.count)


def machine_part(quick: bool) -> None:
    from lichen.machine.precision import matmul_dtype
    from lichen.machine.rates import machine, matrix_rate, memory_rate

    facts = machine(device()) | {"cuda": str(torch.version.cuda)}
    facts["triton"] = "yes" if accelerator.runs_triton(device().type) else "no"
    figure("machine", facts)
    dtype = matmul_dtype(device())
    figure("matrix rate", matrix_rate(dtype, device()) / 1e12, "TFLOP/s", dtype=str(dtype))
    n_bytes = 1 << (22 if quick else 32)
    figure("memory rate", memory_rate(n_bytes, device()) / 1e9, "GB/s", read=n_bytes)


# -------------------------------------------------------------------------------------------- the model


class Sizes:
    """689.2 M parameters, 19.9 model TFLOP for 8 x 2048 tokens; or, quick, some thousands."""

    def __init__(self, quick: bool) -> None:
        self.vocabulary, self.hidden, self.layers = (96, 32, 2) if quick else (32768, 1024, 12)
        self.heads, self.q_rank, self.kv_rank = (2, 16, 16) if quick else (16, 512, 256)
        self.content, self.rotary, self.value = (16, 8, 16) if quick else (64, 32, 64)
        self.dense, self.width = (64, 16) if quick else (4096, 512)
        self.experts, self.chosen = (8, 2) if quick else (32, 4)
        self.rows, self.length = (2, 48) if quick else (8, 2048)
        self.rounds = 1 if quick else 8

    def spec(self) -> Any:
        from lichen.arch.parts.dense import Dense
        from lichen.arch.parts.mla import MLA
        from lichen.arch.parts.moe import MoE, Router
        from lichen.arch.parts.rope import Rope
        from lichen.arch.spec import LayerSpec, ModelSpec

        widths = self.content, self.rotary, self.value
        latent = MLA(self.heads, self.q_rank, self.kv_rank, *widths, Rope(10000.0, interleaved=True))
        sparse = LayerSpec(latent, MoE(Router(self.experts, self.chosen), self.width, n_shared_experts=1))
        layers = (LayerSpec(latent, Dense(self.dense)), *[sparse] * (self.layers - 1))
        return ModelSpec("deepseek_v3", self.vocabulary, self.hidden, layers, 4096)

    def model(self, compute: torch.dtype, parameters: torch.dtype = torch.float32) -> Any:
        """Random weights, drawn on the device; routers in fp32."""
        from lichen.nn.transformer import Transformer

        with device():
            model = Transformer(self.spec(), compute)
        roles = model.parameter_roles()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0) if roles[name].kind == "norm" else parameter.normal_(0.0, 0.02)
                if not roles[name].fp32:
                    parameter.data = parameter.data.to(parameters)
            for buffer in model.buffers():
                buffer.zero_()
        return model

    def batch(self) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(self.vocabulary, (self.rows, self.length), generator=torch.Generator())
        targets = torch.full_like(tokens, -100)
        targets[:, :-1] = tokens[:, 1:]
        return tokens, targets

    def segments(self) -> Tensor:
        """Two documents in every row."""
        return (torch.arange(self.length) >= self.length // 3).int().expand(self.rows, -1).contiguous()


def train_part(quick: bool) -> None:
    from lichen.arch.flops import training_flops_per_token
    from lichen.machine.precision import matmul_dtype
    from lichen.machine.rates import matrix_rate
    from lichen.optim import Muon, parameter_table, recipes
    from lichen.train.objective import NextToken
    from lichen.train.player import Player

    sizes, dtype = Sizes(quick), matmul_dtype(device())
    model = sizes.model(dtype)
    flops = training_flops_per_token(model.spec, sizes.length) * sizes.rows * sizes.length
    rate = matrix_rate(dtype, device())
    figure("train: parameters", sum(p.numel() for p in model.parameters()) / 1e6, "M")
    figure("train: model FLOPs of a step", flops / 1e12, "TFLOP")
    tokens, targets = sizes.batch()

    observing = {
        max_logits: Player(model, NextToken(routing=True, max_logits=max_logits))
        for max_logits in (True, False)
    }

    def step(max_logits: bool, segments: Tensor | None = None) -> Tensor:
        model.zero_grad()
        return observing[max_logits](tokens, targets, segments, normalizer=tokens.numel()).loss

    figure("train: first step", seconds(lambda: step(True), 1, 0), "s")
    with waits_counted() as waits:
        loss = step(True)
    figure("train: host waits in forward and backward", sum(waits.values()), at_most=0, where=dict(waits))
    figure("train: loss", float(loss), "nats")
    taken = seconds(lambda: step(True), sizes.rounds)
    figure("train: forward and backward with the largest logits", 1e3 * taken, "ms", at_most=60)
    figure("train: played from a graph", observing[True].is_captured)
    figure("train: share of the matrix rate", flops / taken / rate, at_least=0.42)
    figure("train: peak memory", peak_gigabytes(), "GB")
    figure("train: without the largest logits", 1e3 * seconds(lambda: step(False), sizes.rounds), "ms")
    packed = seconds(lambda: step(True, sizes.segments()), sizes.rounds)
    figure("train: two documents in a row", 1e3 * packed, "ms")
    kernels(lambda: step(True), "train")
    same = [step(True).item(), *(p.grad.double().sum().item() for p in model.parameters())]
    again = [step(True).item(), *(p.grad.double().sum().item() for p in model.parameters())]
    figure("train: the same step has the same bits", same == again)

    optimizer = Muon(parameter_table(model), recipes.moonlight)
    found_inf = torch.zeros((), device=device())
    muon = seconds(lambda: optimizer.step(found_inf=found_inf), sizes.rounds)
    figure("train: Muon's step over the model", 1e3 * muon, "ms", at_most=18)
    with waits_counted() as waits:
        optimizer.step(found_inf=found_inf)
    figure("train: host waits in Muon's step", sum(waits.values()), at_most=0, where=dict(waits))
    kernels(lambda: optimizer.step(found_inf=found_inf), "train, Muon", 8)
    figure("train: MFU with Muon's step", flops / (taken + muon) / rate, "of the measured matrix rate")
    adamw = torch.optim.AdamW(model.parameters(), fused=True)
    figure("train: fused AdamW's step", 1e3 * seconds(adamw.step, sizes.rounds), "ms")


def transformers_part(quick: bool) -> None:
    try:
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    except ImportError as error:
        figure("transformers: not measured", str(error))
        return
    from lichen.machine.precision import matmul_dtype

    sizes = Sizes(quick)
    config = DeepseekV3Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        first_k_dense_replace=1,
        intermediate_size=sizes.dense,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        q_lora_rank=sizes.q_rank,
        kv_lora_rank=sizes.kv_rank,
        qk_nope_head_dim=sizes.content,
        qk_rope_head_dim=sizes.rotary,
        v_head_dim=sizes.value,
        n_routed_experts=sizes.experts,
        num_experts_per_tok=sizes.chosen,
        n_shared_experts=1,
        moe_intermediate_size=sizes.width,
        n_group=1,
        topk_group=1,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with device():
        model = DeepseekV3ForCausalLM._from_config(
            config, dtype=matmul_dtype(device()), experts_implementation="grouped_mm"
        ).train()
    tokens = sizes.batch()[0].to(device())

    def step() -> None:
        model.zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

    figure("transformers: forward and backward", 1e3 * seconds(step, sizes.rounds), "ms")
    figure("transformers: peak memory", peak_gigabytes(), "GB")


def muon_part(quick: bool) -> None:
    from benchmarks.muon_peers import lichen, torch_muon
    from lichen.machine.rates import matrix_rate
    from lichen.nn.roles import Role
    from lichen.optim import ParameterTable
    from lichen.optim.newton_schulz import KELLER_JORDAN
    from lichen.optim.table import Row

    cases = {
        "32 gate projections of Kimi K2": ((32, 2048, 7168), 2.0),
        "one 7168 x 7168 matrix": ((1, 7168, 7168), 1.5),
        "352 gate projections of the model above": ((352, 512, 1024), None),
    }
    rate = None if quick else matrix_rate(torch.bfloat16, device())
    for case, ((count, rows, columns), goal) in cases.items():
        if quick:
            count, rows, columns = min(count, 3), rows // 64, columns // 64
        parameter = torch.nn.Parameter(torch.zeros(count, rows, columns, device=device()))
        parameter.grad = torch.randn_like(parameter)
        table = ParameterTable((Row("stack", parameter, Role("matrix")),))
        taken = {}
        for name, make in {"lichen": lichen, "torch.optim.Muon": torch_muon}.items():
            optimizer = make(table)
            taken[name] = seconds(optimizer.step, 1 if quick else 6)
            figure(f"muon: {case}, {name}", 1e3 * taken[name], "ms")
            del optimizer
        short, long = sorted((rows, columns))
        flops = len(KELLER_JORDAN) * count * (4 * short * short * long + 2 * short**3)
        if rate is not None:
            figure(f"muon: {case}, published FLOPs", flops / taken["lichen"] / rate, "of the matrix rate")
        times = taken["torch.optim.Muon"] / taken["lichen"]
        figure(f"muon: {case}, times torch.optim.Muon", times, at_least=goal)


def decode_part(quick: bool) -> None:
    from lichen.kv.contiguous import Contiguous
    from lichen.machine.precision import matmul_dtype
    from lichen.serve.decode import Decoder
    from lichen.serve.sampling import SamplingParams

    sizes, dtype = Sizes(quick), matmul_dtype(device())
    model = sizes.model(dtype, dtype)
    length, many = (8, 6) if quick else (128, 100)
    greedy = SamplingParams(temperature=0)
    for batch, goal in ((1, 2.0), (32, 4.0)):
        with torch.no_grad():
            prompts = torch.randint(sizes.vocabulary, (batch, length), device=device())
            storage = Contiguous(model.spec, batch, 512, dtype, device())
            hidden = model(prompts.flatten(), storage.take([length] * batch))
            logits = model.logits(hidden.unflatten(0, prompts.shape)[:, -1])
        decoder = Decoder(model, storage, greedy, torch.Generator(device()))
        decoder.enter(logits)
        figure(f"decode: batch {batch}, first step", seconds(decoder.step, 1, 0), "s")
        with waits_counted() as waits:
            decoder.step()
        figure(
            f"decode: batch {batch}, host waits in a step", sum(waits.values()), at_most=0, where=dict(waits)
        )
        wait()
        start = time.perf_counter()
        texts = list(decoder.texts(many))
        taken = (time.perf_counter() - start) / many
        figure(f"decode: batch {batch}, a step", 1e3 * taken, "ms", at_most=goal)
        figure(f"decode: batch {batch}", batch / taken, "tokens/s", drawn=len(texts))
        kernels(decoder.step, f"decode, batch {batch}", 10)

        def ordinary(storage: Contiguous = storage, tokens: Tensor = prompts[:, 0]) -> None:
            with torch.no_grad():
                model.logits(model(tokens, storage.take([1] * len(tokens))))

        figure(f"decode: batch {batch}, a step of the ordinary pass", 1e3 * seconds(ordinary, 3, 1), "ms")


def demo_part(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="lichen-gpu-") as name:
        demo(Path(name), quick)


def demo(folder: Path, quick: bool) -> None:
    from lichen.data.prepare import prepare
    from lichen.train.recipe import read_recipe
    from lichen.train.run import start_run
    from lichen.train.step import Trainer

    library = Path(json.__file__).parents[1]
    names = ["json"] if quick else ["asyncio", "email", "unittest", "xml", "http", "multiprocessing", "json"]
    recipe = ROOT / "recipes" / "demo.toml"
    start = time.perf_counter()
    config = read_recipe(recipe).model.config
    assert isinstance(config, dict)
    vocabulary = 400 if quick else config["vocab_size"]
    prepare([str(library / name) for name in names], folder / "data", vocab_size=vocabulary, family="kimi_k2")
    figure("demo: preparing the data", time.perf_counter() - start, "s")
    overrides = [f"data.path={folder / 'data'}", "sample.prompts=[]", "eval.every=0"]
    if quick:
        overrides += ["train.tokens_per_step=256", "train.seq_len=64", "model.config.hidden_size=32"]
        overrides += ["model.config.vocab_size=400", "model.config.num_hidden_layers=2", "train.dtype=fp32"]
    trainer = Trainer(start_run(read_recipe(recipe, overrides), folder / "run"))
    steps = 2 if quick else 40
    for _ in range(max(1, steps // 8)):
        trainer.train_step()
    with waits_counted() as waits:
        trainer.train_step()
    figure("demo: host waits in a step", sum(waits.values()), at_most=1, where=dict(waits))
    metrics = [trainer.train_step() for _ in range(steps)]
    per_second = median(step.tokens_per_second for step in metrics)
    figure("demo: recipes/demo.toml", per_second, "tokens/s", at_least=400_000)
    figure("demo: share of the matrix rate", median(step.ceiling_share for step in metrics))
    figure("demo: Muon's share of a step", median(s.optimizer_seconds / s.seconds for s in metrics))
    figure("demo: loss", metrics[-1].cross_entropy, "nats", step=metrics[-1].step)
    kernels(trainer.train_step, "demo", 8)


def kernels_part(quick: bool) -> None:
    """Attention's kernels against PyTorch's, right and fast."""
    for width in (96, 128, 48):
        attention_of(width, *((1, 40, 2) if quick else (8, 2048, 16)), rounds=1 if quick else 5)


def attention_of(width: int, rows: int, length: int, heads: int, rounds: int) -> None:
    import torch.nn.functional as F

    from lichen.machine.precision import matmul_dtype
    from lichen.ops.attention import attention
    from lichen.ops.sequences import Sequences

    dtype, scale = matmul_dtype(device()), width**-0.5
    shape = heads, rows * length, width
    leaves = [torch.randn(shape, device=device(), dtype=dtype, requires_grad=True) for _ in range(3)]
    grad = torch.randn(rows * length, heads, width, device=device(), dtype=dtype)
    whole, one = (Sequences.packed(count, length, device=device()) for count in (rows, 1))

    def ours() -> Tensor:
        q, k, v = leaves
        return attention(q, k, v, None, whole, scale, max_logits=True)[0]

    def theirs() -> Tensor:
        q, k, v = (x.unflatten(1, (rows, length)).transpose(0, 1) for x in leaves)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1)

    found = []
    for form in (ours, theirs):
        out = form()
        gradients = torch.autograd.grad(out, leaves, grad)
        found.append([out.detach().float(), *(gradient.float() for gradient in gradients)])
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    figure(f"kernels: attention of width {width}, apart from PyTorch's", worst, at_most=0.02)
    q, k, v = (leaf.detach()[:, :length] for leaf in leaves)
    _, largest = attention(q, k, v, None, one, scale, max_logits=True)
    assert largest is not None
    later = torch.ones(length, length, dtype=torch.bool, device=device()).triu(1)
    logits = (q.float() @ k.float().mT * scale).masked_fill(later, -torch.inf)
    off = float((largest - logits.amax((1, 2))).abs().max() / logits.amax())
    figure(f"kernels: largest logits of width {width}, relative error", off, at_most=0.01)
    flops = 3.5 * 2 * rows * length * length * heads * width  # half of the square, forward and backward
    for name, form in {"lichen": ours, "PyTorch": theirs}.items():
        taken = _backward_seconds(form, leaves, grad, rounds)
        figure(f"kernels: attention of width {width}, {name}", 1e3 * taken, "ms", tflops=flops / taken / 1e12)


def _backward_seconds(form: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor, rounds: int) -> float:
    return seconds(lambda: torch.autograd.grad(form(), leaves, grad), rounds)


# ------------------------------------------------------------------------------------------- all of them

PARTS: dict[str, Callable[[bool], None]] = {
    "machine": machine_part,
    "train": train_part,
    "transformers": transformers_part,
    "muon": muon_part,
    "decode": decode_part,
    "demo": demo_part,
    "kernels": kernels_part,
}


def one_part(name: str, quick: bool) -> None:
    """In a process of its own."""
    if device().type == "cpu":
        accelerator.is_accelerator = lambda device: True  # before anybody else has asked for it
    try:
        PARTS[name](quick)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        figure(f"{name}: failed", f"{type(error).__name__}: {str(error)[:500]}", at=at)
        traceback.print_exc()
        raise SystemExit(1) from None


def run(name: str, quick: bool, limit: float) -> list[dict[str, Any]]:
    """The figures of a part, printed as they come. A part that is not done in time is ended."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *(["--quick"] if quick else [])]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    timer = threading.Timer(limit, process.kill)
    timer.start()
    figures = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith('{"figure"'):
            figures.append(json.loads(line))
    code = process.wait()
    timer.cancel()
    took = time.monotonic() - start
    if code and not any(found["figure"] == f"{name}: failed" for found in figures):
        reason = f"not done in {limit:.0f} s" if took >= limit else f"ended with {code}"
        figures.append({"figure": f"{name}: failed", "value": reason, "unit": ""})
        print(json.dumps(figures[-1]), flush=True)
    figures.append({"figure": f"{name}: took", "value": took, "unit": "s"})
    print(json.dumps(figures[-1]), flush=True)
    return figures


def over_transformers(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = {found["figure"]: found["value"] for found in figures}
    mine = values.get("train: forward and backward with the largest logits")
    theirs = values.get("transformers: forward and backward")
    if mine is None or theirs is None:
        return []
    name = "train: over transformers' forward and backward"
    return [{"figure": name, "value": mine / theirs, "unit": "", "at_most": 0.35}]


def goals(figures: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The figures that have a goal, and those parts that failed."""
    rows = []
    for found in figures:
        value, most, least = found["value"], found.get("at_most"), found.get("at_least")
        if found["figure"].endswith(": failed"):
            rows.append({"figure": found["figure"], "value": str(value)[:80], "goal": "", "met": "FAILED"})
        elif most is not None or least is not None:
            met = value <= most if most is not None else value >= least
            goal = f"at most {most:g}" if most is not None else f"at least {least:g}"
            shown = f"{value:,.4g} {found['unit']}".strip()
            rows.append(
                {"figure": found["figure"], "value": shown, "goal": goal, "met": "yes" if met else "NO"}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.part:
        one_part(options.part, options.quick)
        return
    if device().type == "cpu" and not options.quick:
        raise SystemExit(
            "error: there is no accelerator here; --quick shows on a CPU whether everything runs"
        )
    figures: list[dict[str, Any]] = []
    for name in options.parts:
        figures += run(name, options.quick, SECONDS[name])
    ratio = over_transformers(figures)
    for found in ratio:
        print(json.dumps(found), flush=True)
    figures += ratio
    if options.quick:
        print("\nEverything has been run, on a tiny model: what follows says nothing of any machine.")
    if rows := goals(figures):
        print(f"\n{markdown(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
