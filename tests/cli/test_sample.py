"""`lichen sample` on a folder in the Hugging Face layout, as a stranger types it."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lichen.arch.families import write_config
from lichen.arch.parts.dense import Dense
from lichen.arch.parts.gqa import GQA
from lichen.arch.parts.rope import Rope
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.cli.output import visible
from lichen.errors import said_if_slow
from lichen.nn.transformer import Transformer
from lichen.weights.save import save_weights

CONTEXT = 32
SPEC = ModelSpec(
    family="llama",
    vocab_size=264,
    hidden_size=32,
    layers=(LayerSpec(GQA(2, 1, 16, Rope(10_000, interleaved=False)), Dense(48)),),
    max_position_embeddings=CONTEXT,
    initializer_range=0.3,
    dtype="float32",
    eos_token_id=256,
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = Transformer(SPEC)
    model.initialize(seed=4)
    save_weights(model, folder, torch.float32)
    (folder / "config.json").write_text(json.dumps(write_config(SPEC)))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_greedy_text_is_that_of_transformers(folder, run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = byte_tokenizer().encode("ab").ids
    full = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    done = run("sample", folder, "ab", "--temperature", 0, "--max-tokens", 20)
    assert (done.status, done.err) == (0, "")
    assert done.out == byte_tokenizer().decode(full) + "\n"


def test_options_reach_the_sampler(folder, run):
    one, two, other = (
        run("sample", folder, "x", "--seed", seed, "--max-tokens", 12).out for seed in (7, 7, 8)
    )
    assert one == two != other
    narrow = run("sample", folder, "x", "--top-k", 1, "--max-tokens", 12).out
    assert narrow == run("sample", folder, "x", "--top-p", 1e-6, "--max-tokens", 12).out
    assert narrow == run("sample", folder, "x", "--temperature", 0, "--max-tokens", 12).out
    stop = narrow.strip()[-2:]
    assert run("sample", folder, "x", "--top-k", 1, "--stop", stop).out == narrow.partition(stop)[0] + "\n"


def test_a_dash_reads_the_prompt_from_standard_input(folder, run):
    options = ("--temperature", 0, "--max-tokens", 8)
    assert (
        run("sample", folder, "-", *options, stdin="né".encode()).out
        == run("sample", folder, "né", *options).out
    )


def test_a_terminal_is_given_no_command_and_a_file_the_text_as_it_is(folder, run, monkeypatch):
    """The model has a token per byte, and no idea: what it draws holds control characters."""
    arguments = ("sample", folder, "\x1b[2J\x07", "--max-tokens", "24", "--seed", "3", "--temperature", "4")
    text = run(*arguments).out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = run(*arguments).out
    assert set(text) & set(map(chr, range(32))) - {"\n", "\t"}
    assert "\\u001b[2J\\u0007" in shown
    assert shown.endswith(visible(text))


def test_a_prompt_longer_than_the_context(folder, refusal):
    assert f"the prompt has 40 tokens and the model's context {CONTEXT}" in refusal(
        "sample", folder, "x" * 40
    )


def test_an_empty_prompt(folder, refusal):
    assert "the prompt is empty" in refusal("sample", folder, "")


def test_a_prompt_that_is_no_text(folder, refusal):
    assert "not UTF-8" in refusal("sample", folder, "-", stdin=b"\xff\xfe")
    assert "not UTF-8" in refusal("sample", folder, b"\xff".decode(errors="surrogateescape"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", -1),
        ("--temperature", 1e-320),
        ("--top-p", 2),
        ("--top-k", -1),
        ("--max-tokens", 0),
        ("--stop", ""),
    ],
)
def test_settings_out_of_range(folder, option, value, refusal):
    assert option[2:].replace("-", "_") in refusal("sample", folder, "x", option, value)


def test_a_closed_standard_input(folder):
    done = subprocess.run(
        [sys.executable, "-m", "lichen", "sample", folder, "-"],
        preexec_fn=lambda: os.close(0),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: standard input is closed, so there is no prompt to read; give it as an argument\n"
    )


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_an_end_that_is_no_token(copy, where, refusal):
    file = copy / where
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, "eos_token_id": 1.5}))
    assert "eos_token_id is 1.5" in refusal("sample", copy, "x")


def test_long_work_says_so_and_short_work_does_not(capsys):
    for seconds in (0.01, 60):
        with said_if_slow("counting to ten", seconds):
            time.sleep(0.5)
    assert capsys.readouterr() == ("", "counting to ten ...\n")


def test_no_such_folder(tmp_path, refusal):
    assert str(tmp_path / "nowhere") in refusal("sample", tmp_path / "nowhere", "x")


def test_a_folder_without_a_model(tmp_path, refusal):
    assert "no model" in refusal("sample", tmp_path, "x")


def test_weights_cut_short(copy, refusal):
    weights = copy / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    assert f"{weights} is truncated or damaged" in refusal("sample", copy, "x")


def test_no_tokenizer(copy, refusal):
    (copy / "tokenizer.json").unlink()
    assert f"no tokenizer at {copy / 'tokenizer.json'}" in refusal("sample", copy, "x")


def test_a_tokenizer_larger_than_the_model(copy, refusal):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(10)])
    tokenizer.save(str(copy / "tokenizer.json"))
    text = refusal("sample", copy, "x")
    assert "267 tokens" in text
    assert "vocab_size of 264" in text


def test_a_config_that_cannot_be_expressed(copy, refusal):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    text = refusal("sample", copy, "x")
    assert "mamba" in text
    assert "supported" in text


def test_a_damaged_generation_config(copy, refusal):
    (copy / "generation_config.json").write_text("{")
    assert "generation_config.json: not JSON" in refusal("sample", copy, "x")
    (copy / "generation_config.json").write_text('{"eos_token_id": "end"}')
    assert "eos_token_id is 'end'" in refusal("sample", copy, "x")
