"""CSV that spreadsheets show and never compute."""

import re
from collections.abc import Iterable, Sequence


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """`rows`, a line each, None as nothing. A text that a spreadsheet would take for a formula has a ' before
    it, as people write who want to see such a text; numbers stay numbers, negative ones too."""
    return "".join(f"{','.join(map(_cell, row))}\n" for row in rows)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    if re.match(r"[=+\-@\t\r\n]", text) and not _is_number(text):
        text = f"'{text}"
    # Not the csv module's: it leaves a carriage return bare, after which some readers begin a line.
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if re.search(r'[",\r\n]', text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
