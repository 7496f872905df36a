"""Reading a file of claims, refusing what no verdict could be true of, and the verdicts on a day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.claims.kinds import Claim, ClaimSet
from lichen.atlas.claims.verdict import How, Verdict
from lichen.facts.yaml_file import field_error, parse, read_yaml

SHIPPED = Path(__file__).parent / "article.yaml"


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
