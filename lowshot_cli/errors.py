"""Errors that a user can act on, and the exit codes they end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    BUG = 1
    USAGE = 2
    BAD_INPUT = 3
    INTERRUPTED = 130


class LowshotError(Exception):
    """A problem outside the program, described in one line.

    Messages name settings between backticks as Python spells them, such as `shots` or
    `replace=True`; the command line shows them as its flags.

    Args:
        message: what is wrong and where.
        hint: the next thing to try or to check.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(LowshotError, ValueError):
    """Settings or arguments that ask for something impossible."""

    exit_code = ExitCode.USAGE


class ConfigError(LowshotError):
    """A YAML config that cannot be used."""


class DataError(LowshotError, ValueError):
    """Images or labels that are missing or broken."""


class CheckpointError(LowshotError):
    """A checkpoint that is missing, broken, stale or of another dataset."""


class TrainingError(LowshotError):
    """Training that cannot continue, such as when the loss is no longer finite."""


class Interrupted(LowshotError):
    """The user pressed Ctrl-C; the hint says how to continue."""

    exit_code = ExitCode.INTERRUPTED


class RankLost(Interrupted):
    """One of several processes that train together has ended or does not answer."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of a library's error, on one line of at most `limit` characters."""
    text = getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None if none does."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def first_few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """A hint naming the known name nearest to `name`, or `otherwise`."""
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else otherwise
