"""`lichen sample`: continue a text, as it is drawn."""

import sys
from typing import Annotated

import typer

from lichen.cli import options
from lichen.cli.output import visible


def sample(
    model: options.Folder,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    max_tokens: Annotated[
        int, typer.Option(parser=options.count, help="Longest continuation, in tokens.")
    ] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that have this probability together.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Repeat a draw; without it, every draw differs.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    weights: options.WeightFormat = "auto",
) -> None:
    """Continue PROMPT with a trained model, and print the text as it comes.

    On a terminal the prompt is printed before it.
    """
    from lichen.machine.precision import default_device
    from lichen.serve.detokenizer import stream_text
    from lichen.serve.generate import generate
    from lichen.serve.open import open_model
    from lichen.serve.sampling import SamplingParams

    params = SamplingParams(temperature, top_p, top_k, seed, max_tokens, tuple(stop or ()))
    text = options.read_prompt(prompt)
    trained = open_model(model, default_device(), weights)
    tokens = generate(trained.model, trained.tokenizer.encode(text).ids, params, eos_ids=trained.eos_ids)
    on_terminal = sys.stdout.isatty()  # a file gets the text as it is
    if on_terminal:
        typer.secho(visible(text), bold=True, nl=False)
    for piece in stream_text(tokens, trained.tokenizer, params.stop):
        print(visible(piece) if on_terminal else piece, end="", flush=True)
    print()
