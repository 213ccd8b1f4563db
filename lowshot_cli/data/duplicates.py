"""Images that are in both splits, or nearly.

`supports_seen_in_test` is strict and quick: such training images become supports only if no others
are left, as a class must not be learnt from the images it is measured on. `lookalikes` finds more:
also pictures that were cropped, mirrored or recoloured, and some pairs that merely look alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.data.dataset import Dataset, Images, Pixels
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.seeding import IntArray

# Two thumbnails with at most this root mean square difference, in pixel values 0..255, show the
# same picture. On CIFAR-100 it finds photos that are stored twice and nothing else.
NEAR = 10.0
_SIDE = 16
# `lookalikes` of at least this similarity count as the same picture. Judged by eye on CIFAR-100,
# most such pairs are, and about half of those just above it.
SIMILAR = 0.85
# A pair that is less similar than this without a shift is not compared under shifts.
_PROMISING = 0.55
_SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
_CHUNK = 500
# Distances computed at once: 128 MiB of fp32.
_MOST_PAIRS = 2**25


def thumbnails(pixels: Pixels) -> Tensor:
    """Images `(N, 3, H, W)` uint8 averaged over areas to `(N, 768)` fp32, pixel values 0..255."""
    small = [F.adaptive_avg_pool2d(_halved(part), _SIDE).flatten(1) for part in pixels.split(1024)]
    return torch.cat(small) if small else torch.empty(0, 3 * _SIDE**2)


def _halved(pixels: Tensor) -> Tensor:
    """Images halved in size while their sides are even and large; pooling takes far longer."""
    while pixels.shape[-1] >= 2 * _SIDE and not any(side % 2 for side in pixels.shape[-2:]):
        wide = pixels[..., ::2].float() + pixels[..., 1::2]
        pixels = (wide[..., ::2, :] + wide[..., 1::2, :]) / 4
    return pixels.float()


def distances(images: Pixels, others: Pixels) -> Tensor:
    """Distance `(N,)` of each image `(N, 3, H, W)` uint8 to the nearest other `(M, 3, H, W)`.

    Root mean square difference of thumbnails in pixel values 0..255; infinite if M is 0.
    """
    if not len(others):
        return torch.full((len(images),), torch.inf)
    # As a matrix product: several times as fast, and exact to a fraction of a pixel value.
    mode = "use_mm_for_euclid_dist"
    known, nearest = thumbnails(others), []
    for part in thumbnails(images).split(max(1, _MOST_PAIRS // len(known))):
        nearest.append(torch.cdist(part, known, compute_mode=mode).amin(1))
    found: Tensor = torch.cat(nearest) / (3 * _SIDE**2) ** 0.5
    return found


def supports_seen_in_test(dataset: Dataset, label: int) -> IntArray:
    """Positions of those training images of a class that are also test images of it, or nearly."""
    train, test = (part.picked(part.of_class(label)) for part in (dataset.train, dataset.test))
    found: IntArray = np.flatnonzero((distances(train, test) <= NEAR).numpy())
    return found


@dataclass(frozen=True)
class Lookalikes:
    """The training image that each test image resembles most.

    Attributes:
        similarity: `(N,)` fp32 of each test image; 1 for the same picture.
        nearest: `(N,)` int64 index of that training image.
    """

    similarity: Tensor
    nearest: Tensor


def lookalikes(test: Tensor, train: Tensor, on_progress: OnProgress = silent) -> Lookalikes:
    """Find for each test image the training image that most probably shows the same picture.

    The similarity of two images is the mean of two correlations: of their 16x16 thumbnails, and of
    these less their averages over 4x4 squares. The best of both mirrorings and of shifts by a
    sixteenth of a side counts. The first correlation ignores brightness and contrast; the second
    tells one sky from another.

    Args:
        test: `(N, 3, H, W)` uint8.
        train: `(M, 3, H, W)` uint8.
        on_progress: gets reports about test images.
    """
    known = torch.cat([_features(part) for part in train.split(_CHUNK)])
    best, nearest = torch.full((len(test),), -1.0), torch.zeros(len(test), dtype=torch.int64)
    for start in range(0, len(test), _CHUNK):
        images = test[start : start + _CHUNK]
        place = slice(start, start + len(images))
        for mirrored in (images, images.flip(3)):
            products = _features(mirrored) @ known.T  # (n, M)
            _improve(best[place], nearest[place], *products.max(1))
            one, other = (products > _PROMISING).nonzero(as_tuple=True)
            for shift in _SHIFTS if len(one) else ():
                moved = _features(_shifted(mirrored, *shift))
                shifted = torch.full_like(products, -1.0)
                for pairs in torch.arange(len(one)).split(20 * _CHUNK):
                    left, right = one[pairs], other[pairs]
                    shifted[left, right] = (moved[left] * known[right]).sum(1)
                _improve(best[place], nearest[place], *shifted.max(1))
        on_progress(Progress("comparing", place.stop, len(test)))
    return Lookalikes(best, nearest)


def _improve(best: Tensor, nearest: Tensor, values: Tensor, found: Tensor) -> None:
    better = values > best
    best[better], nearest[better] = values[better], found[better]


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images moved by that many sixteenths of a side, the border repeated."""
    reach = max(1, images.shape[-1] // _SIDE)
    side = images.shape[-1]
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    top, left = (1 + down) * reach, (1 + right) * reach
    return padded[..., top : top + side, left : left + side]


def _features(images: Tensor) -> Tensor:
    """Unit vectors `(N, 1536)` of images `(N, 3, H, W)`; their products are similarities."""
    coarse = thumbnails(images).view(-1, 3, _SIDE, _SIDE)
    quarter = F.adaptive_avg_pool2d(coarse, _SIDE // 4)
    fine = coarse - F.interpolate(quarter, _SIDE, mode="bilinear")
    parts = [part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (coarse, fine)]
    return torch.cat([F.normalize(part, dim=1) for part in parts], 1) / 2**0.5


def without_lookalikes(dataset: Dataset, on_progress: OnProgress = silent) -> Dataset:
    """The dataset without the test images that resemble a training image."""
    test = dataset.test
    found = lookalikes(test.pixels, dataset.train.pixels, on_progress)
    kept = (found.similarity < SIMILAR).nonzero().squeeze(1)
    files = tuple(test.files[i] for i in kept.tolist()) if test.files else None
    return replace(dataset, test=Images(test.pixels[kept], test.labels[kept], files))
