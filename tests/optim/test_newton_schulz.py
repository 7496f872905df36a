"""Newton-Schulz against the singular value decomposition."""

import math

import pytest
import torch

from lichen.optim.newton_schulz import (
    DEEPSEEK_V4,
    KELLER_JORDAN,
    POLAR_EXPRESS,
    TOGETHER,
    YOU_JIACHENG,
    Form,
    Schedule,
    form_for,
    newton_schulz,
    orthogonalize,
    scaled,
)


def with_singular_values(values: torch.Tensor, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    return (left * values) @ right[: len(values)]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / torch.linalg.matrix_norm(x, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deepseek_v4_schedule_ends_at_one(dtype: torch.dtype) -> None:
    """Singular values of 1e-4 and more, after normalisation, land in [1.000, 1.002]."""
    spectrum = torch.logspace(0, -4, 64, dtype=torch.float64)
    spectrum = spectrum.clamp(min=1e-4 * spectrum.norm())
    out = newton_schulz(with_singular_values(spectrum, 96).to(dtype), DEEPSEEK_V4)
    values = torch.linalg.svdvals(out.double())
    assert values.min() > 1.000 - 1e-5
    assert values.max() < 1.0021


@pytest.mark.parametrize(
    ("schedule", "smallest", "low", "high"),
    [
        (KELLER_JORDAN, 1e-4, 0.049, 1.202),
        (KELLER_JORDAN, 1e-3, 0.470, 1.202),
        (KELLER_JORDAN, 1e-2, 0.682, 1.134),
        (YOU_JIACHENG, 1e-3, 0.475, 1.145),
        (YOU_JIACHENG, 1e-2, 0.978, 1.032),
        (POLAR_EXPRESS, 1e-4, 0.098, 1.124),
        (POLAR_EXPRESS, 1e-3, 0.846, 1.124),
        (POLAR_EXPRESS, 1e-2, 0.870, 1.124),
    ],
)
def test_schedules_map_to_their_known_intervals(
    schedule: Schedule, smallest: float, low: float, high: float
) -> None:
    """A diagonal matrix stays diagonal; with norm 1 its first entry shows where a singular value goes."""
    values = torch.logspace(math.log10(smallest), 0, 4000, dtype=torch.float64)
    matrices = torch.diag_embed(torch.stack([values, (1 - values**2).clamp(min=0).sqrt()], -1))
    mapped = newton_schulz(matrices, schedule)[:, 0, 0]
    assert mapped.min() == pytest.approx(low, abs=1e-3)
    assert mapped.max() == pytest.approx(high, abs=1e-3)


@pytest.mark.parametrize("schedule", [KELLER_JORDAN, DEEPSEEK_V4, POLAR_EXPRESS, KELLER_JORDAN[:1]])
@pytest.mark.parametrize(
    "shape", [(3, 24, 40), (3, 40, 24), (1, 16, 16), (2, 1, 7), (5, 130, 70), (3, 24, 90), (2, 200, 20)]
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.04), (torch.bfloat16, 0.065)]
)
@pytest.mark.parametrize(("gram_form", "transpose"), [(False, False), (True, False), (True, True)])
def test_fast_forms_agree_with_the_plain_one(
    schedule: Schedule,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    tolerance: float,
    gram_form: bool,
    transpose: bool,
) -> None:
    form = {"together": TOGETHER[dtype] if gram_form else 1, "transpose": transpose}
    x = unit(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    expected = newton_schulz(x.double(), schedule)
    out = orthogonalize(x.to(dtype, copy=True), schedule, **form)
    assert out.shape == shape
    assert out.is_contiguous()
    assert (out.double() - expected).norm() < tolerance * expected.norm()
    stretched = orthogonalize(x.to(dtype, copy=True), scaled(schedule, -0.25), **form)
    assert (stretched.double() + 0.25 * expected).norm() < 0.25 * tolerance * expected.norm()


def hard_matrices() -> dict[str, torch.Tensor]:
    """What gradients can look like, or worse: (2, 64, 256) each, in fp64, of norm 1."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    made = {
        "noise": normal(64, 256),
        "rank 5": normal(64, 5) @ normal(5, 256),
        "rank 1 in noise": normal(64, 1) @ normal(1, 256) + 1e-3 * normal(64, 256),
        "one large row": normal(64, 256) * torch.tensor([1e4] + [1.0] * 63)[:, None],
    }
    for decades in (2, 4, 8):
        values = torch.logspace(0, -decades, 64, dtype=torch.float64)
        made[f"{decades} decades"] = torch.stack([with_singular_values(values, 256, seed) for seed in (1, 2)])
    return {name: unit(matrix) for name, matrix in made.items()}


@pytest.mark.parametrize("schedule", [KELLER_JORDAN, DEEPSEEK_V4, POLAR_EXPRESS, YOU_JIACHENG])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.25), (torch.float16, 0.08), (torch.float32, 0.015)]
)
def test_the_gram_form_stays_stable_on_hard_spectra(
    schedule: Schedule, dtype: torch.dtype, tolerance: float
) -> None:
    for name, x in hard_matrices().items():
        out = orthogonalize(x.to(dtype), schedule, together=TOGETHER[dtype]).double()
        exact = newton_schulz(x.to(dtype).double(), schedule)
        assert (out - exact).norm() < tolerance * exact.norm(), name
        out_2, exact_2 = (torch.linalg.matrix_norm(matrices, ord=2).max() for matrices in (out, exact))
        assert out_2 < 1.1 * exact_2, name


@pytest.mark.parametrize(
    ("device", "amx", "rows", "columns", "form"),
    [
        ("cpu", True, 1, 1, Form(torch.float32, 1, transpose=False)),
        ("cpu", True, 48, 16, Form(torch.float32, 5, transpose=False)),
        ("cpu", True, 128, 256, Form(torch.bfloat16, 1, transpose=False)),
        ("cpu", True, 384, 128, Form(torch.bfloat16, 2, transpose=False)),
        ("cpu", True, 7168, 2048, Form(torch.bfloat16, 2, transpose=True)),
        ("cpu", True, 2048, 7168, Form(torch.bfloat16, 2, transpose=False)),
        ("cpu", False, 128, 128, Form(torch.float32, 1, transpose=False)),
        ("cpu", False, 7168, 2048, Form(torch.float32, 5, transpose=False)),
        ("cuda", False, 7168, 7168, Form(torch.float16, 1, transpose=False)),
        ("xpu", True, 7168, 2048, Form(torch.float16, 3, transpose=False)),
    ],
)
def test_the_form_follows_device_and_shape(
    monkeypatch: pytest.MonkeyPatch, device: str, amx: bool, rows: int, columns: int, form: Form
) -> None:
    monkeypatch.setattr("lichen.optim.newton_schulz.multiplies_bf16", lambda device_type: amx)
    assert form_for(torch.device(device), rows, columns) == form


def test_singular_vectors_stay() -> None:
    x = with_singular_values(torch.tensor([5.0, 2.0, 0.5, 0.1], dtype=torch.float64), 6)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(newton_schulz(x, DEEPSEEK_V4), u @ vh, rtol=0, atol=3e-3)


def test_zero_stays_zero() -> None:
    assert not newton_schulz(torch.zeros(2, 3, 4), KELLER_JORDAN).any()
    for together in (1, 5):
        assert not orthogonalize(torch.zeros(2, 3, 4), KELLER_JORDAN, together=together).any()


@pytest.mark.parametrize("together", [1, 2])
def test_a_matrix_does_not_feel_the_rest_of_its_batch(together: int) -> None:
    """In bf16, bit for bit: what makes a resumed run independent of how matrices were grouped."""
    x = unit(torch.randn(9, 48, 96, generator=torch.Generator().manual_seed(2))).bfloat16()
    whole = orthogonalize(x.clone(), KELLER_JORDAN, together=together)
    for size in (1, 2, 4):
        parts = [orthogonalize(part.clone(), KELLER_JORDAN, together=together) for part in x.split(size)]
        apart = torch.cat(parts)
        assert torch.equal(whole, apart)
