"""The folder of a run: what it was told to do, beside what it has done.

RUN/recipe.toml     the resolved recipe          RUN/metrics.jsonl   one line per step
RUN/config.json     the model                    RUN/tensorboard/    the same, for TensorBoard
RUN/tokenizer.json  its tokens                   RUN/checkpoints/    see `lichen.weights.checkpoints`
RUN/data.json       the manifest of its data     RUN/report.html     written at the end
RUN/run.json        format, machine, versions,   RUN/plots/          its figures
                    what was fitted to it,       RUN/set-aside-1/    what it had of later steps when it
                    hashes of what is fixed                          went back, see `set_aside`
RUN/lock            who trains, see `lichen.files.lock`

Only training itself reads the data again: what has been trained can be used and exported without them.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lichen
from lichen.arch.families import read_config, write_config
from lichen.arch.families.fields import shown
from lichen.arch.spec import ModelSpec
from lichen.data.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest
from lichen.errors import LichenError
from lichen.files.atomic import atomic_write, disk_errors
from lichen.files.bounded import as_json, read_json
from lichen.files.lock import LOCK_FILE, locked
from lichen.files.replace import first_free
from lichen.files.sealed import find_damage, own_hash, vouched, write_with_own_hash
from lichen.machine.precision import default_device, matmul_dtype
from lichen.machine.rates import machine
from lichen.ops.native import has_kernels
from lichen.serve.open import DATA_FILE, DIVERGENCE_FILE, has_diverged, is_run, run_manifest
from lichen.train.metrics import read_metrics
from lichen.train.recipe import (
    Recipe,
    by_keys,
    cut_down,
    differences,
    is_fixed,
    read_recipe,
    write_recipe,
)
from lichen.train.resolve import resolve
from lichen.weights.checkpoints import FORMAT_VERSION, list_checkpoints, read_versioned, step_of


@dataclass(frozen=True)
class Run:
    folder: Path
    recipe: Recipe
    """That of recipe.toml, and what it leaves to the machine as that was decided, once for the whole run."""
    spec: ModelSpec
    manifest: Manifest
    """Of the data that the run began with."""
    facts: dict[str, Any]
    """What run.json holds: format_version, lichen, started (ISO 8601), machine; `fitted`: the dtype that
    train.dtype = "auto" is here, whether a CPU has our kernels, whose rounding is their own, and, once it is
    decided, the number of steps within train.minutes; `files` and `recipe`: size and SHA-256 of what the run
    began with, and its recipe as it was last written. Earlier versions kept neither."""

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
        return self.folder / DIVERGENCE_FILE

    @property
    def undecided(self) -> bool:
        """Whether it is still to be found how many steps fit into train.minutes."""
        return self.recipe.train.minutes > 0 and "steps" not in self.facts["fitted"]

    def decided(self, steps: int) -> Run:
        """This run with so many steps within its train.minutes, which its folder keeps from now on."""
        facts = self.facts | {"fitted": self.facts["fitted"] | {"steps": steps}}
        write_with_own_hash(self.folder / "run.json", facts)
        return replace(self, facts=facts, recipe=_fitted(self.recipe, facts))

    @property
    def has_steps(self) -> bool:
        return self.checkpoints.exists() or (self.metrics.exists() and self.metrics.stat().st_size > 0)


def start_run(recipe: Recipe, folder: Path) -> Run:
    """The run of `recipe` in `folder`: a new one, or the one already there if it is of the same recipe.

    A run that has made no step yet is begun anew, of whatever recipe it was. Raises LichenError when the
    folder holds something else (it says what differs) or another process trains there, and when the recipe,
    the model and the data do not fit together; then no folder is made.
    """
    plan = resolve(recipe)
    recipe, spec, dataset = plan.recipe, plan.spec, plan.dataset
    if not _is_ours(folder):
        raise LichenError(f"{folder} exists and is not a run; choose another --out")
    facts = {
        "format_version": FORMAT_VERSION,
        "lichen": lichen.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(default_device()),
        "fitted": {
            "dtype": "bf16" if matmul_dtype(default_device()) == torch.bfloat16 else "fp32",
            "kernels": has_kernels(default_device()),
        },
        "recipe": by_keys(recipe),
    }
    contents = {
        "config.json": as_json(write_config(spec)).encode(),
        DATA_FILE: (dataset.folder / MANIFEST_FILE).read_bytes(),
        TOKENIZER_FILE: dataset.tokenizer_path.read_bytes(),
    }
    facts["files"] = {name: vouched(content) for name, content in contents.items()}
    run = Run(folder, _fitted(recipe, facts), spec, dataset.manifest, facts)
    with locked(folder):
        if run.has_steps:
            return _same_run(open_run(folder), recipe, spec)
        # The recipe goes first and comes last: a folder is a whole run or none.
        with disk_errors(folder):
            (folder / "recipe.toml").unlink(missing_ok=True)
            if has_diverged(folder):
                run.divergence.unlink()
        write_with_own_hash(folder / "run.json", facts)
        for name, content in contents.items():
            with atomic_write(folder / name) as file:
                file.write(content)
        write_recipe(recipe, folder / "recipe.toml")
    return run


def open_run(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """The run in `folder`, with `overrides` applied to its recipe and kept there.

    Raises LichenError for a folder that is not a run, is of a newer Lichen, or is no longer what it began
    with, when it is asked to change what cannot change once a run has begun, and while another process trains
    there.
    """
    if not is_run(folder):
        raise LichenError(f"{folder} is not a run; it has no recipe.toml and run.json")
    facts = _read_facts(folder)
    began_with = ("config.json", DATA_FILE, TOKENIZER_FILE)
    if "files" in facts and (reason := find_damage(folder, began_with, "run.json")):
        raise LichenError(
            f"{folder} is not as the run began: {reason}. Bring the file back from a copy, or begin a new "
            f"run: lichen train {folder / 'recipe.toml'} --out ANOTHER"
        )
    spec, manifest = read_config(read_json(folder / "config.json")), run_manifest(folder)
    recipe = read_recipe(folder / "recipe.toml")
    _compare_recipe(recipe, facts, folder / "recipe.toml")
    if overrides:
        recipe, facts = _changed_recipe(folder, overrides)
    return Run(folder, _fitted(recipe, facts), spec, manifest, facts)


def set_aside(run: Run, step: int) -> Path | None:
    """Move what `run` has of later steps than `step` into a folder of its own below the run; which, or None
    where there is nothing. The metrics are copied, for the run keeps what it has of earlier steps."""
    later = [path for path in list_checkpoints(run.checkpoints) if step_of(path) > step]
    lines = read_metrics(run.metrics) if run.metrics.exists() else []
    if not later and not any(line.step > step for line in lines):
        return None
    aside = first_free(run.folder, "set-aside-")
    with disk_errors(aside):
        aside.mkdir()
        for path in (run.metrics, run.divergence):
            if path.exists():
                shutil.copyfile(path, aside / path.name)
        for path in reversed(later):  # so that what a kill leaves still ends with the newest
            os.rename(path, aside / path.name)
    return aside


# ------------------------------------------------------------------------------------------------ details


def _is_ours(folder: Path) -> bool:
    """Whether `folder` is a run, the beginning of one that something cut short, or nothing yet."""
    if is_run(folder) or not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}  # as half-written files have
    return names <= {LOCK_FILE} or names >= {LOCK_FILE, "run.json"}


def _read_facts(folder: Path) -> dict[str, Any]:
    facts = {"fitted": {}} | read_versioned(folder / "run.json")  # which earlier versions did not keep
    digest = facts.pop("sha256", None)
    is_earlier = digest is None and not facts.keys() & {
        "files",
        "recipe",
    }  # which came together with the hash
    if digest != own_hash(facts) and not is_earlier:
        raise LichenError(
            f"{folder / 'run.json'} is damaged: its hash is missing or that of something else; bring it "
            "back from a copy"
        )
    return facts


def _compare_recipe(recipe: Recipe, facts: dict[str, Any], file: Path) -> None:
    """Tell what has been edited in the recipe of a run since Lichen wrote it, and refuse what cannot change.
    The data may have moved: whether they are still the same is seen when they are opened."""
    now = by_keys(recipe)
    for key, wrote in facts.get("recipe", {}).items():
        if (value := now.get(key)) == wrote:
            continue
        told = f"{file}: {key} is {shown(value)} and was {shown(wrote)}"
        if is_fixed(key) and key != "data.path":
            raise LichenError(
                f"{told} when the run began; write that again: the run's weights and place in the data "
                "depend on it"
            )
        warnings.warn(f"{told} when it was written; it counts as it is", stacklevel=3)


def _fitted(recipe: Recipe, facts: dict[str, Any]) -> Recipe:
    """The recipe with what it leaves to the machine as it was decided when the run began."""
    train, fitted = recipe.train, facts["fitted"]
    if train.dtype == "auto" and "dtype" in fitted:
        recipe = recipe.model_copy(update={"train": train.model_copy(update={"dtype": fitted["dtype"]})})
    if train.minutes and "steps" in fitted:
        recipe = cut_down(recipe, fitted["steps"])
    return recipe


def _changed_recipe(folder: Path, overrides: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    path = folder / "recipe.toml"
    with locked(folder):
        changed = read_recipe(path, overrides)
        for key, (new, old) in differences(changed, read_recipe(path)).items():
            if is_fixed(key):
                raise LichenError(
                    f"{key} is {shown(old)} in the run {folder} and cannot become {shown(new)}: the run's "
                    "weights and place in the data depend on it. Start a new run with another --out"
                )
            if key == "train.minutes" and new:
                raise LichenError(
                    f"train.minutes counts from the beginning of a run; give {folder} a number of steps "
                    "instead, such as train.steps=800"
                )
        write_recipe(changed, path)
        facts = _read_facts(folder)
        if "recipe" in facts:
            facts["recipe"] = by_keys(changed)
            write_with_own_hash(folder / "run.json", facts)
    return changed, facts


def _same_run(run: Run, recipe: Recipe, spec: ModelSpec) -> Run:
    told = [
        f"{key} is {shown(old)} there and {shown(new)} here"
        for key, (new, old) in differences(recipe, read_recipe(run.folder / "recipe.toml")).items()
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
