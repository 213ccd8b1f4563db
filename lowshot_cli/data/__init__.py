"""Datasets as uint8 tensors that stay in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowshot_cli.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from lowshot_cli.config import Config


@dataclass(frozen=True)
class Images:
    """Images of one split.

    Attributes:
        pixels: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64, index into the dataset's class names.
        files: file name of each image relative to the dataset, or None where there are no files.
    """

    pixels: Tensor
    labels: Tensor
    files: tuple[str, ...] | None = None

    def of_class(self, label: int) -> Tensor:
        """Indices `(n,)` int64 of the images of one class, ascending."""
        return (self.labels == label).nonzero().squeeze(1)

    def describe(self, index: int) -> str:
        """How an image is named to people: its file where it has one, else its index."""
        return self.files[index] if self.files else f"#{index}"


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes.

    Attributes:
        name: as in `--dataset`.
        class_names: in label order.
        train: base and support images come from here.
        test: query images come from here.
        mirror: whether an image keeps its class when flipped left to right.
        default_classes: base classes where the user names none; None means all.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    mirror: bool
    default_classes: int | None

    @cached_property
    def content_hash(self) -> str:
        """Hex digest over class names, the labels of both splits and the test pixels."""
        digest = blake2b(digest_size=16)
        digest.update("\0".join(self.class_names).encode())
        for tensor in (self.train.labels, self.test.labels, self.test.pixels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def label(self, class_name: str) -> int:
        """Label of a class.

        Raises:
            UsageError: no such class; the hint names the nearest.
        """
        if class_name not in self.class_names:
            raise UsageError(
                f"the {self.name} dataset has no class {class_name!r}",
                did_you_mean(class_name, self.class_names, "`lowshot data classes` lists them"),
            )
        return self.class_names.index(class_name)


def load_dataset(config: Config, image_size: int | None = None) -> Dataset:
    """Load the dataset that the config names.

    Args:
        config: `dataset`, `data_dir`, `image_size` and `seed` are read.
        image_size: side in pixels that a checkpoint asks for; wins over the config's.

    Raises:
        DataError: absent or broken data.
    """
    from lowshot_cli.data import cifar, folder, glyphs

    size = image_size or config.image_size
    if config.dataset == "cifar100":
        if size not in (None, cifar.IMAGE_SIZE):
            raise DataError(f"CIFAR-100 images are {cifar.IMAGE_SIZE} pixels wide, not {size}")
        return cifar.load(config.data_folder)
    if config.dataset == "glyphs":
        return glyphs.make(size or glyphs.IMAGE_SIZE)
    if config.data_dir is None:
        raise DataError("--dataset folder needs --data-dir", "name the folder that holds train/")
    return folder.load(config.data_dir, size or folder.IMAGE_SIZE)


def stack_pixels(arrays: list[Tensor]) -> Tensor:
    """Images `(3, H, W)` uint8 of one size as `(N, 3, H, W)`; N may be 0."""
    return torch.stack(arrays) if arrays else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
