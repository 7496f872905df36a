"""The exceptions that are meant for the person at the keyboard."""


class LichenError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with status 1; it never shows a traceback for it.
    """


class SpecError(LichenError):
    """A model description that cannot be built, or that this version of Lichen cannot express."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says so: accelerators raise torch.OutOfMemoryError, the CPU a plain RuntimeError, and
    a library that finds no room an ImportError."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error) or "Cannot allocate memory" in str(error)
    return isinstance(error, MemoryError)
