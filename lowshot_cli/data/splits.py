"""Class orders, hold-outs and support draws: every choice is a pure function of a seed.

A draw keeps the images with the smallest keys, where a key is a hash of the seed, the draw's name
and the image. So a draw depends on nothing but its own name: not on the draws before it, nor on
how many are made or in which order. The first k of a draw of n are the draw of k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor

from lowshot_cli.data import Dataset, Images
from lowshot_cli.errors import UsageError, did_you_mean

IntArray = npt.NDArray[np.int64]
_HOLDOUT_STREAM = 1
_SUPPORT_STREAM = 2
_NOVEL_STREAM = 3
_DIRECTION_STREAM = 4


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection on 64-bit words."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_keys(*parts: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Hash broadcastable non-negative integers, in order, to keys of their common shape."""
    state = np.zeros((1,), dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ _mix(np.atleast_1d(np.asarray(part, dtype=np.uint64))))
    return state


def smallest_keys(population: int, count: int, *name: int) -> IntArray:
    """Draw `count` of `population` items without replacement: `(count,)` int64 in draw order."""
    return np.argsort(hash_keys(*name, np.arange(population)), kind="stable")[:count]


def class_order(dataset: Dataset, split: str, seed: int) -> list[str]:
    """Class names in the order in which they become base classes, then novel ones.

    `seeded` is `numpy.random.RandomState(seed).permutation(n_classes)`, with seed 1993 the usual
    class-incremental order of CIFAR-100 (Rebuffi et al., iCaRL, CVPR 2017); `alphabetical` sorts.
    """
    if split == "alphabetical":
        return sorted(dataset.class_names)
    order = np.random.RandomState(seed).permutation(len(dataset.class_names))
    return [dataset.class_names[label] for label in order]


def base_classes(
    dataset: Dataset, wanted: int | Sequence[str] | None, split: str, seed: int
) -> tuple[str, ...]:
    """The base classes in head order.

    Raises:
        UsageError: more classes than exist, fewer than two, or an unknown name.
    """
    total = len(dataset.class_names)
    if wanted is None:
        wanted = dataset.default_classes or total
    if isinstance(wanted, int):
        if not 2 <= wanted <= total:
            raise UsageError(
                f"--classes {wanted}: the {dataset.name} dataset has {total} classes",
                f"give a number from 2 to {total}",
            )
        return tuple(class_order(dataset, split, seed)[:wanted])
    for name in wanted:
        if name not in dataset.labels:
            raise UsageError(
                f"the {dataset.name} dataset has no class {name!r}",
                did_you_mean(name, dataset.class_names),
            )
    if len(wanted) < 2:
        raise UsageError("a base model needs at least two classes", "name more in --classes")
    return tuple(wanted)


def split_holdout(images: Images, labels: Sequence[int], per_class: int) -> tuple[Tensor, Tensor]:
    """Split the training images of the base classes into fit and hold-out.

    The hold-out depends on the data alone, not on the seed, so that models trained with different
    seeds are chosen and calibrated on the same images.

    Returns:
        Indices of the fit and of the hold-out images, both int64, grouped by class in the order of
        `labels`.

    Raises:
        UsageError: a class that has no image left to fit.
    """
    fit, holdout = [], []
    for label in labels:
        indices = images.of_class(label)
        if len(indices) <= per_class:
            raise UsageError(
                f"a base class has {len(indices)} training images, the hold-out takes {per_class}",
                "give a smaller --holdout",
            )
        drawn = torch.from_numpy(smallest_keys(len(indices), len(indices), _HOLDOUT_STREAM, label))
        holdout.append(indices[drawn[:per_class].sort().values])
        fit.append(indices[drawn[per_class:].sort().values])
    return torch.cat(fit), torch.cat(holdout)


def draw_supports(
    seed: int,
    label: int,
    trials: Sequence[int] | IntArray,
    shots: int,
    available: int,
    avoided: Sequence[int] | IntArray = (),
) -> IntArray:
    """Draw the support images of many trials of one class.

    Args:
        seed: the run's seed.
        label: the class.
        trials: trial numbers `(T,)`.
        shots: images per trial; a draw of fewer shots is a prefix of a draw of more.
        available: how many images the class has.
        avoided: positions of images that are drawn only where all others are; the draws of the
            others are as if these were not there.

    Returns:
        `(T, shots)` int64 positions among the class's images, distinct within a row.

    Raises:
        UsageError: more shots than images.
    """
    if not 0 < shots <= available:
        raise UsageError(
            f"--shots {shots}: the class has {available} training images",
            f"give a number from 1 to {available}",
        )
    numbers = np.asarray(trials, dtype=np.int64)[:, None]
    keys = hash_keys(seed, _SUPPORT_STREAM, label, numbers, np.arange(available)[None, :])
    last = np.zeros(available, dtype=np.uint64)
    last[np.asarray(avoided, dtype=np.int64)] = 1
    keys = (keys >> np.uint64(1)) | (last << np.uint64(63))
    if shots < available:
        nearest = np.argpartition(keys, shots - 1, axis=1)[:, :shots]
    else:
        nearest = np.broadcast_to(np.arange(available), keys.shape)
    order = np.argsort(np.take_along_axis(keys, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1)


def sample_classes(seed: int, names: Sequence[str], count: int) -> tuple[str, ...]:
    """A seeded sample of novel classes, in the order in which they were given."""
    kept = set(smallest_keys(len(names), count, seed, _NOVEL_STREAM).tolist())
    return tuple(name for index, name in enumerate(names) if index in kept)


def draw_directions(seed: int, label: int, trials: Sequence[int] | IntArray, size: int) -> Tensor:
    """Random directions, uniform on the sphere: `(T, size)` fp32 unit rows, one per trial."""
    numbers = np.asarray(trials, dtype=np.int64)[:, None]
    keys = hash_keys(seed, _DIRECTION_STREAM, label, numbers, np.arange(size)[None, :])
    normal = ndtri((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54)
    return F.normalize(torch.from_numpy(normal), dim=1).float()
