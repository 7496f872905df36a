"""`lichen trace`: every intermediate of one pass, in numbers, on the disk, or beside another program's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lichen.cli import options
from lichen.cli.output import plain_table, print_json, print_table, say
from lichen.errors import LichenError

if TYPE_CHECKING:
    from torch import Tensor

    from lichen.serve.open import Opened
    from lichen.serve.trace import Difference, Stored

DEFAULT_PROMPT = "The quick brown fox jumps over the lazy dog."


def trace(
    model: options.Folder,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text that goes in; - reads it from standard input. Without it: what went in where "
            "--against is from, or a sentence."
        ),
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="1,2,3", help="Token ids instead of a text.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write all tensors to.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier trace's folder, or a safetensors file of another program: compare."),
    ] = None,
    bound: Annotated[
        float, typer.Option(help="Largest difference, over a tensor's largest number, that counts as none.")
    ] = 1e-4,
    weights: options.WeightFormat = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
) -> None:
    """Every intermediate of one pass, by name, to be compared with another implementation's.

    With --against status 1 means that a tensor differs; the first one, in the order of computation, is named.
    """
    from lichen.machine.precision import default_device
    from lichen.nn.trace import trace as traced
    from lichen.serve.open import open_model
    from lichen.serve.trace import check_replaceable, compare, open_trace, statistics, write_trace

    if prompt is not None and tokens is not None:
        raise LichenError("--prompt and --tokens are two forms of what goes in: choose one")
    if not bound >= 0:
        raise LichenError(f"--bound is {bound:g}; it must be 0 or more")
    if out is not None:
        check_replaceable(out)
    there = None if against is None else open_trace(against)
    opened = open_model(model, default_device(), weights)
    ids = _tokens(opened, prompt, tokens, there)
    tensors = traced(opened.model, ids)
    differences = [] if there is None else compare(tensors, there)
    first = next((each for each in differences if each.exceeds(bound)), None)
    if out is not None:
        write_trace(out, tensors, ids, {"model": str(model), "weights": weights})
    if as_json:
        rows = {name: asdict(statistics(tensor)) for name, tensor in tensors.items()}
        content: dict[str, Any] = {"model": str(model), "weights": weights, "tokens": ids, "tensors": rows}
        if there is not None:
            content["bound"] = bound
            content["first_that_differs"] = first and first.name
            content["differences"] = [asdict(each) for each in differences]
            content["only_there"] = sorted(there.tensors.keys() - tensors.keys())
        print_json(content)
    elif there is not None:
        _print_differences(differences, bound)
        common = len(differences)
        say(
            f"{common} tensors of {len(ids)} tokens compared; {len(tensors) - common} are here only, "
            f"{len(there.tensors) - common} there only."
        )
    else:
        _print_statistics(tensors)
    if out is not None and not as_json:
        say(f"{out}: {len(tensors)} tensors of {len(ids)} tokens")
    if first is not None:
        raise LichenError(
            f"the first tensor of {model} that is not as in {against} is {first.name}: {first.words()}"
        )


def _tokens(opened: Opened, prompt: str | None, tokens: str | None, there: Stored | None) -> list[int]:
    """What goes in. Raises LichenError for what the model does not take, and where it is not what went in
    `there`."""
    spec = opened.model.spec
    if tokens is not None:
        if not re.fullmatch(r"\s*\d{1,18}(\s*[,\s]\s*\d{1,18})*\s*", tokens, re.ASCII):
            raise LichenError("--tokens takes ids, whole numbers from 0 on with commas between, as in 1,2,3")
        ids = [int(token) for token in re.findall(r"\d+", tokens)]
    elif prompt is None and there is not None:
        if there.tokens is None:
            raise LichenError(
                f"{there.path} does not say in `tokens` what went in; give the same with --tokens or --prompt"
            )
        ids = list(there.tokens)
    else:
        ids = opened.tokenizer.encode(options.read_prompt(DEFAULT_PROMPT if prompt is None else prompt)).ids
    if not ids:
        raise LichenError("the prompt is empty; give at least one token to trace")
    if len(ids) > spec.max_position_embeddings:
        raise LichenError(
            f"{len(ids):,} tokens are more than the model's context, {spec.max_position_embeddings:,}; give "
            "fewer"
        )
    if wrong := [token for token in ids if not 0 <= token < spec.vocab_size]:
        raise LichenError(
            f"token {wrong[0]} is none of the model's vocabulary, which has {spec.vocab_size:,}: ids are "
            f"0 to {spec.vocab_size - 1}"
        )
    if there is not None and there.tokens is not None and there.tokens != tuple(ids):
        raise LichenError(
            f"{there.path} is of {len(there.tokens)} other tokens than these {len(ids)}; leave --prompt and "
            "--tokens out to take those"
        )
    return ids


def _print_statistics(tensors: Mapping[str, Tensor]) -> None:
    from lichen.serve.trace import statistics, times

    numbers = "mean", "rms", "largest", "zeros", "not finite"
    columns = "tensor", "shape", "dtype", *numbers
    table = plain_table(*columns, whole=columns, right=numbers)
    for name, tensor in tensors.items():
        of = statistics(tensor)
        magnitudes = [f"{value:.4g}" for value in (of.mean, of.rms, of.largest)]
        shares = [f"{share:.1%}" if share else "" for share in (of.zeros, of.not_finite)]
        table.add_row(name, times(of.shape), of.dtype, *magnitudes, *shares)
    print_table(table)


def _print_differences(differences: list[Difference], bound: float) -> None:
    columns = "tensor", "difference", "cosine", ""
    table = plain_table(*columns, whole=columns, right=("difference", "cosine"))
    for each in differences:
        difference = "" if each.difference is None else f"{each.difference:.1e}"
        cosine = "" if each.cosine is None else f"{each.cosine:.7f}"
        table.add_row(
            each.name, difference, cosine, each.problem or ("differs" if each.exceeds(bound) else "")
        )
    print_table(table)
