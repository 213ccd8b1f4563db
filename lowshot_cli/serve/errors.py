"""What can be wrong with a request, beside what the engine finds wrong."""

from __future__ import annotations

from lowshot_cli.errors import DataError, LowshotError, UsageError, one_line


class Unknown(UsageError):
    """A class or an address that does not exist."""


class Conflict(UsageError):
    """What cannot be done to the model as it is now."""


class NotAllowed(LowshotError):
    """A request from another site."""


class Misdirected(NotAllowed):
    """A request for another host."""


class NoToken(NotAllowed):
    """A request without the token."""


class NotSaved(LowshotError):
    """A change that could not be written; the model is as it was."""


class TooLarge(DataError):
    """More images, bytes or headers than are taken at once."""


class WrongType(UsageError):
    """A body of another type than the interface reads."""


class TooSlow(LowshotError):
    """A body that does not arrive."""


class Busy(LowshotError):
    """Too many requests wait already."""


def not_saved(error: Exception, place: str = "") -> NotSaved:
    """What to say of a change that could not be written, and where."""
    what = error.message if isinstance(error, LowshotError) else one_line(error)
    return NotSaved(
        f"nothing is changed: {place}{what}", "check the free space and your permissions"
    )
