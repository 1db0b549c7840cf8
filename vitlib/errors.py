"""The exceptions that a user is meant to see."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or an unusable machine, told in one clear Chinese sentence.

    The message says what is wrong, where, and what to do. The command line prints it
    without a stack trace and exits with status 2; a notebook shows it as the cell's error.
    """


class FailedRun(UserError):
    """A run that others start from or imitate came to a number that is not finite, and has no weights."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return how an error goes on: with the known word that was perhaps meant, or with none."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"，是不是想写 {close[0]}？" if close else "。"
