"""The folder of a run: what it was told to do, beside what it has done.

RUN/recipe.toml     the resolved recipe          RUN/metrics.jsonl   one line per step
RUN/config.json     the model                    RUN/tensorboard/    the same, for TensorBoard
RUN/tokenizer.json  its tokens                   RUN/checkpoints/    see `lichen.train.checkpoint`
RUN/data.json       the manifest of its data     RUN/report.html     written at the end
RUN/run.json        format, machine, versions    RUN/plots/          its figures
RUN/lock            who trains, see `lichen.train.lock`

Only training itself reads the data again: what has been trained can be used and exported without them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lichen
from lichen.arch.families import load_spec, read_config, write_config
from lichen.arch.families.fields import shown
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.data.dataset import TokenDataset
from lichen.data.manifest import TOKENIZER_FILE, Manifest, read_json, write_json
from lichen.data.tokenizer import tokenizer_hash
from lichen.errors import LichenError
from lichen.files import atomic_write, disk_errors, write_text
from lichen.machine.rates import machine
from lichen.nn.build import require_modules
from lichen.nn.roles import Role
from lichen.nn.transformer import Transformer
from lichen.optim import recipes
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.table import Override, ParameterTable, parameter_table
from lichen.train.checkpoint import FORMAT_VERSION, check_format_version
from lichen.train.lock import LOCK_FILE, locked
from lichen.train.recipe import Recipe, differences, is_fixed, read_recipe, unknown_field, write_recipe

DATA_FILE = "data.json"


@dataclass(frozen=True)
class Run:
    folder: Path
    recipe: Recipe
    spec: ModelSpec
    manifest: Manifest
    """Of the data that the run began with."""
    facts: dict[str, Any]
    """What run.json holds: format_version, lichen, started (ISO 8601), machine."""

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER_FILE

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def divergence(self) -> Path:
        """A sentence that tells where the run diverged; no such file unless it did."""
        return self.folder / "diverged.txt"

    @property
    def has_steps(self) -> bool:
        return self.checkpoints.exists() or (self.metrics.exists() and self.metrics.stat().st_size > 0)


def is_run(folder: Path) -> bool:
    return (folder / "recipe.toml").is_file() and (folder / "run.json").is_file()


def start_run(recipe: Recipe, folder: Path) -> Run:
    """The run of `recipe` in `folder`: a new one, or the one already there if it is of the same recipe.

    A run that has made no step yet is begun anew, of whatever recipe it was. Raises LichenError when the
    folder holds something else (it says what differs) or another process trains there, and when the recipe,
    the model and the data do not fit together; then no folder is made.
    """
    recipe, spec, dataset = resolve(recipe)
    if not _is_ours(folder):
        raise LichenError(f"{folder} exists and is not a run; choose another --out")
    facts = {
        "format_version": FORMAT_VERSION,
        "lichen": lichen.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(default_device()),
    }
    run = Run(folder, recipe, spec, dataset.manifest, facts)
    with locked(folder):
        if run.has_steps:
            return _same_run(open_run(folder), recipe, spec)
        # The recipe goes first and comes last: a folder is a whole run or none.
        with disk_errors(folder):
            (folder / "recipe.toml").unlink(missing_ok=True)
            run.divergence.unlink(missing_ok=True)
        write_text(folder / "run.json", _json(facts))
        write_text(folder / "config.json", _json(write_config(spec)))
        write_json(folder / DATA_FILE, dataset.manifest)
        with atomic_write(run.tokenizer) as file:
            file.write(dataset.tokenizer_path.read_bytes())
        write_recipe(recipe, folder / "recipe.toml")
    return run


def open_run(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """The run in `folder`, with `overrides` applied to its recipe and kept there.

    Raises LichenError for a folder that is not a run, is of a newer Lichen, or is asked to change what
    cannot change once a run has begun, or while another process trains there.
    """
    if not is_run(folder):
        raise LichenError(f"{folder} is not a run; it has no recipe.toml and run.json")
    facts = _read_json(folder / "run.json")
    version = facts.get("format_version")
    if not isinstance(version, int):
        raise LichenError(f"{folder / 'run.json'} is damaged: its format_version is {version!r}")
    check_format_version(version, folder)
    spec = read_config(_read_json(folder / "config.json"))
    manifest = _read_manifest(folder)
    recipe = _changed_recipe(folder, overrides) if overrides else read_recipe(folder / "recipe.toml")
    return Run(folder, recipe, spec, manifest, facts)


def resolve(recipe: Recipe) -> tuple[Recipe, ModelSpec, TokenDataset]:
    """Make a recipe independent of the current folder and of Lichen's defaults; its model and its data.

    The special tokens of the model are those of the data. Raises LichenError when the model and the data do
    not fit together, and for an override of the optimizer that does not fit the model's parameters.
    """
    config, weights, rule = recipe.model.config, recipe.model.weights, optimizer_recipe(recipe)
    spec = model_spec(recipe)
    planned_table(spec, recipe)
    dataset = TokenDataset.open(Path(recipe.data.path))
    if isinstance(config, str) and config not in named_models():
        config = str(Path(config).resolve())
    _check_fit(recipe, spec, dataset)
    special = dataset.special_ids
    spec = replace(spec, bos_token_id=special.bos, eos_token_id=special.eos, pad_token_id=special.pad)
    model = {"config": config, "weights": weights and str(Path(weights).resolve())}
    optimizer = {key: getattr(rule, key) for key in ("lr", "adamw_lr", "weight_decay")}
    if recipe.optimizer.qk_clip_tau is None:
        optimizer["qk_clip_tau"] = rule.qk_clip_tau
    resolved = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update={"path": str(dataset.folder.resolve())}),
            "optimizer": recipe.optimizer.model_copy(update=optimizer),
        }
    )
    return resolved, spec, dataset


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model that a recipe names or describes.

    Published configs carry fields that say nothing about the model; in a description of one's own a field
    that nobody reads can only be misspelt. Raises LichenError for it, and for a model that cannot be trained.
    """
    config = recipe.model.config
    spec = load_spec(config) if isinstance(config, str) else read_config(config)
    require_modules(spec)
    if not isinstance(config, str) and spec.metadata:
        raise LichenError(unknown_field(min(spec.metadata), write_config(replace(spec, metadata={}))))
    return spec


def optimizer_recipe(recipe: Recipe) -> OptimizerRecipe:
    """The published update rule with the recipe's own numbers."""
    chosen = recipe.optimizer
    rule: OptimizerRecipe = getattr(recipes, chosen.recipe)
    own = chosen.model_dump(exclude_none=True, exclude={"recipe", "overrides"})
    if chosen.qk_clip_tau == 0:
        own["qk_clip_tau"] = None
    return replace(rule, **own)


def optimizer_table(model: nn.Module, recipe: Recipe) -> ParameterTable:
    """The parameter table of `model` with the recipe's own rows."""
    rows = recipe.optimizer.overrides
    return parameter_table(
        model,
        [Override(row.pattern, row.role and Role(row.role), row.lr_scale, row.weight_decay) for row in rows],
    )


def planned_table(spec: ModelSpec, recipe: Recipe) -> ParameterTable:
    """The same table before there is a model. Raises LichenError for overrides that do not fit it."""
    with torch.device("meta"):
        return optimizer_table(Transformer(spec), recipe)


def default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


# ------------------------------------------------------------------------------------------------ details


def _check_fit(recipe: Recipe, spec: ModelSpec, dataset: TokenDataset) -> None:
    """Refuse a model that cannot read the data, or that learnt another tokenizer."""
    vocab_size, seq_len = dataset.manifest.vocab_size, recipe.train.seq_len
    if vocab_size > spec.vocab_size:
        raise LichenError(
            f"the data in {dataset.folder} has a vocabulary of {vocab_size:,} tokens and the model of "
            f"{spec.vocab_size:,}; set the model's vocab_size to {vocab_size} or prepare the data with less"
        )
    if seq_len > spec.max_position_embeddings:
        raise LichenError(
            f"train.seq_len is {seq_len}, longer than the model's max_position_embeddings of "
            f"{spec.max_position_embeddings}"
        )
    if recipe.model.weights is not None:
        tokenizer = Path(recipe.model.weights) / "tokenizer.json"
        if tokenizer.exists() and tokenizer_hash(tokenizer) != dataset.manifest.tokenizer_hash:
            raise LichenError(
                f"the weights in {recipe.model.weights} belong to another tokenizer than the data in "
                f"{dataset.folder}; prepare the data with --tokenizer {tokenizer}"
            )


def _is_ours(folder: Path) -> bool:
    """Whether `folder` is a run, the beginning of one that something cut short, or nothing yet."""
    if is_run(folder) or not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}  # as half-written files have
    return names <= {LOCK_FILE} or names >= {LOCK_FILE, "run.json"}


def _changed_recipe(folder: Path, overrides: Sequence[str]) -> Recipe:
    path = folder / "recipe.toml"
    with locked(folder):
        changed = read_recipe(path, overrides)
        for key, (new, old) in differences(changed, read_recipe(path)).items():
            if is_fixed(key):
                raise LichenError(
                    f"{key} is {shown(old)} in the run {folder} and cannot become {shown(new)}: the run's "
                    "weights and place in the data depend on it. Start a new run with another --out"
                )
        write_recipe(changed, path)
    return changed


def _same_run(run: Run, recipe: Recipe, spec: ModelSpec) -> Run:
    told = [
        f"{key} is {shown(old)} there and {shown(new)} here"
        for key, (new, old) in differences(recipe, run.recipe).items()
    ]
    if not told and spec != run.spec:
        ours, theirs = write_config(spec), write_config(run.spec)
        told = [
            f"the model's {key} is {shown(theirs.get(key))} there and {shown(ours.get(key))} here"
            for key in {**theirs, **ours}
            if theirs.get(key) != ours.get(key)
        ]
    if told:
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        raise LichenError(
            f"{run.folder} is a run of another recipe: {'; '.join(told[:3])}{more}. Choose another --out, or "
            f"continue that run with: lichen train {run.folder}"
        )
    return run


def _read_manifest(folder: Path) -> Manifest:
    """The manifest of the run's data. Raises LichenError if the run's tokenizer is not the one it names."""
    path = folder / DATA_FILE
    try:
        manifest = read_json(path, Manifest)
    except (OSError, LichenError) as error:
        raise LichenError(
            f"{path} is missing or damaged; copy the manifest.json of the run's data there"
        ) from error
    if tokenizer_hash(folder) != manifest.tokenizer_hash:
        raise LichenError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that the run began with; copy that of its data "
            "there"
        )
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise LichenError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise LichenError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise LichenError(f"{path} is damaged: it holds no JSON object")
    return values


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
