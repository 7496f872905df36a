"""The one exception that is meant for the person at the keyboard."""


class LichenError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with status 1; it never shows a traceback for it.
    """


class SpecError(LichenError):
    """A model description that cannot be built, or that this version of Lichen cannot express."""
