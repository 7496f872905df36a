"""Runs Triton's kernels in Triton's interpreter, which must be chosen before Triton is imported.

    TRITON_INTERPRET=1 python -m tests.ops.triton_interpreted

prints, as JSON, the relative errors of values and gradients of every kernel, against PyTorch's own functions
in fp64. The interpreter multiplies no bf16: fp32 and fp16 are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from lichen.machine import accelerator

accelerator.runs_triton = lambda device_type: True
accelerator.is_accelerator = lambda device: True

from lichen.arch.parts.rope import Rope  # noqa: E402
from lichen.ops import (  # noqa: E402
    attention_triton,
    cross_entropy,
    experts_few_triton,
    norm,
    rope,
    swiglu,
)
from lichen.ops.experts import experts_reference  # noqa: E402

Function = Callable[..., Tensor]


def errors(
    ours: Function, theirs: Function, inputs: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> float:
    """The largest relative error of the value and of every gradient, of inputs rounded to their formats."""
    found = []
    rounded = [x.to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)]
    for function, double in ((ours, False), (theirs, True)):
        leaves = [(x.double() if double else x.clone()).requires_grad_() for x in rounded]
        out = function(*leaves)
        (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(*found, strict=True))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def attend(
    lengths: list[int], heads: int, key_heads: int, widths: tuple[int, int, int], dtype: torch.dtype
) -> dict[str, float]:
    """`widths`: content, rotary and value; without a rotary part 0. The rotary key is shared by all heads."""
    content, rotary, value = widths
    tokens, scale = sum(lengths), (content + rotary) ** -0.5
    ends = torch.tensor(lengths).cumsum(0).repeat_interleave(torch.tensor(lengths))
    starts = ends - torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    largest = {}

    def ours(q: Tensor, kv: Tensor, q_rotary: Tensor, k_rotary: Tensor) -> Tensor:
        k, v = kv.split([content, value], -1)
        rotated = (q_rotary, k_rotary.unsqueeze(1).expand(-1, key_heads, -1)) if rotary else (None, None)
        places = starts.int(), ends.int()
        out, largest["ours"] = attention_triton.attention(q, rotated[0], k, rotated[1], v, *places, scale)
        return out

    def theirs(q: Tensor, kv: Tensor, q_rotary: Tensor, k_rotary: Tensor) -> Tensor:
        k, v = kv.split([content, value], -1)
        q = torch.cat([q, q_rotary], -1).transpose(0, 1)
        k = torch.cat([k, k_rotary.unsqueeze(1).expand(-1, key_heads, -1)], -1)
        k, v = (x.transpose(0, 1).repeat_interleave(heads // key_heads, 0) for x in (k, v))
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril() & (starts[:, None] == starts)
        logits = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
        largest["theirs"] = logits.detach().amax((1, 2))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1)

    inputs = [
        randn(tokens, heads, content),
        randn(tokens, key_heads, content + value),
        randn(tokens, heads, rotary, seed=1),
        randn(tokens, rotary, seed=2),
    ]
    if not rotary:  # no gradient reaches what has no channels
        inputs[2:] = [x.new_ones(1) for x in inputs[2:]]
        empty = torch.empty(tokens, heads, 0, dtype=torch.double), torch.empty(tokens, 0, dtype=torch.double)
        error = errors(
            lambda q, kv: ours(q, kv, *empty), lambda q, kv: theirs(q, kv, *empty), inputs[:2], [dtype] * 2
        )
    else:
        error = errors(ours, theirs, inputs, [dtype] * 4)
    tops = largest["ours"].double(), largest["theirs"]
    return {"error": error, "largest": float((tops[0] - tops[1]).abs().max() / tops[1].abs().max())}


@contextmanager
def blocks_of(size: str) -> Iterator[None]:
    """The interpreter takes a CPU's tensors for those of a small card."""
    tables = [attention_triton.FORWARD, attention_triton.GRAD_QUERIES, attention_triton.GRAD_KEYS]
    before = [table[False] for table in tables]
    for table in tables:
        table[False] = table[size == "large blocks"]
    yield
    for table, small in zip(tables, before, strict=True):
        table[False] = small


def main() -> None:
    found: dict[str, float] = {}
    halves = {"fp32": torch.float32, "fp16": torch.float16}
    for name, dtype in halves.items():
        for case, arguments in {
            "MLA of V3's widths": ([70, 1, 130], 2, 2, (128, 64, 128)),
            "MLA, odd widths": ([37, 200], 2, 2, (6, 4, 5)),
            "GQA, width 48": ([150, 90], 4, 2, (48, 0, 48)),
            "one key head, one sequence": ([260], 3, 1, (24, 0, 24)),
            "many short documents": ([5, 1, 60, 64, 3, 130], 2, 1, (16, 0, 16)),
        }.items():
            for blocks in ("small blocks", "large blocks"):
                with blocks_of(blocks):
                    for what, value in attend(*arguments, dtype).items():
                        found[f"attention, {blocks}, {case}, {what}, {name}"] = value
        for width in (16, 300, 1536):
            x = randn(70, width)
            found[f"norm {width}, {name}"] = errors(
                lambda x, w: norm.rms_norm(x, w, 1e-6),
                lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
                [x, 1 + 0.2 * randn(width)],
                [dtype, torch.float32],
            )
        found[f"norm of part of a row, {name}"] = errors(
            lambda x, w: norm.rms_norm(x[:, :40], w, 1e-6),
            lambda x, w: F.rms_norm(x[:, :40], w.shape, w, 1e-6),
            [randn(30, 56), 1 + 0.2 * randn(40)],
            [dtype, torch.float32],
        )
        for width in (24, 1500):
            found[f"swiglu {width}, {name}"] = errors(
                swiglu.silu_mul,
                lambda g, u: F.silu(g) * u,
                [randn(9, width), randn(9, width, seed=1)],
                [dtype] * 2,
            )
            found[f"weighted swiglu {width}, {name}"] = weighted(width, dtype)
        for interleaved in (False, True):
            turn = rope.turns(Rope(10000.0, interleaved), 12, torch.arange(21))
            for x, shaped in ((randn(21, 11, 12), turn.unsqueeze(1)), (randn(21, 12), turn)):
                found[f"rope {interleaved} {x.ndim}, {name}"] = errors(
                    lambda x, t=shaped, i=interleaved: rope.apply_rope(x, t, i),
                    lambda x, t=shaped, i=interleaved: rotated(x, t, i),
                    [x],
                    [dtype],
                )
        for hidden, inner in ((24, 16), (300, 40)):
            found[f"gathered experts {hidden}, {name}"] = gathered(hidden, inner, dtype)
        for vocabulary in (50, 5000):
            targets = torch.randint(vocabulary, (40,), generator=torch.Generator().manual_seed(3))
            targets[7] = targets[33] = cross_entropy.IGNORE
            found[f"cross-entropy {vocabulary}, {name}"] = errors(
                lambda h, w, t=targets: cross_entropy.linear_cross_entropy(h, w, t),
                lambda h, w, t=targets: F.cross_entropy(h @ w.t(), t, reduction="sum"),
                [randn(40, 8), randn(vocabulary, 8)],
                [dtype, torch.float32 if dtype == torch.float32 else dtype],
            )
    print(json.dumps(found))


def gathered(hidden: int, width: int, dtype: torch.dtype) -> float:
    """Three tokens with three of eight experts each, against a loop over experts in fp64."""
    chosen = torch.tensor([[5, 7, 0], [0, 1, 5], [2, 0, 7]])
    x, gate_up, down = randn(3, hidden), randn(8, 2 * width, hidden), randn(8, hidden, width) / width**0.5
    x, gate_up, down = (t.to(dtype) for t in (x, gate_up / hidden**0.5, down))
    weights = randn(3, 3).abs()
    ours = experts_few_triton.gathered_experts(x, chosen, weights, gate_up, down)
    theirs = experts_reference(x.double(), chosen, weights.double(), gate_up.double(), down.double())
    return float((ours.double() - theirs).norm() / theirs.norm())


def rotated(x: Tensor, turn: Tensor, interleaved: bool) -> Tensor:
    """By real numbers, in fp64."""
    cosine, sine = turn.real.double(), turn.imag.double()
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def weighted(width: int, dtype: torch.dtype) -> float:
    """The derivative of weight * silu(gate) * up, gradients and the product itself."""
    h, weight, grad = randn(9, 2 * width).to(dtype), randn(9).float(), randn(9, width, seed=4).to(dtype)
    leaves = [h.double().requires_grad_(), weight.double().requires_grad_()]
    gate, up = leaves[0].chunk(2, -1)
    product = F.silu(gate) * up * leaves[1].unsqueeze(1)
    (product * grad.double()).sum().backward()
    ours = swiglu.silu_mul_rows_backward(grad, h, weight)
    theirs = leaves[0].grad, product.detach(), leaves[1].grad
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
