"""`lichen claims`: what an article says, and what the data says about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lichen.cli.tables import print_table

if TYPE_CHECKING:
    from datetime import date

    from rich.console import Console

    from lichen.atlas.claims.check import Checked
    from lichen.atlas.claims.kinds import ClaimSet

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
    from lichen.atlas.claims.check import check
    from lichen.atlas.claims.file import load
    from lichen.atlas.market.prices import moment
    from lichen.facts.record import parse_as_of

    path = _file(words or [])
    now = load_catalogue(as_of=parse_as_of(as_of))
    claim_set = load(load_catalogue(), path)
    days = [now.as_of] if as_of else sorted({min(claim_set.date, now.as_of), now.as_of})
    verdicts = {
        day: check(claim_set, now if day == now.as_of else load_catalogue(as_of=day), moment(day, None))
        for day in days
    }
    if as_json:
        print(json.dumps(_json(claim_set, verdicts), indent=2, default=str))
        return
    from rich.console import Console

    console = Console(highlight=False)
    title = f"{claim_set.title} ({claim_set.source}, {claim_set.date})"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    if evidence:
        _print_evidence(verdicts, console)
    else:
        _print_table(verdicts, console)
    for day, checked in verdicts.items():
        counts = Counter(str(each.verdict) for each in checked)
        console.print(
            f"{day}: {', '.join(f'{counts[name]} {name}' for name in STYLE if counts[name])}", markup=False
        )


def _file(words: list[str]) -> Path | None:
    """The file that is meant by `[check] [FILE]`."""
    from lichen.errors import LichenError

    if words == ["check"]:
        raise LichenError("`lichen claims check` needs a claims file")
    if len(words) > 2 or (len(words) == 2 and words[0] != "check"):
        raise LichenError(f"one claims file at a time: got {' '.join(words)}")
    return Path(words[-1]) if words else None


def _json(claim_set: ClaimSet, verdicts: dict[date, list[Checked]]) -> dict[str, Any]:
    by_day = [
        {
            str(day): {"verdict": each.verdict, "how": each.how, "evidence": each.evidence}
            for day, each in zip(verdicts, row, strict=True)
        }
        for row in zip(*verdicts.values(), strict=True)
    ]
    found = [
        {
            "id": claim.id,
            "statement": claim.statement,
            "check": claim.check.model_dump(exclude_none=True),
            "note": claim.note,
            "on": on,
        }
        for claim, on in zip(claim_set.claims, by_day, strict=True)
    ]
    about = {"title": claim_set.title, "source": claim_set.source, "date": claim_set.date}
    return {**about, "claims": found}


def _print_table(verdicts: dict[date, list[Checked]], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("claim")
    for day in verdicts:
        table.add_column(str(day), no_wrap=True)
    table.add_column("how", no_wrap=True)  # on the last of the days
    for row in zip(*verdicts.values(), strict=True):
        cells = [Text(each.verdict, style=STYLE[each.verdict]) for each in row]
        table.add_row(Text(row[0].claim.statement), *cells, row[-1].how)
    print_table(console, table)
    console.print("What each verdict rests on: --evidence.")


def _print_evidence(verdicts: dict[date, list[Checked]], console: Console) -> None:
    for row in zip(*verdicts.values(), strict=True):
        claim = row[0].claim
        console.print(f"\n{claim.statement}  [{claim.id}]", style="bold", markup=False, soft_wrap=True)
        last = None
        for day, each in zip(verdicts, row, strict=True):
            if last and (each.verdict, each.evidence) == (last.verdict, last.evidence):
                continue
            console.print(f"  {day}: {each.verdict} ({each.how})", style=STYLE[each.verdict], markup=False)
            for line in each.evidence:
                console.print(f"    {line}", markup=False, soft_wrap=True)
            last = each
        if claim.note:
            console.print(f"  {claim.note}", markup=False, soft_wrap=True)
