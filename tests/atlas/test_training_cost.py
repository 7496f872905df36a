"""Training cost against what DeepSeek and Meta publish of their runs."""

from __future__ import annotations

import pytest

from lichen.arch.families import load_spec
from lichen.errors import LichenError
from lichen.machine.devices import load
from lichen.machine.training_cost import CALIBRATION, calibrate, estimate

V3, LLAMA, K2 = (load_spec(name) for name in ("deepseek-v3", "llama-3.1-405b", "kimi-k2"))
H800 = load()["h800"]


def test_the_hours_of_deepseek_v3() -> None:
    """2.664 million (arXiv 2412.19437, table 1), at the utilisation that DeepSeek gives for causal attention,
    38.94 % (arXiv 2505.09343, table 4)."""
    found = estimate(V3, 14_800_000_000_000, H800, 0.3894, price_per_hour=2)
    assert found.gpu_hours == pytest.approx(2.664e6, rel=0.01)
    assert found.usd == pytest.approx(5.328e6, rel=0.01)
    assert CALIBRATION.gpu_hours == 2_664_000
    assert calibrate() == pytest.approx(0.3894, rel=0.01)


def test_the_flops_of_llama_405b() -> None:
    """3.8e25 on 15.6 trillion tokens (arXiv 2407.21783, section 1), without the attention over keys."""
    found = estimate(LLAMA, 15_600_000_000_000, load()["h100"], 0.4, seq_len=8192)
    assert found.flops == pytest.approx(3.8e25, rel=0.06)


def test_hours_go_with_tokens_and_against_utilisation() -> None:
    one, two = (estimate(K2, tokens * 10**12, H800, mfu) for tokens, mfu in ((1, 0.2), (2, 0.4)))
    assert one.gpu_hours == pytest.approx(two.gpu_hours)
    assert two.flops == 2 * one.flops
    assert one.usd is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mfu": 0}, "mfu is 0; it must be a number above 0"),
        ({"mfu": float("nan")}, "mfu is nan"),
        ({"mfu": 35}, "mfu is 35; it is a share, like 0.35"),
        ({"tokens": -1}, "tokens is -1"),
        ({"price_per_hour": -2.0}, "price per hour is -2"),
        ({"price_per_hour": float("nan")}, "price per hour is nan"),
        ({"seq_len": 10**9}, "this model has 131072 positions"),
        ({"device": load()["mac-128g"]}, "the rate of Apple M4 Max, 128 GB is not published"),
    ],
)
def test_what_cannot_be_estimated(change: dict, words: str) -> None:
    with pytest.raises(LichenError, match=words):
        estimate(**({"spec": K2, "tokens": 10**12, "device": H800, "mfu": 0.35} | change))
