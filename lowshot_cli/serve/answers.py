"""Errors as answers: a status and `{"error": ..., "hint": ...}`."""

from __future__ import annotations

import re

from starlette.responses import JSONResponse, PlainTextResponse, Response

from lowshot_cli.errors import DataError, LowshotError, UsageError
from lowshot_cli.serve import errors as e

# The first that an error is an instance of decides.
_STATUS: tuple[tuple[type[LowshotError], int], ...] = (
    (e.Unknown, 404),
    (e.Conflict, 409),
    (e.WrongType, 415),
    (e.TooLarge, 413),
    (e.TooSlow, 408),
    (e.Misdirected, 421),
    (e.NoToken, 401),
    (e.NotAllowed, 403),
    (e.Busy, 503),
    (e.NotSaved, 507),
    (DataError, 422),
    (UsageError, 400),
)
# Everything else is something that the model, or this machine, cannot do.
_OTHER = 409
_SWITCH = re.compile(r"`(\w+)=True`")


def error_answer(error: LowshotError, *, as_text: bool = False) -> Response:
    """The answer to a request that met an error.

    Args:
        error: what is wrong.
        as_text: whether a person reads it, who opened the page in a browser.
    """
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), _OTHER)
    headers = {}
    if status == 503:
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):  # the rest of the body is not read
        headers["Connection"] = "close"
    if as_text:
        return PlainTextResponse(f"lowshot: {error}\n", status, headers)
    return refusal(status, error.message, error.hint, headers)


def refusal(
    status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An answer that says what is wrong and what to do next."""
    said = [_SWITCH.sub(r"`\1=true`", text) if text else None for text in (message, hint)]
    return JSONResponse(
        {"error": said[0], "hint": said[1]}, status_code=status, headers=headers or {}
    )
