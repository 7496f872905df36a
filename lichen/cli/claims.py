"""`lichen claims`: what an article says, and what the data says about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lichen.cli.output import plain_table, print_json, print_table, say, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from datetime import date

    from lichen.atlas.claims.check import Checked, ClaimSet

STYLE = {
    "supported": "green",
    "partly supported": "yellow",
    "contradicted": "red",
    "cannot be checked": "dim",
}


def claims(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[check] [FILE]", help="A claims file; without one, the article that ships."),
    ] = None,
    evidence: Annotated[bool, typer.Option("--evidence", help="What each verdict rests on.")] = False,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of", metavar="DATE", help="What was known then. [default: the article's day, and today]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Check the claims of an article: computed where that can be, measured, cited, or nothing says."""
    from lichen.atlas.catalogue.model import load as load_catalogue
    from lichen.atlas.claims.check import check, load
    from lichen.atlas.market.prices import moment
    from lichen.facts.record import parse_as_of

    asked, catalogue = parse_as_of(as_of), load_catalogue()
    claim_set = load(catalogue, _file(words or []))
    days = [asked] if as_of else sorted({min(claim_set.date, asked), asked})
    verdicts = {day: check(claim_set, catalogue.on(day), moment(day, None)) for day in days}
    if as_json:
        print_json(_json(claim_set, verdicts))
        return
    say_whole(f"{claim_set.title} ({claim_set.source}, {claim_set.date})", style="bold")
    if evidence:
        _print_evidence(verdicts)
    else:
        print_table(_table(verdicts))
        say("What each verdict rests on: --evidence.")
    for day, checked in verdicts.items():
        counts = Counter(str(each.verdict) for each in checked)
        say(f"{day}: {', '.join(f'{counts[name]} {name}' for name in STYLE if counts[name])}")


def _file(words: list[str]) -> Path:
    """The file that is meant by `[check] [FILE]`."""
    from lichen.atlas.claims.check import SHIPPED

    if words == ["check"]:
        raise LichenError(
            "`lichen claims check` needs a claims file, as in: lichen claims check my-article.yaml; "
            "`lichen claims` alone checks the article that ships"
        )
    if len(words) > 2 or (len(words) == 2 and words[0] != "check"):
        raise LichenError(f"one claims file at a time: got {' '.join(words)}")
    return Path(words[-1]) if words else SHIPPED


def _json(claim_set: ClaimSet, verdicts: dict[date, list[Checked]]) -> dict[str, Any]:
    found = [
        claim.model_dump(include={"id", "statement"})
        | {
            "check": claim.check.model_dump(exclude_none=True),
            "note": claim.note,
            "on": {
                str(day): {"verdict": each.verdict, "how": each.how, "evidence": each.evidence}
                for day, each in zip(verdicts, row, strict=True)
            },
        }
        for claim, *row in zip(claim_set.claims, *verdicts.values(), strict=True)
    ]
    return {**claim_set.model_dump(exclude={"claims"}), "claims": found}


def _table(verdicts: dict[date, list[Checked]]) -> Table:
    days = list(map(str, verdicts))
    table = plain_table("claim", *days, "how", whole=[*days, "how"])
    for row in zip(*verdicts.values(), strict=True):
        cells = [Text(each.verdict, style=STYLE[each.verdict]) for each in row]
        table.add_row(row[0].claim.statement, *cells, row[-1].how)  # how: on the last of the days
    return table


def _print_evidence(verdicts: dict[date, list[Checked]]) -> None:
    for row in zip(*verdicts.values(), strict=True):
        claim = row[0].claim
        say_whole(f"\n{claim.statement}  [{claim.id}]", style="bold")
        last = None
        for day, each in zip(verdicts, row, strict=True):
            if last and (each.verdict, each.evidence) == (last.verdict, last.evidence):
                continue
            say(f"  {day}: {each.verdict} ({each.how})", style=STYLE[each.verdict])
            say_whole(*(f"    {line}" for line in each.evidence))
            last = each
        if claim.note:
            say_whole(f"  {claim.note}")
