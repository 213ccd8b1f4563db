"""Small pictures of the photos that a class was taught with, by the hash of their pixels."""

from __future__ import annotations

import io
import re
from pathlib import Path

import torch
from PIL import Image

from lowshot_cli.adaptation.supports import pixel_hash
from lowshot_cli.data.decoding import ByteArray
from lowshot_cli.storage.files import write_atomically

# Side in pixels.
SIDE = 96
_HASH = re.compile(r"[0-9a-f]{16}")
_SUFFIX = ".jpg"


class Thumbnails:
    """The thumbnails in a folder.

    Args:
        folder: made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def present(self) -> set[str]:
        """The hashes of all photos that have one."""
        return {path.stem for path in self.folder.glob(f"*{_SUFFIX}")}

    def read(self, digest: str) -> bytes | None:
        """A thumbnail as JPEG, or None if there is none."""
        path = self.folder / f"{digest}{_SUFFIX}"
        return path.read_bytes() if _HASH.fullmatch(digest) and path.is_file() else None

    def write(self, pixels: ByteArray) -> None:
        """Write the thumbnails of photos `(k, 3, S, S)` uint8, as the model sees them.

        Raises:
            OSError: one cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        for image in pixels:
            path = self.folder / f"{pixel_hash(torch.from_numpy(image))}{_SUFFIX}"
            if not path.is_file():
                write_atomically(path, _small(image), durable=False)


def _small(pixels: ByteArray) -> bytes:
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
