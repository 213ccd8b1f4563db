"""From an image file to pixels `(3, S, S)` uint8."""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Condition
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, _imaging

from lowshot_cli.data.colours import as_rgb
from lowshot_cli.data.framing import CROP, Framing, draft_size, square
from lowshot_cli.data.metadata import without_metadata
from lowshot_cli.errors import DataError, one_line

ByteArray = npt.NDArray[np.uint8]
# Number of the rules that make pixels of a file. Another number keeps caches of theirs apart.
RULES = 2
NOT_REGULAR, UNKNOWN = "not a regular file", "unknown image format"
# No others are tried, whatever a file is called: some of Pillow's readers start other programs.
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
if find_spec("PIL._avif"):
    FORMATS.append("AVIF")
# Formats that are met among photos and not read, by what stands at a place in the file.
_UNREAD = (
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
)
_READ = (
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadError(DataError):
    """A file that could not be read this time, though its bytes may be those of an image."""


class _Room:
    """Lets threads in as long as the pixels that they decode fit; what is larger goes in alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        share = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: share <= self._free)
            self._free -= share
        try:
            yield
        finally:
            with self._changed:
                self._free += share
                self._changed.notify_all()


# Each pixel takes 4 to 12 bytes while it is decoded, converted and turned.
_ROOM = _Room(96_000_000)
_LARGE = 4_000_000


def _silence_libraries() -> None:
    """Keep libraries from printing about metadata; what matters becomes an error of the file."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # Pillow leaves libtiff's handler in place, which prints. Where it is part of Pillow's own
    # library, as on Windows, it cannot be found.
    with suppress(AttributeError, OSError):
        handle = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        handle.argtypes, handle.restype = [ctypes.c_void_p], ctypes.c_void_p
        handle(None)


_silence_libraries()


def decode(source: Path | IO[bytes], image_size: int, framing: Framing = CROP) -> ByteArray:
    """Read one image as `(3, S, S)` uint8: upright, RGB, and framed as a model asks.

    Of an animation it reads the first frame. Transparent pixels are laid over white. Metadata
    only tells the orientation, and where it is broken the image is taken as it lies. The libraries
    of pretrained models drop transparency and leave the turning to their users; on other images
    all agree. Threads wait for one another when large images would fill the memory.

    Raises:
        UnreadError: the file cannot be read now.
        DataError: it is not a readable image.
    """
    try:
        if not isinstance(source, Path):
            return _decode(source, image_size, framing)
        if source.exists() and not source.is_file():  # opening a named pipe would wait for ever
            raise DataError(NOT_REGULAR)
        with source.open("rb") as file:
            return _decode(file, image_size, framing)
    except MemoryError:
        raise UnreadError("out of memory") from None
    except OSError as error:
        raise UnreadError(one_line(error)) from None


def _decode(file: IO[bytes], image_size: int, framing: Framing) -> ByteArray:
    try:
        return _decode_as_it_is(file, image_size, framing)
    except Exception as error:
        _raise_unless_damaged(error)
        first = error
    content = b""
    try:
        file.seek(0)
        content = file.read()
        cleaned = without_metadata(content)
        if cleaned is not None and cleaned != content:
            return _decode_as_it_is(io.BytesIO(cleaned), image_size, framing)
    except Exception as error:
        _raise_unless_damaged(error)
    raise DataError(_reason(first, content))


def _raise_unless_damaged(error: Exception) -> None:
    """Raise an error that is none of damage: of the system, or of what the image is.

    A damaged image may raise nearly anything; all of it means the same to the user.
    """
    if isinstance(error, Image.DecompressionBombError):
        raise DataError(f"too large: {one_line(error)}") from None
    if isinstance(error, DataError) or _is_passing(error):
        raise error from None


def _is_passing(error: Exception) -> bool:
    """Whether an error is of the system or of memory, rather than of the file's bytes."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def _reason(error: Exception, content: bytes) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return f"damaged: {one_line(error)}"
    for place, start, name in _UNREAD:
        if content.startswith(start, place):
            return f"{name}, which is not read: convert it to JPEG or PNG"
    for place, start, name in _READ:
        if content.startswith(start, place):
            return f"damaged, or a kind of {name} that is not read"
    return UNKNOWN


def _decode_as_it_is(file: IO[bytes], image_size: int, framing: Framing) -> ByteArray:
    with ExitStack() as room:
        with Image.open(file, formats=FORMATS) as image:
            whole = image.width * image.height
            # JPEG is decoded at the smallest scale that is at least twice the size.
            if (least := draft_size(*image.size, image_size, framing)) is not None:
                image.draft(None, least)
            in_work = image.width * image.height
            if "progressive" in image.info:
                in_work = whole  # all of it has to be there before it can be scaled
            elif image.format == "WEBP":
                in_work *= 2  # its library holds the image twice more
            room.enter_context(_ROOM.taken(in_work))
            pixels = as_pixels(image, image_size, framing)
        del image
        if in_work > _LARGE:
            _return_memory()
    return pixels


def _return_memory() -> None:
    """Give freed memory back to the system, of which glibc keeps some for each thread."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def as_pixels(image: Image.Image, image_size: int, framing: Framing = CROP) -> ByteArray:
    """An opened image as `(3, S, S)` uint8: upright, RGB, and framed as a model asks.

    Raises:
        DataError: numbers out of range, or integers of unknown depth.
    """
    upright = as_rgb(image)
    turn = _turn(image)
    if turn is not None:
        upright = upright.transpose(turn)
    framed = square(upright, image_size, framing)
    return np.ascontiguousarray(np.asarray(framed).transpose(2, 0, 1))


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    # What broken metadata raises may be anything, and says nothing about the pixels.
    except Exception as error:
        if _is_passing(error):
            raise
        return None


def is_blank(pixels: ByteArray) -> bool:
    """Whether nothing is left of an image: every pixel is white or was transparent."""
    return bool(pixels.min() == 255)
