"""What a claim can be checked by: the models that it names, what answers it, and the verdict on that.

Several values may answer one claim: sources that disagree, three workloads, peak hours. All of them meet it:
supported; some do: partly supported; none does: contradicted; there is none: it cannot be checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.catalogue.scores import Margin
from lichen.errors import did_you_mean
from lichen.facts.record import Record
from lichen.facts.yaml_file import Location

Number = Annotated[float, Field(allow_inf_nan=False)]
Verdict = Literal["supported", "partly supported", "contradicted", "cannot be checked"]
How = Literal["computed", "measured", "cited", "nothing"]
UNCHECKED: Verdict = "cannot be checked"


@dataclass(frozen=True)
class Answer:
    """One of the values that answer a claim: whether it is as claimed (None: it says nothing either way), and
    what it is and where from."""

    holds: bool | None
    text: str


class Checkable(Record):
    """A kind of check, with what it is about."""

    def named(self) -> Iterator[tuple[Location, str]]:
        """The models that it is about, with the fields that name them."""
        for field in ("model", "reference"):
            if name := getattr(self, field, None):
                yield [field], name
        for index, name in enumerate(getattr(self, "models", ())):
            yield ["models", index], name

    def problems(self, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
        """What in it cannot be meant, with its field, the models first."""
        for field, name in self.named():
            if name not in catalogue.models:
                hint = did_you_mean(name, catalogue.models, "`lichen atlas list` names them all")
                yield field, f"no model {name!r} in the catalogue; {hint}"

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        """What is known at `at` (aware), of whose day `catalogue` is."""
        raise NotImplementedError

    def judged(self, catalogue: Catalogue, at: datetime) -> tuple[Verdict, How, tuple[str, ...]]:
        """The verdict, how it came about, and the evidence, a line each."""
        later = [name for _, name in self.named() if name not in catalogue.models]
        if later:
            return (
                UNCHECKED,
                "computed",
                tuple(f"{name} came out on {catalogue.later[name]}" for name in later),
            )
        answers = list(self.answers(catalogue, at))
        held = [answer.holds for answer in answers if answer.holds is not None]
        verdict: Verdict = "supported" if all(held) else "partly supported" if any(held) else "contradicted"
        evidence = tuple(answer.text for answer in answers) or ("nothing is known about it",)
        return verdict if held else UNCHECKED, "computed", evidence


class Quantity(Checkable):
    """A number that is claimed: `expected` within `tolerance`, or bounds."""

    expected: Number | None = None
    tolerance: Margin = Margin(share=0.05)
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _claims_something(self) -> Quantity:
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
