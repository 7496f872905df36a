"""`lichen fits`: whether a model runs on a machine, how much of it, and how fast at best."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lichen.cli import options
from lichen.cli.output import plain_table, print_json, print_table, say, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.machine.devices import Machine
    from lichen.machine.fits import Alternative, Fit


def fits(
    model: options.SpecName,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:COUNT]", help="A machine, like h200:8; repeatable. [default: one of each]"
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(help="Storage of the weights: bf16, fp8, int4, q4, q6, ... [default: as published]"),
    ] = None,
    context: Annotated[int, typer.Option(parser=options.count, help="Tokens of each sequence.")] = 8192,
    batch: Annotated[int, typer.Option(parser=options.count, help="Sequences at once.")] = 1,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            parser=options.dollars,
            metavar="USD",
            help="Rent of one device; adds what a million tokens costs.",
        ),
    ] = None,
    as_of: options.AsOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="Exact numbers as JSON, with sources.")] = False,
) -> None:
    """Does a model fit, what is left for its cache, and an estimate of its speed."""
    from lichen.atlas.catalogue.spec import spec_of
    from lichen.facts.record import parse_as_of
    from lichen.machine.devices import load, parse
    from lichen.machine.fits import ASSUMPTIONS, alternatives
    from lichen.machine.fits import fits as fit

    day = parse_as_of(as_of)
    machines = [parse(text, day) for text in dict.fromkeys(gpu or load(day))]
    if not machines:
        raise LichenError(f"no device is known whose figures were published by {day}")
    spec = spec_of(model, day)
    found = [(machine, fit(spec, machine, quant, context, batch, price_per_hour)) for machine in machines]
    instead = {
        machine.name: [] if each.fits else alternatives(spec, machine, quant, context, batch)
        for machine, each in found
    }
    if as_json:
        content = {
            "model": model,
            "as_of": day,
            "context": context,
            "batch": batch,
            "engram_bytes": spec.engram.table_bytes if spec.engram else None,
            "machines": [
                {"machine": machine.name, **asdict(each), "left": each.left}
                | {
                    "would_fit": [
                        asdict(way) | {"command": _command(model, machine, way, as_of)}
                        for way in instead[machine.name]
                    ]
                }
                | {"device": machine.device.model_dump(), "usable": machine.usable.model_dump()}
                for machine, each in found
            ],
            "speeds_are": "estimates",
            "assumptions": ASSUMPTIONS,
        }
        print_json(content)
        return
    from lichen.atlas.market import words

    first = found[0][1]
    say(
        f"{model}: {words.gib(first.weight_bytes)} of weights ({first.quant}), "
        f"{words.gib(first.cache_bytes)} of cache for {batch:,} x {context:,} tokens",
        style="bold",
    )
    print_table(_table(found, context, priced=price_per_hour is not None))
    if any(instead.values()):
        say("\nWhat would fit there:")
        for machine, each in found:
            if ways := instead[machine.name]:
                changes = ", or ".join(_changes(machine, each, context, batch, way) for way in ways)
                say_whole(f"- {machine.name}: {changes}")
                say_whole(f"    {_command(model, machine, ways[0], as_of)}")
    if spec.engram:
        tables = words.gib(spec.engram.table_bytes)
        say(f"Beside it {tables} of n-gram tables, which engines keep outside the device.")
    bounds = "speeds are estimates" if price_per_hour is None else "speeds and costs are estimates"
    say(f"\nThe {bounds}, bounds that nobody reaches:")
    say_whole(*(f"- {text}" for text in ASSUMPTIONS))
    say("Figures:")
    figures = dict.fromkeys([*map(_figures, machines), *map(_share, machines)])
    say_whole(*(f"- {text}" for text in figures))


def _table(found: list[tuple[Machine, Fit]], context: int, priced: bool) -> Table:
    from lichen.atlas.market.words import UNKNOWN

    amounts = ["usable GiB", "for cache", "longest context", f"x {context:,}"]
    speeds = ["decode tok/s", "prefill tok/s", *(["USD/M out", "USD/M in"] if priced else [])]
    table = plain_table("", "fits", *amounts, *speeds, whole=[""], right=[*amounts, *speeds])
    for machine, fit in found:
        rates = [fit.decode, fit.prefill, *((fit.decode_usd, fit.prefill_usd) if priced else ())]
        table.add_row(
            machine.name,
            Text("yes", "green") if fit.fits else Text("no", "red"),
            f"{fit.memory / 2**30:,.1f}",
            f"{fit.left / 2**30:,.1f}",
            f"{fit.longest_context:,}" if fit.longest_context else "-",
            f"{fit.most_sequences:,}" if fit.most_sequences else "-",
            *("-" if not fit.fits else UNKNOWN if rate is None else _rough(rate) for rate in rates),
        )
    return table


def _changes(machine: Machine, fit: Fit, context: int, batch: int, way: Alternative) -> str:
    changes = [f"weights as {way.quant}"] if way.quant != fit.quant else []
    changes += [f"{way.context:,} tokens"] if way.context != context else []
    changes += [f"{way.batch:,} sequence{'s' * (way.batch > 1)}"] if way.batch != batch else []
    changes += [f"{way.count:,} of them"] if way.count != machine.count else []
    return " and ".join(changes)


def _command(model: str, machine: Machine, way: Alternative, as_of: str | None) -> str:
    """What asks for `way`."""
    several = f":{way.count}" if way.count > 1 else ""
    command = ["lichen", "fits", model, "--gpu", machine.device_name + several, "--quant", way.quant]
    command += ["--context", str(way.context), *(["--batch", str(way.batch)] if way.batch > 1 else [])]
    return shlex.join([*command, *(["--as-of", as_of] if as_of else [])])


def _rough(rate: float) -> str:
    """Two digits: an estimate has no more."""
    return f"{float(f'{rate:.2g}'):,g}"


def _figures(machine: Machine) -> str:
    device = machine.device
    rates = (
        f"{rate / 1e12:,.4g} TFLOPS {name}"
        for name, rate in (("bf16", device.bf16_flops), ("FP8", device.fp8_flops))
        if rate
    )
    figures = (f"{device.memory / 1e9:g} GB", f"{device.bandwidth / 1e9:,g} GB/s", *rates)
    note = f"; {device.note}" if device.note else ""
    return f"{device.title}: {', '.join(figures)} ({device.source}, {device.date}{note})"


def _share(machine: Machine) -> str:
    share = f"{machine.usable.share:.0%} of the memory of a {machine.device.kind} is used"
    return f"{share}: {machine.usable.note} ({machine.usable.source})"
