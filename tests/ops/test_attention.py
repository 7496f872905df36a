"""Every form of attention against PyTorch's `scaled_dot_product_attention`, its mask written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import eager_attention_forward

from lichen.ops.attention import HEADS, _fused, attention, attention_reference, stored_attention
from lichen.ops.sequences import BLOCK, Sequences

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

# heads, key heads, query and key width, value width: MLA's unequal widths both ways, GQA, one key head, and
# more key heads than one pass on CPU takes
SHAPES = [(4, 4, 12, 8), (2, 2, 8, 20), (6, 2, 16, 16), (4, 1, 8, 8), (2 * HEADS + 2, HEADS + 1, 6, 4)]


def qkv(rows: int, length: int, shape: tuple[int, int, int, int], seed: int = 0) -> list[Tensor]:
    heads, key_heads, width, value_width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads, width), (key_heads, width), (key_heads, value_width))
    return [torch.randn(rows, h, length, w, generator=generator) for h, w in sizes]


def documents(rows: list[list[int]]) -> Tensor:
    """Segment ids (B, T) of rows whose documents have these lengths."""
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])


def flat(x_BHTD: Tensor) -> Tensor:
    """(B, H, T, D) as the attention of a flat list takes it: (H, N, D)."""
    return x_BHTD.transpose(0, 1).flatten(1, 2)


def in_rows(out_NHV: Tensor, rows: int) -> Tensor:
    return out_NHV.unflatten(0, (rows, -1)).transpose(1, 2)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float, max_logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Of rows (B, H, T, D), all of whose tokens are in the list."""
    out, largest = attention(flat(q), flat(k), flat(v), None, sequences, scale, max_logits)
    return in_rows(out, len(q)), largest


def allowed(length: int, segment_ids: Tensor | None) -> Tensor:
    """True where a query (row index) may see a key: (B or 1, 1, T, T)."""
    earlier = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if segment_ids is None:
        return earlier
    return earlier & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def repeated(q: Tensor, k: Tensor) -> Tensor:
    return k.repeat_interleave(q.shape[1] // k.shape[1], 1)


def torch_attention(allowed: Tensor, scale: float) -> Form:
    return lambda q, k, v: F.scaled_dot_product_attention(
        q, repeated(q, k), repeated(q, v), attn_mask=allowed, scale=scale
    )


def values_and_gradients(form: Form, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of its product with fixed random numbers, in fp64."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    out = form(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    (out.double() * weight).sum().backward()
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


def differences(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "rows",
    [None, [[5, 60, 64, 1, 170], [299, 1]], [[300], [128, 172]]],
    ids=["one document", "many documents", "documents that end with a block"],
)
@pytest.mark.parametrize("form", ["reference", "blocks", "fused"])
def test_values_and_gradients(form: str, rows: list[list[int]] | None, shape: tuple[int, ...]) -> None:
    length, scale = 300, 0.37
    assert length % BLOCK != 0
    segment_ids = None if rows is None else documents(rows)
    sequences = Sequences.packed(2, length, segment_ids)
    forms: dict[str, Form] = {
        "reference": lambda q, k, v: in_rows(
            attention_reference(flat(q), flat(k), flat(v), sequences, scale)[0], 2
        ),
        "blocks": lambda q, k, v: causal_attention(q, k, v, sequences, scale)[0],
        "fused": lambda q, k, v: in_rows(_fused(flat(q), flat(k), flat(v), sequences, scale), 2),
    }
    inputs = qkv(2, length, shape)
    truth = values_and_gradients(torch_attention(allowed(length, segment_ids), scale), inputs, torch.float64)
    assert max(differences(values_and_gradients(forms[form], inputs, torch.float32), truth)) < 2e-6


@st.composite
def packed_rows(draw: st.DrawFn) -> list[list[int]]:
    """1 to 3 rows of equal length, each cut into documents."""
    length = draw(st.integers(1, 33))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=6))) if length > 1 else []
        rows.append([end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)])
    return rows


@settings(max_examples=60, derandomize=True)
@given(rows=packed_rows(), block=st.sampled_from([1, 4, 7, 16, 64]), shape=st.sampled_from(SHAPES))
def test_any_documents_in_blocks_of_any_size(
    rows: list[list[int]], block: int, shape: tuple[int, int, int, int]
) -> None:
    segment_ids = documents(rows)
    length = segment_ids.shape[1]
    sequences = Sequences.packed(len(rows), length, segment_ids, block=block)
    inputs = qkv(len(rows), length, shape, seed=length)
    largest: list[Tensor | None] = []

    def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, of_heads = causal_attention(q, k, v, sequences, 0.5, max_logits=True)
        largest.append(of_heads)
        return out

    visible = allowed(length, segment_ids)
    truth = values_and_gradients(torch_attention(visible, 0.5), inputs, torch.float64)
    for a, b in zip(values_and_gradients(blocks, inputs, torch.float32), truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    q, k, _ = inputs
    scores = (q @ repeated(q, k).mT * 0.5).masked_fill(~visible, -torch.inf)
    torch.testing.assert_close(largest[0], scores.amax((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_documents_are_runs_not_numbers() -> None:
    """Rows number their documents as they like; what is between two boundaries is one document."""
    q, k, v = qkv(2, 40, SHAPES[0])
    first = documents([[10, 30], [25, 15]])
    second = torch.stack([first[0] * 900 - 7, 5 - first[1]]).int()
    out, _ = causal_attention(q, k, v, Sequences.packed(2, 40, first), 0.3)
    assert torch.equal(out, causal_attention(q, k, v, Sequences.packed(2, 40, second), 0.3)[0])


def test_a_list_without_rows_is_one_row() -> None:
    """Sequences of any lengths, one after another."""
    q, k, v = qkv(1, 60, SHAPES[2])
    lengths = [17, 1, 30, 12]
    out, _ = causal_attention(q, k, v, Sequences(lengths), 0.3)
    expected = torch_attention(allowed(60, documents([lengths])), 0.3)(q, k, v)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_largest_logit_of_every_head(shape: tuple[int, int, int, int]) -> None:
    q, k, v = qkv(2, 300, shape)
    q[0, 1, 7] = 3.0  # one head's largest by far, and with the last key, which this query must not see
    k[0, :, 7], k[0, :, -1] = 4.0, 100.0
    scores = (q @ repeated(q, k).mT * 0.2).masked_fill(~allowed(300, None), -torch.inf)
    sequences = Sequences.packed(2, 300)
    _, largest = causal_attention(q, k, v, sequences, 0.2, max_logits=True)
    _, of_reference = attention_reference(flat(q), flat(k), flat(v), sequences, 0.2)
    assert largest is not None
    assert (largest.shape, largest.dtype) == ((shape[0],), torch.float32)
    assert not largest.requires_grad
    torch.testing.assert_close(largest, scores.amax((0, 2, 3)))
    torch.testing.assert_close(of_reference, scores.amax((0, 2, 3)))
    assert causal_attention(q, k, v, sequences, 0.2)[1] is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_logit_in_bf16(sign: float) -> None:
    """Also where every logit of a head is negative, and the mask's -inf are the least of all."""
    q, k, v = (x.abs().bfloat16() for x in qkv(1, 200, SHAPES[0]))
    q[:, 0] *= sign
    _, largest = causal_attention(q, k, v, Sequences.packed(1, 200), 1.0, max_logits=True)
    scores = (q.float() @ repeated(q, k).float().mT).masked_fill(~allowed(200, None), -torch.inf)
    torch.testing.assert_close(largest, scores.amax((0, 2, 3)), rtol=2**-8, atol=0)


@pytest.mark.parametrize("shape", [(4, 4, 192, 128), (8, 2, 64, 64)], ids=["MLA's widths", "GQA"])
def test_bf16_is_as_exact_as_eager_attention_in_bf16(shape: tuple[int, int, int, int]) -> None:
    """Ours rounds the queries, scaled, once more than transformers' eager form, whose logits are bf16 too."""
    heads, key_heads, width, _ = shape
    length, scale = 300, width**-0.5
    segment_ids = documents([[150, 150], [10, 290]])
    sequences, visible = Sequences.packed(2, length, segment_ids), allowed(length, segment_ids)
    inputs = [x.bfloat16() for x in qkv(2, length, shape)]
    module = SimpleNamespace(num_key_value_groups=heads // key_heads, training=False)
    hidden = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf).bfloat16()

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return eager_attention_forward(module, q, k, v, hidden, scale)[0].transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, sequences, scale)[0]

    truth = values_and_gradients(torch_attention(visible, scale), inputs, torch.float64)
    of_eager = differences(values_and_gradients(eager, inputs, torch.bfloat16), truth)
    of_ours = differences(values_and_gradients(ours, inputs, torch.bfloat16), truth)
    for error, bound in zip(of_ours, of_eager, strict=True):
        assert error < 1.5 * bound < 1.5 * 2**-7


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("new", [1, 3, BLOCK, BLOCK + 22])
def test_stored_attention_is_the_end_of_full_attention(new: int, shape: tuple[int, int, int, int]) -> None:
    """Rows of different lengths in one storage; beyond a row's own tokens it holds anything."""
    lengths, scale = [new, new + 60], 0.4
    q, k, v = qkv(2, max(lengths), shape)
    (batch,) = Sequences([new, new], [n - new for n in lengths], [0, 1]).batches
    new_q = torch.stack([row[:, n - new : n] for row, n in zip(q, lengths, strict=True)])
    out = stored_attention(new_q, k, v, batch, scale)
    for row, n in enumerate(lengths):
        inputs = [x[row : row + 1, :, :n] for x in (q, k, v)]
        full = torch_attention(allowed(n, None), scale)(*inputs)
        torch.testing.assert_close(out[row], full[0, :, n - new :], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("max_logits", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_another_device_everything_stays_there(shape: tuple[int, int, int, int], max_logits: bool) -> None:
    """The meta device stands for an accelerator; of the masks, a CPU tensor would fail on a real one."""
    q, k, v = (x.to("meta") for x in qkv(2, 300, shape))
    sequences = Sequences.packed(2, 300, device=q.device)
    out, largest = causal_attention(q, k, v, sequences, 0.3, max_logits)
    assert out.is_meta
    assert out.shape == (2, shape[0], 300, shape[3])
    assert max_logits == (largest is not None and largest.is_meta)
    assert all(block.hidden_QS.is_meta for block in sequences.blocks)
    assert sequences.allowed_BTT.is_meta
