"""`lichen compare`: models side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lichen.cli.options import AsOf
from lichen.cli.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from lichen.atlas.market.compare import Row


def compare(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models of `lichen atlas list`.")],
    sources: Annotated[bool, typer.Option("--sources", help="Say where each cell comes from.")] = False,
    as_of: AsOf = None,
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
    from lichen.errors import LichenError
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
        print(to_json(rows, titles, when))
    elif as_csv:
        print(to_csv(rows, titles, sources))
    elif as_markdown:
        print(to_markdown(rows, titles, notes))
    else:
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        print_table(console, _table(rows, titles, notes))
        for text, number in notes.items():
            console.print(f"[{number}] {text}", soft_wrap=True)
        name, newest = table()
        console.print(
            f"As known on {day}; prices of {when:%H:%M} UTC from {name}, newest entry {newest}. "
            f"{'' if sources else 'Where each cell comes from: --sources.'}",
        )


def _table(rows: list[Row], titles: dict[str, str], notes: dict[str, int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from lichen.atlas.market.compare import marks

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="bold")
    table.add_column("", min_width=16, ratio=2)
    for title in titles.values():
        table.add_column(title, ratio=3)
    section = ""
    for row in rows:
        if row.section != section:
            table.add_row()
            table.add_row(Text(row.section.capitalize(), style="bold"))
            section = row.section
        cells = (Text(cell.text + marks(cell, notes)) for cell in row.cells.values())
        table.add_row(Text(row.label), *cells)
    return table
