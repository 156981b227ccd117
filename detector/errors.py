"""The two kinds of error a user may meet; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class RefusedError(Exception):
    """What was given cannot be used and the user can mend it: exit code 2.

    The message names the parameter, the value received and what is allowed.
    """


class FailedError(Exception):
    """The work could not be done although what was given is right: exit code 1."""
