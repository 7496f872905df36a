"""`lichen fits` as a person and as a script meet it."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")


def test_fits_shows_each_machine_with_its_sources(run) -> None:
    done = run("fits", "qwen3.6-27b", "--gpu", "rtx5090", "--gpu", "cpu-64g", "--quant", "q4")
    lines = done.out.splitlines()
    assert lines[0] == "qwen3.6-27b: 14.09 GiB of weights (q4), 0.64 GiB of cache for 1 x 8,192 tokens"
    assert any(line.startswith("rtx5090  yes") for line in lines)
    assert "unknown" in next(line for line in lines if line.startswith("cpu-64g"))  # its rate of prefill
    assert "estimates, bounds that nobody reaches" in done.out
    assert "1,792 GB/s" in done.out
    assert "https://images.nvidia.com/" in done.out


def test_fits_without_a_machine_shows_all(run) -> None:
    content = json.loads(run("fits", "kimi-k2.6", "--context", "262144", "--json").out)
    machines = {machine["machine"]: machine for machine in content["machines"]}
    assert {"h200", "rtx5090", "mac-128g", "cpu-64g"} <= machines.keys()
    assert not machines["h200"]["fits"]
    assert all(machine["device"]["source"].startswith("https://") for machine in machines.values())
    (eight,) = json.loads(run("fits", "kimi-k2.6", "--gpu", "h200:8", "--json").out)["machines"]
    assert eight["fits"]
    assert eight["left"] == eight["memory"] - eight["weight_bytes"]


def test_the_rent_of_a_machine_over_its_speed_is_the_least_price(run) -> None:
    """Eight devices at 3 USD an hour are 24 USD for 3,600 seconds of the speed that is shown."""
    arguments = ("fits", "kimi-k2.6", "--gpu", "h200:8", "--batch", "64")
    (machine,) = json.loads(run(*arguments, "--price-per-hour", "$3", "--json").out)["machines"]
    assert machine["decode_usd"] == pytest.approx(24 / (3600 * machine["decode"]) * 1e6)
    assert machine["prefill_usd"] == pytest.approx(24 / (3600 * machine["prefill"]) * 1e6)
    assert "USD/M" in run(*arguments, "--price-per-hour", "3").out
    assert "USD/M" not in run(*arguments).out


def test_tables_of_n_grams_are_beside_the_weights(run) -> None:
    """196 billion numbers in fp8, with their scales."""
    out = run("fits", "deepseek-v4.1-flash", "--gpu", "h200:8").out
    assert "GiB of n-gram tables, which engines keep outside the device" in out
    content = json.loads(run("fits", "deepseek-v4.1-flash", "--gpu", "h200:8", "--json").out)
    assert content["engram_bytes"] == pytest.approx(196e9, rel=0.05)


def test_a_no_comes_with_what_would_be_a_yes(run) -> None:
    arguments = ("fits", "qwen3.6-27b", "--gpu", "rtx4090", "--gpu", "h200", "--context", "64Ki")
    said = run(*arguments).out.partition("What would fit there:\n")[2].splitlines()
    assert said[:2] == [
        "- rtx4090: weights as q4, or 3 of them",
        "    lichen fits qwen3.6-27b --gpu rtx4090 --quant q4 --context 65536",
    ]
    no, yes = json.loads(run(*arguments, "--json").out)["machines"]
    assert [(way["count"], way["quant"]) for way in no["would_fit"]] == [(1, "q4"), (3, "bf16")]
    assert yes["would_fit"] == []
    out = run("fits", "qwen3.6-27b", "--gpu", "rtx4090", "--context", "256Ki").out
    assert "- rtx4090: weights as q4 and 65,536 tokens, or 4 of them\n" in out


def test_the_commands_that_follow_a_no_are_answered_with_yes(run) -> None:
    batch = ("--context", "32Ki", "--batch", "100", "--as-of", "2026-10-01", "--json")
    machines = json.loads(run("fits", "kimi-k2.6", *batch).out)["machines"]
    commands = [way["command"] for machine in machines for way in machine["would_fit"]]
    assert len(commands) > 10
    for command in commands:
        (machine,) = json.loads(run(*command.split()[1:], "--json").out)["machines"]
        assert machine["fits"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kimi-k26"], "did you mean kimi-k2.6"),
        (["kimi-k3", "--as-of", "2026-04-30"], "kimi-k3 came out on 2026-07-16, which is after 2026-04-30"),
        (
            ["kimi-k2", "--as-of", "2019-01-01"],
            "no device is known whose figures were published by 2019-01-01",
        ),
        (["kimi-k2", "--as-of", "2099-01-01"], "is in the future"),
        (
            ["llama-3.1-405b", "--gpu", "b200", "--as-of", "2024-08-01"],
            "the figures of b200 are of 2025-03-18",
        ),
        (["gpt-5.5"], "what gpt-5.5 holds and takes cannot be computed: it is closed"),
        (["kimi-k2.6", "--gpu", "h2000"], "no device 'h2000'; did you mean h200"),
        (["kimi-k2.6", "--price-per-hour", "-3"], "the price per hour is -3; it cannot be negative"),
        (["kimi-k2.6", "--batch", "-1"], "batch is -1; at least 1 sequence is needed"),
        (["kimi-k2.6", "--context", "-5"], "context is -5; this model has 1 to 262144 tokens"),
        (["kimi-k2.6", "--quant", "q5"], "weights cannot be stored as 'q5'"),
    ],
)
def test_fits_refuses(refusal, arguments: list[str], words: str) -> None:
    assert words in refusal("fits", *arguments)
