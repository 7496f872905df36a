"""How commands print: lines, tables that suit a terminal, a pipe or a narrow window, and JSON.

What is printed comes in part from files that anyone may have written: to a terminal a few characters in them
are commands, which hide text, rename the window or type for its user. All of it goes through `visible`.
"""

import json
import re
from collections.abc import Collection, Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement, measure_renderables
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

LONGEST_ERROR = 1000
"""Characters: a value may be as long as its file."""
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with every character that does something to a terminal, or to the order of the others, and every
    half of one, in the form that JSON and Python have for it; lines and tabs stay."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_text(text: str, end: str = "\n") -> None:
    """Print `text` as it is, but `visible`."""
    print(visible(text), end=end, flush=True)


def one_line(message: str) -> str:
    """`message`, `visible`, as one line; what is too long for one loses its middle."""
    line = visible(" ".join(message.split()))
    half = LONGEST_ERROR // 2
    left_out = len(line) - 2 * half
    return f"{line[:half]} [{left_out:,} characters left out] {line[-half:]}" if left_out > 0 else line


def print_json(content: Any) -> None:
    """`content`, with a text for what JSON does not have, such as dates."""
    print_text(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def say(*lines: RenderableType, style: str | None = None) -> None:
    """Print `lines`, wrapped between words to the width of the window; nothing in them is markup."""
    for line in lines:
        console().print(line, style=style)


def say_whole(*lines: str, style: str | None = None) -> None:
    """As `say`, but each line stays one, for what people copy and search."""
    for line in lines:
        console().print(line, style=style, soft_wrap=True)


def plain_table(*headings: str, whole: Collection[str] = (), right: Collection[str] = ()) -> Table:
    """A table without lines. Cells of the columns in `whole` are not wrapped, those in `right` end there."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, justify="right" if heading in right else "left")
    return table


def print_table(table: Table) -> None:
    """Print `table` as wide as the window, cells wrapped between words; wider, where a word would be cut."""
    window = console()
    unbounded = window.options.update(max_width=1_000_000)
    for column in table.columns:
        size = measure_renderables(window, unbounded, [column.header, *column.cells])
        column.min_width = size.maximum if column.no_wrap else size.minimum
    window.width = max(window.width, Measurement.get(window, unbounded, table).minimum)
    window.print(table, crop=False)


class _Console(Console):
    """Makes visible what it is given: strings before they are measured, the rest when it is drawn."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def console(file: IO[str] | None = None) -> Console:
    """On `file`, or on standard output; nothing that is printed there is markup."""
    return _Console(file=file, highlight=False, markup=False)
