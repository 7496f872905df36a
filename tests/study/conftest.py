"""A corpus and a model so small that a run takes seconds."""

from pathlib import Path

import pytest

from lichen.data.prepare import prepare

BASE = """
[model.config]
model_type = "llama"
vocab_size = 400
hidden_size = 16
num_hidden_layers = 1
intermediate_size = 32
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 8
max_position_embeddings = 64
rms_norm_eps = 1e-6
rope_theta = 10000.0
tie_word_embeddings = false

[data]
path = "{data}"

[optimizer]
recipe = "moonlight"

[train]
steps = 20
tokens_per_step = 64
seq_len = 32
micro_batch = 2
"""

STUDY = """
base = "base.toml"
baseline = "adamw"
seeds = [0]
best_seeds = [1]
jobs = 2

[[arm]]
name = "adamw"
set = { "optimizer.recipe" = "adamw" }
vary = { "optimizer.lr" = [0.001, 0.01] }

[[arm]]
name = "moonlight"
vary = { "optimizer.lr" = [0.01] }
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    out = tmp_path_factory.mktemp("prepared") / "data"
    for i in range(60):
        words = " ".join(str((i * k) % 97) for k in range(40))
        (root / f"{i}.txt").write_text(f"document {i} says: {words}\n", encoding="utf-8")
    prepare([str(root)], out, vocab_size=320, validation_fraction=0.2, workers=1)
    return out


@pytest.fixture
def study_file(corpus: Path, tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE.format(data=corpus), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path
