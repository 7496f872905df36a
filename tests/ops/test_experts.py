"""Routed experts in all their forms against transformers' loop over experts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from lichen.ops import experts
from lichen.ops.experts import Groups, experts_reference, routed_experts
from lichen.ops.experts_grouped import ROWS, Rows, grouped_experts

HIDDEN, WIDTH = 24, 16
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def transformers_loop(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    sizes = {"num_local_experts": len(down), "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH}
    module = DeepseekV3Experts(SimpleNamespace(**sizes, hidden_act="silu", _experts_implementation="eager"))
    parameters = {"gate_up_proj": gate_up, "down_proj": down}
    return torch.func.functional_call(module, parameters, (x, chosen, weights))


def fast(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return routed_experts(x, chosen, weights, gate_up, down)


def grouped(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return grouped_experts(x, chosen, weights, gate_up, down)


def balanced(n_experts: int = 8) -> Tensor:
    """150 tokens, 3 experts each."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(150, n_experts, generator=generator).topk(3).indices


def skewed(n_experts: int = 8) -> Tensor:
    """Every token goes to experts 0 and 5, one to expert 3 and the others to 7; 1, 2, 4 and 6 get none."""
    chosen = torch.tensor([[5, 7, 0]]).repeat(150, 1)
    chosen[83, 1] = 3
    return chosen


def inputs(chosen: Tensor, n_experts: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(chosen), HIDDEN, generator=generator)
    weights = torch.rand(chosen.shape, generator=generator)
    gate_up = torch.randn(n_experts, 2 * WIDTH, HIDDEN, generator=generator) * HIDDEN**-0.5
    down = torch.randn(n_experts, HIDDEN, WIDTH, generator=generator) * WIDTH**-0.5
    return [x, weights, gate_up, down]


def values_and_gradients(
    form: Form, chosen: Tensor, tensors: list[Tensor], dtype: torch.dtype, masters: torch.dtype
) -> list[Tensor]:
    """x in `dtype`, weights and parameters in `masters`; everything returned in fp64."""
    x, *others = (t.double() for t in tensors)
    leaves = [x.to(dtype).requires_grad_(), *(t.to(masters).requires_grad_() for t in others)]
    out = form(leaves[0], chosen, *leaves[1:])
    assert out.dtype == dtype
    (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]
    return [out.detach().double(), *(gradient.double() for gradient in gradients)]


def differences(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, truth, strict=True)]


CASES: dict[str, tuple[Form, Tensor]] = {
    "reference": (experts_reference, skewed()),
    "equal groups": (fast, balanced()),
    "ragged groups": (fast, skewed()),
    "grouped product, balanced": (grouped, balanced()),
    "grouped product, skewed": (grouped, skewed()),
    "one token": (fast, torch.tensor([[6, 1, 3]])),
    "one token, grouped product": (grouped, torch.tensor([[6, 1, 3]])),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str) -> None:
    form, chosen = CASES[case]
    tensors = inputs(chosen)
    truth = values_and_gradients(transformers_loop, chosen, tensors, torch.float64, torch.float64)
    ours = values_and_gradients(form, chosen, tensors, torch.float32, torch.float32)
    assert max(differences(ours, truth)) < 1e-6
    unused = torch.bincount(chosen.flatten(), minlength=8) == 0
    assert not ours[3][unused].any()
    assert not ours[4][unused].any()


@pytest.mark.parametrize("case", [case for case in CASES if case != "reference"])
def test_bf16_is_about_as_exact_as_transformers_loop_in_bf16(case: str) -> None:
    """The loop multiplies in bf16 with bf16 parameters; ours has fp32 ones and gives fp32 gradients."""
    form, chosen = CASES[case]
    tensors = [t.bfloat16() for t in inputs(chosen)]
    truth = values_and_gradients(transformers_loop, chosen, tensors, torch.float64, torch.float64)
    loop = values_and_gradients(transformers_loop, chosen, tensors, torch.bfloat16, torch.bfloat16)
    ours = values_and_gradients(form, chosen, tensors, torch.bfloat16, torch.float32)
    for error, bound in zip(differences(ours, truth), differences(loop, truth), strict=True):
        assert error < 1.5 * bound < 1.5 * 2**-6


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 150])
@pytest.mark.parametrize("routing", [balanced, skewed])
def test_inference_with_few_and_many_tokens(routing: Callable[[], Tensor], tokens: int) -> None:
    """Without gradients a few tokens may take another way; bf16 within what the loop loses in bf16."""
    chosen = routing()[:tokens]
    tensors = [t.bfloat16() for t in inputs(chosen)]
    x, *others = (t.double() for t in tensors)
    truth = transformers_loop(x, chosen, *others)
    x, *others = (t.float() for t in tensors)
    out = routed_experts(x, chosen, *others)
    assert differences([out], [truth])[0] < 1e-6
    loop = transformers_loop(tensors[0], chosen, *tensors[1:])
    rounded = routed_experts(tensors[0], chosen, *others)
    assert rounded.dtype == torch.bfloat16
    assert differences([rounded], [truth])[0] < 1.5 * differences([loop], [truth])[0] < 1.5 * 2**-6


def test_which_groups_are_equal() -> None:
    """The cases above take the paths that they are named after."""
    assert Groups(balanced(), 8, torch.bfloat16).equal
    assert not Groups(skewed(), 8, torch.bfloat16).equal
    assert not Groups(balanced(), 8, torch.float32).equal


@st.composite
def routings(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Chosen experts (N, k) and the number of experts, from balanced to badly skewed."""
    tokens, n_experts = draw(st.integers(1, 90)), draw(st.integers(1, 9))
    k = draw(st.integers(1, n_experts))
    favour = torch.linspace(0, draw(st.floats(0, 8)), n_experts)
    scores = torch.randn(tokens, n_experts, generator=torch.Generator().manual_seed(tokens)) + favour
    return scores.topk(k).indices, n_experts


@settings(max_examples=60, derandomize=True)
@given(routing=routings(), dtype=st.sampled_from([torch.bfloat16, torch.float32]))
def test_every_copy_has_one_row_in_its_experts_group(routing: tuple[Tensor, int], dtype: torch.dtype) -> None:
    chosen, n_experts = routing
    groups = Groups(chosen, n_experts, dtype)
    counts = torch.bincount(chosen.flatten(), minlength=n_experts)
    assert torch.equal(groups.counts_E, counts)
    starts = torch.tensor(groups.starts)
    sizes = starts.diff()
    assert torch.all(sizes % experts.ROWS[dtype] == 0)
    assert torch.all(sizes >= counts)
    assert groups.row_Nk.unique().numel() == chosen.numel()
    assert torch.equal(torch.bucketize(groups.row_Nk, starts, right=True) - 1, chosen)
    token_of_copy = torch.arange(len(chosen))[:, None].expand_as(chosen)
    assert torch.equal(groups.token_P[groups.row_Nk], token_of_copy)
    assert groups.starts[-1] <= experts.MAX_PADDING * chosen.numel() + experts.ROWS[dtype] * n_experts


@settings(max_examples=60, derandomize=True)
@given(routing=routings())
def test_rows_that_only_the_device_counts(routing: tuple[Tensor, int]) -> None:
    chosen, n_experts = routing
    rows = Rows(chosen, n_experts)
    counts = torch.bincount(chosen.flatten(), minlength=n_experts)
    assert rows.ends_E.dtype == torch.int32
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), rows.ends_E])
    assert torch.equal(starts.diff(), (counts + ROWS - 1) // ROWS * ROWS)
    assert int(starts[-1]) <= len(rows.token_P)
    assert rows.row_Nk.unique().numel() == chosen.numel()
    assert torch.equal(torch.bucketize(rows.row_Nk, starts, right=True) - 1, chosen)
    assert torch.equal(rows.token_P[rows.row_Nk], torch.arange(len(chosen))[:, None].expand_as(chosen))
    assert torch.equal(rows.copy_P[rows.row_Nk].flatten(), torch.arange(chosen.numel()))
    assert int((rows.copy_P == chosen.numel()).sum()) == len(rows.copy_P) - chosen.numel()
