import errno
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lichen.data.prepare import prepare
from lichen.errors import LichenError
from lichen.files.bounded import write_json
from lichen.files.lock import locked
from lichen.files.sealed import own_hash
from lichen.train.metrics import MetricsLog, StepMetrics
from lichen.train.recipe import Recipe, read_recipe
from lichen.train.run import Run, is_run, open_run, start_run
from lichen.weights.checkpoints import FORMAT_VERSION


@pytest.fixture
def begun(metrics_of: Callable[[int], StepMetrics], tmp_path: Path) -> Callable[[Recipe], Run]:
    """The run of a recipe, with its first step made."""

    def begin(recipe: Recipe) -> Run:
        run = start_run(recipe, tmp_path / "run")
        with MetricsLog(run.folder, 0) as log:
            log.append(metrics_of(1))
        return run

    return begin


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


def test_the_same_recipe_finds_its_run_again(make_recipe, begun):
    run = begun(make_recipe())
    assert start_run(make_recipe(), run.folder) == run


def test_another_recipe_is_refused_and_the_differences_named(make_recipe, begun):
    run = begun(make_recipe())
    with pytest.raises(LichenError, match=r"optimizer\.lr is 0\.01 there and 0\.02 here") as refusal:
        start_run(make_recipe("optimizer.lr=0.02", "train.steps=7"), run.folder)
    assert "train.steps is 6 there and 7 here" in str(refusal.value)
    assert open_run(run.folder) == run


def test_fields_of_a_described_model_are_compared_one_by_one(make_recipe, begun):
    run = begun(make_recipe())
    with pytest.raises(
        LichenError, match=r"model\.config\.rope_theta is 10000\.0 there and 500\.0 here\. Choose"
    ):
        start_run(make_recipe("model.config.rope_theta=500.0"), run.folder)


def test_a_run_without_a_step_is_begun_anew(make_recipe, tmp_path: Path):
    failed = start_run(make_recipe(), tmp_path / "run")
    with MetricsLog(failed.folder, 0):
        pass  # its first step did not fit into memory
    failed.divergence.write_text("step 1: the loss is nan")
    (failed.folder / "notes.txt").write_text("too wide")
    mended = start_run(make_recipe("model.config.hidden_size=16", "train.steps=7"), failed.folder)
    assert (mended.spec.hidden_size, mended.recipe.train.steps) == (16, 7)
    assert open_run(failed.folder) == mended
    assert not mended.divergence.exists()
    assert (failed.folder / "notes.txt").read_text() == "too wide"


@pytest.mark.parametrize("name", ["run.json", "config.json", "data.json", "tokenizer.json", "recipe.toml"])
def test_a_start_that_was_cut_short_is_no_run_and_can_be_made_again(
    make_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    def cut_short(source: str, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    start_run(make_recipe(), tmp_path / "run")
    rename = os.replace
    for folder in (tmp_path / "run", tmp_path / "new"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut_short)
            with pytest.raises(LichenError, match="no space left on the disk"):
                start_run(make_recipe("train.steps=7"), folder)
        assert not is_run(folder)
        assert start_run(make_recipe("train.steps=8"), folder) == open_run(folder)


def test_a_start_that_was_killed_in_its_first_file_can_be_made_again(make_recipe, tmp_path: Path):
    with locked(tmp_path / "run"):
        (tmp_path / "run" / ".run.json.x8dk3f").write_text("{")
    assert start_run(make_recipe(), tmp_path / "run") == open_run(tmp_path / "run")


def test_a_run_that_lost_its_recipe_is_not_begun_anew(make_recipe, begun):
    run = begun(make_recipe())
    (run.folder / "recipe.toml").unlink()
    with pytest.raises(LichenError, match="not a run"):
        start_run(make_recipe(), run.folder)


def test_what_another_process_holds_is_not_changed(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    with locked(run.folder):
        for change in (
            lambda: start_run(make_recipe("train.steps=7"), run.folder),
            lambda: open_run(run.folder, ["train.steps=7"]),
        ):
            with pytest.raises(LichenError, match="at work"):
                change()
        assert open_run(run.folder) == run


def test_a_misspelt_field_of_the_model_is_refused(make_recipe, tmp_path: Path):
    with pytest.raises(
        LichenError, match=r"model\.config\.aux_los_alpha.*mean model\.config\.aux_loss_alpha"
    ):
        start_run(make_recipe("model.config.aux_los_alpha=0.001"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_model_under_the_same_name_is_refused(make_recipe, begun, tmp_path: Path):
    config = tmp_path / "config.json"
    values = make_recipe().model.config
    config.write_text(json.dumps(values))
    recipe = make_recipe().model_copy(
        update={"model": make_recipe().model.model_copy(update={"config": str(config)})}
    )
    run = begun(recipe)
    config.write_text(json.dumps({**values, "hidden_size": 48}))
    with pytest.raises(LichenError, match="hidden_size is 32 there and 48 here"):
        start_run(recipe, run.folder)


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
    with pytest.raises(LichenError, match=r"run\.json: not JSON"):
        open_run(run.folder)


def _flip_a_digit(file: Path) -> None:
    content = file.read_text()
    place = re.search(r"\d", content).start()
    file.write_text(f"{content[:place]}{int(content[place]) ^ 1}{content[place + 1 :]}")


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_text("{}"), Path.unlink, _flip_a_digit], ids=["empty", "gone", "digit"]
)
@pytest.mark.parametrize("name", ["config.json", "data.json", "tokenizer.json", "run.json"])
def test_a_damaged_file_of_the_run_is_named(make_recipe, tmp_path: Path, name: str, damage):
    run = start_run(make_recipe(), tmp_path / "run")
    damage(run.folder / name)
    with pytest.raises(LichenError, match=name):
        open_run(run.folder)


@pytest.mark.parametrize("vouches", [True, False])
def test_a_run_that_vouches_for_nothing_is_not_believed(make_recipe, tmp_path: Path, vouches: bool):
    run = start_run(make_recipe(), tmp_path / "run")
    facts = run.facts | {"files": {}}
    write_json(run.folder / "run.json", facts | ({"sha256": own_hash(facts)} if vouches else {}))
    _flip_a_digit(run.folder / "config.json")
    told = "run.json does not list config.json" if vouches else "run.json is damaged: its hash is missing"
    with pytest.raises(LichenError, match=told):
        open_run(run.folder)


def test_a_hand_edit_of_the_recipe_is_told_or_refused(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    recipe = run.folder / "recipe.toml"
    wrote = recipe.read_text()
    recipe.write_text(wrote.replace("lr = 0.01\n", "lr = 0.02\n"))
    with pytest.warns(UserWarning, match=r"recipe\.toml: optimizer\.lr is 0\.02 and was 0\.01"):
        assert open_run(run.folder).recipe.optimizer.lr == 0.02
    for old, new, key in (
        ("seq_len = 64", "seq_len = 32", "train.seq_len"),
        ("rope_theta = 10000.0", "rope_theta = 10001.0", "model.config.rope_theta"),
        ('recipe = "muonclip"', 'recipe = "muon"', "optimizer.recipe"),
    ):
        assert old in wrote
        recipe.write_text(wrote.replace(old, new))
        for overrides in ([], ["optimizer.lr=0.03"]):
            with pytest.raises(LichenError, match=rf"{key} is .* and was .* when the run began"):
                open_run(run.folder, overrides)
    recipe.write_text(wrote)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_run(run.folder, ["optimizer.lr=0.03"]) == open_run(run.folder)


def test_runs_of_earlier_versions_open(make_recipe, tmp_path: Path):
    run = start_run(make_recipe(), tmp_path / "run")
    facts = {key: value for key, value in run.facts.items() if key not in ("files", "recipe")}
    (run.folder / "run.json").write_text(json.dumps(facts))
    assert open_run(run.folder, ["optimizer.lr=0.03"]).recipe.optimizer.lr == 0.03
    assert open_run(run.folder).facts == facts


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
    from lichen.arch.weights import total_parameters
    from lichen.train.resolve import model_spec

    for path in Path(__file__).parents[2].glob("recipes/*.toml"):
        assert 1e6 < total_parameters(model_spec(read_recipe(path))) < 1e8
