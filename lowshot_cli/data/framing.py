"""How a picture of any shape becomes the square that a network sees.

Pillow is imported where a picture is at hand: metadata of checkpoints, which hold a framing, are
read without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field

from lowshot_cli.config.values import Fit, Interpolation

if TYPE_CHECKING:
    from PIL import Image

# What lies beside a padded picture.
GREY = (128, 128, 128)
# A picture that is longer than this many times its shorter side is cut to it before it is resized,
# as a line of pixels would else fill the memory.
_LONGEST = 100


@dataclass(frozen=True)
class Framing:
    """How an upright RGB picture becomes a square of S pixels a side.

    Without `resize`, the square is all that is made: JPEGs may be read at a reduced size. With it
    the picture is read whole, and the square is byte for byte that of torchvision's
    `transforms.Resize(R)` and `CenterCrop(S)`, which both torchvision and timm evaluate with.

    Attributes:
        fit: `crop` keeps the centre of the picture; `pad` shows all of it, centred on grey;
            `squash` makes both sides `resize` pixels long, whatever the shape, and then crops.
        resize: side R in pixels that the shorter side of the picture gets before its centre of S
            pixels is cropped; None is S. `pad` makes the longer side S in any case.
        interpolation: Pillow's filter.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    fit: Fit | Literal["squash"] = "crop"
    resize: Annotated[int, Field(ge=8, le=4096)] | None = None
    interpolation: Interpolation = "bilinear"

    def with_fit(self, fit: Fit | None) -> Framing:
        """The same with another fit; None leaves it as it is."""
        return self if fit is None else replace(self, fit=fit)


CROP = Framing()


def draft_size(width: int, height: int, side: int, framing: Framing) -> tuple[int, int] | None:
    """The size of which a JPEG need not fall short where it is read at a reduced scale.

    It is twice what the picture is resized to, so that the reduction leaves no trace. None if the
    picture must be read whole.
    """
    if framing.resize is not None or framing.fit == "squash":
        return None
    if framing.fit == "crop":
        return 2 * side, 2 * side
    return _scaled(width, height, 2 * side)


def square(picture: Image.Image, side: int, framing: Framing = CROP) -> Image.Image:
    """An upright RGB picture as a square of `side` pixels."""
    from PIL import Image, ImageOps

    how = Image.Resampling[framing.interpolation.upper()]
    if framing.fit == "pad":
        whole = picture.resize(_scaled(*picture.size, side), how)
        padded = Image.new("RGB", (side, side), GREY)
        padded.paste(whole, ((side - whole.width) // 2, (side - whole.height) // 2))
        return padded
    if framing.fit == "squash":
        both = framing.resize or side
        return _centre(picture.resize((both, both), how), side)
    if framing.resize is None:
        return ImageOps.fit(picture, (side, side), how)
    picture = _shortened(picture)
    short = min(picture.size)
    width, height = (int(framing.resize * length / short) for length in picture.size)
    return _centre(picture.resize((width, height), how), side)


def in_words(side: int, framing: Framing) -> str:
    """What `square` does, such as `shorter side to 224 (bilinear), centre crop to 224 x 224`."""
    filtered, to = f"({framing.interpolation})", f"{side} x {side}"
    if framing.fit == "pad":
        return f"longer side to {side} {filtered}, centred on grey {GREY} of {to}"
    first = framing.resize or side
    sides = "both sides" if framing.fit == "squash" else "shorter side"
    return f"{sides} to {first} {filtered}, centre crop to {to}"


def _scaled(width: int, height: int, longer: int) -> tuple[int, int]:
    """A size of the same shape, or nearly so, with a longer side of this length."""
    ratio = longer / max(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _shortened(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is much longer than wide, or the picture itself."""
    most = _LONGEST * min(picture.size)
    if max(picture.size) <= most:
        return picture
    left, top = (max(0, (length - most) // 2) for length in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top))


def _centre(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, with black around one that is too small, as in torchvision."""
    left, top = (
        round((length - side) / 2) if length >= side else -((side - length) // 2)
        for length in picture.size
    )
    return picture.crop((left, top, left + side, top + side))
