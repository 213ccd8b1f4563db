"""What the trials of a sweep are made of: embeddings made once, and draws from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config
from lowshot_cli.data import Dataset
from lowshot_cli.data.duplicates import leaking
from lowshot_cli.data.splits import draw_supports
from lowshot_cli.embed import Embedder
from lowshot_cli.evaluate import NovelQueries
from lowshot_cli.finetune import BaseSamples
from lowshot_cli.imprint import BaseQueries
from lowshot_cli.model import nearest_rows
from lowshot_cli.plan import IntArray, Piece, Plan
from lowshot_cli.teach import augmented_views

_Parts = TypeVar("_Parts", BaseQueries, BaseSamples, NovelQueries)


@dataclass(frozen=True)
class Materials:
    """What trials are made of, all embedded once.

    Attributes:
        checkpoint: the pristine base model.
        dataset: the one it was trained on.
        base: base test queries.
        base_truth: `(N,)` int64 base rows of all base test images, in the order of the classes.
        base_right: `(N,)` bool, which of them the pristine model gets right.
        calibration: base hold-out queries that set the bias.
        shaping: base hold-out samples that fine-tuning may use.
        novel: test queries by label.
        train: training embeddings `(n, D)` by label, from which supports are drawn.
        augmented: the same averaged over augmented views, where a method asks for it.
        avoided: by label the positions of training images that are test images too, or nearly.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    base: BaseQueries
    base_truth: Tensor
    base_right: Tensor
    calibration: BaseQueries
    shaping: BaseSamples
    novel: dict[int, NovelQueries]
    train: dict[int, Tensor]
    augmented: dict[int, Tensor]
    avoided: dict[int, IntArray]

    @cached_property
    def available(self) -> dict[int, int]:
        """Number of training images by label."""
        return {label: len(embeddings) for label, embeddings in self.train.items()}

    @cached_property
    def base_accuracy(self) -> float:
        """Base test accuracy of the pristine base model, percent."""
        return 100 * int(self.base_right.sum()) / len(self.base_right)

    def to(self, device: torch.device) -> Materials:
        """The same with all tensors on a device, on which trials are then run; images stay."""
        if device == self.checkpoint.device:
            return self

        def move(parts: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {label: part.to(device) for label, part in parts.items()}

        return replace(
            self,
            checkpoint=self.checkpoint.to(device),
            base=_moved(self.base, device),
            base_truth=self.base_truth.to(device),
            base_right=self.base_right.to(device),
            calibration=_moved(self.calibration, device),
            shaping=_moved(self.shaping, device),
            novel={label: _moved(queries, device) for label, queries in self.novel.items()},
            train=move(self.train),
            augmented=move(self.augmented),
        )


def _moved(parts: _Parts, device: torch.device) -> _Parts:
    tensors = {name: part for name, part in vars(parts).items() if isinstance(part, Tensor)}
    moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    return replace(parts, **moved)


def prepare(
    checkpoint: Checkpoint, dataset: Dataset, plan: Plan, config: Config, embedder: Embedder
) -> Materials:
    """Embed what the plan needs."""
    proxies = checkpoint.head.base.proxies
    labels = sorted({label for group in plan.groups for label in group})
    base_labels = checkpoint.base_labels(dataset)
    n_base = len(base_labels)
    test = embedder.classes(dataset.test, [*base_labels, *labels])
    train = embedder.classes(dataset.train, labels)
    augmented = []
    if "augmented" in plan.methods:
        augmented = embedder.classes(
            dataset.train, labels, augmented_views(config.imprint, checkpoint.meta.mirror)
        )
    sizes = torch.tensor([len(embeddings) for embeddings in test[:n_base]])
    truth = torch.arange(n_base).repeat_interleave(sizes)
    queries = torch.cat(test[:n_base])
    return Materials(
        checkpoint=checkpoint,
        dataset=dataset,
        base=BaseQueries.of(proxies, queries, truth),
        base_truth=truth,
        base_right=nearest_rows(queries, proxies)[1] == truth,
        calibration=checkpoint.calibration,
        shaping=checkpoint.shaping,
        novel={
            label: NovelQueries.of(proxies, embeddings)
            for label, embeddings in zip(labels, test[n_base:], strict=True)
        },
        train=dict(zip(labels, train, strict=True)),
        augmented=dict(zip(labels, augmented, strict=False)),
        avoided={label: leaking(dataset, label) for label in labels},
    )


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
    piece: Piece,
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
            plan.seed, int(label), own, shots, available[int(label)], avoided[int(label)]
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
