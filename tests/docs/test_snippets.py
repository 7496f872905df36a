"""The Python examples of the guide run, and print what the guide says they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("muon.md",)  # whose examples need no files of the reader
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    page: str
    line: int
    code: str
    output: str | None


def snippets() -> list[Snippet]:
    found = []
    for page in map(DOCS.joinpath, PAGES):
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append(Snippet(page.name, line, match[1], match[2]))
    return found


def test_the_page_on_muon_has_examples() -> None:
    assert sum(snippet.page == "muon.md" for snippet in snippets()) > 10


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: f"{snippet.page}:{snippet.line}")
def test_snippet(snippet: Snippet) -> None:
    # Lines are counted as in the page, so that a failure points there.
    code = compile("\n" * (snippet.line - 1) + snippet.code, snippet.page, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    if snippet.output is not None:
        assert printed.getvalue().rstrip() == snippet.output.rstrip()
