"""What a person sees who gives `lichen train` something that cannot work."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.cli.main import main
from tests.conftest import without_slow_work


def lichen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lichen", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, without_slow_work(printed.err)


CONFIG = """
[model.config]
model_type = "llama"
vocab_size = 512
hidden_size = 32
num_hidden_layers = 1
intermediate_size = 64
num_attention_heads = 2
max_position_embeddings = 64
rms_norm_eps = 1e-5
rope_theta = 10000.0
tie_word_embeddings = false
"""
REST = """
[data]
path = "nowhere"
[optimizer]
recipe = "muonclip"
[train]
steps = 2
tokens_per_step = 64
seq_len = 32
micro_batch = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG + REST)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a recipe"),
        (["absent.toml"], "there is no file absent.toml"),
        (["tiny.toml", "train.stesp=1"], "did you mean train.steps?"),
        (["tiny.toml", "train.steps=soon"], 'train.steps is "soon"; expected a valid integer'),
        (["tiny.toml", "model.config.hidden_size=33"], "hidden_size (33)"),
        (["tiny.toml"], "nowhere holds no prepared data"),
        (["."], "is not a run"),
        ([".", "--out", "x"], "leave --out away"),
        (["tiny.toml", "--from", "3"], "--from goes back in a run; tiny.toml is not the folder of one"),
    ],
)
def test_one_sentence_and_a_status(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
):
    monkeypatch.chdir(recipe.parent)
    status, out, error = lichen(monkeypatch, capsys, "train", *arguments)
    assert status == 1
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert [path.name for path in recipe.parent.iterdir()] == ["tiny.toml"]


def test_show_optimizer_tells_what_updates_each_parameter_without_any_data(recipe: Path, monkeypatch, capsys):
    status, out, _ = lichen(
        monkeypatch, capsys, "train", str(recipe), "optimizer.lr=0.003", "--show-optimizer"
    )
    assert status == 0
    rows = {
        re.split(r"  +", line)[0]: re.split(r"  +", line)[1:]
        for line in out.splitlines()
        if line.startswith(("model.", "lm_head"))
    }
    q_proj = rows["model.layers.0.self_attn.q_proj.weight"]
    assert q_proj == ["(32, 32)", "muon", "0.003", "0.1", "1 x (32, 32)"]
    assert rows["model.embed_tokens.weight"][1] == "adamw"
    assert rows["lm_head.weight"][1] == "adamw"
    assert rows["model.norm.weight"][1] == "adamw"
    assert len(rows) == 12


def test_keys_lists_the_whole_recipe(monkeypatch, capsys):
    status, out, _ = lichen(monkeypatch, capsys, "train", "--keys")
    assert status == 0
    assert "train.tokens_per_step" in out
    assert "checkpoint.keep" in out


def test_help_does_not_load_torch():
    code = "import sys; from lichen.cli import train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ctrl_c_while_modules_load_is_not_swallowed():
    script = (
        "import signal\nfrom lichen.cli.train import _ends_at_once\n"
        "with _ends_at_once():\n    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException:\n        pass\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGINT
