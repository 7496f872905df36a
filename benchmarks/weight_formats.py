"""What keeping weights in fewer bits costs and brings: quality on held-out text, and speed by matrix size.

    python -m benchmarks.weight_formats MODEL DATA [--tokens 20000] [--json FILE]
    python -m benchmarks.weight_formats --sizes

MODEL is a run or an export, DATA what `lichen data prepare` wrote. Every format scores the same validation
documents as a decoding step computes them, a few tokens at a time: bits per byte, how far its distribution
over the next token is from that of fp32 (mean Kullback-Leibler divergence, in nats), how often the likeliest
token is another, and the relative error of the logits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report
from lichen.data.dataset import TokenDataset
from lichen.kv.contiguous import Contiguous
from lichen.nn.transformer import Transformer
from lichen.ops.linear import linear
from lichen.ops.native import FEW
from lichen.ops.packed import Weight, pack
from lichen.serve.formats import Weights
from lichen.serve.open import open_model

FORMATS: tuple[Weights, ...] = ("fp32", "bf16", "fp16", "int8", "int4")
PACKED = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "int4": torch.uint8}
SIZES = ((96, 192), (256, 256), (512, 256), (512, 512), (1408, 2048), (4096, 4096))
LONGEST = 512  # tokens of a document that are scored
BYTES = 96 << 20  # of copies of a matrix, more than any cache holds


def documents(dataset: TokenDataset, tokens: int) -> Iterator[Tensor]:
    """Beginnings of validation documents, of together at most about so many tokens."""
    split = dataset.documents("validation")
    for start, stop in zip(split.starts, split.starts[1:], strict=False):
        ids = torch.from_numpy(split.read(start, min(stop, start + LONGEST)).astype("int64"))
        if len(ids) > 1:
            yield ids
            tokens -= len(ids)
        if tokens <= 0:
            return


@torch.no_grad()
def logits_of(model: Transformer, ids: Tensor) -> Tensor:
    """(tokens, vocab_size), by passes over few tokens each."""
    storage = Contiguous(model.spec, 1, len(ids), model.compute_dtype)
    return torch.cat([model.logits(model(few, storage.take([len(few)]))) for few in ids.split(FEW // 4)])


def quality(report: Report, folder: Path, data: Path, tokens: int) -> None:
    dataset = TokenDataset.open(data)
    texts = list(documents(dataset, tokens))
    text_bytes = int(sum(torch.as_tensor(dataset.token_bytes)[ids[1:]].sum() for ids in texts))
    models = {name: open_model(folder, torch.device("cpu"), name).model for name in FORMATS}
    nats, divergence, other, error = (dict.fromkeys(FORMATS, 0.0) for _ in range(4))
    for ids in texts:
        exact = logits_of(models["fp32"], ids)[:-1]
        expected = exact.log_softmax(-1)
        for name, model in models.items():
            logits = exact if name == "fp32" else logits_of(model, ids)[:-1]
            log_p = logits.log_softmax(-1)
            nats[name] -= float(log_p.gather(1, ids[1:, None]).sum())
            divergence[name] += float((expected.exp() * (expected - log_p)).sum())
            other[name] += float((logits.argmax(-1) != exact.argmax(-1)).sum())
            error[name] += float((logits - exact).norm() / exact.norm())
    targets = sum(len(ids) - 1 for ids in texts)
    report.heading(f"Quality on {targets:,} tokens of {len(texts)} documents")
    report.table(
        "quality",
        [
            {
                "weights": name,
                "bits per byte": nats[name] / math.log(2) / text_bytes,
                "over fp32, %": 100 * (nats[name] / nats["fp32"] - 1),
                "divergence, nats": divergence[name] / targets,
                "other likeliest token, %": 100 * other[name] / targets,
                "error of logits": error[name] / len(texts),
            }
            for name in FORMATS
        ],
    )


def microseconds(run: Callable[[Weight], object], copies: list[Weight]) -> float:
    """CPU time of `run` on one of the copies, of which the next is never in the cache: the best of 5 rounds."""
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for copy in copies:
            run(copy)
        best = min(best, time.process_time() - start)
    return 1e6 * best / len(copies)


@torch.no_grad()
def sizes(report: Report, shapes: tuple[tuple[int, int], ...]) -> None:
    report.heading("One product, the matrix in memory: microseconds by format, 1 and 8 rows, one thread")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for height, width in shapes:
        weight = torch.randn(height, width)
        for tokens in (1, 8):
            x = torch.randn(tokens, width)
            count = max(2, min(BYTES // weight.nbytes, 2000))
            row: dict[str, Any] = {"matrix": f"{height} x {width}", "rows": tokens}
            plain: list[Weight] = [weight.clone() for _ in range(count)]
            row["PyTorch fp32"] = microseconds(lambda w: torch.nn.functional.linear(x, w), plain)  # type: ignore[arg-type]
            row["fp32"] = microseconds(lambda w: linear(x, w), plain)
            del plain
            for name, dtype in PACKED.items():
                row[name] = microseconds(lambda w: linear(x, w), [pack(weight, dtype) for _ in range(count)])
            rows.append(row)
    report.table("sizes", rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_formats")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--sizes", action="store_true", help="time products by matrix size")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.model is not None and options.data is None:
        parser.error("name the data beside the model")
    report = Report("weight_formats")
    report.begin()
    if options.model is not None:
        quality(report, options.model, options.data, options.tokens)
    if options.sizes or options.quick:
        sizes(report, SIZES[:2] if options.quick else SIZES)
    report.end(options.json)


if __name__ == "__main__":
    main()
