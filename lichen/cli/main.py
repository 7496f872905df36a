"""The `lichen` command: one verb per module of this package, and one place that turns failures into words.

Verb modules import what they need inside their functions, so `lichen --help` and `lichen account` never
load torch.
"""

import errno
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated

import typer

import lichen
from lichen.cli.account import account
from lichen.cli.advise import advise
from lichen.cli.atlas import atlas
from lichen.cli.claims import claims
from lichen.cli.compare import compare
from lichen.cli.cost import cost
from lichen.cli.data import data
from lichen.cli.doctor import doctor
from lichen.cli.export import export
from lichen.cli.fits import fits
from lichen.cli.lineage import lineage
from lichen.cli.output import one_line
from lichen.cli.price import price
from lichen.cli.sample import sample
from lichen.cli.study import study
from lichen.cli.trace import trace
from lichen.cli.train import train
from lichen.errors import LichenError, is_out_of_memory

# One for each command that cannot do without an argument, or is often given one too many: shown then, and the
# first of a group below its commands. Those that name a file of the user's go on where the one before ended.
EXAMPLES = (
    "lichen account kimi-k2.6",
    "lichen compare kimi-k2.6 deepseek-v4-pro",
    "lichen price kimi-k2.6 --provider all",
    "lichen fits qwen3.6-27b --gpu rtx4090 --context 32K",
    "lichen cost deepseek-v3 --tokens 14.8T --gpu h800",
    "lichen advise --for agent",
    "lichen lineage mla",
    "lichen atlas show kimi-k2.6",
    "lichen atlas check my-model.yaml",
    "lichen atlas add my-model.yaml",
    "lichen data prepare --out data/code",
    "lichen data inspect data/code",
    "lichen train recipes/demo.toml",
    "lichen study recipes/studies/optimizers.toml",
    "lichen export runs/demo models/demo",
    "lichen sample models/demo 'def read_lines(path'",
    "lichen trace models/demo --out traces/demo",
)

app = typer.Typer(
    name="lichen",
    help="Describe, cost, train, export and run open models of the DeepSeek-V3 / Kimi K2 lineage.",
    epilog=f"As in: {EXAMPLES[0]}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lichen {lichen.__version__}")
        raise typer.Exit


@app.callback()
def lichen_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def example_of(command: str) -> str:
    """Such a command, whole; nothing where there is none."""
    return next((example for example in EXAMPLES if example.startswith(f"{command} ")), "")


VERBS = (
    account,
    compare,
    price,
    fits,
    cost,
    lineage,
    advise,
    claims,
    train,
    study,
    export,
    sample,
    trace,
    doctor,
)
for verb in VERBS:
    app.command()(verb)
for group in (atlas, data):
    app.add_typer(group, epilog=f"As in: {example_of(f'lichen {group.info.name}')}")


def main() -> None:
    """Run the command line; every failure ends as one line on stderr and a non-zero status.

    Status: 1 for what the user can mend and for defects, 2 for a command that cannot be parsed, 130 after
    Ctrl-C. With LICHEN_DEBUG=1 in the environment exceptions keep their traceback.
    """
    # How long idle OpenMP threads spin before they sleep. GNU's default is so long that a second busy
    # process slows training a hundredfold (docs/log.md). Torch reads this when it is imported, later.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(str(message))}\n"
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        status = app(prog_name="lichen", standalone_mode=False) or 0
        print(end="", flush=True)  # nothing where the shell closed stdout
    except typer.TyperException as error:
        if message := error.format_message().rstrip("."):  # empty when the help was shown instead
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "lichen"
            if message.startswith(("Missing", "Got unexpected")) and (example := example_of(command)):
                message += f", as in: {example}"
            told = one_line(f"{message}; `{command} --help` shows what there is")
            print(f"error: {told}", file=sys.stderr)
        status = 2
    except Exception as error:
        if os.environ.get("LICHEN_DEBUG"):
            raise
        status = 1
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif interrupts and not isinstance(error, LichenError):  # a library in C has made that of Ctrl-C
            status = 130
        else:
            print(f"error: {one_line(explain(error))}", file=sys.stderr)
    if status == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(status)


def explain(error: Exception) -> str:
    """One sentence for the person at the keyboard: what is wrong and, where it is known, what to do."""
    if isinstance(error, LichenError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: use a smaller batch, a shorter context or a smaller model ({_words(error)})"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return (
        f"a defect in Lichen: {type(error).__name__}: {_words(error)} "
        "(LICHEN_DEBUG=1 in the environment shows where it happened)"
    )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
