"""Claims about scores, each in every column in which they may be compared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field

from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.catalogue.scores import Benchmark, Margin, comparable
from lichen.atlas.claims.verdict import Answer, Checkable, Quantity


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
