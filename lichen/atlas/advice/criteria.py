"""What a ranking can ask about a model, and the answers: one number each, with the facts behind it.

A criterion is a row of a rules file; `answers` gives each candidate its value. A value of None means that
nobody has said: it is shown as unknown and never as zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatch
from math import ceil, floor
from typing import Annotated, Literal

from pydantic import Field

from lichen.atlas.advice.constraints import Constraints, fit_of
from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.atlas.catalogue.scores import Benchmark, Margin, comparable, led
from lichen.atlas.market.prices import price_of, providers
from lichen.atlas.market.words import needs, obligation
from lichen.atlas.market.workloads import cheapest, over_the_day
from lichen.facts.record import Record, known, known_value


class _Criterion(Record):
    """One question of a scenario, and in `why` the reason to ask it, for the reader of the rules."""

    label: str
    why: str
    within: Margin = Margin()


class Benchmarks(_Criterion):
    """Pairings won minus pairings lost; one is won by leading in more of the columns that both have.

    `even`: how small a lead is none; in points of the score.
    """

    measure: Literal["benchmarks"]
    even: Margin
    tests: tuple[Benchmark, ...] = Field(min_length=1)


class Hosts(_Criterion):
    """Providers that list the model with a price, but for those whose name fits a pattern in `without`."""

    measure: Literal["hosts"]
    without: tuple[str, ...] = ()


class Plain(_Criterion):
    """What needs no settings.

    price: USD per million tokens of the workload that is asked about, at its cheapest listed provider, over
    a day. obligations: what the license asks. releases: models of the family that came out in the last year.
    speed: tokens per second of decoding one sequence on the hardware that is asked about, at best.
    """

    measure: Literal["price", "obligations", "releases", "speed"]


Criterion = Annotated[Benchmarks | Hosts | Plain, Field(discriminator="measure")]


@dataclass(frozen=True)
class Answer:
    """What is known about one model on one criterion; `facts`: where it comes from, a line each."""

    value: float | None
    text: str
    facts: tuple[str, ...] = ()


UNKNOWN = Answer(None, "unknown")


def higher_is_better(criterion: Criterion) -> bool:
    return criterion.measure not in ("price", "obligations")


def worded(criterion: Criterion, limit: float) -> str:
    """The bound `limit` on a value of the criterion, in words."""
    if criterion.measure == "price":
        return f"at most ${limit:.3g} per million tokens"
    if criterion.measure == "benchmarks":
        return f"at least {limit:+g} (won minus lost)"
    return f"at least {ceil(limit)}" if higher_is_better(criterion) else f"at most {floor(limit)}"


def answers(
    criterion: Criterion, candidates: Sequence[Model], catalogue: Catalogue, wanted: Constraints, at: datetime
) -> dict[str, Answer]:
    """The answer of each of `candidates`, by name."""
    if criterion.measure == "benchmarks":
        return _benchmarks(criterion, candidates)
    if criterion.measure == "hosts":
        return {model.name: _hosts(model, criterion.without, at) for model in candidates}
    answer: dict[str, Callable[[Model], Answer]] = {
        "price": lambda model: _price(model, wanted.workload, at),
        "releases": lambda model: _releases(model, catalogue),
        "speed": lambda model: _speed(model, wanted),
        "obligations": _obligations,
    }
    return {model.name: answer[criterion.measure](model) for model in candidates}


def _benchmarks(criterion: Benchmarks, candidates: Sequence[Model]) -> dict[str, Answer]:
    table = comparable(candidates, criterion.tests)
    found = {}
    for model in candidates:
        own = {column: results for column, results in table.items() if model.name in results}
        pairings = [
            led(model.name, other.name, own, criterion.even) for other in candidates if other is not model
        ]
        met = [(ahead, behind) for ahead, behind, even in pairings if ahead + behind + even]
        if not met:
            found[model.name] = Answer(None, "unknown: no score beside another candidate's")
            continue
        won = sum(ahead > behind for ahead, behind in met)
        lost = sum(behind > ahead for ahead, behind in met)
        text = f"{won} won, {lost} lost, {len(met) - won - lost} even"
        if len(met) < len(pairings):
            text += f"; nothing in common with {len(pairings) - len(met)}"
        facts = []
        for column, results in own.items():
            best = max(results, key=lambda name: results[name].high)
            beside = "" if best == model.name else f"; best here: {best} {results[best]}"
            reporters = ", ".join(sorted({score.reported_by for score in results[model.name].scores}))
            facts.append(f"{column}: {results[model.name]}, reported by {reporters}{beside}")
        found[model.name] = Answer(float(won - lost), text, tuple(facts))
    return found


def _price(model: Model, workload: str, at: datetime) -> Answer:
    pattern = over_the_day(workload)
    found = cheapest(model, pattern, at)
    if found is None:
        return UNKNOWN
    value = found.per_request / (pattern.input_tokens + pattern.output_tokens) * 1e6
    rates = [
        f"{price.provider}: {price.input:g} in, {price.output:g} out, "
        f"{'no cache discount' if price.cache_read is None else f'{price.cache_read:g} cached'}"
        f"{f', {price.window}' if price.window else ''} ({price.told_by})"
        for price in found.prices
    ]
    return Answer(value, f"${value:.3g} per million tokens at {found.provider}", tuple(rates))


def _obligations(model: Model) -> Answer:
    fact = known(model.obligations)
    if fact is None or fact.value is None:
        return UNKNOWN
    asked = map(obligation, fact.value)
    return _number_of("obligation", len(fact.value), *asked, f"{fact.source} ({fact.date})")


def _hosts(model: Model, without: Sequence[str], at: datetime) -> Answer:
    hosts = [
        name
        for name in providers(model)
        if price_of(model, name, at) and not any(fnmatch(name, pattern) for pattern in without)
    ]
    return _number_of("host", len(hosts), ", ".join(hosts)) if hosts else UNKNOWN


def _speed(model: Model, wanted: Constraints) -> Answer:
    fit = fit_of(model, wanted)
    if fit is None or fit.decode is None:
        return UNKNOWN
    needed = f"{needs(fit)} of {wanted.hardware}"
    return Answer(fit.decode, f"at best {fit.decode:,.0f} tokens a second", (needed,))


def _releases(model: Model, catalogue: Catalogue) -> Answer:
    since = catalogue.as_of - timedelta(days=365)
    recent = sorted(
        (day, other.name)
        for other in catalogue.models.values()
        if other.family == model.family and (day := known_value(other.release)) and day > since
    )
    return _number_of("release", len(recent), *(f"{name} on {day}" for day, name in recent))


def _number_of(noun: str, count: int, *facts: str) -> Answer:
    return Answer(float(count), f"{count} {noun}{'' if count == 1 else 's'}", facts)
