import tomllib
from pathlib import Path

import pytest
from torch import nn

from lichen.errors import LichenError
from lichen.train.recipe import Recipe, describe_keys, differences, is_fixed, read_recipe, write_recipe
from lichen.train.resolve import optimizer_recipe, optimizer_table, resolve

GOOD = """
[model.config]
model_type = "llama"
vocab_size = 512

[data]
path = "corpus"

[optimizer]
recipe = "muonclip"
lr = 1e-3

[schedule]
kind = "wsd"
warmup_steps = 2
decay_steps = 3

[train]
steps = 10
tokens_per_step = 256
seq_len = 64
micro_batch = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD)
    return path


def test_reads_a_file_and_fills_in_the_defaults(file: Path):
    recipe = read_recipe(file)
    assert recipe.model.config == {"model_type": "llama", "vocab_size": 512}
    assert recipe.optimizer.lr == 1e-3
    assert recipe.sequences_per_step == 4
    assert recipe.checkpoint.keep == 2


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=2e-4", "optimizer", "lr", 2e-4),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("optimizer.recipe=muonclip", "optimizer", "recipe", "muonclip"),
        ('optimizer.recipe="muonclip"', "optimizer", "recipe", "muonclip"),
        ("train.steps = 1_000", "train", "steps", 1000),
        ('sample.prompts=["def f(", "a=b"]', "sample", "prompts", ["def f(", "a=b"]),
        ("data.path=a=b/c", "data", "path", "a=b/c"),
        ("model.config=kimi-k2", "model", "config", "kimi-k2"),
        ("model.config.vocab_size=64", "model", "config", {"model_type": "llama", "vocab_size": 64}),
    ],
)
def test_overrides_follow_toml(file: Path, override: str, section: str, key: str, value: object):
    assert getattr(getattr(read_recipe(file, [override]), section), key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stesp=3", ["no key train.stesp", "did you mean train.steps?"]),
        ("train.lr=3", ["no key train.lr", "did you mean optimizer.lr?"]),
        ("trian.steps=3", ["no key trian", "did you mean [train]?"]),
        ("data.zzz=3", ["no key data.zzz", "[data] has path"]),
        ("train.steps=many", ['train.steps is "many"', "valid integer"]),
        ("train.steps=2.5", ["train.steps is 2.5", "valid integer"]),
        ("train.steps=true", ["train.steps is true", "valid integer"]),
        ("train.steps=0", ["train.steps is 0", "greater than 0"]),
        ("train.seed=9223372036854775808", ["train.seed is 9223372036854775808", "less than"]),
        ("optimizer.lr=nan", ["optimizer.lr", "finite number"]),
        ("optimizer.recipe=sgd", ['optimizer.recipe is "sgd"', "'adamw'", "'muonclip'"]),
        ("model.config=3", ["model.config is 3", "a string or a table"]),
        ("data=3", ["data is 3", "[data]"]),
        ("sample.prompts=[1]", ["sample.prompts", "string"]),
        ("train.steps.x=1", ["train.steps.x=1", "not a table"]),
        ("nonsense", ['"nonsense"', "section.key=value"]),
        ("optimizer.lr=1e300", ["optimizer.lr is 1e+300", "at most 1e+38"]),
        ("optimizer.weight_decay=2e38", ["optimizer.weight_decay is 2e+38", "at most 1e+38"]),
        ("sample.temperature=1e-320", ["sample.temperature is 1e-320", "0 (greedy) or at least 1e-06"]),
        ("train.steps=" + "9" * 4000, ["train.steps is", "...; expected"]),
        ("train.steps=" + "[" * 2000 + "]" * 2000, ["train.steps is", "...; expected"]),
        ("model.config." + "a." * 2000 + "a=1", ["nested deeper than 100 levels"]),
        ("train.tokens_per_step=250", ["250", "seq_len (64)", "nearest is 256"]),
        ("schedule.warmup_steps=8", ["warmup_steps (8)", "decay_steps (3)", "10"]),
        ("schedule.kind=cosine", ["decay_steps", '"wsd"', '"cosine"']),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(file: Path, override: str, words: list[str]):
    with pytest.raises(LichenError) as refusal:
        read_recipe(file, [override])
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 500


def test_qk_clip_is_switched_off_and_on_for_any_recipe(file: Path):
    off = read_recipe(file, ["optimizer.recipe=muonclip", "optimizer.qk_clip_tau=0"])
    on = read_recipe(file, ["optimizer.recipe=adamw", "optimizer.qk_clip_tau=30"])
    assert optimizer_recipe(off).qk_clip_tau is None
    assert optimizer_recipe(on).qk_clip_tau == 30


def test_rows_of_overrides_reach_the_table(file: Path):
    file.write_text(
        GOOD + '\n[[optimizer.overrides]]\npattern = "*0*"\nrole = "vector"\n'
        '[[optimizer.overrides]]\npattern = "*"\nlr_scale = 0.5\n'
    )
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 8, bias=False), nn.Linear(8, 2))
    first, second, *_ = optimizer_table(model, read_recipe(file))
    assert (first.role.kind, first.lr_scale) == ("vector", 1.0)
    assert (second.role.kind, second.lr_scale) == ("matrix", 0.5)


def test_a_missing_key_is_named_with_its_meaning(file: Path):
    file.write_text(GOOD.replace("seq_len = 64\n", ""))
    with pytest.raises(LichenError, match=r"train\.seq_len is missing \(tokens of one sequence\)"):
        read_recipe(file)


def test_unreadable_files_are_refused(tmp_path: Path):
    with pytest.raises(LichenError, match="there is no file"):
        read_recipe(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[train\n")
    with pytest.raises(LichenError, match="not valid TOML"):
        read_recipe(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LichenError, match="not UTF-8 text"):
        read_recipe(tmp_path / "binary.toml")
    with pytest.raises(LichenError, match="is a folder"):
        read_recipe(tmp_path)


def test_a_written_recipe_reads_back_the_same(file: Path, tmp_path: Path):
    recipe = read_recipe(file, ['sample.prompts=["def f(\\n", "naïve \\"quotes\\" \\u2028"]'])
    write_recipe(recipe, tmp_path / "again.toml")
    assert read_recipe(tmp_path / "again.toml") == recipe


def test_differences_name_the_keys(file: Path):
    changed = read_recipe(file, ["train.micro_batch=4", "optimizer.lr=1e-4"])
    found = differences(changed, read_recipe(file))
    assert found == {"train.micro_batch": (4, 2), "optimizer.lr": (1e-4, 1e-3)}
    assert is_fixed("model.config")
    assert is_fixed("train.seq_len")
    assert not is_fixed("train.steps")


def test_every_key_is_described():
    rows = describe_keys()
    assert {key.partition(".")[0] for key, *_ in rows} == set(Recipe.model_fields)
    assert all(meaning and kind for _, kind, _, meaning in rows)


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("recipes/*.toml")), ids=lambda p: p.name
)
def test_shipped_recipes_are_valid(path: Path):
    recipe = read_recipe(path)
    assert set(tomllib.loads(path.read_text())) <= set(recipe.model_dump())


def test_a_clip_that_the_models_attention_does_not_know_is_refused_before_anything_runs(make_recipe):
    """Norms on queries and keys bound the logits; scaling the projection would change nothing."""
    fields = (
        'model_type="qwen3", vocab_size=400, hidden_size=32, num_hidden_layers=1, intermediate_size=64, '
        "num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128"
    )
    recipe = make_recipe(f"model.config={{{fields}}}")
    with pytest.raises(LichenError, match=r"normalises queries and keys.*optimizer\.qk_clip_tau = 0"):
        resolve(recipe)
    assert (
        resolve(make_recipe(f"model.config={{{fields}}}", "optimizer.qk_clip_tau=0")).spec.family == "qwen3"
    )
