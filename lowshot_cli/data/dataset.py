"""A dataset in memory or mapped from files: images, labels and class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowshot_cli.config.values import normal_name
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import Unused
from lowshot_cli.errors import UsageError, did_you_mean, first_few

# Images that are read, decoded or embedded at a time.
BATCH = 256
_HASHED_AT_ONCE = 1024
_MOST_NAMED = 10


@dataclass(frozen=True)
class ImageSubset:
    """Some images of a split, copied out of it only when they are read.

    A split may be mapped from a file and larger than memory; only one batch of it is in memory.

    Attributes:
        pixels: `(N, 3, S, S)` uint8, the whole split.
        index: `(n,)` int64, which of its images, in this order.
    """

    pixels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        """A copy `(m, 3, S, S)` of the images at these places."""
        return self.pixels[self.index[places]]

    def part(self, places: slice | Tensor) -> ImageSubset:
        """The images at these places, not yet copied."""
        return ImageSubset(self.pixels, self.index[places])

    def split(self, size: int) -> Iterator[Tensor]:
        """Copies of all images, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to_device_if_it_fits(self, device: torch.device) -> ImageSubset:
        """A copy on a GPU if it fills no more than half of the free memory there, else itself."""
        size = len(self) * self.pixels[:1].numel()
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return ImageSubset(self[:].to(device), torch.arange(len(self), device=device))

    @property
    def side(self) -> int:
        """Side S of the images in pixels."""
        return self.pixels.shape[-1]


Pixels = Tensor | ImageSubset


@dataclass(frozen=True)
class Images:
    """Images of one split.

    Attributes:
        pixels: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64, index into the dataset's class names.
        files: file name of each image relative to the dataset, or None if there are no files.
        digests: hex digest of the pixels of each label's images, as far as they are known.
    """

    pixels: Tensor
    labels: Tensor
    files: tuple[str, ...] | None = None
    digests: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def of_class(self, label: int) -> Tensor:
        """Indices `(n,)` int64 of the images of one class, ascending."""
        return self._members[label] if label < len(self._members) else self.labels[:0]

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        counts = torch.bincount(self.labels)
        return self.labels.argsort(stable=True).split(counts.tolist()) if len(counts) else ()

    def picked(self, index: Tensor) -> ImageSubset:
        """The images with these indices, not yet copied."""
        return ImageSubset(self.pixels, index)

    def digest(self, label: int) -> str:
        """Hex digest of the pixels of one class's images, hashed once."""
        if label not in self.digests:
            digest = blake2b(digest_size=16)
            for pixels in self.picked(self.of_class(label)).split(_HASHED_AT_ONCE):
                digest.update(pixels.numpy().data)
            self.digests[label] = digest.hexdigest()
        return self.digests[label]

    def describe(self, index: int) -> str:
        """What to call an image in a message: its file if it has one, else its index."""
        return self.files[index] if self.files else f"#{index}"


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes.

    Attributes:
        name: as in the setting `dataset`.
        class_names: in label order.
        train: base and support images come from here.
        test: query images come from here.
        mirror: whether an image keeps its class when flipped left to right.
        default_classes: how many base classes to take if the user names none; None means all.
        skipped: unreadable images that were left out, each with the reason.
        unused: other files that look like input and are not used.
        hashed_names: of the classes in the content hash, in label order; None for `class_names`.
        blank: files of which nothing is left: every pixel is white or was transparent.
        framing: how photos become squares. Images of a dataset without files are squares already.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    mirror: bool
    default_classes: int | None
    skipped: tuple[str, ...] = ()
    unused: tuple[Unused, ...] = ()
    hashed_names: tuple[str, ...] | None = None
    blank: tuple[str, ...] = ()
    framing: Framing = CROP

    @cached_property
    def content_hash(self) -> str:
        """Hex digest over class names, the labels of both splits and the test pixels."""
        return self.hash_of(range(len(self.class_names)))

    def hash_of(self, classes: Sequence[int]) -> str:
        """The content hash that the dataset would have with these labels alone, ascending."""
        names = self.hashed_names or self.class_names
        digest = blake2b(digest_size=16)
        digest.update("\0".join(names[label] for label in classes).encode())
        kept = torch.tensor(classes)
        for images in (self.train, self.test):
            labels = images.labels[torch.isin(images.labels, kept)]
            digest.update(torch.searchsorted(kept, labels).numpy().data)
        for label in classes:
            digest.update(self.test.digest(label).encode())
        return digest.hexdigest()

    @property
    def n_skipped(self) -> int:
        """Number of files that look like input and are not used."""
        return len(self.skipped) + len(self.unused)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label of each class by name."""
        return {name: label for label, name in enumerate(self.class_names)}

    def _listing_hint(self) -> str:
        """Where to look for the names of classes."""
        if self.name != "folder":
            return f"`lowshot data classes --dataset {self.name}` lists them"
        return f"it has {first_few(self.class_names, _MOST_NAMED)}"

    def label(self, class_name: str) -> int:
        """Label of a class.

        Raises:
            UsageError: no such class; the hint names the nearest.
        """
        class_name = normal_name(class_name)
        if class_name not in self.labels:
            raise UsageError(
                f"the {self.name} dataset has no class {class_name!r}",
                did_you_mean(class_name, self.class_names, self._listing_hint()),
            )
        return self.labels[class_name]


def compute_digest(array: npt.NDArray[Any]) -> str:
    """Hex digest of an array's bytes."""
    return blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
