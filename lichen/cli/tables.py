"""Tables in a terminal, in a pipe, or in a window that is too narrow for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(console: Console, table: Table) -> None:
    """Print `table` as wide as the console, cells wrapped between words; wider, where a word would be cut."""
    from rich.measure import Measurement, measure_renderables

    width, unbounded = console.width, console.options.update(max_width=1_000_000)
    for column in table.columns:
        size = measure_renderables(console, unbounded, [column.header, *column.cells])
        column.min_width = size.maximum if column.no_wrap else size.minimum
    console.width = max(width, Measurement.get(console, unbounded, table).minimum)
    console.print(table, crop=False)
    console.width = width
