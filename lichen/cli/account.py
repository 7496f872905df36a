"""`lichen account`: what a model costs, from its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lichen.cli import quantities
from lichen.cli.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from lichen.arch.account import Account
    from lichen.arch.spec import ModelSpec


def account(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH", help="A model of the atlas, a config.json, or a folder with one."
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(
            parser=quantities.count, help="Tokens per sequence, for FLOPs and cache. [default: 4096]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(parser=quantities.count, help="Sequences in the cache at once.")] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(help="Storage of weights: fp32, bf16, fp8, int4, fp4, mxfp4. [default: as published]"),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Layout of the cache: fp32, bf16, fp8, mixed. [default: the family's own]"),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=quantities.memory,
            metavar="SIZE",
            help="For weights and cache, such as 80G: what context and batch fit?",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exact numbers as JSON.")] = False,
) -> None:
    """Count a model's parameters, FLOPs, cache, weights and optimizer state, without its weights."""
    from lichen.arch.account import account as account_of
    from lichen.arch.published import named_models

    result = account_of(_spec(model), context, batch, dtype, cache, memory)
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
    print_table(console, _table(result))
    for note in result.not_carried:
        console.print(f"Not carried: {note}", markup=False, soft_wrap=True)


def _spec(model: str) -> ModelSpec:
    """Models that ship are there at once; for others the catalogue is read, with the user's own."""
    from lichen.arch.published import named_models

    if model in named_models():
        from lichen.arch.families import load_spec

        return load_spec(model)
    from lichen.atlas.catalogue.model import spec_of

    return spec_of(model)


def _table(result: Account) -> Table:
    """Sections of rows with up to two figures, which the section's title names."""
    from rich.table import Table

    model, mtp = result.bytes_of_model, result.bytes_of_mtp
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    of_mtp = ["model", "MTP layers"] if mtp else []

    def section(title: str, *columns: str) -> None:
        table.add_row()
        table.add_row(f"[bold]{title}[/bold]", *columns)

    def row(label: str, *values: str) -> None:
        table.add_row(f"  {label}", *values)

    section("Parameters", *of_mtp)
    row("total", f"{result.total_parameters:,}", f"{result.parameters['mtp']:,}" if mtp else "")
    row("active per token", f"{result.active_parameters:,}")
    for part, count in result.parameters.items():
        if count and part != "mtp":
            beside = ", beside the total" if part == "engram_tables" else ""
            row(part.replace("_", " ") + beside, f"{count:,}")

    tokens = f"{result.context:,} tokens"
    section("FLOPs per token")
    row(f"forward, mean over {tokens}", _short(result.flops_per_token.forward, 4, FLOPS))
    row("training, forward and backward", _short(result.flops_per_token.training, 4, FLOPS))
    row(f"decode, {tokens} in the cache", _short(result.flops_per_token.decode, 4, FLOPS))

    section(f"Cache of one sequence, {result.cache_layout}", "ideal", "reserved")
    if result.cache_bytes_per_token is not None:
        row("every token", f"{result.cache_bytes_per_token:,} B")
    for point in result.cache:
        row(f"{point.context:,} tokens", _short(point.ideal, 4, BYTES), _short(point.reserved, 4, BYTES))

    def footprint(label: str, size: int, size_of_mtp: int | None) -> None:
        row(label, _short(size, 4, BYTES), "" if size_of_mtp is None else _short(size_of_mtp, 4, BYTES))

    section("Weights", *of_mtp)
    for kind, size in model.weights.items():
        if size is not None and (kind in SHOWN or kind == result.released_dtype):
            published = ", as published" if kind == result.released_dtype else ""
            footprint(kind + published, size, mtp.weights[kind] if mtp else None)
    if result.engram_bytes is not None:
        row("engram tables, fp8", _short(result.engram_bytes, 4, BYTES))
    row(
        f"{result.dtype}, and cache of {result.batch:,} x {result.context:,}",
        _short(result.serving_bytes, 4, BYTES),
    )

    if result.budget:
        section(f"In {_short(result.budget.memory, 4, BYTES)}, {result.dtype}")
        left, longest = result.budget.left_for_cache, result.budget.longest_context
        if left < 0:
            row("missing for the weights alone", _short(-left, 4, BYTES))
        else:
            row("left for the cache", _short(left, 4, BYTES))
            row(f"longest context, {result.batch:,} at once", f"{longest:,} tokens" if longest else "none")
            row(f"most sequences of {tokens}", f"{result.budget.most_sequences:,}")

    section("Training state", *of_mtp)
    footprint("fp32 masters", model.fp32_masters, mtp.fp32_masters if mtp else None)
    footprint("fp32 gradients", model.fp32_gradients, mtp.fp32_gradients if mtp else None)
    footprint("AdamW", model.adamw_state, mtp.adamw_state if mtp else None)
    footprint("Muon, AdamW for the rest", model.muon_state, mtp.muon_state if mtp else None)
    return table


# Storages that mean something for every model; the others are shown where a model was published so.
SHOWN = ("fp32", "bf16", "fp8", "int4")

PARAMETERS = ("", " K", " M", " B")
FLOPS = (" FLOP", " kFLOP", " MFLOP", " GFLOP")
BYTES = (" B", " kB", " MB", " GB")


def _short(value: int, digits: int, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` (powers of 1000) that fits, with at least `digits` digits."""
    power = min((len(str(value)) - 1) // 3, len(units) - 1)
    whole = len(str(value)) - 3 * power
    decimals = max(0, digits - whole) if power else 0
    return f"{value / 1000**power:,.{decimals}f}{units[power]}"
