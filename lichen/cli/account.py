"""`lichen account`: what a model costs, from its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lichen.spec.account import Account


def account(
    model: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="A shipped model, a config.json, or a folder with one.")
    ],
    context: Annotated[
        int | None, typer.Option(help="Tokens per sequence, for FLOPs and cache. [default: 4096]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences in the cache at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="Storage of weights and cache: fp32, bf16, fp8, int4.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Print exact numbers as JSON.")] = False,
) -> None:
    """Count a model's parameters, FLOPs, cache, weights and optimizer state, without its weights."""
    from lichen.spec.account import account as account_of
    from lichen.spec.families import load_spec
    from lichen.spec.named import named_models

    result = account_of(load_spec(model), context, batch, dtype)
    named = named_models().get(model)
    source = f"{named.source} ({named.date})" if named else None
    if as_json:
        print(json.dumps({"model": model, "source": source, **asdict(result)}, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    total = _short(result.total_parameters, 4, PARAMETERS)
    active = _short(result.active_parameters, 2, PARAMETERS)
    console.print(f"{model}: {total} parameters, {active} active per token", style="bold", markup=False)
    if source:
        console.print(f"config: {source}", markup=False, soft_wrap=True)
    console.print(_table(result))
    for note in result.not_carried:
        console.print(f"Not carried: {note}", markup=False, soft_wrap=True)


def _table(result: Account) -> Table:
    """Sections of rows; a second column for the multi-token-prediction layers where there are any."""
    from rich.table import Table

    model, mtp = result.bytes_of_model, result.bytes_of_mtp
    table = Table(box=None, padding=(0, 2), show_header=mtp is not None)
    table.add_column()
    table.add_column("model", justify="right")
    if mtp:
        table.add_column("MTP layers", justify="right")

    def section(title: str) -> None:
        table.add_row()
        table.add_row(f"[bold]{title}[/bold]")

    def row(label: str, *values: str) -> None:
        table.add_row(f"  {label}", *values)

    section("Parameters")
    row("total", f"{result.total_parameters:,}", f"{result.parameters['mtp']:,}" if mtp else "")
    row("active per token", f"{result.active_parameters:,}")
    for part, count in result.parameters.items():
        if count and part != "mtp":
            row(part.replace("_", " "), f"{count:,}")

    tokens = f"{result.context:,} tokens"
    section("FLOPs per token")
    row(f"forward, mean over {tokens}", _short(result.flops_per_token.forward, 4, FLOPS))
    row("training, forward and backward", _short(result.flops_per_token.training, 4, FLOPS))
    row(f"decode with {tokens} in the cache", _short(result.flops_per_token.decode, 4, FLOPS))

    section("KV cache")
    if result.cache_bytes_per_token is not None:
        row(f"per token, {result.cache_layout}", f"{result.cache_bytes_per_token:,} B")
    row(f"{result.batch:,} x {tokens}, {result.cache_layout}", _short(result.cache_bytes.reserved, 4, BYTES))

    def footprint(label: str, of_model: int | None, of_mtp: int | None) -> None:
        if of_model is not None:
            row(
                label, _short(of_model, 4, BYTES), *([_short(of_mtp, 4, BYTES)] if of_mtp is not None else [])
            )

    section("Weights")
    for kind, of_model in model.weights.items():
        footprint(kind, of_model, mtp.weights[kind] if mtp else None)
    row(f"{result.dtype}, with the cache above", _short(result.serving_bytes, 4, BYTES))

    section("Training state")
    footprint("fp32 masters", model.fp32_masters, mtp.fp32_masters if mtp else None)
    footprint("fp32 gradients", model.fp32_gradients, mtp.fp32_gradients if mtp else None)
    footprint("AdamW", model.adamw_state, mtp.adamw_state if mtp else None)
    footprint("Muon, AdamW for the rest", model.muon_state, mtp.muon_state if mtp else None)
    return table


PARAMETERS = ("", " K", " M", " B")
FLOPS = (" FLOP", " kFLOP", " MFLOP", " GFLOP")
BYTES = (" B", " kB", " MB", " GB")


def _short(value: int, digits: int, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` (powers of 1000) that fits, with at least `digits` digits."""
    power = min((len(str(value)) - 1) // 3, len(units) - 1)
    whole = len(str(value)) - 3 * power
    decimals = max(0, digits - whole) if power else 0
    return f"{value / 1000**power:,.{decimals}f}{units[power]}"
