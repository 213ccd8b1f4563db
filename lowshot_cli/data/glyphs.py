"""Built-in dataset: characters drawn from the fonts that matplotlib installs.

Nothing is downloaded. Every class is a character; training images come from twelve typefaces, test
images from four that training never sees. Each image has its own affine map, colours and clutter.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.errors import DataError
from lowshot_cli.storage.cache import DiskCache, image_cache

IMAGE_SIZE = 32
_PER_CLASS = {"train": 150, "test": 50}
_CANVAS = 48
_SEED = 1
_STYLES = {
    "train": [
        f"DejaVu{family}{style}.ttf"
        for family, styles in {
            "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
            "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        }.items()
        for style in styles
    ]
    + [f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")],
    "test": [f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")],
}
# Look-alikes such as O and 0, or Greek and Latin capitals of one shape, are left out.
_CHARACTERS = (
    "123456789"
    "ABCDEFGHIJKLMNPQRSTUVWXYZ"
    "abdefghmnqrt"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζθλμξπστφψω"
    "БГДЖЗИЛПФЦЧЩЪЫЭЮЯ"
    "#$%&@?!*+=<>{}[]^~§¶£¥©®±÷†‡•…€™∂«»¿¤"
    "ÆŒßðþłħŋ"
)


class _Uniform(Protocol):
    """Draws `(N, *shape)` numbers between `low` and `high`, N being the number of images."""

    def __call__(self, low: float, high: float, *shape: int) -> Tensor: ...


def class_name(character: str) -> str:
    """The name of a character's class: `A`, `seven`, `omega`, `capital omega`, `number sign`."""
    if character.isascii() and character.isalpha():
        return character
    name = unicodedata.name(character).lower()
    for filler in ("digit ", "greek small letter ", "cyrillic capital letter ", "latin small "):
        if filler in name:
            prefix = "cyrillic " if "cyrillic" in filler else ""
            return prefix + name.replace(filler, "").replace("letter ", "").strip()
    if "greek capital letter" in name:
        return name.replace("greek capital letter ", "capital ")
    return name.replace("latin capital ", "").strip()


@lru_cache(maxsize=2)
def make(image_size: int = IMAGE_SIZE) -> Dataset:
    """The dataset, drawn once and from then on mapped from the user's cache."""
    return draw(image_size, image_cache())


def draw(image_size: int, cache: DiskCache | None = None) -> Dataset:
    """Draw the dataset; the same call gives the same pixels.

    Args:
        image_size: side in pixels.
        cache: where the drawn images are kept for the next time.
    """
    key = f"glyphs-{image_size}-{_fingerprint()}"
    drawn = cache.read(key) if cache else None
    if drawn is None or drawn.keys() != _PER_CLASS.keys():
        drawn = {split: _draw_split(split, image_size) for split in _PER_CLASS}
        if cache:
            cache.write(key, drawn)
            cache.trim(keep=cache.path(key))
    names = tuple(class_name(character) for character in _CHARACTERS)
    train, test = (
        Images(drawn[split], torch.arange(len(names)).repeat_interleave(count))
        for split, count in _PER_CLASS.items()
    )
    return Dataset("glyphs", names, train, test, mirror=False, default_classes=40)


def _fingerprint() -> str:
    """Hash of all that decides a pixel besides the CPU."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16)
    digest.update(repr([version(name) for name in ("torch", "pillow", "matplotlib")]).encode())
    return digest.hexdigest()


def _draw_split(split: str, image_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED if split == "train" else _SEED + 1)
    masks = _glyph_masks(_STYLES[split])
    n_classes, n_fonts = masks.shape[:2]
    labels = torch.arange(n_classes).repeat_interleave(_PER_CLASS[split])
    fonts = torch.randint(n_fonts, (len(labels),), generator=generator)
    chunks = [
        _paint(masks[label, font], image_size, generator)
        for label, font in zip(labels.split(1000), fonts.split(1000), strict=True)
    ]
    return torch.cat(chunks)


def _glyph_masks(files: list[str]) -> Tensor:
    """Coverage of each character in each font, `(classes, fonts, canvas, canvas)` in 0..1."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = np.zeros((len(_CHARACTERS), len(files), _CANVAS, _CANVAS), dtype=np.float32)
    for column, name in enumerate(files):
        try:
            font = ImageFont.truetype(str(folder / name), 34)
        except OSError:
            raise DataError(
                f"matplotlib's font {folder / name} is missing", "reinstall it"
            ) from None
        for row, character in enumerate(_CHARACTERS):
            canvas = Image.new("L", (_CANVAS, _CANVAS))
            middle = (_CANVAS / 2, _CANVAS / 2)
            left, top, right, bottom = font.getbbox(character)
            corner = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
            ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
            masks[row, column] = np.asarray(canvas, dtype=np.float32) / 255
    return torch.from_numpy(masks)


def _paint(masks: Tensor, image_size: int, generator: torch.Generator) -> Tensor:
    """Turn masks `(N, canvas, canvas)` into colour images `(N, 3, S, S)` uint8."""
    count = len(masks)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, size, shear = uniform(-0.25, 0.25), uniform(0.8, 1.15), uniform(-0.2, 0.2)
    shift = uniform(-0.15, 0.15, 2)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [
        torch.stack([cos, -sin + shear, shift[:, 0]], 1),
        torch.stack([sin, cos, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(
        torch.stack(rows, 1), [count, 1, image_size, image_size], align_corners=False
    )
    ink = F.grid_sample(masks[:, None], grid, align_corners=False)
    background = uniform(0, 1, 3, 1, 1)
    # The ink lies at least half the colour range away from the background in every channel.
    colour = (background + uniform(0.5, 0.8, 3, 1, 1)) % 1.0
    far = (colour - background).abs() > 0.35
    colour = torch.where(far, colour, (background > 0.5).logical_not().float())
    image = background + (colour - background) * ink
    image = _clutter(image, uniform)
    coarse = F.interpolate(uniform(-1, 1, 3, 4, 4), size=(image_size, image_size), mode="bilinear")
    image = image + 0.12 * coarse + 0.05 * uniform(-1, 1, 3, image_size, image_size)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _clutter(image: Tensor, uniform: _Uniform) -> Tensor:
    """Lay two translucent bars of random place, slope and colour over each image `(N, 3, S, S)`."""
    side = torch.linspace(-1, 1, image.shape[-1])
    for _ in range(2):
        angle, offset, width = (
            uniform(0, 3.1416, 1, 1),
            uniform(-1, 1, 1, 1),
            uniform(0.03, 0.1, 1, 1),
        )
        distance = (
            angle.cos() * side[None, None, :] + angle.sin() * side[None, :, None] - offset
        ).abs()
        bar = 0.6 * (distance < width).float()[:, None]
        image = image * (1 - bar) + uniform(0, 1, 3, 1, 1) * bar
    return image
