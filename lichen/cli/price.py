"""`lichen price`: what models cost through an API, and what a workload costs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from lichen.atlas.catalogue import Model
    from lichen.atlas.prices import Price
    from lichen.atlas.workloads import Workload


def price(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models of `lichen atlas list`.")],
    provider: Annotated[
        str | None, typer.Option(help="Who sells it, or `all`. [default: the first of the model's file]")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The model that the costs are compared with. [default: gpt-5.5]")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one: blend, output-heavy or agentic.")
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option("--input", min=0, help="Prompt tokens of a request: your own workload.")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output", min=0, help="Output tokens of a request.")
    ] = None,
    cached: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the prompt read from the cache.")
    ] = None,
    requests: Annotated[float, typer.Option(min=0, help="Requests a day.")] = 1000,
    hours: Annotated[
        str | None,
        typer.Option(metavar="8-18,20", help="UTC hours over which they spread evenly. [default: now]"),
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="DATE", help="The prices of that day. [default: today]")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="HH:MM", help="Time of that day, UTC.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Exact numbers as JSON.")] = False,
) -> None:
    """Prices with their dates and hours, the cost of a workload, and its ratio to another model's."""
    from lichen.atlas.catalogue import load
    from lichen.atlas.facts import parse_as_of
    from lichen.atlas.prices import moment
    from lichen.atlas.workloads import chosen, reference_model

    day = parse_as_of(as_of)
    catalogue = load(as_of=day)
    when = moment(day, at)
    reference = reference_model(catalogue, against)
    workloads = {
        name: replace(item, requests_per_day=requests)
        for name, item in chosen(workload, input_tokens, output_tokens, cached, hours).items()
    }
    offers = [
        offer for name in dict.fromkeys(names) for offer in _offers(catalogue.get(name), provider, when)
    ]
    costs = [_costs(model, seller, reference, workloads, when) for model, seller in offers]
    prices = [_prices(model, seller, when) for model, seller in offers]
    if as_json:
        print(_json(offers, prices, costs, workloads, when, reference))
    else:
        _show(offers, prices, costs, workloads, when, reference)


def _offers(model: Model, provider: str | None, when: datetime) -> list[tuple[Model, str | None]]:
    """The model with each seller that is asked for; None where nobody is known to sell it."""
    from lichen.atlas.prices import check_provider, default_provider, prices_on, providers

    if provider == "all":
        selling = [name for name in providers(model) if prices_on(model, name, when.date())]
        return [(model, name) for name in selling] or [(model, None)]
    if provider is not None:
        check_provider(model, provider)
    return [(model, provider or default_provider(model, when.date()))]


def _prices(model: Model, provider: str | None, when: datetime) -> list[Price]:
    from lichen.atlas.prices import prices_on

    return prices_on(model, provider, when.date()) if provider else []


def _costs(
    model: Model,
    provider: str | None,
    reference: Model | None,
    workloads: dict[str, Workload],
    when: datetime,
) -> dict[str, dict[str, float | None]]:
    """Per workload: USD per request and per day, and the ratio to the reference; None is unknown."""
    from lichen.atlas.workloads import cost, ratio

    found: dict[str, dict[str, float | None]] = {}
    for name, workload in workloads.items():
        amount = cost(model, workload, provider, when) if provider else None
        found[name] = {
            "usd_per_request": amount.per_request if amount else None,
            "usd_per_day": amount.per_day if amount else None,
            "ratio": ratio(model, reference, workload, when, provider) if provider and reference else None,
        }
    return found


def _json(
    offers: list[tuple[Model, str | None]],
    prices: list[list[Price]],
    costs: list[dict[str, dict[str, float | None]]],
    workloads: dict[str, Workload],
    when: datetime,
    reference: Model | None,
) -> str:
    from lichen.atlas.prices import table

    name, newest = table()
    content: dict[str, Any] = {
        "at": when.isoformat(timespec="minutes"),
        "table": {"name": name, "newest_entry": newest},
        "against": reference and reference.name,
        "workloads": {name: asdict(workload) for name, workload in workloads.items()},
        "offers": [
            {
                "model": model.name,
                "provider": provider,
                "prices": [
                    {
                        **asdict(price),
                        "hours": price.window or None,
                        "in_force": price.holds(when),
                    }
                    for price in found
                ],
                "costs": cost,
            }
            for (model, provider), found, cost in zip(offers, prices, costs, strict=True)
        ],
    }
    return json.dumps(content, indent=2, default=str)


def _show(
    offers: list[tuple[Model, str | None]],
    prices: list[list[Price]],
    costs: list[dict[str, dict[str, float | None]]],
    workloads: dict[str, Workload],
    when: datetime,
    reference: Model | None,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from lichen.atlas import words
    from lichen.atlas.prices import table

    console = Console(highlight=False)
    rates = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "", "in", "out", "cached", "since"):
        rates.add_column(heading, no_wrap=True)
    rates.add_column("when")
    for (model, provider), found in zip(offers, prices, strict=True):
        for index, price in enumerate(found):
            rates.add_row(
                "" if index else model.name,
                "" if index else provider,
                f"{price.input:g}",
                f"{price.output:g}",
                "as in" if price.cache_read is None else f"{price.cache_read:g}",
                str(price.since),
                words.price_condition(price) + (" (in force)" if price.hours and price.holds(when) else ""),
            )
        if not found:
            rates.add_row(model.name, provider, words.UNKNOWN, words.UNKNOWN, words.UNKNOWN)
    console.print(f"USD per million tokens on {when:%Y-%m-%d}", style="bold")
    console.print(rates)
    spread = any(workload.hours is not None for workload in workloads.values())
    moment = f"spread over the day {when:%Y-%m-%d}" if spread else f"at {when:%Y-%m-%d %H:%M} UTC"
    against = f", and against {reference.name}" if reference else ""
    console.print(f"\nCost {moment}: of a request, of a day{against}", style="bold")
    amounts = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "", *workloads):
        amounts.add_column(heading, no_wrap=heading == "")
    for (model, provider), cost in zip(offers, costs, strict=True):
        amounts.add_row(model.name, provider, *(_amount(item, bool(reference)) for item in cost.values()))
    console.print(amounts)
    for name, workload in workloads.items():
        console.print(f"{name}: {words.workload(workload)}", markup=False)
    unknown = sorted({model.name for (model, _), found in zip(offers, prices, strict=True) if not found})
    if unknown:
        console.print(
            f"UNKNOWN: no price on {when:%Y-%m-%d} for {', '.join(unknown)}. That is not free of charge.",
            style="bold red",
            markup=False,
        )
    name, newest = table()
    console.print(f"Prices: {name}, newest entry {newest}; `lichen atlas show MODEL` gives every source.")


def _amount(cost: dict[str, float | None], compared: bool) -> str:
    from lichen.atlas import words

    request, day = cost["usd_per_request"], cost["usd_per_day"]
    if request is None or day is None:
        return words.UNKNOWN
    ratio = f"  {words.share(cost['ratio'])}" if compared else ""
    return f"{words.usd(request)}  {words.usd(day)}/day{ratio}"
