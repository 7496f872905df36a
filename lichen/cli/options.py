"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

SpecName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model of the atlas, a config.json, or a folder with one.")
]
CatalogueNames = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Models of `lichen atlas list`.")
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="DATE", help="What was known then. [default: today]")
]
