"""Numbers with units, as options take them."""

from __future__ import annotations

import pytest
import typer

from lichen.cli.options import count, dollars, memory, number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("15T", 15 * 10**12),
        ("14.8 t", 14_800_000_000_000),
        ("500b", 5 * 10**11),
        ("1M", 1_000_000),
        ("256Ki", 262_144),
        ("1Mi", 1_048_576),
        ("8,192", 8192),
        ("14.8e12", 14_800_000_000_000),
        ("-5", -5),
        (8192, 8192),
    ],
)
def test_counts(text: str | int, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize(
    "text", ["", "T", "15X", "1.5", "nan", "inf", "15 T T", "8,19", "1e999", "0x10", "1_000", "٣", "15\n\0"]
)
def test_texts_that_are_no_count(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a whole number: write one like 8192, 256Ki"):
        count(text)


def test_numbers_and_money() -> None:
    assert [number(text) for text in ("2.5", "10K", "1e3")] == [2.5, 10_000, 1000]
    assert [dollars(text) for text in ("500", "$1,000", "12.50 usd", "-5")] == [500, 1000, 12.5, -5]
    for text in ("5EUR", "100 €", "$", "$5$$", "5K dollars"):
        with pytest.raises(typer.BadParameter, match="is not an amount of US dollars, in which prices are"):
            dollars(text)
    with pytest.raises(typer.BadParameter, match="is not a number"):
        number("some")


@pytest.mark.parametrize("size", ["80G", "80GB", "80 gb", "80000M", "0.08T", "80,000,000,000 B", "8e10"])
def test_sizes(size: str) -> None:
    assert memory(size) == 80 * 10**9
    assert memory("74.505805969238281GiB") == pytest.approx(80 * 10**9, abs=1)
    with pytest.raises(typer.BadParameter, match="is not a size: write a number with a unit, as 80G"):
        memory("much")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["cost", "kimi-k2", "--tokens", "15 trillion"], "'--tokens': '15 trillion' is not a whole number"),
        (
            ["cost", "kimi-k2", "--tokens", "1T", "--price-per-hour", "2EUR"],
            "'--price-per-hour': '2EUR' is not",
        ),
        (["fits", "kimi-k2", "--context", "long"], "'--context': 'long' is not a whole number"),
        (
            ["advise", "--for", "cost", "--budget", "5EUR"],
            "'--budget': '5EUR' is not an amount of US dollars",
        ),
        (["price", "kimi-k2", "--requests", "many"], "'--requests': 'many' is not a number"),
    ],
)
def test_an_option_is_named_with_what_it_takes(run, command: list[str], complaint: str) -> None:
    done = run(*command)
    assert (done.status, done.out) == (2, "")
    assert complaint in done.err
    assert done.err.count("\n") == 1


def test_the_same_units_for_every_verb(run) -> None:
    assert "cache for 4 x 262,144 tokens" in " ".join(
        run("fits", "kimi-k2.6", "--gpu", "h200:8", "--context", "256Ki", "--batch", "4").out.split()
    )
    assert "1,000,000 tokens of context" in run("advise", "--for", "agent", "--context", "1M").out
    assert "8,000 tokens in, 1,000 out; 10,000 requests a day" in " ".join(
        run("price", "kimi-k2.6", "--input", "8K", "--output", "1K", "--requests", "10K").out.split()
    )
