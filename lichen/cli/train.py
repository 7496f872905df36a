"""`lichen train`: begin a run from a recipe, or continue one."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from lichen.cli.output import console, visible


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
    back_to: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="STEP",
            min=0,
            help="Go back to the run's checkpoint of this step; 0: begin again.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print every key of a recipe, and stop.")] = False,
) -> None:
    """Train a model, or continue: `lichen train recipes/demo.toml`, then `lichen train runs/demo`."""
    with _ends_at_once():
        from lichen.errors import LichenError
        from lichen.train.loop import train as train_run
        from lichen.train.progress import training_output
        from lichen.train.recipe import describe_keys, read_recipe
        from lichen.train.resolve import model_spec, optimizer_recipe, planned_table
        from lichen.train.run import open_run, start_run

    if keys:
        for key, kind, default, meaning in describe_keys():
            print(f"{key:24}{meaning} ({kind}{default and f', {default}'})")
        return
    if target is None:
        raise LichenError("name a recipe, such as recipes/demo.toml, or the folder of a run")
    changes = overrides or []
    if show_optimizer:
        recipe = read_recipe(target / "recipe.toml" if target.is_dir() else target, changes)
        print(planned_table(model_spec(recipe), recipe).describe(optimizer_recipe(recipe)))
        return
    if back_to is not None and not target.is_dir():
        raise LichenError(f"--from goes back in a run; {target} is not the folder of one")
    if not target.is_dir():
        run = start_run(read_recipe(target, changes), out or Path("runs") / target.stem)
    elif out is None:
        run = open_run(target, changes)
    else:
        raise LichenError(f"{target} is the folder of a run and is continued there; leave --out away")

    stopped_by = train_run(run, console(training_output()), back_to)
    if stopped_by is not None:
        with suppress(OSError):  # a closed terminal
            print(visible(f"stopped and saved; go on with: lichen train {run.folder}"), file=sys.stderr)
        sys.exit(128 + stopped_by)


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """While modules load, Ctrl-C ends the process: as an exception it may be swallowed by one of them, and a
    training would begin that nobody wants."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
