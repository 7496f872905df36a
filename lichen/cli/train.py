"""`lichen train`: begin a run from a recipe, or continue one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lichen.train.recipe import Recipe


def train(
    target: Annotated[
        Path | None, typer.Argument(metavar="RECIPE|RUN", help="A recipe (TOML), or the folder of a run.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Recipe keys to set, as in optimizer.lr=1e-3."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new run; without it, runs/ and the recipe's name.")
    ] = None,
    show_optimizer: Annotated[
        bool, typer.Option("--show-optimizer", help="Print what updates each parameter, and stop.")
    ] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print every key of a recipe, and stop.")] = False,
) -> None:
    """Train a model, or continue: `lichen train recipes/demo.toml`, then `lichen train runs/demo`."""
    from rich.console import Console

    from lichen.errors import LichenError
    from lichen.train.recipe import read_recipe
    from lichen.train.run import open_run, start_run

    console = Console(highlight=False)
    overrides = overrides or []
    if keys:
        _print_keys(console)
        return
    if target is None:
        raise LichenError("name a recipe, such as recipes/demo.toml, or the folder of a run")
    if target.is_dir():
        if out is not None:
            raise LichenError(f"{target} is the folder of a run and is continued there; leave --out away")
        run = open_run(target, overrides)
    else:
        recipe = read_recipe(target, overrides)
        if show_optimizer:
            _print_optimizer(console, recipe)
            return
        run = start_run(recipe, out or Path("runs") / target.stem)
    if show_optimizer:
        _print_optimizer(console, run.recipe)
        return

    from lichen.train.loop import train as train_run

    stopped_by = train_run(run, console)
    if stopped_by is not None:
        console.print(
            f"stopped and saved; go on with: lichen train {run.folder}", markup=False, soft_wrap=True
        )
        raise typer.Exit(128 + stopped_by)
    console.print(f"finished; the report is {run.folder / 'report.html'}", markup=False, soft_wrap=True)


def _print_keys(console: Console) -> None:
    from rich.table import Table

    from lichen.train.recipe import describe_keys

    table = Table("key", "type", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for row in describe_keys():
        table.add_row(*row)
    console.print(table)


def _print_optimizer(console: Console, recipe: Recipe) -> None:
    """One row per parameter: what updates it, which matrices it holds, learning rate and weight decay."""
    import torch
    from rich.table import Table

    from lichen.nn.transformer import Transformer
    from lichen.optim import Muon, parameter_table
    from lichen.train.run import model_spec, optimizer_recipe

    rule = optimizer_recipe(recipe)
    with torch.device("meta"):
        rows = parameter_table(Transformer(model_spec(recipe)))
    group_of = {name: group for group in Muon(rows, rule).param_groups for name in group["param_names"]}
    table = Table("parameter", "updated by", "matrices", "lr", "weight decay", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        algorithm, group = rule.algorithm(row.role.kind), group_of[row.name]
        shapes = [tuple(row.parameter.shape)]
        if algorithm == "muon":
            shapes = [tuple(view.shape) for view in row.matrices(row.parameter, per_head=rule.per_head)]
        matrices = " + ".join(" x ".join(map(str, shape)) for shape in shapes)
        table.add_row(row.name, algorithm, matrices, f"{group['lr']:g}", f"{group['weight_decay']:g}")
    console.print(table, soft_wrap=True)
