"""Options that several verbs have, and numbers as people write them in options: 15T tokens, a context of 1M,
80GiB of memory, $500 a month.

Each function reads one kind of number, for `typer.Option(parser=...)`, and raises typer.BadParameter for
another text. Typer passes defaults through it too, which are numbers already. Whether a number is too small
or too large is for those to say who use it.
"""

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import typer

from lichen.errors import LichenError

SpecName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model of the atlas, a config.json, or a folder with one.")
]
CatalogueNames = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Models of `lichen atlas list`.")
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="DATE", help="What was known then. [default: today]")
]
Folder = Annotated[
    Path, typer.Argument(metavar="RUN|DIR", help="A run, or a folder in the Hugging Face layout.")
]
WeightFormat = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8", "int4"],
    typer.Option(help="How to keep the weights; auto is the fastest that loses nothing that shows."),
]

POWERS = {"K": 1, "M": 2, "G": 3, "B": 3, "T": 4}
NUMBER = r"(-?(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,15})?(?:e\d{1,2})?)"


def count(text: str | int) -> int:
    """A whole number: 8192, 8,192, 15T, 1.5M; K, M, B (or G) and T are powers of 1000, Ki and Mi of 1024."""
    value = _scaled(text, r"(?:([KMGBT])(i)?)?")
    if value is None or value != int(value):
        raise typer.BadParameter(f"{text!r} is not a whole number: write one like 8192, 256Ki, 1M or 15T")
    return round(value)


def number(text: str | float) -> float:
    """As `count`, and fractions."""
    value = _scaled(text, r"(?:([KMGBT])(i)?)?")
    if value is None:
        raise typer.BadParameter(f"{text!r} is not a number: write one like 2000, 2.5 or 10K")
    return float(value)


def memory(text: str) -> int:
    """Bytes: 80G, 80 GB and 0.08T are powers of 1000, 80GiB of 1024; a bare number is bytes."""
    value = _scaled(text, r"(?:([KMGT])(i)?)?B?")
    if value is None:
        raise typer.BadParameter(
            f"{text!r} is not a size: write a number with a unit, as 80G, 1.5T or 640GiB"
        )
    return round(value)


def dollars(text: str) -> float:
    """US dollars: 500, $500, 1,000 USD."""
    value = _scaled(re.sub(r"^\s*(USD|\$)|(USD|\$)\s*$", "", text, flags=re.IGNORECASE), "()()")
    if value is None:
        raise typer.BadParameter(f"{text!r} is not an amount of US dollars, in which prices are: write 500")
    return float(value)


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for "-"; what is not UTF-8 is refused."""
    if prompt == "-" and sys.stdin is None:
        raise LichenError("standard input is closed, so there is no prompt to read; give it as an argument")
    try:
        return sys.stdin.buffer.read().decode() if prompt == "-" else prompt.encode().decode()
    except UnicodeError as error:
        raise LichenError(f"the prompt is not UTF-8 text ({error}); convert it first") from error


def _scaled(text: str | float, unit: str) -> Decimal | None:
    """The number in `text`, with its unit: a pattern of two groups, a letter of POWERS and "i" for 1024."""
    found = re.fullmatch(rf"\s*{NUMBER}\s*{unit}\s*", str(text), re.IGNORECASE | re.ASCII)
    if found is None:
        return None
    value, letter, binary = found.groups()
    base = 1024 if binary else 1000
    return Decimal(value.replace(",", "")) * base ** (POWERS[letter.upper()] if letter else 0)
