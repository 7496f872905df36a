"""`lichen account` as a person and as a script meet it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from lichen.arch.account import account
from lichen.arch.cache import longest_context, most_sequences
from lichen.arch.families import load_spec, write_config
from lichen.arch.weights import weight_bytes, weights


def lichen_account(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lichen.cli.main import main; main()", "account", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("deepseek-v3", "671.0 B parameters, 37 B active per token"),
        ("kimi-k2.6", "1,026 B parameters, 32 B active per token"),
    ],
)
def test_the_table_says_what_the_model_is_and_costs(name: str, headline: str) -> None:
    done = lichen_account(name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: {headline}\n")
    assert "70,272 B" in done.stdout
    assert "/config.json (2026-11-23)" in done.stdout
    assert "every token" in done.stdout
    assert "as published" in done.stdout
    assert ("MTP layers" in done.stdout) == (name == "deepseek-v3")
    assert ("Not carried: the vision tower" in done.stdout) == (name == "kimi-k2.6")
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_json_holds_the_whole_account() -> None:
    done = lichen_account("kimi-k2.6", "--context", "131072", "--batch", "8", "--dtype", "fp8", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    result = account(load_spec("kimi-k2.6"), 131072, 8, "fp8")
    assert printed["model"] == "kimi-k2.6"
    assert printed["total_parameters"] == result.total_parameters
    assert printed["cache_bytes"]["reserved"] == result.cache_bytes.reserved
    assert printed["bytes_of_model"]["weights"] == result.bytes_of_model.weights
    assert printed["flops_per_token"]["decode"] == result.flops_per_token.decode
    assert printed["not_carried"] == list(result.not_carried)


def test_a_folder_is_counted_without_a_source(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(write_config(load_spec("llama-3.1-8b"))))
    done = lichen_account(str(tmp_path), "--json")
    assert json.loads(done.stdout)["source"] is None
    assert json.loads(done.stdout)["total_parameters"] == 8_030_261_248


def test_a_cache_that_is_no_multiple_of_tokens_is_shown_at_several_contexts() -> None:
    done = lichen_account("deepseek-v4-pro", "--context", "65536")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "Cache of one sequence, mixed ideal reserved" in lines
    assert "every token" not in done.stdout
    shown = [line.split()[0] for line in lines if re.fullmatch(r"[\d,]+ tokens [\d.,]+ .B [\d.,]+ .B", line)]
    assert shown == ["4,096", "32,768", "65,536", "131,072", "262,144", "1,048,576"]


@pytest.mark.parametrize(
    "size", ["80G", "80GB", "80 gb", "80000M", "0.08T", "80000000000", "74.505805969238281GiB"]
)
def test_memory_is_answered_with_a_context_and_a_batch(size: str) -> None:
    arguments = ["qwen3.6-27b", "--memory", size, "--context", "32768", "--batch", "4"]
    budget = json.loads(lichen_account(*arguments, "--json").stdout)["budget"]
    spec = load_spec("qwen3.6-27b")
    left = 80 * 10**9 - weight_bytes(weights(spec), "bf16")
    assert budget["memory"] == 80 * 10**9
    assert budget["left_for_cache"] == left
    assert budget["longest_context"] == longest_context(spec, left, sequences=4)
    assert budget["most_sequences"] == most_sequences(spec, left, 32768)
    done = lichen_account(*arguments)
    assert f"{budget['longest_context']:,} tokens" in done.stdout


def test_weights_that_do_not_fit_are_told_by_how_much() -> None:
    done = lichen_account("kimi-k2.6", "--memory", "500G")
    assert done.returncode == 0, done.stderr
    assert re.search(r"missing for the weights alone +94\.21 GB", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kimi-k2.6", "--memory", "much"], "'--memory': 'much' is not a size"),
        (["kimi-k2.6", "--memory", "-80G"], "memory is -80000000000 bytes; at least 1"),
        (["kimi-k2.6", "--memory", "0"], "memory is 0 bytes; at least 1"),
        (
            ["kimi-k2.6", "--cache", "mixed"],
            "cache layout is mixed; supported for this model: fp32, bf16, fp8",
        ),
        (["kimi-k27"], "no such file, folder or model; did you mean kimi-k2 or "),
        (["grok"], "models by name: deepseek-v3, deepseek-v3.2, "),
        (["gpt-5.5"], "what gpt-5.5 holds and takes cannot be computed: it is closed"),
        (["gpt5.5"], "no such file, folder or model; did you mean gpt-5.5?"),
        (["kimi-k2.6", "--context", "0"], "context is 0"),
        (["kimi-k2.6", "--context", "-4"], "context is -4"),
        (["kimi-k2.6", "--batch", "0"], "batch is 0"),
        (["kimi-k2.6", "--dtype", "fp3"], "dtype is fp3; supported: fp32, bf16, fp8, int4, fp4, mxfp4"),
        (["llama-3.1-8b", "--dtype", "int4"], "this model has none"),
        (["."], "folder without a config.json"),
        (["kimi-k2.6", "--context", "many"], "Invalid value for '--context'"),
        ([], "NAME|PATH"),
    ],
)
def test_a_mistake_ends_in_one_line(arguments: list[str], words: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = lichen_account(*arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys\nfrom lichen.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    for model in ("deepseek-v3", "gpt-5.5"):
        done = subprocess.run([sys.executable, "-c", code, "account", model], capture_output=True, text=True)
        assert "AssertionError" not in done.stderr
        assert done.returncode == (model == "gpt-5.5"), done.stderr
