"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="DATE", help="What was known then. [default: today]")
]
