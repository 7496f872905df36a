"""Scores beside each other, where they may stand beside each other.

Two scores are comparable when they are of one benchmark, in one version, one variant and one unit. Nothing
else is ever put in one column: an index that was re-based under the same name gave the same model 52 one
month and 44 another. A model that ran in several effort modes is represented by its best one, which is named;
of several builds of its weights the latest counts, whichever is better.
Where two reporters give one model different results, neither is believed over the other: the model has an
interval, and it leads another model only if the whole of it does.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, model_validator

from lichen.atlas.catalogue.model import Model, Score
from lichen.facts.record import Record


class Margin(Record):
    """How far from a value still counts as equal to it; in YAML `10%` of it, or a plain number `1`."""

    share: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    slack: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str):
            if not re.fullmatch(r"\d+(\.\d+)?%", value):
                raise ValueError(f"{value!r} is not a margin: write 5% or a plain number")
            return {"share": float(value[:-1]) / 100}
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"slack": value} if is_number else value

    def around(self, value: float) -> float:
        return self.slack + self.share * abs(value)

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share else f"{self.slack:g}"


class Benchmark(Record):
    """Which scores are meant: those of a benchmark, in one version or variant if these are given.

    In YAML a plain name will do.
    """

    name: str
    version: str | None = None
    variant: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    def is_of(self, score: Score) -> bool:
        return (
            score.benchmark == self.name
            and self.version in (None, score.version)
            and self.variant in (None, score.variant)
        )


@dataclass(frozen=True, order=True)
class Column:
    """What scores must share to be compared."""

    benchmark: str
    version: str
    variant: str
    unit: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.benchmark, self.version, self.variant) if part)


@dataclass(frozen=True)
class Result:
    """The latest build's best mode of one model in one column, per reporter; higher is better."""

    scores: tuple[Score, ...]  # one per reporter

    @cached_property
    def low(self) -> float:
        return min(score.value for score in self.scores)

    @cached_property
    def high(self) -> float:
        return max(score.value for score in self.scores)

    def __str__(self) -> str:
        values = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        named = (part for s in self.scores for part in (s.build and f"build {s.build}", s.effort) if part)
        modes = sorted(set(named))
        return f"{values} ({', '.join(modes)})" if modes else values


Table = dict[Column, dict[str, Result]]


def comparable(models: Iterable[Model], tests: Sequence[Benchmark] | None = None) -> Table:
    """Column -> model name -> result, for the scores of `models`; of `tests` only, if given."""
    best: dict[Column, dict[str, dict[str, Score]]] = {}
    for model in models:
        for score in model.scores:
            if tests is None or any(test.is_of(score) for test in tests):
                column = Column(score.benchmark, score.version or "", score.variant or "", score.unit)
                by_reporter = best.setdefault(column, {}).setdefault(model.name, {})
                other = by_reporter.get(score.reported_by)
                if other is None or _rank(score) > _rank(other):
                    by_reporter[score.reported_by] = score
    return {
        column: {name: Result(tuple(found.values())) for name, found in best[column].items()}
        for column in sorted(best)
    }


def _rank(score: Score) -> tuple[str, float]:
    return score.build or "", score.value


def led(a: str, b: str, table: Table, even: Margin) -> tuple[int, int, int]:
    """In how many columns `a` leads `b`, `b` leads `a`, and neither does, of those that hold both.

    A lead that is not larger than `even` is none.
    """

    def leads(one: Result, other: Result) -> bool:
        return one.low - other.high > even.around(other.high)

    both = [(results[a], results[b]) for results in table.values() if a in results and b in results]
    ahead = sum(leads(ours, theirs) for ours, theirs in both)
    behind = sum(leads(theirs, ours) for ours, theirs in both)
    return ahead, behind, len(both) - ahead - behind
