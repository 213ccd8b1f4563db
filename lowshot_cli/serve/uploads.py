"""Images that come with a request: how they are read, and how large they may be."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
from PIL import Image
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lowshot_cli.data.decoding import ByteArray, UnreadError, decode
from lowshot_cli.data.framing import Framing
from lowshot_cli.errors import DataError, LowshotError, UsageError, first_few
from lowshot_cli.serve.errors import Busy, TooLarge, WrongType

# Images in a request, and bytes of each.
MOST_IMAGES, MOST_BYTES = 64, 32_000_000
# Bytes of a request.
MOST_IN_ALL = 256_000_000
_MOST_NAMED = 10
_HINT = (
    "send files in the field `images` of multipart/form-data, or one as the body, with "
    "`Content-Type: image/jpeg` or what it is"
)


def most_pixels() -> int:
    """Pixels of an image beyond which it is not decoded, as it may be a bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


@dataclass(frozen=True)
class Upload:
    """A file of a request.

    Attributes:
        name: what its sender calls it; a label, never a path.
        file: its bytes.
    """

    name: str
    file: IO[bytes]


class _Parser(MultiPartParser):
    """Notes whether the closing boundary came, without which images may be missing."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def read_uploads(request: Request) -> list[Upload]:
    """The files of a request, which the caller closes.

    Raises:
        WrongType: the body is of no type that is read.
        TooLarge: there are too many, or one is too large.
        UsageError: the body is damaged, or has something else than files in `images`.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind.startswith("image/"):
        return [Upload("image", io.BytesIO(await _whole(request)))]
    if kind != "multipart/form-data":
        what = f"a body of type {kind!r} is not read" if kind else "there is no image"
        raise WrongType(what, _HINT)
    async with aclosing(request.stream()) as stream:
        parts = await _parts(request.headers, stream)
    try:
        uploads = [_checked(number, *part) for number, part in enumerate(parts, 1)]
        if not uploads:
            raise UsageError("there is no image", _HINT)
    except LowshotError:
        close(part for _, part in parts)
        raise
    return uploads


def close(parts: Iterable[Upload | UploadFile | str]) -> None:
    """Close the files among the parts of a form, and so delete those that lie on disk."""
    for part in parts:
        if not isinstance(part, str):
            part.file.close()


async def _whole(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        if len(content) <= MOST_BYTES:  # the rest is read, or the sender would miss the answer
            content += chunk
    if len(content) > MOST_BYTES:
        raise _too_large("the image")
    return bytes(content)


async def _parts(
    headers: Headers, stream: AsyncGenerator[bytes, None]
) -> list[tuple[str, UploadFile | str]]:
    try:
        parser = _Parser(headers, stream, max_files=MOST_IMAGES, max_fields=0)
        form = await parser.parse()
    except LowshotError:  # of the stream
        raise
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            hint = "send them in several requests"
            raise TooLarge(f"more than {MOST_IMAGES} images", hint) from None
        if error.message.startswith("Too many fields"):
            raise UsageError("a field of the form is not a file", _HINT) from None
        raise UsageError(f"the form is damaged: {error.message}", _HINT) from None
    except (FormParserError, LookupError, ValueError):  # such as a charset that is none
        raise UsageError("the form is damaged", _HINT) from None
    if not parser.ended:
        close(form.values())
        raise UsageError("the form is cut off: its last boundary is missing", _HINT)
    return form.multi_items()


def _checked(number: int, field: str, part: UploadFile | str) -> Upload:
    if isinstance(part, str) or field != "images":
        raise UsageError(f"the field {field!r} of the form is not known", _HINT)
    name = (part.filename or "").replace("\\", "/").rpartition("/")[2]
    if name in {"", ".", ".."}:
        name = f"image {number}"
    if (part.size or 0) > MOST_BYTES:
        raise _too_large(name)
    return Upload(name, part.file)


def _too_large(name: str) -> TooLarge:
    return TooLarge(f"{name} has more than {MOST_BYTES:,} bytes", "make it smaller")


async def decode_uploads(
    uploads: Sequence[Upload], image_size: int, framing: Framing, pool: Executor
) -> ByteArray:
    """Pixels `(n, 3, S, S)` uint8 of all images, decoded in the threads of a pool.

    Raises:
        DataError: some are not readable images; they are named.
        Busy: there is no memory for one now.
    """
    loop = asyncio.get_running_loop()
    jobs = [
        loop.run_in_executor(pool, partial(_decoded, upload, image_size, framing))
        for upload in uploads
    ]
    found = await asyncio.gather(*jobs)
    bad = [one for one in found if isinstance(one, str)]
    if bad:
        count = "the image" if len(found) == 1 else f"{len(bad)} of {len(found)} images"
        raise DataError(
            f"{count} cannot be read: {first_few(bad, _MOST_NAMED, '; ')}",
            "leave out what is no image, and convert what is of another format",
        )
    return np.stack([one for one in found if not isinstance(one, str)])


def _decoded(upload: Upload, image_size: int, framing: Framing) -> ByteArray | str:
    """The pixels of an image, or a line about why it cannot be read."""
    try:
        return decode(upload.file, image_size, framing)
    except UnreadError as error:
        raise Busy(f"{upload.name} cannot be read now: {error.message}", "try again") from None
    except DataError as error:
        return f"{upload.name} ({error.message})"
