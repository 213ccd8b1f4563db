"""Counter-based random keys: a draw depends only on its seed and on what it is for."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]


class Stream(IntEnum):
    """Every kind of random draw. The numbers decide the draws, so they never change."""

    HOLDOUT = 1
    """Base training images that are held out; drawn without a seed."""

    SUPPORT = 2
    """Support images of a trial."""

    NOVEL = 3
    """A sample of novel classes."""

    DIRECTION = 4
    """Random proxies."""

    FINETUNE_STEP = 11
    """Order and augmentation while the whole network is fine-tuned."""

    TRAIN_EPOCH = 21
    """Order of the images in an epoch of base training."""

    TRAIN_STEP = 22
    """Augmentation in a step of base training."""

    DROPOUT = 23
    """Dropout and the like inside a library's network, in a step of base training."""

    TRAIN_MIRROR = 24
    """Which images the first epoch of base training mirrors."""

    GROUP = 31
    """Novel classes that a trial of several ways adds together."""


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


def generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """A PyTorch generator on the CPU for one draw.

    Args:
        seed: the run's seed.
        stream: what is drawn.
        key: non-negative numbers that distinguish draws of the stream, such as a step.
    """
    import torch

    # PyTorch's seeds are signed, so one of the key's 64 bits is dropped.
    return torch.Generator().manual_seed(int(hash_keys(seed, stream, *key)[0]) >> 1)
