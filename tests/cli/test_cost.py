"""`lichen cost` as a person and as a script meet it."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")


def test_cost_of_deepseek_v3(run) -> None:
    arguments = ("cost", "deepseek-v3", "--tokens", "14.8T", "--gpu", "h800:2048", "--mfu", "0.3894")
    done = run(*arguments, "--price-per-hour", "2")
    assert "deepseek-v3 on 14.8 T tokens: an estimate" in done.out
    assert "2.672 M of NVIDIA H800 SXM" in done.out
    assert "5.345 M USD" in done.out
    assert "54.4 days on 2,048 of them" in done.out
    assert "DeepSeek-V3's 2.664 M H800 hours for 14.8 T tokens are 39.1%" in done.out
    content = json.loads(run(*arguments, "--json").out)
    assert content["usd"] is None
    assert content["gpu_hours"] == pytest.approx(2.672e6, rel=1e-3)


def test_a_price_that_is_not_given_is_unknown(run) -> None:
    assert "unknown: give --price-per-hour" in run("cost", "kimi-k2", "--tokens", "15T").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kimi-k2", "--tokens", "-15T"], "tokens is -1.5e+13; it must be a number above 0"),
        (["kimi-k2", "--tokens", "15T", "--mfu", "-0.1"], "mfu is -0.1; it must be a number above 0"),
        (["kimi-k2", "--tokens", "15T", "--price-per-hour", "-2"], "the price per hour is -2"),
        (["kimi-k2", "--tokens", "15T", "--gpu", "a100"], "no device 'a100'; did you mean"),
        (["kimi-k3", "--tokens", "15T", "--as-of", "2026-04-30"], "kimi-k3 came out on 2026-07-16"),
        (["kimi-k2", "--tokens", "15T", "--seq-len", "0"], "seq_len is 0; it must be a number above 0"),
        (["kimi-k22", "--tokens", "15T"], "did you mean kimi-k2"),
    ],
)
def test_cost_refuses(refusal, arguments: list[str], words: str) -> None:
    assert words in refusal("cost", *arguments)
