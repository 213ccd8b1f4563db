"""Counter-based random keys, so that every draw depends on the seed and on what it is for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


HOLDOUT_STREAM = 1


SUPPORT_STREAM = 2


NOVEL_STREAM = 3


DIRECTION_STREAM = 4


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


BATCH_STREAM = 11


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    key = hash_keys(seed, BATCH_STREAM, epoch, step + 1)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


GROUP_STREAM = 31


EPOCH_STREAM, STEP_STREAM, CHANCE_STREAM = 21, 22, 23
