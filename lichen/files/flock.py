"""The kernel's lock on an open file or folder, which ends with the process that has it, however that ends."""

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def take(descriptor: int) -> bool | None:
    """Whether the lock could be had at once; None where the file system or the system has no locks. It is
    given back when the file is closed."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
