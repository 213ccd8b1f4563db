"""Training images that are also test images, or nearly: a class must not be learnt from those."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.data import Dataset
from lowshot_cli.data.splits import IntArray

# Root mean square difference of two thumbnails, in pixel values 0..255, up to which they show the
# same picture. On CIFAR-100 it finds the same shot stored twice and nothing else.
NEAR = 10.0
_SIDE = 16


def thumbnails(pixels: Tensor) -> Tensor:
    """Images `(N, 3, H, W)` uint8 averaged over areas to `(N, 768)` fp32, pixel values 0..255."""
    small = [F.adaptive_avg_pool2d(part.float(), _SIDE).flatten(1) for part in pixels.split(1024)]
    return torch.cat(small) if small else torch.empty(0, 3 * _SIDE**2)


def distances(images: Tensor, others: Tensor) -> Tensor:
    """How far each of `(N, 3, H, W)` uint8 is from the nearest of `(M, 3, H, W)`, `(N,)`.

    Root mean square difference of thumbnails in pixel values 0..255; infinite where M is 0.
    """
    if not len(others):
        return torch.full((len(images),), torch.inf)
    # The other ways of computing it lose the small distances, which are the ones that count.
    mode = "donot_use_mm_for_euclid_dist"
    pairs = torch.cdist(thumbnails(images), thumbnails(others), compute_mode=mode)
    nearest: Tensor = pairs.amin(1) / (3 * _SIDE**2) ** 0.5
    return nearest


def leaking(dataset: Dataset, label: int) -> IntArray:
    """Positions among a class's training images of those that are test images of it, or nearly."""
    train = dataset.train.pixels[dataset.train.of_class(label)]
    test = dataset.test.pixels[dataset.test.of_class(label)]
    found: IntArray = np.flatnonzero((distances(train, test) <= NEAR).numpy())
    return found
