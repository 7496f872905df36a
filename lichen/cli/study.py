"""`lichen study`: many runs of one recipe with fields varied, and what they show."""

from pathlib import Path
from typing import Annotated

import typer

from lichen.cli.output import print_text


def study(
    plan: Annotated[Path, typer.Argument(metavar="STUDY", help="A study (TOML).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; without it, studies/ and the file's name.")
    ] = None,
) -> None:
    """Run every point of a study that is not finished, and write its report."""
    from lichen.errors import LichenError
    from lichen.study.plan import read_study
    from lichen.study.report import write_report
    from lichen.study.results import is_over
    from lichen.study.runner import run_study

    read, points = read_study(plan)
    folder = out or Path("studies") / plan.stem
    runs = run_study(read, plan, points, folder, print_text)
    write_report(read, runs, folder)
    print_text(f"the report is {folder / 'report.html'}")
    if failed := [run.folder.name for _, run in runs if not is_over(run)]:
        raise LichenError(
            f"not finished: {', '.join(failed)}; their train.log says why. The same command tries again"
        )
