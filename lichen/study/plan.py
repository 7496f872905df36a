"""A study in one TOML file: a base recipe, arms that change fields of it, values to try and seeds."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from lichen.errors import LichenError
from lichen.train.recipe import Recipe, Section, read_recipe, read_toml

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
    seeds: list[int] = Field(default=[0], min_length=1)
    best_seeds: list[int] = Field(default=[])
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

    Raises LichenError for an unreadable file, an unknown key here or in the recipe, and wrong types.
    """
    try:
        study = Study.model_validate(read_toml(path, "study"))
    except ValidationError as error:
        raise LichenError(f"study {path}: {_sentence(error)}") from None
    names = [arm.name for arm in study.arm]
    if len(set(names)) < len(names):
        raise LichenError(f"study {path}: every arm needs a name of its own; there are {', '.join(names)}")
    if study.baseline is not None and study.baseline not in names:
        raise LichenError(
            f"study {path}: baseline is {study.baseline!r}, which is no arm; there are {', '.join(names)}"
        )
    points = [
        point(study, path, arm, values, seed)
        for arm in study.arm
        for values in _combinations(arm)
        for seed in study.seeds
    ]
    folders = [each.folder_name for each in points]
    if len(set(folders)) < len(folders):
        raise LichenError(f"study {path}: a value or a seed is listed twice")
    return study, points


def point(study: Study, path: Path, arm: Arm, values: tuple[tuple[str, Scalar], ...], seed: int) -> Point:
    settings = {**arm.set, **dict(values), "train.seed": seed}
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return Point(arm.name, values, seed, read_recipe(path.parent / study.base, overrides))


def _combinations(arm: Arm) -> list[tuple[tuple[str, Scalar], ...]]:
    choices = [[(key, value) for value in values] for key, values in arm.vary.items()]
    return list(itertools.product(*choices))


def _sentence(error: ValidationError) -> str:
    problem: Any = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = Arm.model_fields if problem["loc"][0] == "arm" else Study.model_fields
        return f"there is no key {where}; there are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    wanted = problem["msg"].removeprefix("Input should be ")
    return f"{where} is {json.dumps(problem['input'], default=str)}; expected {wanted}"
