"""`lichen account`: what a model costs, from its config alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lichen.cli import options
from lichen.cli.output import print_json, print_table, say, say_whole

if TYPE_CHECKING:
    from lichen.arch.account import Account


def account(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH", help="A model of the atlas, a config.json, or a folder with one."
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(parser=options.count, help="Tokens per sequence, for FLOPs and cache. [default: 4096]"),
    ] = None,
    batch: Annotated[int, typer.Option(parser=options.count, help="Sequences in the cache at once.")] = 1,
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
            parser=options.memory,
            metavar="SIZE",
            help="For weights and cache, such as 80G: what context and batch fit?",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exact numbers as JSON.")] = False,
) -> None:
    """Count a model's parameters, FLOPs, cache, weights and optimizer state, without its weights."""
    from lichen.arch.account import account as account_of
    from lichen.arch.published import named_models
    from lichen.atlas.catalogue.spec import spec_of

    result = account_of(spec_of(model), context, batch, dtype, cache, memory)
    named = named_models().get(model)
    source = f"{named.source} ({named.date})" if named else None
    if as_json:
        print_json({"model": model, "source": source, **asdict(result)})
        return
    total = _short(result.total_parameters, 4, PARAMETERS)
    active = _short(result.active_parameters, 2, PARAMETERS)
    say(f"{model}: {total} parameters, {active} active per token", style="bold")
    if source:
        say_whole(f"config: {source}")
    print_table(_table(result))
    say_whole(*(f"Not carried: {note}" for note in result.not_carried))


def _table(result: Account) -> Table:
    """Sections of rows with up to two figures, which the section's title names."""
    footprints = [each for each in (result.bytes_of_model, result.bytes_of_mtp) if each]
    of_mtp = ["model", "MTP layers"] if result.bytes_of_mtp else []
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")

    def section(title: str, *columns: str) -> None:
        table.add_row()
        table.add_row(Text(title, "bold"), *columns)

    def row(label: str, *values: str) -> None:
        table.add_row(f"  {label}", *values)

    section("Parameters", *of_mtp)
    row("total", f"{result.total_parameters:,}", f"{result.parameters['mtp']:,}" if of_mtp else "")
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
        row(f"{point.context:,} tokens", _bytes(point.ideal), _bytes(point.reserved))

    section("Weights", *of_mtp)
    for kind, size in result.bytes_of_model.weights.items():
        if size is not None and (kind in SHOWN or kind == result.released_dtype):
            published = ", as published" if kind == result.released_dtype else ""
            row(kind + published, *(_bytes(each.weights[kind]) for each in footprints))
    if result.engram_bytes is not None:
        row("engram tables, fp8", _bytes(result.engram_bytes))
    row(f"{result.dtype}, and cache of {result.batch:,} x {result.context:,}", _bytes(result.serving_bytes))

    if result.budget:
        section(f"In {_bytes(result.budget.memory)}, {result.dtype}")
        left, longest = result.budget.left_for_cache, result.budget.longest_context
        if left < 0:
            row("missing for the weights alone", _bytes(-left))
        else:
            row("left for the cache", _bytes(left))
            row(f"longest context, {result.batch:,} at once", f"{longest:,} tokens" if longest else "none")
            row(f"most sequences of {tokens}", f"{result.budget.most_sequences:,}")

    section("Training state", *of_mtp)
    row("fp32 masters", *(_bytes(each.fp32_masters) for each in footprints))
    row("fp32 gradients", *(_bytes(each.fp32_gradients) for each in footprints))
    row("AdamW", *(_bytes(each.adamw_state) for each in footprints))
    row("Muon, AdamW for the rest", *(_bytes(each.muon_state) for each in footprints))
    return table


# Storages that mean something for every model; the others are shown where a model was published so.
SHOWN = ("fp32", "bf16", "fp8", "int4")

PARAMETERS = ("", " K", " M", " B")
FLOPS = (" FLOP", " kFLOP", " MFLOP", " GFLOP")


def _bytes(size: int | None) -> str:
    return "" if size is None else _short(size, 4, (" B", " kB", " MB", " GB"))


def _short(value: int, digits: int, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` (powers of 1000) that fits, with at least `digits` digits."""
    power = min((len(str(value)) - 1) // 3, len(units) - 1)
    whole = len(str(value)) - 3 * power
    decimals = max(0, digits - whole) if power else 0
    return f"{value / 1000**power:,.{decimals}f}{units[power]}"
