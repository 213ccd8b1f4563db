"""From what Pillow reads to 8-bit RGB: scaled by the declared depth, transparency over white."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lowshot_cli.errors import DataError

# Converted at a time, so that a large picture is in memory twice at most.
_STRIP_PIXELS = 1 << 20
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _PLANAR, _SAMPLE_FORMAT = 258, 262, 281, 284, 339
# libtiff returns numbers in the machine's byte order, which Pillow forgets for these.
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_Values = npt.NDArray[Any]


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in 8-bit RGB, with transparent pixels over white.

    Integers are scaled by the depth that the format declares, floating-point numbers from 0..1.
    Of 16-bit colours the upper 8 bits are taken, since Pillow reads no more.

    Raises:
        DataError: numbers out of range, or integers of unknown depth.
    """
    if isinstance(image, ImageFile.ImageFile) and image.tile:
        _mend(image)
    image.load()
    if image.mode.startswith("I;16"):
        return _in_strips(image, _by_table(_table(image)))
    if image.mode in ("I", "F"):
        return _in_strips(image, _by_range(image))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _in_strips(image, _over_white)
    if image.mode == "RGB":
        return image
    return _in_strips(image, lambda strip: strip.convert("RGB"))


def to_bytes(values: _Values) -> npt.NDArray[np.uint8]:
    """An array of booleans, uint8, uint16 or floating-point numbers 0..1 as uint8.

    Raises:
        DataError: another type, or floating-point numbers outside 0..1.
    """
    if values.dtype.kind == "f":
        _check_range(float(values.min()), float(values.max()), 1)
        return (255 * values).round().astype(np.uint8)
    if values.dtype == np.uint16:
        return _scaled(np.arange(65536), 65535)[values]
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    if values.dtype != np.uint8:
        raise DataError(
            f"an array of {values.dtype} is not an image",
            "give uint8, uint16 or floating-point numbers from 0 to 1",
        )
    return values


def _mend(image: ImageFile.ImageFile) -> None:
    """Correct what Pillow would get wrong of samples that are not 8 bits wide."""
    tiles: list[Any] = image.tile
    if isinstance(image, TiffImageFile):
        planes = image.tag_v2.get(_PLANAR) == 2 and _bits(image) == 16
        order = "B" if image.tag_v2.prefix == b"MM" else "L"
        for place, tile in enumerate(tiles):
            rawmode, *others = tile[3]
            if tile[0] == "libtiff":
                rawmode = _NATIVE.get(rawmode, rawmode)
            elif planes and len(rawmode) == 1:  # a band such as R, read as 8 bits
                rawmode += f";16{order}"
            make = getattr(type(tile), "_make", tuple)  # a tuple until Pillow 11
            tiles[place] = make((*tile[:3], (rawmode, *others)))
    elif image.format == "PNG" and "transparency" in image.info:
        # The transparent colour is in the file's depth, the samples are scaled to 8 bits.
        key, rawmode = image.info["transparency"], tiles[0][3]
        if rawmode in ("L;2", "L;4"):
            image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
        elif rawmode == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in key)


def _bits(image: TiffImageFile) -> int:
    return int(max(image.tag_v2.get(_BITS, (1,))))


def _white(image: Image.Image) -> int:
    """The integer that means white.

    Raises:
        DataError: the image declares no depth.
    """
    if isinstance(image, TiffImageFile):
        full = (1 << _bits(image) - _is_signed(image)) - 1
        # Some give the highest sample of the picture, but one of 2^n - 1 tells the depth.
        declared = image.tag_v2.get(_MAX_SAMPLE, ())
        highest = next(iter(declared), full) if isinstance(declared, tuple) else declared
        is_depth = isinstance(highest, int) and not highest & (highest + 1)
        return highest if is_depth and 255 < highest < full else full
    if image.mode == "I" and image.format != "PNG":
        raise DataError("it holds integers of unknown depth", "give uint8 or uint16")
    return 65535


def _is_signed(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ())


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow heeds for 8 bits only."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0


def _table(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The grey `(65536,)` of each 16-bit value."""
    table = _scaled(np.arange(65536), _white(image))
    if _is_inverted(image):
        table = 255 - table
    key = image.info.get("transparency")
    if isinstance(key, int):
        table[key] = 255
    return table


def _scaled(values: _Values, white: int) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.float64] = values.clip(0, white).astype(np.float64) * (255 / white)
    return grey.round().astype(np.uint8)


def _by_table(table: npt.NDArray[np.uint8]) -> Callable[[Image.Image], Image.Image]:
    return lambda strip: Image.fromarray(table[np.asarray(strip)]).convert("RGB")


def _by_range(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How to convert strips of 32 bits, once all values are known to be in range."""
    white = 1 if image.mode == "F" else _white(image)
    inverted = _is_inverted(image)
    unsigned = white == 2**32 - 1

    def values(strip: Image.Image) -> _Values:
        return np.asarray(strip).view(np.uint32) if unsigned else np.asarray(strip)

    ends = [(part.min(), part.max()) for part in map(values, _strips(image))]
    lows, highs = zip(*ends, strict=True)
    # With NumPy, as `min` would pass over what is no number.
    _check_range(float(np.min(lows)), float(np.max(highs)), white)

    def convert(strip: Image.Image) -> Image.Image:
        grey = _scaled(values(strip), white)
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB")

    return convert


def _check_range(low: float, high: float, white: int) -> None:
    if not np.isfinite([low, high]).all():
        raise DataError("it holds numbers that are not finite")
    if low < 0 or high > white:
        raise DataError(f"its values go from {low:g} to {high:g}, outside 0 to {white}")


def _over_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    white = Image.new("RGBA", strip.size, "white")
    return Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    return (image.crop(box) for box in _boxes(image))


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if image.width * image.height <= _STRIP_PIXELS:
        return convert(image)
    made = Image.new("RGB", image.size)
    for box in _boxes(image):
        made.paste(convert(image.crop(box)), box)
    return made
