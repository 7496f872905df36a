"""The atlas as one HTML file that needs no network: `build`; server.py shows it to a browser.

Markup, style and scripts are the files of this folder, put into the template as they are. The page's
Content-Security-Policy admits exactly those, by their hashes, and no connection of any kind.
"""

import base64
import hashlib
import json
from datetime import date
from pathlib import Path

from lichen.atlas.page.data import data, plain

FOLDER = Path(__file__).parent
# In the order in which they are run: what later ones use, then one per section of the page, then the start.
SCRIPTS = (
    "elements",
    "state",
    "charts",
    "costs",
    "scatter",
    "cache",
    "fits",
    "lineage",
    "risk",
    "table",
    "advice",
    "claims",
    "prices",
    "start",
)


def build(as_of: date) -> str:
    """The page, with what was known on `as_of`. Raises LichenError for a catalogue file that is wrong."""
    content = json.dumps(data(as_of), default=plain, ensure_ascii=False, separators=(",", ":"))
    page = _read("template.html")
    for place, text in (
        ("POLICY", policy()),
        ("STYLE", _style()),
        ("SCRIPT", _script()),
        ("DATA", content.replace("<", "\\u003c")),  # so that no text in the data can end the element
    ):
        page = page.replace(f"%{place}%", text, 1)
    return page


def policy() -> str:
    """The page's Content-Security-Policy."""
    return (
        f"default-src 'none'; style-src '{_digest(_style())}'; script-src '{_digest(_script())}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _style() -> str:
    return _read("style.css")


def _script() -> str:
    return "\n".join(["'use strict';", "(() => {", *(_read(f"{name}.js") for name in SCRIPTS), "})();"])


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline element (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
