"""A small corpus and small models: a step takes some tens of milliseconds."""

import email
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lichen.data.prepare import prepare
from lichen.train.metrics import StepMetrics
from lichen.train.recipe import Recipe, read_recipe

RECIPE = """
[model.config]
model_type = "deepseek_v3"
vocab_size = 400
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 2
q_lora_rank = 16
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 4
v_head_dim = 8
n_routed_experts = 8
num_experts_per_tok = 2
n_group = 1
topk_group = 1
n_shared_experts = 1
moe_intermediate_size = 16
first_k_dense_replace = 1
num_nextn_predict_layers = 1
norm_topk_prob = true
scoring_func = "sigmoid"
topk_method = "noaux_tc"
routed_scaling_factor = 2.0
aux_loss_alpha = 0.001
max_position_embeddings = 128
rope_theta = 10000.0

[data]
path = "{data}"

[optimizer]
recipe = "muonclip"
lr = 0.01

[schedule]
kind = "wsd"
warmup_steps = 2
decay_steps = 2

[train]
steps = 6
tokens_per_step = 256
seq_len = 64
micro_batch = 2
dtype = "fp32"

[eval]
every = 3
tokens = 512

[sample]
every = 3
prompts = ["def "]
max_tokens = 4

[checkpoint]
every = 2
"""

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    sources = [str(Path(module.__file__ or "").parent) for module in (json, email)]
    prepare(sources, folder, vocab_size=400, family="kimi_k2", validation_fraction=0.2, workers=1)
    return folder


@pytest.fixture(scope="session")
def recipe_file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(data=data))
    return path


@pytest.fixture
def make_recipe(recipe_file: Path) -> MakeRecipe:
    return lambda *overrides: read_recipe(recipe_file, overrides)


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[int], StepMetrics]:
    return lambda step: StepMetrics(
        step=step,
        tokens=step * 256,
        loss=3.0 / step,
        cross_entropy=2.5 / step,
        lr=1e-3,
        grad_norm=0.5,
        seconds=0.25,
        optimizer_seconds=0.05,
        tokens_per_second=1024.0,
        ceiling_share=0.5,
        load_worst=1.5,
        load_mean=1.25,
    )
