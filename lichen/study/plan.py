"""A study in one TOML file: a base recipe, arms that change fields of it, values to try and seeds."""

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, ValidationError

from lichen.arch.families.fields import shown
from lichen.errors import LichenError
from lichen.files.bounded import read_toml
from lichen.train.recipe import Recipe, Section, read_recipe

Scalar = str | int | float | bool


class Arm(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    set: dict[str, Scalar] = Field(default={})
    vary: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(default={})
    """Recipe keys, each with the values to try; all combinations are run."""


class Study(Section):
    """`seeds` are run at every point of every arm, `best_seeds` also at its point of lowest final loss.

    `jobs` runs are at work at once, with `threads` threads each. The other arms are held against `baseline`.
    """

    base: str
    arm: list[Arm] = Field(min_length=1)
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    best_seeds: list[NonNegativeInt] = Field(default=[])
    baseline: str | None = None
    jobs: int = Field(default=1, gt=0)
    threads: int = Field(default=1, gt=0)


@dataclass(frozen=True)
class Point:
    """One run: an arm, the values it tries here, and a seed."""

    arm: str
    values: tuple[tuple[str, Scalar], ...]
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        """The arm and its values; the runs of one label differ by their seeds."""
        return ", ".join([self.arm, *(f"{key.rpartition('.')[2]} {value}" for key, value in self.values)])

    @property
    def folder_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.label} seed {self.seed}")


def read_study(path: Path) -> tuple[Study, list[Point]]:
    """The study in `path` and its points under `seeds`.

    Raises LichenError for an unreadable file, an unknown key here or in the recipe, wrong types, and what
    would be run twice.
    """
    try:
        study = Study.model_validate(read_toml(path))
    except ValidationError as error:
        raise LichenError(f"study {path}: {_sentence(error)}") from None
    names = [arm.name for arm in study.arm]
    if len(set(names)) < len(names):
        raise LichenError(f"study {path}: every arm needs a name of its own; there are {', '.join(names)}")
    if study.baseline is not None and study.baseline not in names:
        raise LichenError(
            f"study {path}: baseline is {study.baseline!r}, which is no arm; there are {', '.join(names)}"
        )
    for key, seeds in (("seeds", study.seeds), ("best_seeds", study.best_seeds)):
        if len(set(seeds)) < len(seeds):
            raise LichenError(f"study {path}: {key} is {seeds}; list every seed once")
    points = [
        point(study, path, arm, tuple(zip(arm.vary, tried, strict=True)), seed)
        for arm in study.arm
        for tried in itertools.product(*arm.vary.values())
        for seed in study.seeds
    ]
    folders = Counter(each.folder_name for each in points)
    if twice := [folder for folder, count in folders.items() if count > 1]:
        raise LichenError(
            f"study {path}: two runs would be {twice[0]}; a value is listed twice, or names are too alike"
        )
    return study, points


def point(study: Study, path: Path, arm: Arm, values: tuple[tuple[str, Scalar], ...], seed: int) -> Point:
    settings = {**arm.set, **dict(values)}
    if "train.seed" in settings:
        raise LichenError(f"study {path}, arm {arm.name}: train.seed is what seeds of the study set")
    overrides = [f"{key}={json.dumps(value)}" for key, value in (settings | {"train.seed": seed}).items()]
    try:
        recipe = read_recipe(path.parent / study.base, overrides)
    except LichenError as error:
        raise LichenError(f"study {path}, arm {arm.name}: {error}") from None
    if recipe.train.minutes:
        raise LichenError(
            f"study {path}, arm {arm.name}: with train.minutes the runs would not be of equal length; "
            'give the arm set = { "train.minutes" = 0 }, or other train.steps'
        )
    return Point(arm.name, values, seed, recipe)


def _sentence(error: ValidationError) -> str:
    problem: Any = error.errors()[0]
    *parents, last = problem["loc"]
    of_union = last in ("str", "int", "float", "bool")  # a branch of Scalar, not a key
    where = ".".join(str(part) for part in (parents if of_union else problem["loc"]))
    if problem["type"] == "extra_forbidden":
        fields = Arm.model_fields if problem["loc"][0] == "arm" else Study.model_fields
        return f"there is no key {where}; there are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    wanted = problem["msg"].removeprefix("Input should be ")
    if of_union and isinstance(problem["input"], dict):
        wanted = 'one value; a key with dots needs quotes, such as "optimizer.lr"'
    elif of_union:
        wanted = "a string, a finite number, true or false"
    elif problem["type"] == "too_short":
        wanted = "at least one"
    elif problem["type"] == "string_pattern_mismatch":
        wanted = "letters, digits, dots, dashes and underscores"
    return f"{where} is {shown(problem['input'])}; expected {wanted}"
