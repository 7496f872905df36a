"""The kernels of a decoding step against PyTorch's own functions, packed weights against their meaning."""

from __future__ import annotations

import platform
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lichen.arch.parts.moe import Router
from lichen.arch.parts.rope import Rope, Yarn
from lichen.kv.contiguous import _keep
from lichen.nn.forward import Pass
from lichen.nn.router import TopK
from lichen.ops import native
from lichen.ops.attention import attention
from lichen.ops.embedding import embedding
from lichen.ops.experts import experts_reference, routed_experts
from lichen.ops.latent_attention import latent_attention
from lichen.ops.linear import FEW_PLAIN, linear
from lichen.ops.native import FORMATS as ROW_FORMATS
from lichen.ops.native import NotRecorded, Recording
from lichen.ops.norm import rms_norm
from lichen.ops.packed import GROUP, Packed, pack
from lichen.ops.rope import apply_rope, turns
from lichen.ops.sequences import Sequences
from lichen.ops.swiglu import silu_mul

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
CAPABILITY = torch.backends.cpu.get_cpu_capability()
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "int4": torch.uint8}


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, exact: Tensor, bound: float = 2e-6) -> None:
    exact = exact.double()
    assert (ours.double() - exact).abs().max() <= bound * exact.abs().max().clamp(min=1e-30)


def as_multiplied(x: Tensor, name: str) -> Tensor:
    """x as kernels multiply it: by four-bit weights on x86 rounded to whole numbers up to 127, in groups."""
    if name != "int4" or platform.machine() not in ("x86_64", "AMD64") or CAPABILITY == "DEFAULT":
        return x
    groups = x.unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    return ((groups * (127 / largest)).round() * (largest / 127)).flatten(-2)


def weights(rows: int, width: int) -> dict[str, Tensor | Packed]:
    w = randn(rows, width, seed=1)
    whole = rows % 8 == 0 and width % GROUP == 0
    plain = {"fp32": w, "rows bf16": w.bfloat16(), "rows fp16": w.half()}
    return plain | ({name: pack(w, dtype) for name, dtype in FORMATS.items()} if whole else {})


# --------------------------------------------------------------------------------------------- packed weights


@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_packed_is_the_weight_rounded(name: str, stack: tuple[int, ...]) -> None:
    w = randn(*stack, 24, 96)
    w[..., 3, 32:64] = 0
    packed = pack(w, FORMATS[name])
    groups = w.unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    bound = {"bf16": 2**-8, "fp16": 2**-11, "int8": 1 / 127 / 2 + 2**-11, "int4": 0.21}[name]
    assert packed.shape == w.shape
    assert (packed.dense(torch.float32).view_as(groups) - groups).abs().le(bound * largest + 1e-12).all()
    bits = 8 * packed.nbytes / w.numel()
    assert bits == {"bf16": 16, "fp16": 16, "int8": 8.5, "int4": 4.5}[name]
    if name in ("bf16", "fp16"):
        assert torch.equal(packed.dense(torch.float32), w.to(FORMATS[name]).float())


def test_four_bits_lose_less_than_the_largest_number_as_scale() -> None:
    """As llama.cpp's Q4_0 has it: scale = the number of largest magnitude / -8."""
    w = randn(64, 1024)
    groups = w.unflatten(-1, (-1, GROUP))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).half().float()
    q4_0 = (groups / scale).round().clamp(-8, 7) * scale
    ours = pack(w, torch.uint8).dense(torch.float32).view_as(groups)
    assert (ours - groups).square().sum() < 0.95 * (q4_0 - groups).square().sum()


@pytest.mark.parametrize("name", FORMATS)
def test_unpacking_by_the_kernel_and_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(randn(2, 16, 64), FORMATS[name])
    flat = pack(randn(32, 64), FORMATS[name])
    for dtype in (torch.float32, torch.bfloat16):
        whole, part = packed.dense(dtype), flat.dense(dtype, 8, 24)
        with monkeypatch.context() as context:
            context.setattr("lichen.ops.packed.library", lambda: None)
            assert torch.equal(packed.dense(dtype), whole)
            assert torch.equal(flat.dense(dtype, 8, 24), part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_as_pytorch_rounds_them(dtype: torch.dtype) -> None:
    limits = [0.0, -0.0, torch.inf, -torch.inf, 65519.9, 65520.0, -70000.0]
    special = [*limits, 2**-14, 2**-15 * 1.3, 2**-24, 2**-26, 1e-40]
    bits = torch.randint(-(2**31), 2**31, (2000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    x = torch.cat([torch.tensor(special), bits.view(torch.float32), randn(2000)])
    x = torch.cat([x, torch.tensor([torch.nan])])[None]
    out = torch.empty(1, 1, x.shape[1], dtype=dtype)
    zero = torch.zeros(1, dtype=torch.int64)
    _keep(x, 0, 1, x.shape[1], ROW_FORMATS[dtype], out, 1, x.shape[1], zero, zero)
    expected = x.to(dtype)[None]
    assert torch.equal(out.nan_to_num(1.5, 2e4, -2e4), expected.nan_to_num(1.5, 2e4, -2e4))
    assert torch.equal(out.isnan(), expected.isnan())
    back = embedding(torch.tensor([0]), out[0], torch.float32)
    assert torch.equal(back.isnan(), out[0].isnan())
    assert torch.equal(back.nan_to_num(), out[0].float().nan_to_num())


# ------------------------------------------------------------------------------------------------ operations


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 33])
@pytest.mark.parametrize(("rows", "width"), [(8, 32), (40, 96), (72, 256), (5, 7), (13, 100)])
def test_linear(rows: int, width: int, tokens: int) -> None:
    x, bias = randn(tokens, width + 3)[:, :width], randn(rows, seed=2)
    for name, weight in weights(rows, width).items():
        dense = weight.dense(torch.float32) if isinstance(weight, Packed) else weight.float()
        exact = as_multiplied(x, name).double() @ dense.double().t()
        close(linear(x, weight), exact)
        close(linear(x, weight, bias), exact + bias)
        if weight.dtype == x.dtype and tokens > FEW_PLAIN:
            continue  # by PyTorch's product
        alone = torch.cat([linear(x[n : n + 1], weight) for n in range(tokens)])
        assert torch.equal(linear(x, weight), alone), f"{name}: a token's result depends on its neighbours"


@pytest.mark.parametrize("name", FORMATS)
def test_linear_with_many_rows(name: str) -> None:
    x, packed = randn(200, 2048), pack(randn(136, 2048, seed=1), FORMATS[name])
    close(linear(x, packed), x.double() @ packed.dense(torch.float32).double().t())


@pytest.mark.parametrize("shape", [(1, 5), (3, 128), (2, 4, 24)])
def test_norm(shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape), randn(shape[-1], seed=1)
    close(rms_norm(x, weight, 1e-6), F.rms_norm(x.double(), weight.shape, weight.double(), 1e-6))


def test_norm_of_a_part_of_each_row() -> None:
    x, weight = randn(4, 40)[:, :24], randn(24, seed=1)
    close(rms_norm(x, weight, 1e-6), F.rms_norm(x.double(), weight.shape, weight.double(), 1e-6))


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rope", [Rope(1e4, True), Rope(1e4, True, Yarn(4.0, 32))])
def test_rope(rope: Rope, interleaved: bool) -> None:
    positions = torch.tensor([0, 5, 1000, 131_071])
    x = randn(4, 3, 20)[..., 4:]
    ours = turns(rope, 16, positions)
    with torch.enable_grad():
        turn = turns(rope, 16, positions)
        expected = apply_rope(x.clone().requires_grad_(), turn.unsqueeze(1), interleaved)
    assert (ours - turn).abs().max() < 1e-6
    close(apply_rope(x, turn.unsqueeze(1), interleaved), expected)
    close(apply_rope(x[:, 0], turn, interleaved), expected[:, 0])


def test_swiglu() -> None:
    gate, up = 20 * randn(3, 50), randn(3, 50, seed=1)
    close(silu_mul(gate, up), F.silu(gate.double()) * up)


def test_experts() -> None:
    x, gate_up, down = randn(6, 64), randn(8, 64, 64, seed=1), randn(8, 64, 32, seed=2)
    chosen = randn(6, 8, seed=4).argsort(1)[:, :3]
    share = randn(6, 3, seed=3).abs()
    for dtype in (None, *FORMATS.values()):
        matrices = (gate_up, down) if dtype is None else (pack(gate_up, dtype), pack(down, dtype))
        dense = [m.dense(torch.float32) if isinstance(m, Packed) else m for m in matrices]
        exact = experts_reference(x.double(), chosen, share.double(), *(m.double() for m in dense))
        ours = routed_experts(x, chosen, share, *matrices)
        close(ours, exact, 2e-2 if dtype == torch.uint8 else 2e-6)
        rows = [slice(n, n + 1) for n in range(6)]
        alone = [routed_experts(x[n], chosen[n], share[n], *matrices) for n in rows]
        assert torch.equal(torch.cat(alone), ours)


@pytest.mark.parametrize(
    "spec",
    [
        Router(16, 4),
        Router(16, 4, n_group=4, topk_group=2, selection_bias=True, routed_scaling_factor=2.5),
        Router(16, 3, scoring_func="softmax", norm_topk_prob=False),
        Router(8, 8, scoring_func="softmax", norm_topk_prob=True),
    ],
)
def test_router(spec: Router) -> None:
    router = TopK(spec, 24)
    router.weight.copy_(randn(spec.n_routed_experts, 24))
    if router.e_score_correction_bias is not None:
        router.e_score_correction_bias.copy_(0.2 * randn(spec.n_routed_experts, seed=1))
    x, at = randn(20, 24, seed=2), Pass(Sequences([20]))
    experts, share = router(x, at)
    expected, expected_share = router(x, Pass(Sequences([20]), observe=["routing"]))  # by PyTorch's operators
    order, expected_order = experts.argsort(1), expected.argsort(1)
    assert torch.equal(experts.gather(1, order), expected.gather(1, expected_order))
    close(share.gather(1, order), expected_share.gather(1, expected_order))


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    key_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4]),
    widths=st.sampled_from([(16, 16), (12, 20), (64, 32)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_attention(
    lengths: list[int], key_heads: int, group: int, widths: tuple[int, int], dtype: torch.dtype
) -> None:
    """One new token of every sequence, against PyTorch's attention of each alone."""
    keys, values = widths
    slots, heads = len(lengths), key_heads * group
    stored = randn(slots, 80, key_heads * (keys + values)).to(dtype)
    q = 3 * randn(slots, heads, keys, seed=1)
    k_new, v_new = torch.zeros(key_heads, slots, keys), torch.zeros(key_heads, slots, values)
    sequences = Sequences([1] * slots, lengths, range(slots))
    with torch.no_grad():
        out, _ = attention(q.transpose(0, 1), k_new, v_new, stored, sequences, 0.2)
    for n, length in enumerate(lengths):
        k, v = stored[n, : length + 1].double().split([key_heads * keys, key_heads * values], -1)
        k, v = (x.unflatten(-1, (key_heads, -1)).transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        exact = F.scaled_dot_product_attention(q[n].double().unsqueeze(1), k, v, scale=0.2).squeeze(1)
        close(out[n], exact, 1e-5)


def test_attention_by_latents() -> None:
    """The absorbed kernel against the expanded keys and values."""
    heads, content, rotary, latent, value, lengths = 9, 12, 8, 40, 16, [3, 0, 65]
    up = randn(heads * (content + value), latent)
    stored = randn(3, 80, latent + rotary, seed=1)
    q_content, q_rotary = randn(3, heads, content, seed=2), randn(3, heads, rotary, seed=3)
    sequences = Sequences([1] * 3, lengths, range(3))
    out, _ = latent_attention(
        q_content, q_rotary, torch.zeros(3, latent), torch.zeros(3, rotary), stored, up, sequences, 0.3
    )
    for n, length in enumerate(lengths):
        c, k_rotary = stored[n, : length + 1].double().split([latent, rotary], -1)
        k, v = (c @ up.double().t()).unflatten(-1, (heads, -1)).transpose(0, 1).split([content, value], -1)
        k = torch.cat([k, k_rotary.expand(heads, -1, -1)], -1)
        q = torch.cat([q_content[n], q_rotary[n]], -1).double().unsqueeze(1)
        close(out[n], F.scaled_dot_product_attention(q, k, v, scale=0.3).squeeze(1), 1e-5)


def test_a_token_that_is_not_in_the_table_gives_no_number() -> None:
    table = randn(10, 8)
    rows = embedding(torch.tensor([9, 10, -1]), table, torch.float32)
    assert torch.equal(rows[0], table[9])
    assert rows[1:].isnan().all()


def test_what_is_no_number_stays_none() -> None:
    """A damaged weight must be found out, not smoothed over."""
    nan = torch.tensor(torch.nan)
    x = randn(2, 48)
    x[1, 3] = nan
    ones = torch.ones(48)
    assert silu_mul(x, ones.expand(2, -1).contiguous()).isnan().sum() == 1
    assert rms_norm(x, ones, 1e-6).isnan().sum(1).tolist() == [0, 48]
    stored = randn(2, 40, 2 * 16)
    stored[1, 7, 5] = nan
    q, new = randn(2, 1, 16), torch.zeros(1, 2, 16)
    out, _ = attention(q.transpose(0, 1), new, new, stored, Sequences([1, 1], [33, 33], range(2)), 0.2)
    assert out.isnan().sum((1, 2)).tolist() == [0, 16]


# -------------------------------------------------------------------------------------- recording, compiling


def test_a_recording_repeats_the_calls_with_what_memory_holds_now() -> None:
    x, weight = randn(2, 64), pack(randn(32, 64, seed=1), torch.int8)
    norm = torch.ones(32)
    with Recording() as recording:
        y = rms_norm(linear(x, weight), norm, 1e-6)
    x.copy_(randn(2, 64, seed=2))
    recording.play()
    assert torch.equal(y, rms_norm(linear(x, weight), norm, 1e-6))


def test_what_pytorch_computes_is_not_recorded() -> None:
    x = randn(2, 64)
    with pytest.raises(NotRecorded, match="mul"), Recording():
        x * 2
    assert not native._recording.stack


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "No such file"), ("false", "could not be compiled")]
)
def test_without_a_compiler_a_warning_says_what_to_do(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=message):
        assert native.library.__wrapped__() is None
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="apt-get install"):
        assert native.library.__wrapped__() is None


def test_a_library_that_was_cut_short_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is not None
    (library,) = (tmp_path / "lichen").glob("*.so")
    size = library.stat().st_size
    library.unlink()  # not cut short in its place: this process has it in memory
    library.write_bytes(b"\x7fELF")
    assert native.library.__wrapped__() is not None
    assert library.stat().st_size == size


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library.__wrapped__() is not None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(native.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert native.library.__wrapped__() is not None
