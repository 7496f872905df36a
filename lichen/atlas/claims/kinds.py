"""Claims as data: what a text states, in one's own words, and the kinds of checks a statement can have.

A claims file is YAML: a title, the text's source and date, and a list of claims with an `id`, a `statement`
and a `check`. Evidence comes in four kinds, in the order of what they are worth:

    computed  from configs, dated prices, scores, the lineage graph or the account, each time it is asked
    measured  by a study of Lichen's own
    cited     from sources that somebody read
    nothing   nobody says; where was looked is part of the claim
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lichen.atlas.catalogue.scores import Benchmark, Margin
from lichen.facts.record import Past, Record

Number = Annotated[float, Field(allow_inf_nan=False)]
Verdict = Literal["supported", "partly supported", "contradicted", "cannot be checked"]


class _Quantity(Record):
    """A number that is claimed: `expected` within `tolerance`, or bounds."""

    expected: Number | None = None
    tolerance: Margin = Margin(share=0.05)
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _claims_something(self) -> _Quantity:
        bounds = self.at_least is not None or self.at_most is not None
        if bounds == (self.expected is not None):
            raise ValueError("name either `expected` or `at_least` and `at_most`")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"no number is at least {self.at_least:g} and at most {self.at_most:g}")
        return self

    def holds(self, value: float) -> bool:
        if self.expected is not None:
            return abs(value - self.expected) <= self.tolerance.around(self.expected)
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


class Parameters(_Quantity):
    """Parameters counted from the config, and as published: all, or those `active` per token."""

    kind: Literal["parameters"]
    model: str
    active: bool = False


class Context(_Quantity):
    """The longest context in tokens, by the config and by what is published."""

    kind: Literal["context"]
    model: str


class SameParts(Record):
    """That `model` is built of the parts of `reference`: attention, feed-forward, routing and residual."""

    kind: Literal["same_parts"]
    model: str
    reference: str


class CacheRatio(_Quantity):
    """Cache bytes at `context` tokens over those of `reference`, each as its engines store it."""

    kind: Literal["cache_ratio"]
    model: str
    reference: str
    context: int = Field(gt=0)


class PriceRatio(_Quantity):
    """How many times as much `reference` costs, for the standard workloads, at every hour of the day.

    `providers` of the model: the default one where none is named.
    """

    kind: Literal["price_ratio"]
    model: str
    reference: str = "gpt-5.5"
    providers: tuple[str, ...] = ()


class ScoreOf(_Quantity):
    """A score of `model`, as everyone reported it. Several `tests` where the claim does not say which it
    means: then one that has the value supports it, and none leaves it unchecked."""

    kind: Literal["score"]
    model: str
    tests: tuple[Benchmark, ...] = Field(min_length=1)


class ScoreGap(_Quantity):
    """The distance between the best and the worst of `models`, in every test that all of them report."""

    kind: Literal["score_gap"]
    models: tuple[str, ...] = Field(min_length=2)
    tests: tuple[Benchmark, ...] | None = None


class Reaches(Record):
    """That `model` is no more than `within` behind `reference`, in every test that both report."""

    kind: Literal["reaches"]
    model: str
    reference: str
    within: Margin


class Leads(Record):
    """That `model` has the highest score of the catalogue in each of `tests`."""

    kind: Literal["leads"]
    model: str
    tests: tuple[Benchmark, ...] = Field(min_length=1)


class Released(Record):
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


class OptimizerBytes(_Quantity):
    """Bytes of Muon's state, AdamW for the rest, over those of AdamW's for the whole model."""

    kind: Literal["optimizer_bytes"]
    model: str


class TrainingCost(_Quantity):
    """Published GPU hours of `model` over those of `reference`."""

    kind: Literal["training_cost"]
    model: str
    reference: str


class Licensed(Record):
    """That all of `models` are under one of `licenses`."""

    kind: Literal["license"]
    models: tuple[str, ...] = Field(min_length=1)
    licenses: tuple[str, ...] = Field(min_length=1)


class Fits(Record):
    """That `model` fits on `hardware` with one sequence of `context` tokens, its weights as `quant`."""

    kind: Literal["fits"]
    model: str
    hardware: str
    quant: str | None = None
    context: int = Field(gt=0)


class Recommended(Record):
    """That the rules of `lichen advise` put `model` first in a scenario."""

    kind: Literal["advice"]
    scenario: str
    model: str


class Finding(Record):
    """What `source` said on `date` about the claim, in a sentence; `measured`: a study of Lichen's own."""

    verdict: Verdict
    note: str
    source: str
    date: Past
    measured: bool = False


class Reported(Record):
    """What sources say: of the findings dated no later than the day that is asked about, the last decides."""

    kind: Literal["cited"]
    findings: tuple[Finding, ...] = Field(min_length=1)


class Nothing(Record):
    """That nobody says: what would have to be known, and where it was looked for."""

    kind: Literal["nothing"]
    missing: str
    looked_in: tuple[str, ...] = Field(min_length=1)


Check = Annotated[
    Parameters
    | Context
    | SameParts
    | CacheRatio
    | OptimizerBytes
    | TrainingCost
    | PriceRatio
    | ScoreOf
    | ScoreGap
    | Reaches
    | Leads
    | Released
    | Licensed
    | Fits
    | Recommended
    | Reported
    | Nothing,
    Field(discriminator="kind"),
]


class Claim(Record):
    """`note`: what the reader should know beside the verdict."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    statement: str = Field(min_length=1)
    check: Check
    note: str | None = None


class ClaimSet(Record):
    """The claims of one text, which was published at `source` on `date`."""

    title: str
    source: str
    date: Past
    claims: tuple[Claim, ...] = Field(min_length=1)


def named(check: Check) -> Iterator[tuple[list[str | int], str]]:
    """The models that a check is about, with the fields that name them."""
    for field in ("model", "reference"):
        if name := getattr(check, field, None):
            yield [field], name
    for index, name in enumerate(getattr(check, "models", ())):
        yield ["models", index], name
