"""Tiles: batches of trials, padded to a fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.supports import draw_supports
from lowshot_cli.seeding import IntArray
from lowshot_cli.sweep.plan import Plan, TrialBatch


@dataclass(frozen=True)
class Tile:
    """A batch of trials, padded to a fixed size: T trials of W novel classes and k shots.

    Attributes:
        method: as in `--method`.
        shots: support images per class, k.
        count: how many of the trials are real; the rest repeat the last one.
        units: `(T, W)` labels of each trial's novel classes.
        trials: `(T,)` trial numbers.
        drawn: `(T, W, k)` positions of the supports among each class's training images.
    """

    method: str
    shots: int
    count: int
    units: IntArray
    trials: IntArray
    drawn: IntArray


def make_tile(
    batch: TrialBatch,
    plan: Plan,
    available: Mapping[int, int],
    avoided: Mapping[int, IntArray],
    size: int,
) -> Tile:
    """Draw the supports of a batch of trials.

    Args:
        batch: the trials.
        plan: of the sweep.
        available: number of training images by label.
        avoided: positions of images to draw only if there are no others, by label.
        size: number of trials to pad to.
    """
    groups, trials = plan.locate(batch)
    padding = (0, max(0, size - len(trials)))
    padded, numbers = (np.pad(each, padding, mode="edge") for each in (groups, trials))
    tile = draw_tile(
        plan,
        available,
        avoided,
        method=batch.method,
        shots=batch.shots,
        groups=padded,
        trials=numbers,
    )
    return replace(tile, count=len(trials))


def draw_tile(
    plan: Plan,
    available: Mapping[int, int],
    avoided: Mapping[int, IntArray],
    *,
    method: str,
    shots: int,
    groups: IntArray,
    trials: IntArray,
) -> Tile:
    """Draw the supports of any trials, given the group `(T,)` and number `(T,)` of each."""
    units = np.array([plan.groups[group] for group in groups])  # (T, W)
    drawn = np.empty((*units.shape, shots), dtype=np.int64)  # (T, W, k)
    for label in np.unique(units):
        place = units == label  # (T, W)
        own = np.broadcast_to(trials[:, None], units.shape)[place]  # (m,) trials with the class
        drawn[place] = draw_supports(  # (m, k)
            plan.seed, int(label), own, shots, available[int(label)], avoided=avoided[int(label)]
        )
    return Tile(method, shots, len(trials), units, trials, drawn)


def gather(embeddings: Mapping[int, Tensor], tile: Tile) -> Tensor:
    """Embeddings `(T, W, k, D)` of a tile's supports, from `(n, D)` by label."""
    some = next(iter(embeddings.values()))
    support = some.new_empty(*tile.drawn.shape, some.shape[1])  # (T, W, k, D)
    for label in np.unique(tile.units):
        place = tile.units == label  # (T, W)
        positions = torch.from_numpy(tile.drawn[place])  # (m, k)
        support[torch.from_numpy(place)] = embeddings[int(label)][positions]  # (m, k, D)
    return support
