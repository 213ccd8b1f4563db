"""Embeddings of a sweep, made once and shared by all trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowshot_cli.adaptation.methods import augmented_views
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import supports_seen_in_test
from lowshot_cli.methods.background import Background
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.models.head import nearest_proxies
from lowshot_cli.seeding import IntArray
from lowshot_cli.sweep.plan import Plan
from lowshot_cli.sweep.scoring import NovelQueries
from lowshot_cli.threads import map_in_order, threads_per_operation

_Parts = TypeVar("_Parts", BaseQueries, NovelQueries)


@dataclass(frozen=True)
class SweepEmbeddings:
    """Everything that trials are made of, embedded once.

    Attributes:
        checkpoint: the pristine base model.
        dataset: the one it was trained on.
        base: base test queries.
        base_truth: `(N,)` int64 position of the class of each base test image, class by class.
        base_right: `(N,)` bool, which of them the base model gets right.
        backgrounds: what novel classes are made from, of the model and of each fold.
        calibration: base queries that set the bias, fold by fold.
        novel: test queries by label.
        train: training embeddings `(n, D)` by label, from which supports are drawn.
        augmented: the same averaged over augmented views; empty unless a method needs it.
        avoided: by label the positions of training images that resemble test images.
    """

    checkpoint: Checkpoint
    dataset: Dataset
    base: BaseQueries
    base_truth: Tensor
    base_right: Tensor
    backgrounds: tuple[Background, ...]
    calibration: tuple[BaseQueries, ...]
    novel: dict[int, NovelQueries]
    train: dict[int, Tensor]
    augmented: dict[int, Tensor]
    avoided: dict[int, IntArray]

    @cached_property
    def available(self) -> dict[int, int]:
        """Number of training images by label."""
        return {label: len(embeddings) for label, embeddings in self.train.items()}

    @cached_property
    def pooled_calibration(self) -> BaseQueries:
        """The queries of all folds as one set, joined once for all tiles."""
        return BaseQueries.pooled(self.calibration)

    @cached_property
    def base_accuracy(self) -> float:
        """Base test accuracy of the pristine base model, percent."""
        return 100 * int(self.base_right.sum()) / len(self.base_right)

    def to(self, device: torch.device) -> SweepEmbeddings:
        """Copy all tensors to a device, for trials to run there; images stay on the CPU.

        Apple's GPUs have no float64, so all of it stays on the CPU for them.
        """
        device = torch.device("cpu") if device.type == "mps" else device
        if device == self.backgrounds[0].device:
            return self

        def move(parts: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {label: part.to(device) for label, part in parts.items()}

        return replace(
            self,
            base=_moved(self.base, device),
            base_truth=self.base_truth.to(device),
            base_right=self.base_right.to(device),
            backgrounds=tuple(background.to(device) for background in self.backgrounds),
            calibration=tuple(_moved(queries, device) for queries in self.calibration),
            novel={label: _moved(queries, device) for label, queries in self.novel.items()},
            train=move(self.train),
            augmented=move(self.augmented),
        )


def _moved(parts: _Parts, device: torch.device) -> _Parts:
    tensors = {name: part for name, part in vars(parts).items() if isinstance(part, Tensor)}
    moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    return replace(parts, **moved)


def embed_for_sweep(
    checkpoint: Checkpoint, dataset: Dataset, plan: Plan, config: Config, embedder: Embedder
) -> SweepEmbeddings:
    """Embed what the plan needs; the bits do not depend on the number of threads."""
    labels = sorted({label for group in plan.groups for label in group})
    base_labels = checkpoint.base_labels(dataset)
    n_base = len(base_labels)
    test = embedder.classes(dataset.test, [*base_labels, *labels])
    train = embedder.classes(dataset.train, labels)
    augmented = []
    if any(METHODS[method].views for method in plan.methods):
        augmented = embedder.classes(
            dataset.train, labels, augmented_views(config.imprint, checkpoint.meta.mirror)
        )
    seen = partial(supports_seen_in_test, dataset)
    avoided = list(map_in_order(seen, labels, torch.get_num_threads()))
    sizes = torch.tensor([len(embeddings) for embeddings in test[:n_base]])  # (C,)
    truth = torch.arange(n_base).repeat_interleave(sizes)  # (N,)
    queries = torch.cat(test[:n_base])  # (N, D)
    # A copy, so that no statistics are in it yet that were found with several threads.
    checkpoint = replace(checkpoint, holdout=replace(checkpoint.holdout))
    proxies = checkpoint.head.base.proxies
    with threads_per_operation(1):
        for background in checkpoint.backgrounds:
            background.statistics.precision  # noqa: B018 - found here, by a single thread
        return SweepEmbeddings(
            checkpoint=checkpoint,
            dataset=dataset,
            base=BaseQueries.of(proxies, queries, truth),
            base_truth=truth,
            base_right=nearest_proxies(queries, proxies)[1] == truth,
            backgrounds=checkpoint.backgrounds,
            calibration=checkpoint.calibration,
            novel={
                label: NovelQueries.of(proxies, embeddings)
                for label, embeddings in zip(labels, test[n_base:], strict=True)
            },
            train=dict(zip(labels, train, strict=True)),
            augmented=dict(zip(labels, augmented, strict=False)),
            avoided=dict(zip(labels, avoided, strict=True)),
        )
