"""`lichen cost`: what it takes to train a model once."""

from dataclasses import asdict
from typing import Annotated

import typer

from lichen.cli import options
from lichen.cli.output import print_json, say_whole


def cost(
    model: options.SpecName,
    tokens: Annotated[
        int, typer.Option(parser=options.count, help="Tokens of the run: 15T, 500B, or a number.")
    ],
    gpu: Annotated[str, typer.Option(help="The device, like h800.")] = "h100",
    mfu: Annotated[float, typer.Option(help="Share of the device's dense bf16 rate that is got.")] = 0.35,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", parser=options.dollars, help="USD per device and hour. [default: unknown]"
        ),
    ] = None,
    seq_len: Annotated[int, typer.Option(parser=options.count, help="Tokens per sequence.")] = 4096,
    as_of: options.AsOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="Exact numbers as JSON.")] = False,
) -> None:
    """Estimate the FLOPs, GPU hours and money of a training run, next to one whose hours are published."""
    from lichen.atlas.catalogue.spec import spec_of
    from lichen.atlas.market import words
    from lichen.facts.record import parse_as_of
    from lichen.machine.devices import parse
    from lichen.machine.training_cost import CALIBRATION, NOT_COUNTED, calibrate, estimate

    day = parse_as_of(as_of)
    machine = parse(gpu, day)
    device = machine.device
    found = estimate(spec_of(model, day), tokens, device, mfu, price_per_hour, seq_len)
    check = calibrate()
    days = found.gpu_hours / machine.count / 24 if machine.count > 1 else None
    if as_json:
        about = {"model": model, "as_of": day, "device": gpu}
        beside = {"not_counted": NOT_COUNTED, "calibration": asdict(CALIBRATION) | {"mfu": check}}
        print_json(about | asdict(found) | {"days": days, "is": "an estimate"} | beside)
        return
    usd = words.UNKNOWN + ": give --price-per-hour" if found.usd is None else f"{words.count(found.usd)} USD"
    lines = [
        f"{model} on {words.count(found.tokens)} tokens: an estimate",
        f"  FLOPs       {found.flops:.3g}, {found.flops_per_token / 1e9:,.1f} G per token",
        f"  GPU hours   {words.count(found.gpu_hours)} of {device.title} at {mfu:.0%} of bf16's "
        f"{device.bf16_flops / 1e12 if device.bf16_flops else 0:,.4g} TFLOPS",
        f"  money       {usd}",
        *([f"  time        {days:,.1f} days on {machine.count:,} of them"] if days else []),
        f"Not counted: {', '.join(NOT_COUNTED)}.",
        f"For comparison: {CALIBRATION.title}'s {words.count(CALIBRATION.gpu_hours)} "
        f"{CALIBRATION.gpu.upper()} hours for {words.count(CALIBRATION.tokens)} tokens are {check:.1%} "
        f"({CALIBRATION.source}).",
        f"Device: {device.source}, {device.date}.",
    ]
    say_whole(*lines)
