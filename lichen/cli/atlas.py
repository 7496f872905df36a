"""`lichen atlas`: the catalogue of models, a place for the user's own, and the atlas as a page."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lichen.cli import options
from lichen.cli.output import plain_table, print_json, print_table, print_text, say, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.atlas.catalogue.model import Catalogue, Model

atlas = typer.Typer(
    name="atlas", help="Real models: facts with sources, scores, prices.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@atlas.command("list")
def list_models(as_of: options.AsOf = None, as_json: AsJson = False) -> None:
    """List the models that were out, with what they are in a line."""
    from lichen.atlas.catalogue.model import load
    from lichen.atlas.market.compare import fact_cell
    from lichen.facts.record import parse_as_of

    catalogue = load(as_of=parse_as_of(as_of))
    fields = ("release", "total_parameters", "active_parameters", "context", "license")
    rows = {
        name: {field: fact_cell(model, field, others=False) for field in fields}
        for name, model in catalogue.models.items()
    }
    if as_json:
        content = {name: {field: cell.value for field, cell in cells.items()} for name, cells in rows.items()}
        print_json({"as_of": catalogue.as_of, "models": content})
        return
    whole = ("", "release", "total", "active", "context")
    table = plain_table(*whole, "license", whole=whole)
    for name, cells in sorted(rows.items(), key=lambda item: item[1]["release"].text):
        table.add_row(name, *(cell.text for cell in cells.values()))
    print_table(table)
    say(f"As known on {catalogue.as_of}; `lichen atlas show MODEL` gives every source.")


@atlas.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model of `lichen atlas list`.")],
    as_of: options.AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a model: every fact, score and price with its source and date."""
    from lichen.atlas.catalogue.model import load
    from lichen.facts.record import parse_as_of

    catalogue = load(as_of=parse_as_of(as_of))
    model = catalogue.get(name)
    if as_json:
        print_json(_everything(model, catalogue))
        return
    say(f"{model.title}, {model.lab}, {model.country}", style="bold")
    _print_facts(model)
    _print_prices(model)


@atlas.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files like the catalogue's.")],
) -> None:
    """Check model files; say file, line and field of what is wrong."""
    from lichen.atlas.catalogue.model import load, read_model
    from lichen.atlas.market.prices import check_references

    load(files)
    for path in files:
        check_references(read_model(path))
        print_text(f"{path}: good")


@atlas.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model file like the catalogue's.")],
) -> None:
    """Check a model file and keep it among your own models, in ~/.config/lichen/atlas."""
    from lichen.atlas.catalogue.model import add as add_model
    from lichen.atlas.catalogue.model import read_model
    from lichen.atlas.market.prices import check_references

    check_references(read_model(file))
    model, kept = add_model(file)
    print_text(f"{model.title} is kept in {kept}; `lichen atlas show {model.name}` shows it")


@atlas.command()
def build(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("atlas.html"),
    as_of: options.AsOf = None,
) -> None:
    """Write the atlas as one HTML file that needs no network and no server."""
    from lichen.atlas.page import build as build_page
    from lichen.facts.record import parse_as_of
    from lichen.files.atomic import write_text

    if out.is_dir():
        raise LichenError(f"--out {out} is a folder: name a file in it, like {out / 'atlas.html'}")
    page = build_page(parse_as_of(as_of))
    write_text(out, page)
    print_text(f"{out}: {len(page.encode()) / 1000:,.0f} kB; open it in a browser")


@atlas.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8642,
    as_of: options.AsOf = None,
) -> None:
    """Serve the same page until Ctrl-C."""
    from lichen.atlas.page import build as build_page
    from lichen.atlas.page.server import PageServer
    from lichen.facts.record import parse_as_of

    try:
        with PageServer(build_page(parse_as_of(as_of)), host, port) as server:
            if not server.is_local:
                warnings.warn(
                    f"everybody who can reach {server.url} reads this page, your own models and prices in it",
                    stacklevel=1,
                )
            print_text(f"The atlas is at {server.url} (Ctrl-C ends it)")
            server.serve_forever()
    except KeyboardInterrupt:
        print()


def _everything(model: Model, catalogue: Catalogue) -> dict[str, Any]:
    from lichen.atlas.market.compare import computed
    from lichen.atlas.market.prices import history, table

    name, newest = table()
    return {
        "as_of": catalogue.as_of,
        **model.model_dump(mode="json"),
        "computed": {row.label: asdict(row.cells[model.name]) for row in computed([model])},
        "price_table": {"name": name, "newest_entry": newest},
        "price_history": [{**asdict(price), "hours": price.window or None} for price in history(model)],
    }


def _print_facts(model: Model) -> None:
    """What is told of it, what its config says, and its scores."""
    from lichen.atlas.catalogue.model import FACT_FIELDS
    from lichen.atlas.market import words
    from lichen.atlas.market.compare import computed
    from lichen.facts.record import known

    for field in FACT_FIELDS:
        facts = getattr(model, field)
        if not facts:
            say(f"{words.label(field)}: {words.UNKNOWN}")
        chosen = known(facts)
        for fact in sorted(facts, key=lambda fact: fact is not chosen):
            start = f"{words.label(field)}: " if fact is chosen else "  differs: "
            say_whole(f"{start}{words.value(field, fact.value)}")
            say_whole(f"    {words.sources(fact)}", style="dim")
    cells = {row.label: row.cells[model.name] for row in computed([model])}
    if cells:
        source = next(line for cell in cells.values() for line in cell.sources)
        say_whole(f"\n{source[0].upper()}{source[1:]}", style="bold")
    say_whole(*(f"{label}: {cell.text}" for label, cell in cells.items()))
    say("\nScores", style="bold")
    for source in dict.fromkeys(map(words.sources, model.scores)):
        say_whole(source, style="dim")
        for score in model.scores:
            if words.sources(score) == source:
                say_whole(f"    {score.test}: {words.score(score, model.lab)}")


def _print_prices(model: Model) -> None:
    from lichen.atlas.market import words
    from lichen.atlas.market.prices import history, table

    prices = history(model)
    say("\nPrices: USD per million tokens, in / out / cached", style="bold")
    for provider, source in dict.fromkeys((price.provider, price.source) for price in prices):
        say_whole(f"{provider}, {source}", style="dim")
        for price in prices:
            if (price.provider, price.source) == (provider, source):
                until = f" until {price.until}" if price.until else ""
                say(f"    since {price.since}{until}: {words.rates(price)}")
    if not prices:
        say(f"{words.UNKNOWN}: that is not free of charge", style="bold red")
    name, newest = table()
    say(f"Price table: {name}, newest entry {newest}")
