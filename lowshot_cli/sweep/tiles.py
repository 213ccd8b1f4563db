"""Trials in tiles of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.supports import draw_supports
from lowshot_cli.sweep.plan import IntArray, Plan, TrialBatch


@dataclass(frozen=True)
class Tile:
    """The trials of one piece of work, padded to a fixed number.

    Attributes:
        method: as in `--method`.
        shots: k.
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
    piece: TrialBatch,
    plan: Plan,
    available: Mapping[int, int],
    avoided: Mapping[int, IntArray],
    size: int,
) -> Tile:
    """Draw the supports of a piece of work.

    Args:
        piece: the work.
        plan: the sweep it belongs to.
        available: number of training images by label.
        avoided: positions of images that are not drawn while there are others, by label.
        size: number of trials to pad to.
    """
    groups, trials = plan.locate(piece)
    padding = (0, max(0, size - len(trials)))
    groups, numbers = (np.pad(each, padding, mode="edge") for each in (groups, trials))
    tile = draw_tile(piece.method, piece.shots, groups, numbers, plan, available, avoided)
    return replace(tile, count=len(trials))


def draw_tile(
    method: str,
    shots: int,
    groups: IntArray,
    trials: IntArray,
    plan: Plan,
    available: Mapping[int, int],
    avoided: Mapping[int, IntArray],
) -> Tile:
    """Draw the supports of any trials, given the group `(T,)` and number `(T,)` of each."""
    units = np.array([plan.groups[group] for group in groups])
    drawn = np.empty((*units.shape, shots), dtype=np.int64)
    for label in np.unique(units):
        place = units == label
        own = np.broadcast_to(trials[:, None], units.shape)[place]
        drawn[place] = draw_supports(
            plan.seed, int(label), own, shots, available[int(label)], avoided=avoided[int(label)]
        )
    return Tile(method, shots, len(trials), units, trials, drawn)


def gather(embeddings: Mapping[int, Tensor], tile: Tile) -> Tensor:
    """Embeddings `(T, W, k, D)` of a tile's supports, from `(n, D)` by label."""
    some = next(iter(embeddings.values()))
    result = some.new_empty(*tile.drawn.shape, some.shape[1])
    for label in np.unique(tile.units):
        place = tile.units == label
        result[torch.from_numpy(place)] = embeddings[int(label)][
            torch.from_numpy(tile.drawn[place])
        ]
    return result
