import json
from pathlib import Path

import pytest

from lichen.data.prepare import prepare
from lichen.errors import LichenError
from lichen.train.checkpoint import FORMAT_VERSION
from lichen.train.recipe import read_recipe
from lichen.train.run import is_run, open_run, start_run


def test_a_run_keeps_all_that_it_needs(make_recipe, data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(data.parent)
    run = start_run(make_recipe(f"data.path={data.name}"), tmp_path / "run")
    monkeypatch.chdir("/")
    again = open_run(run.folder)
    assert again == run
    assert again.recipe.data.path == str(data)
    assert again.recipe.optimizer.weight_decay == 0.1
    assert again.recipe.optimizer.qk_clip_tau == 100.0
    assert again.spec.eos_token_id is not None
    assert json.loads((run.folder / "config.json").read_text())["model_type"] == "deepseek_v3"
    assert {"processor", "torch", "threads"} <= set(again.facts["machine"])


def test_the_same_recipe_finds_its_run_again(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    assert start_run(make_recipe(), tmp_path / "run") == run


def test_another_recipe_is_refused_and_the_differences_named(make_recipe, tmp_path: Path):
    start_run(make_recipe(), tmp_path / "run")
    with pytest.raises(LichenError, match=r"optimizer\.lr is 0\.01 there and 0\.02 here") as refusal:
        start_run(make_recipe("optimizer.lr=0.02", "train.steps=7"), tmp_path / "run")
    assert "train.steps is 6 there and 7 here" in str(refusal.value)


def test_fields_of_a_described_model_are_compared_one_by_one(make_recipe, tmp_path: Path):
    start_run(make_recipe(), tmp_path / "run")
    with pytest.raises(
        LichenError, match=r"model\.config\.rope_theta is 10000\.0 there and 500\.0 here\. Choose"
    ):
        start_run(make_recipe("model.config.rope_theta=500.0"), tmp_path / "run")


def test_a_misspelt_field_of_the_model_is_refused(make_recipe, tmp_path: Path):
    with pytest.raises(
        LichenError, match=r"model\.config\.aux_los_alpha.*mean model\.config\.aux_loss_alpha"
    ):
        start_run(make_recipe("model.config.aux_los_alpha=0.001"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_model_under_the_same_name_is_refused(make_recipe, tmp_path: Path):
    config = tmp_path / "config.json"
    values = make_recipe().model.config
    config.write_text(json.dumps(values))
    recipe = make_recipe().model_copy(
        update={"model": make_recipe().model.model_copy(update={"config": str(config)})}
    )
    start_run(recipe, tmp_path / "run")
    config.write_text(json.dumps({**values, "hidden_size": 48}))
    with pytest.raises(LichenError, match="hidden_size is 32 there and 48 here"):
        start_run(recipe, tmp_path / "run")


def test_a_folder_that_is_not_a_run_is_left_alone(make_recipe, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(LichenError, match="not a run"):
        start_run(make_recipe(), tmp_path)
    with pytest.raises(LichenError, match="not a run"):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_can_become_a_run(make_recipe, tmp_path: Path):
    start_run(make_recipe(), tmp_path)
    assert is_run(tmp_path)


def test_a_newer_format_is_refused(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    facts = run.folder / "run.json"
    facts.write_text(json.dumps({**run.facts, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(LichenError, match="newer Lichen"):
        open_run(run.folder)
    facts.write_text("{")
    with pytest.raises(LichenError, match=r"run\.json is damaged"):
        open_run(run.folder)


@pytest.mark.parametrize(
    ("name", "message"), [("data.json", "manifest.json"), ("tokenizer.json", "tokenizer")]
)
def test_a_damaged_file_of_the_run_is_named(make_recipe, tmp_path: Path, name: str, message: str):
    run = start_run(make_recipe(), tmp_path / "run")
    for damage in (lambda file: file.write_text("{}"), Path.unlink):
        damage(run.folder / name)
        with pytest.raises(LichenError, match=rf"{name}.*{message}"):
            open_run(run.folder)


def test_overrides_of_a_run_are_kept_unless_it_depends_on_the_old_value(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    changed = open_run(run.folder, ["train.micro_batch=1", "train.steps=12", "optimizer.lr=0.005"])
    assert open_run(run.folder) == changed
    assert (changed.recipe.train.micro_batch, changed.recipe.optimizer.lr) == (1, 0.005)
    for override in ("train.seq_len=32", "train.seed=1", "data.path=/elsewhere", "model.config=kimi-k2"):
        with pytest.raises(LichenError, match="cannot become"):
            open_run(run.folder, [override])
    assert open_run(run.folder) == changed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.config.vocab_size=300", "vocabulary of 400"),
        ("model.config.max_position_embeddings=32", "max_position_embeddings"),
        ("model.config.qk_rope_head_dim=3", "even number"),
        ("model.config.model_type=gpt2", "model_type"),
        ("model.config=no-such-model", "no-such-model"),
        ("data.path=/no/such/folder", "/no/such/folder"),
        ('optimizer.overrides=[{pattern="*q_bproj*"}]', r"no parameter is left for the override \*q_bproj\*"),
        ('optimizer.overrides=[{pattern="*norm*", role="matrix"}]', "cannot be a matrix"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    make_recipe, tmp_path: Path, override: str, words: str
):
    with pytest.raises(LichenError, match=words):
        start_run(make_recipe(override), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_tokenizer_are_refused(make_recipe, data: Path, tmp_path: Path):
    other = tmp_path / "other"
    prepare([str(Path(json.__file__).parent)], other, vocab_size=300, family="kimi_k2", workers=1)
    with pytest.raises(LichenError, match="another tokenizer"):
        start_run(make_recipe(f"model.weights={other}"), tmp_path / "run")


def test_shipped_recipes_build(data: Path):
    from lichen.spec.weights import total_parameters
    from lichen.train.run import model_spec

    for path in Path(__file__).parents[2].glob("recipes/*.toml"):
        assert 1e6 < total_parameters(model_spec(read_recipe(path))) < 1e8
