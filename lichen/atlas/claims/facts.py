"""Claims about what the catalogue, its scores, the prices and the rules of advice say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Literal

from pydantic import Field, model_validator

from lichen.atlas.advice.advise import advise, shipped_rules
from lichen.atlas.advice.constraints import Constraints
from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.atlas.catalogue.scores import Benchmark, Margin, comparable
from lichen.atlas.claims.verdict import Answer, Checkable, Quantity
from lichen.atlas.market.prices import default_provider, prices_on, providers
from lichen.atlas.market.workloads import STANDARD, ratio
from lichen.errors import LichenError, did_you_mean
from lichen.facts.record import known
from lichen.facts.yaml_file import Location


class PriceRatio(Quantity):
    """How many times as much `reference` costs, for the standard workloads, at every hour of the day.

    `providers` of the model: the default one where none is named.
    """

    kind: Literal["price_ratio"]
    model: str
    reference: str = "gpt-5.5"
    providers: tuple[str, ...] = ()

    def problems(self, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
        yield from super().problems(catalogue)
        sellers = providers(catalogue.get(self.model))
        for index, name in enumerate(self.providers):
            if name not in sellers:
                hint = did_you_mean(name, sellers, f"known are {', '.join(sellers) or 'none'}")
                yield ["providers", index], f"no provider {name!r} of {self.model}; {hint}"

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        """One answer per provider, workload and level of price: at every moment at which a price changes."""
        model, reference, day = catalogue.get(self.model), catalogue.get(self.reference), at.date()
        told = []
        for provider in self.providers or (default_provider(model, day),):
            moments = _price_moments(model, provider, day) | _price_moments(reference, None, day)
            for name, workload in STANDARD.items():
                levels: dict[float, list[str]] = {}
                for moment in sorted(moments):
                    share = ratio(model, reference, workload, datetime.combine(day, moment, UTC), provider)
                    if share:
                        levels.setdefault(round(1 / share, 9), []).append(f"{moment:%H:%M}")
                for times, since in levels.items():
                    when = f", from {' and '.join(since)} UTC" if len(levels) > 1 else ""
                    yield Answer(self.holds(times), f"{name} at {provider}{when}: 1/{times:.1f}")
                    told.append(times)
        inside = self.expected is not None and told and min(told) < self.expected < max(told)
        if inside and not any(map(self.holds, told)):
            yield Answer(True, f"1/{self.expected:g} lies between: some mix of these uses has it")


def _price_moments(model: Model, provider: str | None, day: date) -> set[time]:
    """The times of `day` at which the price can change; `provider` None is the default one."""
    provider = provider or default_provider(model, day)
    prices = prices_on(model, provider, day) if provider else []
    return {time(0), *(edge for price in prices for span in price.hours or () for edge in span)}


class Released(Checkable):
    """That `model` came out between two days."""

    kind: Literal["released"]
    model: str
    since: date
    until: date

    @model_validator(mode="after")
    def _has_days(self) -> Released:
        if self.since > self.until:
            raise ValueError(f"no day is between {self.since} and {self.until}, which is earlier")
        return self

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        fact = known(catalogue.get(self.model).release)
        if fact and fact.value:
            yield Answer(self.since <= fact.value <= self.until, f"released on {fact.value} ({fact.source})")


class TrainingCost(Quantity):
    """Published GPU hours of `model` over those of `reference`."""

    kind: Literal["training_cost"]
    model: str
    reference: str

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        hours, texts = [], []
        for name in (self.model, self.reference):
            fact = known(catalogue.get(name).training_gpu_hours)
            if fact and fact.value:
                hours.append(fact.value)
                texts.append(f"{name}: {fact.value:,} GPU hours ({fact.source}, {fact.date})")
            else:
                texts.append(f"{name}: GPU hours not published")
        yield Answer(self.holds(hours[0] / hours[1]) if len(hours) == 2 else None, "; ".join(texts))


class Licensed(Checkable):
    """That all of `models` are under one of `licenses`."""

    kind: Literal["license"]
    models: tuple[str, ...] = Field(min_length=1)
    licenses: tuple[str, ...] = Field(min_length=1)

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        for name in self.models:
            if (fact := known(catalogue.get(name).license)) and fact.value is not None:
                text = f"{name}: {fact.value} ({fact.source}, {fact.date})"
                yield Answer(fact.value in self.licenses, text)


class ScoreOf(Quantity):
    """A score of `model`, as everyone reported it. Several `tests` where the claim does not say which it
    means: then one that has the value supports it, and none leaves it unchecked."""

    kind: Literal["score"]
    model: str
    tests: tuple[Benchmark, ...] = Field(min_length=1)

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        otherwise = False if len(self.tests) == 1 else None
        for column, results in comparable([catalogue.get(self.model)], self.tests).items():
            for score in results[self.model].scores:
                text = f"{column}: {score.value:g} by {score.reported_by} ({score.source}, {score.date})"
                yield Answer(self.holds(score.value) or otherwise, text)


class ScoreGap(Quantity):
    """The distance between the best and the worst of `models`, in every test that all of them report."""

    kind: Literal["score_gap"]
    models: tuple[str, ...] = Field(min_length=2)
    tests: tuple[Benchmark, ...] | None = None

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        for column, results in comparable(map(catalogue.get, self.models), self.tests).items():
            if len(results) == len(self.models):
                values = [result.high for result in results.values()]
                text = ", ".join(f"{name} {result}" for name, result in results.items())
                yield Answer(self.holds(max(values) - min(values)), f"{column}: {text}")


class Reaches(Checkable):
    """That `model` is no more than `within` behind `reference`, in every test that both report."""

    kind: Literal["reaches"]
    model: str
    reference: str
    within: Margin

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        for column, results in comparable(map(catalogue.get, (self.model, self.reference))).items():
            if self.model in results and self.reference in results:
                ours, theirs = results[self.model], results[self.reference]
                near = theirs.low - ours.high <= self.within.around(theirs.low)
                yield Answer(near, f"{column}: {ours}, against {theirs} of {self.reference}")


class Leads(Checkable):
    """That `model` has the highest score of the catalogue in each of `tests`."""

    kind: Literal["leads"]
    model: str
    tests: tuple[Benchmark, ...] = Field(min_length=1)

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        for column, results in comparable(catalogue.models.values(), self.tests).items():
            if self.model in results and len(results) > 1:
                own = results[self.model]
                others = {name: result for name, result in results.items() if name != self.model}
                best = max(others, key=lambda name: others[name].high)
                leads = own.low >= others[best].high
                next_one = f"the next of {len(results)}: {best}" if leads else f"{best} has"
                yield Answer(leads, f"{column}: {own}; {next_one} {others[best]}")


class Recommended(Checkable):
    """That the rules of `lichen advise` put `model` first in a scenario."""

    kind: Literal["advice"]
    scenario: str
    model: str

    def problems(self, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
        yield from super().problems(catalogue)
        scenarios = shipped_rules().scenarios
        if self.scenario not in scenarios:
            there_are = ", ".join(scenarios)
            yield ["scenario"], f"no scenario {self.scenario!r} in the rules; there are {there_are}"

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        try:
            given = advise(self.scenario, Constraints(), catalogue, at)
        except LichenError as nobody:  # on an early day
            yield Answer(None, str(nobody))
            return
        names = [place.model for place in given.ranking]
        first = given.ranking[0]
        text = f"first of {len(names)} by the rules for {self.scenario}: {first.model} ({first.decided_by})"
        if self.model in names[1:]:
            text += f"; {self.model} is number {names.index(self.model) + 1}"
        for out in given.excluded:
            text += f"; {out.model}: {out.constraint}: {out.why}" if out.model == self.model else ""
        yield Answer(first.model == self.model, text)
