"""`lichen price`: what models cost through an API, and what a workload costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lichen.cli import options
from lichen.cli.output import plain_table, print_json, print_table, say, say_whole

if TYPE_CHECKING:
    from datetime import datetime

    from lichen.atlas.catalogue.model import Model
    from lichen.atlas.market.workloads import Offer, Workload


def price(
    names: options.CatalogueNames,
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
        int | None,
        typer.Option("--input", parser=options.count, help="Prompt tokens of a request: your own workload."),
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output", parser=options.count, help="Output tokens of a request.")
    ] = None,
    cached: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the prompt read from the cache.")
    ] = None,
    requests: Annotated[float, typer.Option(parser=options.number, help="Requests a day.")] = 1000,
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
    from lichen.atlas.catalogue.model import load
    from lichen.atlas.market.prices import moment
    from lichen.atlas.market.workloads import chosen, offers, reference_model
    from lichen.facts.record import parse_as_of

    day = parse_as_of(as_of)
    catalogue = load(as_of=day)
    when = moment(day, at)
    reference = reference_model(catalogue, against)
    workloads = chosen(workload, input_tokens, output_tokens, cached, hours, requests)
    found = [
        offer
        for name in dict.fromkeys(names)
        for offer in offers(catalogue.get(name), provider, workloads, reference, when)
    ]
    if as_json:
        print_json(_json(found, workloads, when, reference))
    else:
        _print(found, workloads, when, reference)


def _json(
    offers: list[Offer], workloads: dict[str, Workload], when: datetime, reference: Model | None
) -> dict[str, Any]:
    from lichen.atlas.market.prices import table

    name, newest = table()
    return {
        "at": when.isoformat(timespec="minutes"),
        "table": {"name": name, "newest_entry": newest},
        "against": reference and reference.name,
        "workloads": {name: asdict(workload) for name, workload in workloads.items()},
        "offers": [
            {
                "model": offer.model.name,
                "provider": offer.provider,
                "prices": [
                    {**asdict(price), "hours": price.window or None, "in_force": price.holds(when)}
                    for price in offer.prices
                ],
                "costs": {
                    name: {
                        "usd_per_request": cost and cost.per_request,
                        "usd_per_day": cost and cost.per_day,
                        "ratio": offer.ratios[name],
                    }
                    for name, cost in offer.costs.items()
                },
            }
            for offer in offers
        ],
    }


def _print(
    offers: list[Offer], workloads: dict[str, Workload], when: datetime, reference: Model | None
) -> None:
    from lichen.atlas.market import words
    from lichen.atlas.market.prices import table
    from lichen.atlas.market.workloads import sellers_of

    say(f"USD per million tokens on {when:%Y-%m-%d}", style="bold")
    print_table(_rates(offers, when))
    spread = any(workload.hours is not None for workload in workloads.values())
    moment = f"spread over the day {when:%Y-%m-%d}" if spread else f"at {when:%Y-%m-%d %H:%M} UTC"
    against = f", and against {reference.name}" if reference else ""
    say(f"\nCost {moment}: of a request, of a day{against}", style="bold")
    costs = plain_table("", "", *workloads)
    for offer in offers:
        cells = []
        for name, cost in offer.costs.items():
            ratio = f"  {words.share(offer.ratios[name])}" if reference else ""
            known = cost and f"{words.usd(cost.per_request)}  {words.usd(cost.per_day)}/day{ratio}"
            cells.append(known or words.UNKNOWN)
        costs.add_row(offer.model.name, offer.provider, *cells)
    print_table(costs)
    for name, workload in workloads.items():
        say(f"{name}: {words.workload(workload)}")
    unknown = {offer.model.name: offer.model for offer in offers if not offer.prices}
    if unknown:
        say(
            f"UNKNOWN: no price on {when:%Y-%m-%d} for {', '.join(unknown)}. That is not free of charge.",
            style="bold red",
        )
        say_whole(*(f"{name}: {sellers_of(model, when)}" for name, model in unknown.items()))
    name, newest = table()
    say(f"Prices: {name}, newest entry {newest}; `lichen atlas show MODEL` gives every source.")


def _rates(offers: list[Offer], when: datetime) -> Table:
    from lichen.atlas.market import words

    table = plain_table("", "", "in", "out", "cached", "since", "when")
    for offer in offers:
        for index, price in enumerate(offer.prices):
            table.add_row(
                *(("", "") if index else (offer.model.name, offer.provider)),
                f"{price.input:g}",
                f"{price.output:g}",
                "as in" if price.cache_read is None else f"{price.cache_read:g}",
                str(price.since),
                words.price_condition(price) + (" (in force)" if price.hours and price.holds(when) else ""),
            )
        if not offer.prices:
            table.add_row(offer.model.name, offer.provider, *[words.UNKNOWN] * 3)
    return table
