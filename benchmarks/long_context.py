"""Long prompts and the tokens after them: a DeepSeek-V4-shaped model and its MLA twin, on this CPU.

    python -m benchmarks.long_context [--lengths 8192 65536] [--models v4 mla transformers] [--json FILE]
    [--quick]

Random weights, fp32. Each model reads a text in chunks, as `lichen sample` does, and at every length
continues it by DECODED tokens, from what is kept (a snapshot, taken back afterwards). Each contender has a
process of its own, whose peak memory is its own. What is kept stands beside what `lichen account` says of the
length. transformers reads the text in the same chunks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.race import apart, forget_peak, resident
from benchmarks.report import Report
from lichen.arch.cache import cache_bytes
from lichen.arch.families import read_config
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.serve.generate import PREFILL_CHUNK

LENGTHS = (8192, 65536, 262144, 1048576)
DECODED = 16
SHARED: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "q_lora_rank": 192,
    "moe_intermediate_size": 256,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 2**20 + 4096,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "v4": SHARED
    | {
        "model_type": "deepseek_v4",
        "head_dim": 64,
        "qk_rope_head_dim": 16,
        "o_groups": 2,
        "o_lora_rank": 192,
        "compress_ratios": [0, 4, 128, 4],
        "sliding_window": 128,
        "index_n_heads": 8,
        "index_head_dim": 32,
        "index_topk": 256,
        "num_hash_layers": 1,
        "scoring_func": "sqrtsoftplus",
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "num_nextn_predict_layers": 0,
    },
    "mla": SHARED
    | {
        "model_type": "deepseek_v3",
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16,
        "v_head_dim": 64,
        "intermediate_size": 768,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
    },
}
QUICK = {"vocab_size": 256, "hidden_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 8}


def text(length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(0))


Turn = Callable[[int], tuple[float, list[float], int | None]]
"""To read on to so many tokens and decode from there: seconds of the prompt so far, seconds of every token
decoded, and bytes kept of the sequence."""


def ours(config: dict[str, Any], longest: int) -> Turn:
    spec = read_config(config)
    model = Transformer(spec)
    model.initialize(0)
    storage = Contiguous(spec, 1, longest + DECODED)
    tokens, spent = text(longest, spec.vocab_size), 0.0

    @torch.no_grad()
    def turn(length: int) -> tuple[float, list[float], int | None]:
        nonlocal spent
        began = time.perf_counter()
        for chunk in tokens[storage.lengths[0] : length].split(PREFILL_CHUNK):
            hidden = model(chunk, storage.take([len(chunk)]))
        spent += time.perf_counter() - began
        saved = storage.snapshot(0)
        seconds = []
        for _ in range(DECODED):
            began = time.perf_counter()
            token = model.logits(hidden[-1:]).argmax(-1)
            hidden = model(token, storage.take([1]))
            seconds.append(time.perf_counter() - began)
        storage.restore(0, saved)
        return spent, seconds, sum(tensor.nbytes for tensor in saved.tensors)

    return turn


def theirs(config: dict[str, Any], longest: int) -> Turn:
    """The tokens that it decodes stay in its text: its cache cannot be taken back."""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    torch.manual_seed(0)
    given = {name: value for name, value in config.items() if name != "model_type"}
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**given)).eval()
    tokens, read, spent, cache = text(longest, config["vocab_size"]), 0, 0.0, None

    @torch.no_grad()
    def turn(length: int) -> tuple[float, list[float], int | None]:
        nonlocal read, spent, cache
        began = time.perf_counter()
        for chunk in tokens[read:length].split(PREFILL_CHUNK):
            out = model(chunk[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        read, spent = length, spent + time.perf_counter() - began
        seconds = []
        for _ in range(DECODED):
            began = time.perf_counter()
            out = model(out.logits[:, -1].argmax(-1, keepdim=True), past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - began)
        return spent, seconds, None

    return turn


MAKERS: dict[str, Callable[[dict[str, Any], int], Turn]] = {"v4": ours, "mla": ours, "transformers": theirs}


def measure(name: str, config: dict[str, Any], lengths: list[int], minutes: float) -> list[dict[str, Any]]:
    """A row for every length that the contender reaches in time, printed as it comes."""
    turn = MAKERS[name](config, max(lengths))
    idle, spec, rows = resident("VmRSS") or 0, read_config(config), []
    for length in lengths:
        forget_peak()
        spent, seconds, kept = turn(length)
        peak = resident("VmHWM") or 0
        row = {
            "model": name,
            "tokens": length,
            "prompt s": round(spent, 1),
            "tokens/s": round(length / spent),
            "a token ms": round(1000 * median(seconds), 2),
            "peak MB": round(peak / 1e6),
            "above the model MB": round((peak - idle) / 1e6),
            "kept MB": None if kept is None else round(kept / 1e6, 2),
            "account MB": round(cache_bytes(spec, length, layout="fp32").ideal / 1e6, 2),
        }
        print(
            f"{name}, {length:,} tokens: {row['prompt s']} s, then {row['a token ms']} ms a token", flush=True
        )
        rows.append(row)
        if spent > 60 * minutes:
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--models", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="a prompt that took longer is the last one"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lengths = [256, 1024] if given.quick else sorted(given.lengths)
    report = Report("long_context", packages=["transformers"])
    report.begin()
    report.heading("Prompt, tokens after it, memory")
    rows = []
    for name in given.models:
        config = CONFIGS["mla" if name == "mla" else "v4"] | (QUICK if given.quick else {})
        rows += apart(measure, name, config, lengths, given.minutes, threads=given.threads)
    report.table("lengths", rows)
    of_v4 = [row for row in rows if row["model"] == "v4"]
    if of_v4 and not given.quick:
        first, last = of_v4[0], of_v4[-1]
        what = f"a token at {last['tokens']:,} over one at {first['tokens']:,}"
        report.target(what, last["a token ms"] / first["a token ms"], at_most=4)
        above = last["above the model MB"] / 1000
        report.target(f"GB above the model at {last['tokens']:,} tokens", above, at_most=4)
    report.end(given.json)


if __name__ == "__main__":
    main()
