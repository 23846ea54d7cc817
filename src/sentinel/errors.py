"""The exceptions that a user of the library or the command line is meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Something the caller gave can't be used.

    The message is one sentence that names the input and how to mend it. The command line prints it and exits with 2.
    """


class Interrupted(KeyboardInterrupt):
    """Long work was interrupted. The message says what of it is kept and which command goes on."""
