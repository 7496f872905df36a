"""The exceptions that are meant for the person at the keyboard."""

import difflib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Timer


class LichenError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with status 1; it never shows a traceback for it.
    """


class NotFinite(LichenError):
    """NaN or infinity where a number is needed: a loss, a gradient, weights, logits."""


class SpecError(LichenError):
    """A model description that cannot be built, or that this version of Lichen cannot express."""


def did_you_mean(name: str, known: Collection[str], otherwise: str, cutoff: float = 0.4) -> str:
    """The end of a message about a name that is not `known`: the nearest ones, or `otherwise`.

    `cutoff`: how like it they must be, from 0 to 1.
    """
    low = name.lower()
    near = [low] if low in known else difflib.get_close_matches(low, known, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


@contextmanager
def said_if_slow(what: str, seconds: float = 1.5) -> Iterator[None]:
    """Say on standard error that `what` is going on, once it has been for so many seconds: nobody should have
    to guess whether a program still works."""
    timer = Timer(seconds, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says so: accelerators raise torch.OutOfMemoryError, the CPU a plain RuntimeError, and
    a library that finds no room an ImportError."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "Cannot allocate memory" in str(error)
    return isinstance(error, MemoryError)
