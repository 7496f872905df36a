"""`lichen compare`: models side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lichen.cli import options
from lichen.cli.output import plain_table, print_table, print_text, say, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.atlas.market.compare import Row


def compare(
    names: options.CatalogueNames,
    sources: Annotated[bool, typer.Option("--sources", help="Say where each cell comes from.")] = False,
    as_of: options.AsOf = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="HH:MM", help="Time of day of the prices, UTC.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The model whose prices are the measure. [default: gpt-5.5]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, always with sources.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="Markdown.")] = False,
) -> None:
    """Compare models: facts, architecture, memory, prices, scores. Unknown is shown as unknown."""
    from lichen.atlas.catalogue.model import load
    from lichen.atlas.market.compare import compare as compare_models
    from lichen.atlas.market.compare import footnotes, to_csv, to_json, to_markdown
    from lichen.atlas.market.prices import moment, table
    from lichen.facts.record import parse_as_of

    if as_json + as_csv + as_markdown > 1:
        raise LichenError("--json, --csv and --md are three forms of one table: choose one")
    day = parse_as_of(as_of)
    catalogue = load(as_of=day)
    models = [catalogue.get(name) for name in dict.fromkeys(names)]
    when = moment(day, at)
    rows = compare_models(models, catalogue, when, against)
    titles = {model.name: model.title for model in models}
    notes = footnotes(rows) if sources else {}
    if as_json:
        print_text(to_json(rows, titles, when))
    elif as_csv:
        print_text(to_csv(rows, titles, sources), end="")
    elif as_markdown:
        print_text(to_markdown(rows, titles, notes))
    else:
        print_table(_table(rows, titles, notes))
        say_whole(*(f"[{number}] {text}" for text, number in notes.items()))
        name, newest = table()
        say(
            f"As known on {day}; prices of {when:%H:%M} UTC from {name}, newest entry {newest}. "
            f"{'' if sources else 'Where each cell comes from: --sources.'}",
        )


def _table(rows: list[Row], titles: dict[str, str], notes: dict[str, int]) -> Table:
    from lichen.atlas.market.compare import marks

    table = plain_table("", *titles.values())
    section = ""
    for row in rows:
        if row.section != section:
            table.add_row()
            table.add_row(Text(row.section.capitalize(), style="bold"))
            section = row.section
        table.add_row(row.label, *(cell.text + marks(cell, notes) for cell in row.cells.values()))
    return table
