"""`lichen data`: from text files to token shards, and a look at them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lichen.cli import options
from lichen.cli.output import print_text

if TYPE_CHECKING:
    from lichen.data.manifest import Manifest
    from lichen.data.stream import Progress

data = typer.Typer(
    name="data", help="Prepare text for training, and look at what was prepared.", no_args_is_help=True
)


@data.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer, the token shards and the manifest.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders and glob patterns of text, JSON, CSV, Parquet or Arrow, packed or not. "
            "Without any: the modules of Python's standard library.",
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            parser=options.count,
            help="Tokens of the tokenizer to train, special ones included.",
            show_default="8192",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this tokenizer.json, or the one in this folder.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Whose special tokens.", show_default="those of the demo's model")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the documents to hold out.")] = 0.05,
    field: Annotated[
        str, typer.Option(help="Where a record holds its text or messages; a.b is b in a.")
    ] = "text",
    sample_mib: Annotated[
        int, typer.Option(min=1, max=2**30, help="Most text to train the tokenizer on, in MiB.")
    ] = 128,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads.", show_default="all cores")
    ] = None,
) -> None:
    """Turn text into a tokenizer and token shards. When it was killed, run it again: it goes on."""
    from lichen.data.prepare import prepare as run

    with _bars() as progress:
        manifest = run(
            sources or [],
            out,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            family=family,
            validation_fraction=validation_fraction,
            field=field,
            sample_bytes=sample_mib * 2**20,
            workers=workers,
            progress=progress,
        )
    _print_manifest(out, manifest)
    if not manifest.splits["validation"].documents:
        warnings.warn(
            "no document is held out, so training will report no bits per byte; prepare into another --out "
            "with a larger --validation-fraction or more documents to get them",
            stacklevel=1,
        )


@data.command()
def inspect(folder: Annotated[Path, typer.Argument(help="What `lichen data prepare` wrote.")]) -> None:
    """Check prepared data against its hashes, and show its counts and the start of a document."""
    from lichen.data.dataset import TokenDataset
    from lichen.data.tokenizer import load_tokenizer

    dataset = TokenDataset.open(folder)
    dataset.verify()
    _print_manifest(folder, dataset.manifest)
    documents = dataset.documents("train")
    tokens = documents.read(documents.starts[0], min(documents.starts[1], 200))
    print_text("The first training document begins:\n")
    print_text(load_tokenizer(dataset.tokenizer_path).decode(tokens.tolist(), skip_special_tokens=False))


@contextmanager
def _bars() -> Iterator[Progress]:
    """A progress bar per stage, on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    console = Console(stderr=True)
    with Bars(console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _print_manifest(folder: Path, manifest: Manifest) -> None:
    from lichen.data.formats import MAX_DOCUMENT_BYTES

    for split, counts in manifest.splits.items():
        per_token = f", {counts.bytes / counts.tokens:.2f} bytes per token" if counts.tokens else ""
        print_text(
            f"{split:>10}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
            f"{counts.bytes:,} bytes of text{per_token}"
        )
    print_text(f"{'tokenizer':>10}: {manifest.vocab_size:,} tokens, SHA-256 {manifest.tokenizer_hash}")
    print_text(f"{'sources':>10}: {manifest.sources:,} files, {manifest.source_bytes:,} bytes")
    for reason, left in manifest.left_out.items():
        print_text(f"{'left out':>10}: {left.count:,} {reason} (for example {left.examples[0]})")
    if alike := manifest.like_csv.count:
        what = "file looks like CSV and was" if alike == 1 else "files look like CSV and were"
        print_text(
            f"{'as text':>10}: {alike:,} {what} read as one text (for example "
            f"{manifest.like_csv.examples[0]}); called .csv, a file is read row by row"
        )
    if manifest.extra_documents:
        print_text(
            f"{'cut':>10}: text longer than {MAX_DOCUMENT_BYTES >> 20} MiB, at line ends, into "
            f"{manifest.extra_documents:,} more documents"
        )
    print_text(f"{'folder':>10}: {folder}")
