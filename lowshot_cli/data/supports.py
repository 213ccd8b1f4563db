"""Support draws: which images of a class a trial may see.

A draw takes the images with the smallest keys, where a key is a hash of the seed, the draw's name
and the image. So a draw depends on its own name alone: not on the draws before it, nor on how many
are made or in which order. The first k images of a draw of n are the draw of k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.errors import UsageError
from lowshot_cli.seeding import IntArray, Stream, hash_keys, smallest_keys


def draw_supports(
    seed: int,
    label: int,
    trials: Sequence[int] | IntArray,
    shots: int,
    available: int,
    *,
    avoided: Sequence[int] | IntArray = (),
) -> IntArray:
    """Draw the support images of many trials of one class.

    Args:
        seed: the run's seed.
        label: the class.
        trials: trial numbers `(T,)`.
        shots: images per trial; a draw of fewer shots is a prefix of a draw of more.
        available: how many images the class has.
        avoided: positions of images that are drawn only after all others; the others are drawn
            as if these did not exist.

    Returns:
        `(T, shots)` int64 positions among the class's images, distinct within a row.

    Raises:
        UsageError: there are fewer images than shots.
    """
    if not 0 < shots <= available:
        raise UsageError(
            f"`shots` is {shots}, the class has {available} training images",
            f"give a number from 1 to {available}",
        )
    numbers = np.asarray(trials, dtype=np.int64)[:, None]
    keys = hash_keys(seed, Stream.SUPPORT, label, numbers, np.arange(available)[None, :])
    last = np.zeros(available, dtype=np.uint64)
    last[np.asarray(avoided, dtype=np.int64)] = 1
    # The top bit puts avoided images after all others.
    keys = (keys >> np.uint64(1)) | (last << np.uint64(63))  # (T, available)
    if shots < available:
        nearest = np.argpartition(keys, shots - 1, axis=1)[:, :shots]
    else:
        nearest = np.broadcast_to(np.arange(available), keys.shape)
    # In the order of their keys, so that a draw of fewer shots is a prefix of this one.
    order = np.argsort(np.take_along_axis(keys, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1)


def sample_classes(seed: int, names: Sequence[str], count: int) -> tuple[str, ...]:
    """A seeded sample of novel classes, in the order in which they were given."""
    kept = set(smallest_keys(len(names), count, seed, Stream.NOVEL).tolist())
    return tuple(name for index, name in enumerate(names) if index in kept)


def draw_directions(seed: int, label: int, trials: Sequence[int] | IntArray, size: int) -> Tensor:
    """Random directions, uniform on the sphere: `(T, size)` fp32, unit, one per trial."""
    from scipy.special import ndtri

    numbers = np.asarray(trials, dtype=np.int64)[:, None]
    keys = hash_keys(seed, Stream.DIRECTION, label, numbers, np.arange(size)[None, :])
    # Normal numbers by the inverse distribution function, of 53-bit fractions inside (0, 1).
    normal = ndtri((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)
    return F.normalize(torch.from_numpy(normal), dim=1).float()
