"""What the page shows of a model's prices: who sells it, the rates of a day's hours, and their history.

Which price holds when is decided here; the page only weighs the rates by its reader's numbers of tokens.
"""

from dataclasses import replace
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import Any

from lichen.atlas.catalogue.model import Model
from lichen.atlas.market.prices import Price, history, in_force

KINDS = ("input", "output", "cache_read")


def offers(model: Model, day: date) -> list[dict[str, Any]]:
    """Of each provider that has sold `model` up to `day`: its prices, and which of them hold on that day.

    `tiers`: for prompts of at least `from` tokens, which of `rows` holds at each UTC hour; None: no one.
    """
    found = []
    known = [price for price in history(model) if price.since is None or price.since <= day]
    for provider in dict.fromkeys(price.provider for price in known):
        rows = [price for price in known if price.provider == provider]
        today = [price for price in rows if price.holds_on(day)]
        tiers = []
        for start in sorted({0} | {price.above + 1 for price in today if price.above}):
            held = [in_force(rows, hour, start) for hour in _hours(day)]
            tiers.append({"from": start, "hours": [rows.index(price) if price else None for price in held]})
        found.append(
            {
                "provider": provider,
                "rows": [_row(price) for price in rows],
                "tiers": tiers,
                "hourly": any(price.hours for price in today),
                "sources": "; ".join(dict.fromkeys(price.told_by for price in today)),
                "bands": _bands(rows, day),
            }
        )
    return found


def _row(price: Price) -> dict[str, Any]:
    return {
        "since": price.since,
        "until": price.until,
        "input": price.input,
        "output": price.output,
        "cache_read": price.cache_read,
        "cached": price.cached,
        "holds": _holds(price),
        "source": price.told_by,
    }


def _bands(rows: list[Price], day: date) -> list[dict[str, Any]]:
    """From one change of prices to the next: the lowest and highest rate of each kind over a working day's
    hours, for short prompts; None where it costs nothing or is not listed."""
    bands = []
    changes = {change for price in rows for change in (price.since, price.until) if change and change < day}
    working = [replace(price, weekdays_only=False) for price in rows]
    for since, until in pairwise([*sorted(changes), day]):
        held = [price for hour in _hours(since) if (price := in_force(working, hour))]
        band: dict[str, Any] = {"since": since, "until": until}
        for kind in KINDS:
            rates = [rate for price in held if (rate := getattr(price, kind))]
            band[kind] = [min(rates), max(rates)] if rates else None
        if held:
            bands.append(band)
    return bands


def _holds(price: Price) -> str:
    spans = [f"{_hour(start):g}–{_hour(end):g} h UTC" for start, end in price.hours or ()]
    days = ["Mon–Fri"] if price.weekdays_only else []
    above = [f"prompts above {price.above:,}"] if price.above else []
    return ", ".join((spans or ["all day"]) + days + above)


def _hour(moment: time) -> float:
    return moment.hour + moment.minute / 60


def _hours(day: date) -> list[datetime]:
    return [datetime.combine(day, time(hour), UTC) for hour in range(24)]
