"""Claims as data: what a text states, in one's own words, how it can be checked, and the verdicts on a day.

A claims file is YAML: a title, the text's source and date, and a list of claims with an `id`, a `statement`
and a `check`. Evidence comes in four kinds, in the order of what they are worth:

    computed  from configs, dated prices, scores, the lineage graph or the account, each time it is asked
    measured  by a study of Lichen's own
    cited     from sources that somebody read
    nothing   nobody says; where was looked is part of the claim
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.claims.configs import CacheRatio, Context, Fits, OptimizerBytes, Parameters, SameParts
from lichen.atlas.claims.facts import (
    Leads,
    Licensed,
    PriceRatio,
    Reaches,
    Recommended,
    Released,
    ScoreGap,
    ScoreOf,
    TrainingCost,
)
from lichen.atlas.claims.verdict import UNCHECKED, Checkable, How, Verdict
from lichen.facts.record import Past, Record
from lichen.facts.yaml_file import field_error, parse, read_yaml

SHIPPED = Path(__file__).parent / "article.yaml"


class Finding(Record):
    """What `source` said on `date` about the claim, in a sentence; `measured`: a study of Lichen's own."""

    verdict: Verdict
    note: str
    source: str
    date: Past
    measured: bool = False


class Reported(Checkable):
    """What sources say: of the findings dated no later than the day that is asked about, the last decides."""

    kind: Literal["cited"]
    findings: tuple[Finding, ...] = Field(min_length=1)

    def judged(self, catalogue: Catalogue, at: datetime) -> tuple[Verdict, How, tuple[str, ...]]:
        told = [finding for finding in self.findings if finding.date <= at.date()]
        if not told:
            return UNCHECKED, "cited", (f"nothing was known on {at.date()}",)
        last = max(told, key=lambda finding: finding.date)
        evidence = tuple(f"{finding.note} ({finding.source}, {finding.date})" for finding in told)
        return last.verdict, "measured" if last.measured else "cited", evidence


class Nothing(Checkable):
    """That nobody says: what would have to be known, and where it was looked for."""

    kind: Literal["nothing"]
    missing: str
    looked_in: tuple[str, ...] = Field(min_length=1)

    def judged(self, catalogue: Catalogue, at: datetime) -> tuple[Verdict, How, tuple[str, ...]]:
        looked = (f"looked in: {place}" for place in self.looked_in)
        return UNCHECKED, "nothing", (self.missing, *looked)


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


@dataclass(frozen=True)
class Checked:
    """A claim with its verdict, how that came about, and the evidence, a line each."""

    claim: Claim
    verdict: Verdict
    how: How
    evidence: tuple[str, ...]


def load(catalogue: Catalogue, path: Path = SHIPPED) -> ClaimSet:
    """The claims in `path`; without one, those of the article that ships with Lichen.

    Raises LichenError naming file, line and field, also for what `catalogue` (today's) does not know.
    """
    found = parse(ClaimSet, read_yaml(path), path)
    seen: set[str] = set()
    for index, claim in enumerate(found.claims):
        if claim.id in seen:
            raise field_error(path, ["claims", index, "id"], f"{claim.id!r} is there twice")
        seen.add(claim.id)
        for field, problem in claim.check.problems(catalogue):
            raise field_error(path, ["claims", index, "check", *field], problem)
    return found


def check(claim_set: ClaimSet, catalogue: Catalogue, at: datetime) -> list[Checked]:
    """Every claim of the set in its order, by what is known at `at` (aware), of whose day `catalogue` is."""
    return [Checked(claim, *claim.check.judged(catalogue, at)) for claim in claim_set.claims]
