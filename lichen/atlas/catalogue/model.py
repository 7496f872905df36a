"""The catalogue: one YAML file per model, each fact with the source that states it and the day it did.

A file names its sources once, and every fact points at one of them:

    sources:
      card: {url: https://huggingface.co/moonshotai/Kimi-K2.6, date: 2026-04-20}
    license:
      - {value: Modified MIT, source: card}

What a model costs to hold and to run is not written down here: it is computed from the model's config
(`spec_name`, lichen.arch).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError
from lichen.facts.record import Fact, Past, Record, known_value, named, today
from lichen.facts.yaml_file import Location, field_error, parse, read_yaml, replaced
from lichen.files.atomic import write_text
from lichen.files.scan import regular_files

SHIPPED = Path(__file__).parent / "models"
NAME = r"^[a-z0-9][a-z0-9.-]*$"
Count = Annotated[int, Field(gt=0)]


class Source(Record):
    """Where facts come from, and the day it was published (or, for a page that changes, read)."""

    url: str = Field(min_length=1)
    date: Past


class Obligation(Record):
    """What a license asks of its user: `must`, for those over a threshold (None: for everyone)."""

    must: str
    monthly_users_above: int | None = None
    monthly_revenue_usd_above: int | None = None
    yearly_revenue_usd_above: int | None = None


class Score(Record):
    """One result of one benchmark. Without its version, effort and harness a score cannot be compared.

    `build`: which weights, where later ones came out under the model's name, such as "0813" (month and day).
    """

    benchmark: str
    version: str | None = None
    variant: str | None = None
    value: float = Field(allow_inf_nan=False)
    unit: str
    build: str | None = None
    effort: str | None = None
    harness: str | None = None
    reported_by: str
    source: str
    date: date

    @property
    def test(self) -> str:
        """What was run. Scores of different tests, or in different units, are not to be compared."""
        return " ".join(part for part in (self.benchmark, self.version, self.variant) if part)


class PriceRef(Record):
    """Where genai-prices keeps the model's prices, and what its table cannot say: that peak hours are peak on
    weekdays only, and the first day on which the provider does not sell the model any more."""

    provider: str
    model_id: str
    until: date | None = None
    peak_days: Literal["all", "weekdays"] = "all"


class EnteredPrice(Record):
    """A price genai-prices does not have, in USD per million tokens. `hours`: UTC hours [start, end) of the
    day in which it holds; None: all day. Holds from `since` until the day before `until`."""

    provider: str = Field(min_length=1)
    currency: str = "USD"
    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cache_read: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    since: date
    until: date | None = None
    hours: (
        tuple[tuple[Annotated[int, Field(ge=0, le=23)], Annotated[int, Field(ge=0, le=24)]], ...] | None
    ) = None
    peak_days: Literal["all", "weekdays"] = "all"
    source: str
    date: date

    @field_validator("currency")
    @classmethod
    def _is_usd(cls, currency: str) -> str:
        if currency != "USD":
            raise ValueError(f"{currency} is not USD, and exchange rates are not kept here: convert it")
        return currency

    @model_validator(mode="after")
    def _holds_at_some_time(self) -> EnteredPrice:
        if self.until is not None and self.until <= self.since:
            raise ValueError(f"it holds from {self.since} until {self.until}, which is never")
        if any(start == end for start, end in self.hours or ()):
            raise ValueError("a span of hours that ends where it starts is empty")
        return self


class Model(Record):
    """One model. A field of facts is empty where nothing is known."""

    name: str = Field(pattern=NAME)
    title: str
    lab: str
    country: str
    family: str
    spec_name: str | None = None  # lichen.arch's name of its config; None where no config is public

    release: tuple[Fact[Past], ...] = ()
    license: tuple[Fact[str], ...] = ()
    license_url: tuple[Fact[str], ...] = ()
    obligations: tuple[Fact[tuple[Obligation, ...]], ...] = ()
    open_weights: tuple[Fact[bool], ...] = ()
    architecture: tuple[Fact[str], ...] = ()
    total_parameters: tuple[Fact[Count], ...] = ()  # as published
    active_parameters: tuple[Fact[Count], ...] = ()  # as published, per token
    context: tuple[Fact[Count], ...] = ()  # tokens, as the weights allow
    api_context: tuple[Fact[Count], ...] = ()  # tokens, as the lab's own API serves
    max_output: tuple[Fact[Count], ...] = ()  # tokens, of the lab's own API
    modalities: tuple[Fact[tuple[str, ...]], ...] = ()
    tokens_trained: tuple[Fact[Count], ...] = ()
    training_gpu_hours: tuple[Fact[Count], ...] = ()
    optimizer: tuple[Fact[str], ...] = ()
    successor: tuple[Fact[str], ...] = ()
    scores: tuple[Score, ...] = ()
    price_refs: tuple[PriceRef, ...] = ()  # the one used by default first
    prices: tuple[EnteredPrice, ...] = ()

    @property
    def spec(self) -> ModelSpec | None:
        """The architecture; None where no config is public."""
        return None if self.spec_name is None else load_spec(self.spec_name)

    def as_of(self, day: date) -> Model:
        """The model as it was known on `day`: what is dated later is dropped."""
        dated = {
            name: tuple(item for item in value if item.date <= day)
            for name, value in self
            if isinstance(value, tuple) and name != "price_refs"
        }
        return self.model_copy(update=dated)


# The fields of a Model that hold facts, in the order in which they are shown.
FACT_FIELDS = tuple(name for name, field in Model.model_fields.items() if "Fact[" in str(field.annotation))


@dataclass(frozen=True)
class Catalogue:
    """The models that were out on the day `as_of`, by name; `later`: when the others came out; `broken`: what
    is wrong with the user's own files that were left out, by the names of the files; `complete`: all models,
    whatever the day, as their files describe them."""

    models: dict[str, Model]
    as_of: date
    later: dict[str, date]
    broken: dict[str, str]
    complete: dict[str, Model]

    def on(self, day: date) -> Catalogue:
        """What the same files say of another day."""
        later = {
            name: release
            for name, model in self.complete.items()
            if (release := known_value(model.release)) and release > day
        }
        models = {name: model.as_of(day) for name, model in self.complete.items() if name not in later}
        return replace(self, models=models, as_of=day, later=later)

    def __contains__(self, name: str) -> bool:
        """Whether `name` is a model's, even one that `get` refuses."""
        return name in self.models or name in self.later or name in self.broken

    def get(self, name: str) -> Model:
        """The model called `name`. Raises LichenError with the nearest names, or with what is wrong."""
        if name in self.broken and name not in self.models:
            raise LichenError(self.broken[name])
        return named(name, self.models, self.later, self.as_of, "model", "catalogue", "lichen atlas list")


def load(extra: Sequence[Path] = (), as_of: date | None = None) -> Catalogue:
    """The shipped models, the files `extra` and the user's own (`user_folder`), as known on `as_of` (today).

    Models released later than `as_of` are left out; so are files of the user's own that are not as they
    should be, with a warning, so that one of them stops nobody who asks about other models. Raises
    LichenError, with file and line, for such a file among `extra`, and for a name that two files claim.
    """
    complete: dict[str, Model] = {}
    broken: dict[str, str] = {}
    files: dict[str, Path] = {}

    def take(path: Path, model: Model) -> None:
        if model.name in files:
            raise field_error(path, ["name"], f"{model.name!r} is already described by {files[model.name]}")
        files[model.name] = path
        complete[model.name] = model

    def leave_out(path: Path, problem: str) -> None:
        broken[path.stem] = problem
        warnings.warn(f"left out: {problem}", stacklevel=1)

    for path, model in _shipped():
        take(path, model)
    for path in regular_files(user_folder(), "*.yaml", lambda path, why: leave_out(path, f"{path} is {why}")):
        try:
            take(path, read_model(path))
        except LichenError as error:
            leave_out(path, str(error))
    for path in extra:
        take(path, read_model(path))
    day = as_of or today()
    return Catalogue({}, day, {}, broken, dict(sorted(complete.items()))).on(day)


@cache
def _shipped() -> list[tuple[Path, Model]]:
    """The files that come with Lichen, which are read once however many days are asked about."""
    return [(path, read_model(path)) for path in sorted(SHIPPED.glob("*.yaml"))]


def read_model(path: Path) -> Model:
    """The model in the file `path`, checked. Raises LichenError naming file, line and field."""
    content = read_yaml(path)
    sources = _sources(content.pop("sources", None), path)
    facts: list[tuple[Location, dict[str, Any]]] = [
        ([field, index], fact)
        for field, items in content.items()
        for index, fact in enumerate(items if isinstance(items, list) else ())
        if isinstance(fact, dict) and "source" in fact
    ]
    for place, fact in facts:
        name = fact["source"]
        if not isinstance(name, str) or name not in sources:
            names = ", ".join(sources)
            raise field_error(path, [*place, "source"], f"{name!r} is not among the file's sources ({names})")
        if "date" in fact:
            raise field_error(path, [*place, "date"], "the date stands with the source, not with the fact")
        fact.update(source=sources[name].url, date=sources[name].date)
    model = parse(Model, content, path)
    if not model.release:
        raise field_error(path, ["release"], "missing: a model needs its release date and the source of it")
    return model if path.parent == SHIPPED else _with_config(model, path)


def _with_config(model: Model, path: Path) -> Model:
    """A user's model: `spec_name` may be a config.json, or a folder with one, relative to the file."""
    if model.spec_name is None:
        return model
    beside = path.parent / model.spec_name
    try:
        name = str(beside.resolve()) if beside.exists() else model.spec_name
        load_spec(name)
    except (LichenError, OSError) as error:  # OSError: no file can have such a name
        raise field_error(path, ["spec_name"], str(error)) from None
    return model.model_copy(update={"spec_name": name})


def add(path: Path) -> tuple[Model, Path]:
    """Check the model file `path` and copy it into `user_folder()`. Returns the model and the copy's path.

    Raises LichenError as `read_model`, for a name that the catalogue already has, and where there can be no
    such folder; a model of the user's own is replaced.
    """
    model = read_model(path)
    folder = user_folder()
    target = folder / f"{model.name}.yaml"
    if model.name in load().models and not target.exists():
        raise field_error(path, ["name"], f"{model.name!r} is already in the catalogue; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LichenError(
            f"{folder} is for the folder of your own models, which cannot be made ({error.strerror}): move "
            "away what is there"
        ) from None
    if model.spec_name is None:
        write_text(target, path.read_text(encoding="utf-8"))
    else:  # a relative path would not survive the copy
        write_text(target, replaced(path, "spec_name", model.spec_name))
    return model, target


def _sources(content: Any, path: Path) -> dict[str, Source]:
    if not isinstance(content, dict) or not content:
        raise field_error(
            path, ["sources"], "missing: name at least one source, as `card: {url: ..., date: YYYY-MM-DD}`"
        )
    sources = {}
    for name, fields in content.items():
        if not isinstance(fields, dict):
            raise field_error(path, ["sources", name], "expected {url: ..., date: YYYY-MM-DD}")
        sources[name] = parse(_Sources, {"sources": {name: fields}}, path).sources[name]
    return sources


class _Sources(Record):
    sources: dict[str, Source]


def user_folder() -> Path:
    """Where the user's own model files live; it need not exist."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(config) / "lichen" / "atlas"
