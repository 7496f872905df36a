"""What the person who asks will not go beyond, and which models that leaves.

Each constraint is a cut with a name; a model left out carries the first cut that it did not pass, and why.
What is unknown does not pass: a promise needs somebody who made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from math import ceil, inf
from typing import Literal

from pydantic import Field

from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.atlas.catalogue.model import Model
from lichen.atlas.market import words
from lichen.atlas.market.workloads import MOST_REQUESTS, WorkloadCost, cheapest, over_the_day
from lichen.errors import LichenError
from lichen.facts.record import Record, known_value
from lichen.machine.devices import parse
from lichen.machine.fits import Fit, alternatives, check_quant, fits

DAYS_A_MONTH = 30
FEW = 4  # what an error lists before it only counts
DEFAULT_CONTEXT = 32768  # tokens that must fit beside the weights where nobody says how many

Requirement = Literal["open_weights", "price"]


class Constraints(Record):
    """What a choice must respect, and the use it is for. None: no limit.

    Those that are set explicitly win over what a scenario assumes (`model_fields_set`).
    """

    workload: Literal["blend", "output-heavy", "agentic"] = "blend"
    requests_per_day: float = Field(default=1000, gt=0, le=MOST_REQUESTS)
    budget: float | None = Field(default=None, gt=0)  # USD a month
    license: tuple[str, ...] = ()  # any of these; none: all
    context: int | None = Field(default=None, gt=0)  # tokens
    hardware: str | None = None  # as `lichen fits` takes it
    quant: str | None = None  # None: as released

    def over(self, assumed: Constraints) -> Constraints:
        """These, and for what they leave open the `assumed` ones."""
        return assumed.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


@dataclass(frozen=True)
class Excluded:
    model: str
    constraint: str
    why: str


@dataclass(frozen=True)
class Cut:
    """`name`: as the person who asks would recognise it. `why`: the reason to leave a model out, or None.

    `enough`: what it would have to be for a model that it leaves out, in words, and how far that is, to be
    compared with other models; None where it cannot be changed, or nobody knows.
    """

    name: str
    why: Callable[[Model], str | None]
    enough: Callable[[Model], tuple[float, str] | None] = lambda model: None


def cuts(
    wanted: Constraints,
    require: Sequence[Requirement],
    licenses: Mapping[str, Sequence[str]],
    models: Iterable[Model],
    at: datetime,
) -> Iterator[Cut]:
    """All that applies to a choice among `models`. `licenses`: words that stand for several licenses.

    Raises LichenError for hardware that cannot be read, and for a license that nobody has.
    """
    if "open_weights" in require:
        yield Cut("open weights", _closed)
    if wanted.license:
        allowed = _allowed(wanted.license, licenses, models)
        name = f"license {' or '.join(wanted.license)}"
        yield Cut(name, lambda model: _license(model, allowed), _license_of)
    if (tokens := wanted.context) is not None:
        yield Cut(f"context of {tokens:,} tokens", lambda model: _short(model, tokens), _longest)
    stored = check_quant(wanted.quant) or "as released"
    if wanted.hardware is None and wanted.quant is not None:
        raise LichenError(f"weights as {stored} are stored on something: name the hardware too")
    if wanted.hardware is not None:
        parse(wanted.hardware)  # a device that nobody has is refused before any model is asked
        name = f"hardware {wanted.hardware}, weights {stored}"
        yield Cut(name, lambda model: _too_big(model, wanted), lambda model: _big_enough(model, wanted))
    if "price" in require:
        yield Cut("a price", lambda model: _dear(model, inf, wanted, at))
    if (budget := wanted.budget) is not None:
        name = f"budget of {words.usd(budget)} a month"
        yield Cut(
            name, lambda model: _dear(model, budget, wanted, at), lambda model: _month(model, wanted, at)
        )


def cut(models: Iterable[Model], all_cuts: Sequence[Cut]) -> tuple[list[Model], tuple[Excluded, ...]]:
    """Who passes everything, and for the others the first cut that they did not pass."""
    left, excluded = [], []
    for model in models:
        first = next(((each.name, why) for each in all_cuts if (why := each.why(model))), None)
        if first is None:
            left.append(model)
        else:
            excluded.append(Excluded(model.name, *first))
    return left, tuple(excluded)


def emptied(models: Sequence[Model], all_cuts: Sequence[Cut]) -> str:
    """The sentence for an empty list: which cut took the last, and what each alone would have to be."""
    before = list(models)
    for last in all_cuts:
        left, taken = cut(before, [last])
        if not left:
            break
        before = left
    reasons = _some([f"{each.model}: {each.why}" for each in taken], "; ")
    changes = "; ".join(filter(None, (_change(models, all_cuts, each) for each in all_cuts)))
    rescue = f"one change would be enough: {changes}" if changes else "no change of one alone is enough"
    return f"no model is left: {last.name!r} took the last {len(taken)} ({reasons}); {rescue}"


def _change(models: Sequence[Model], all_cuts: Sequence[Cut], changed: Cut) -> str:
    """The least that would have to change in one cut for somebody to be left, and who that is; or nothing."""
    others, _ = cut(models, [other for other in all_cuts if other is not changed])
    enough = {model.name: found for model in others if (found := changed.enough(model))}
    if not enough:
        return ""
    nearest = min(far for far, _ in enough.values())
    by_change: dict[str, list[str]] = {}
    for name, (far, change) in enough.items():
        if far == nearest:
            by_change.setdefault(change, []).append(name)
    return _some([f"{change} for {_some(names, ', ')}" for change, names in by_change.items()], " or ")


def _some(items: Sequence[str], between: str) -> str:
    """The first few of `items`, and how many more there are."""
    more = [f"{len(items) - FEW} more"] if len(items) > FEW else []
    return between.join([*items[:FEW], *more])


def _closed(model: Model) -> str | None:
    if (open_weights := known_value(model.open_weights)) is None:
        return "nobody says that its weights are published"
    return None if open_weights else "its weights are not published"


def _allowed(
    names: Sequence[str], licenses: Mapping[str, Sequence[str]], models: Iterable[Model]
) -> set[str]:
    """The licenses that `names` mean, in lower case."""
    held = {fact.value for model in models for fact in model.license if fact.value}
    held.update(*licenses.values())
    meant: dict[str, Sequence[str]] = {name.lower(): [name] for name in held}
    meant |= {word.lower(): group for word, group in licenses.items()}
    for name in names:
        if name.lower() not in meant:
            there_are = ", ".join(sorted({*held, *licenses}, key=str.lower))
            raise LichenError(f"no model has the license {name!r}; there are {there_are}")
    return {each.lower() for name in names for each in meant[name.lower()]}


def _license_of(model: Model) -> tuple[float, str] | None:
    license = known_value(model.license)
    return None if license is None else (0, f"license {license}")


def _license(model: Model, allowed: set[str]) -> str | None:
    if (license := known_value(model.license)) is None:
        return "license unknown"
    return None if license.lower() in allowed else license


def _short(model: Model, tokens: int) -> str | None:
    if not (most := _context(model)):
        return "context unknown"
    return None if most >= tokens else f"{most:,} tokens"


def _longest(model: Model) -> tuple[float, str] | None:
    most = _context(model)
    return (-most, f"a context of {most:,} tokens") if most else None


def _context(model: Model) -> int:
    return max(known_value(model.context) or 0, known_value(model.api_context) or 0)


def fit_of(model: Model, wanted: Constraints) -> Fit | None:
    """How the model fits on the hardware that is wanted; None without hardware or without a public config.

    Raises LichenError for weights that cannot be stored as wanted.
    """
    if wanted.hardware is None or model.spec_name is None:
        return None
    return _fit(model.spec_name, wanted.hardware, wanted.quant, wanted.context)


@cache
def _fit(spec_name: str, hardware: str, quant: str | None, context: int | None) -> Fit:
    spec = load_spec(spec_name)
    return fits(spec, parse(hardware), quant, _tokens(spec, context))


def _tokens(spec: ModelSpec, context: int | None) -> int:
    return context or min(DEFAULT_CONTEXT, spec.max_position_embeddings)


def _too_big(model: Model, wanted: Constraints) -> str | None:
    try:
        fit = fit_of(model, wanted)
    except LichenError as error:
        return str(error)
    if fit is None:
        return "its config is not public"
    return None if fit.fits else words.needs(fit)


def _big_enough(model: Model, wanted: Constraints) -> tuple[float, str] | None:
    """A coarser storage, or more devices: whatever leaves the context as it is."""
    if wanted.hardware is None or model.spec_name is None:
        return None
    spec, machine = load_spec(model.spec_name), parse(wanted.hardware)
    context = _tokens(spec, wanted.context)
    try:
        ways = alternatives(spec, machine, wanted.quant, context)
    except LichenError:  # weights that cannot be stored as wanted
        return None
    way = next(way for way in ways if way.context == context)
    if way.count == machine.count:
        return way.count, f"{wanted.hardware} with weights as {way.quant}"
    return way.count, f"{machine.device_name}:{way.count}"


def _month(model: Model, wanted: Constraints, at: datetime) -> tuple[float, str] | None:
    """Whole cents, rounded up: a budget of that much is enough."""
    found = _cheapest(model, wanted, at)
    if found is None:
        return None
    month = ceil(found.per_day * DAYS_A_MONTH * 100) / 100
    return month, f"{words.usd(month)} a month"


def _dear(model: Model, budget: float, wanted: Constraints, at: datetime) -> str | None:
    found = _cheapest(model, wanted, at)
    if found is None:
        return "nobody lists a price"
    month = found.per_day * DAYS_A_MONTH
    return None if month <= budget else f"{words.usd(month)} at {found.provider}"


def _cheapest(model: Model, wanted: Constraints, at: datetime) -> WorkloadCost | None:
    return cheapest(model, over_the_day(wanted.workload, wanted.requests_per_day), at)
