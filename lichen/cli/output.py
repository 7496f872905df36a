"""How commands print: lines, tables that suit a terminal, a pipe or a narrow window, and JSON."""

import json
from collections.abc import Collection
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement, measure_renderables
from rich.table import Table


def print_json(content: Any) -> None:
    """`content`, with a text for what JSON does not have, such as dates."""
    print(json.dumps(content, indent=2, default=str))


def say(*lines: RenderableType, style: str | None = None) -> None:
    """Print `lines`, wrapped between words to the width of the window; nothing in them is markup."""
    for line in lines:
        _console().print(line, style=style)


def say_whole(*lines: str, style: str | None = None) -> None:
    """As `say`, but each line stays one, for what people copy and search."""
    for line in lines:
        _console().print(line, style=style, soft_wrap=True)


def plain_table(*headings: str, whole: Collection[str] = (), right: Collection[str] = ()) -> Table:
    """A table without lines. Cells of the columns in `whole` are not wrapped, those in `right` end there."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, justify="right" if heading in right else "left")
    return table


def print_table(table: Table) -> None:
    """Print `table` as wide as the window, cells wrapped between words; wider, where a word would be cut."""
    console = _console()
    unbounded = console.options.update(max_width=1_000_000)
    for column in table.columns:
        size = measure_renderables(console, unbounded, [column.header, *column.cells])
        column.min_width = size.maximum if column.no_wrap else size.minimum
    console.width = max(console.width, Measurement.get(console, unbounded, table).minimum)
    console.print(table, crop=False)


def _console() -> Console:
    return Console(highlight=False, markup=False)
