"""`lichen export`: a run as a folder that other programs load."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lichen.cli.output import print_text


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run; its newest good checkpoint is taken.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier export there is replaced.")],
    dtype: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Storage of the weights; fp32 keeps every bit.")
    ] = "fp32",
) -> None:
    """Write the model of RUN to OUT as a folder that transformers, vLLM, SGLang and llama.cpp read."""
    import torch

    from lichen.train.export import export_run

    done = export_run(run, out, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    print_text(
        f"{out}: the model of {run} after {done.step:,} steps, {done.weight_bytes / 1e6:,.1f} MB as {dtype}"
    )
