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
    small = [F.adaptive_avg_pool2d(_halved(part), _SIDE).flatten(1) for part in pixels.split(1024)]
    return torch.cat(small) if small else torch.empty(0, 3 * _SIDE**2)


def _halved(pixels: Tensor) -> Tensor:
    """Images halved in size while it is even and large, at a fraction of the cost of pooling."""
    while pixels.shape[-1] >= 2 * _SIDE and not any(side % 2 for side in pixels.shape[-2:]):
        wide = pixels[..., ::2].float() + pixels[..., 1::2]
        pixels = (wide[..., ::2, :] + wide[..., 1::2, :]) / 4
    return pixels.float()


def distances(images: Tensor, others: Tensor) -> Tensor:
    """How far each of `(N, 3, H, W)` uint8 is from the nearest of `(M, 3, H, W)`, `(N,)`.

    Root mean square difference of thumbnails in pixel values 0..255; infinite where M is 0.
    """
    if not len(others):
        return torch.full((len(images),), torch.inf)
    # By a matrix product, which is right to a fraction of a pixel value and several times as fast.
    mode = "use_mm_for_euclid_dist"
    pairs = torch.cdist(thumbnails(images), thumbnails(others), compute_mode=mode)
    nearest: Tensor = pairs.amin(1) / (3 * _SIDE**2) ** 0.5
    return nearest


def leaking(dataset: Dataset, label: int) -> IntArray:
    """Positions among a class's training images of those that are test images of it, or nearly."""
    train = dataset.train.pixels[dataset.train.of_class(label)]
    test = dataset.test.pixels[dataset.test.of_class(label)]
    found: IntArray = np.flatnonzero((distances(train, test) <= NEAR).numpy())
    return found
