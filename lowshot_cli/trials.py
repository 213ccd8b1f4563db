"""Trials of a sweep, each from the pristine base model.

The backbone is frozen, so every image is embedded once; after that a trial is a mean and one dot
product per query. Trials run in tiles of a fixed size, so that a row depends on the seed, the model
and the data, and not on which other trials were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config
from lowshot_cli.data import Dataset
from lowshot_cli.data.splits import draw_directions, draw_supports, hash_keys, split_holdout
from lowshot_cli.embed import Embedder, embed
from lowshot_cli.evaluate import NovelQueries, Scores, score_trials
from lowshot_cli.finetune import BaseSamples, finetune_full, finetune_rows
from lowshot_cli.imprint import (
    BaseQueries,
    budget_of,
    imprint,
    operating_bias,
    shrunk_precision,
    whitened,
)
from lowshot_cli.plan import TILE, IntArray, Piece, Plan
from lowshot_cli.progress import OnProgress, Progress, ShouldStop, never, silent
from lowshot_cli.results import Rows
from lowshot_cli.teach import augmented_views, full_data


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
        precision: `(D, D)` for the method `whitened`.
        augmented: the same averaged over augmented views, where a method asks for it.
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
    precision: Tensor
    augmented: dict[int, Tensor]

    @cached_property
    def base_accuracy(self) -> float:
        """Base test accuracy of the pristine base model, percent."""
        return 100 * int(self.base_right.sum()) / len(self.base_right)


def prepare(
    checkpoint: Checkpoint, dataset: Dataset, plan: Plan, config: Config, embedder: Embedder
) -> Materials:
    """Embed what the plan needs."""
    proxies = checkpoint.head.base.proxies
    labels = sorted({label for group in plan.groups for label in group})
    base_labels = [dataset.label(name) for name in checkpoint.base_classes]
    n_base = len(base_labels)
    test = embedder.classes(dataset.test, [*base_labels, *labels])
    train = embedder.classes(dataset.train, labels)
    augmented = []
    if "augmented" in plan.methods:
        augmented = embedder.classes(
            dataset.train, labels, augmented_views(config.imprint, dataset)
        )
    sizes = torch.tensor([len(embeddings) for embeddings in test[:n_base]])
    truth = torch.arange(n_base).repeat_interleave(sizes)
    queries = torch.cat(test[:n_base])
    return Materials(
        checkpoint=checkpoint,
        dataset=dataset,
        base=BaseQueries.of(proxies, queries, truth),
        base_truth=truth,
        base_right=(queries @ proxies.T).argmax(1) == truth,
        calibration=checkpoint.calibration,
        shaping=checkpoint.shaping,
        novel={
            label: NovelQueries.of(proxies, embeddings)
            for label, embeddings in zip(labels, test[n_base:], strict=True)
        },
        train=dict(zip(labels, train, strict=True)),
        precision=shrunk_precision(checkpoint.within),
        augmented=dict(zip(labels, augmented, strict=False)),
    )


@dataclass(frozen=True)
class Outcome:
    """What a piece of work yields.

    Attributes:
        piece: the work.
        rows: for `results.csv`.
        proxies: `(T, W, D)` the trials' novel rows; None where the backbone changed as well.
    """

    piece: Piece
    rows: Rows
    proxies: Tensor | None


def run(
    plan: Plan,
    materials: Materials,
    config: Config,
    skip: int = 0,
    on_progress: OnProgress = silent,
    should_stop: ShouldStop = never,
) -> Iterator[Outcome]:
    """Work off the plan, one piece after the other.

    Args:
        plan: what to do.
        materials: from `prepare`.
        config: `seed`, `finetune` and `sweep`.
        skip: pieces that are done already.
        on_progress: told after each piece.
        should_stop: asked after each piece; ends the iteration.
    """
    done = 0
    for number, piece in enumerate(plan.pieces()):
        if number >= skip:
            yield _run_piece(piece, plan, materials, config)
        done += piece.stop - piece.start
        if number >= skip:
            on_progress(
                Progress("trials", done, plan.n_rows, "trials", milestone=done == plan.n_rows)
            )
            if should_stop():
                return


def _run_piece(piece: Piece, plan: Plan, materials: Materials, config: Config) -> Outcome:
    groups, trials = plan.locate(piece)
    count = len(trials)
    padding = 0 if piece.method == "finetune-full" else TILE - count
    tile_groups = np.pad(groups, (0, padding), mode="edge")
    tile_trials = np.pad(trials, (0, padding), mode="edge")
    units = np.array(plan.groups)[tile_groups]
    available = {label: len(embeddings) for label, embeddings in materials.train.items()}
    drawn = draw_tile(plan.seed, units, tile_trials, piece.shots, available)
    budget = budget_of(piece.method, config.sweep.max_forgetting)
    if piece.method == "finetune-full":
        scores, bias = _score_full(piece, units, drawn, budget, materials, config)
        proxies = None
    else:
        proxies = _novel_rows(piece.method, plan.seed, units, tile_trials, drawn, materials, config)
        bias = torch.zeros(len(proxies))
        if budget is not None:
            bias = operating_bias(proxies, materials.calibration, budget)
        scores = score_trials(
            proxies,
            bias,
            torch.from_numpy(units),
            materials.base,
            materials.novel,
            materials.base_accuracy,
        )
        proxies = proxies[:count]
    most = scores.swallowed[:count].max(1)
    rows = Rows(
        method=piece.method,
        shots=piece.shots,
        groups=groups,
        trials=trials,
        metrics={name: values[:count] for name, values in scores.metrics.items()},
        bias=bias[:count].double().numpy().round(6) + 0.0,
        swallower=most.indices.numpy(),
        swallowed=most.values.double().numpy().round(4),
    )
    return Outcome(piece, rows, proxies)


def draw_tile(
    seed: int,
    units: IntArray,
    trials: IntArray,
    shots: int,
    available: Mapping[int, int],
) -> IntArray:
    """Support positions `(T, W, k)` among the training images of each trial's classes.

    Args:
        seed: the run's seed.
        units: `(T, W)` labels of each trial's novel classes.
        trials: `(T,)` trial numbers.
        shots: k.
        available: number of training images by label.
    """
    drawn = np.empty((*units.shape, shots), dtype=np.int64)
    for label in np.unique(units):
        place = units == label
        numbers = np.broadcast_to(trials[:, None], units.shape)[place]
        drawn[place] = draw_supports(seed, int(label), numbers, shots, available[int(label)])
    return drawn


def _gather(embeddings: dict[int, Tensor], units: IntArray, drawn: IntArray) -> Tensor:
    """Embeddings `(T, W, k, D)` of drawn images."""
    size = next(iter(embeddings.values())).shape[1]
    result = torch.empty(*drawn.shape, size)
    for label in np.unique(units):
        place = torch.from_numpy(units == label)
        result[place] = embeddings[int(label)][torch.from_numpy(drawn[units == label])]
    return result


def _novel_rows(
    method: str,
    seed: int,
    units: IntArray,
    trials: IntArray,
    drawn: IntArray,
    materials: Materials,
    config: Config,
) -> Tensor:
    """Novel rows `(T, W, D)` by one of the methods that leave the base model as it is."""
    if method == "random":
        size = materials.checkpoint.meta.embedding_size
        rows = torch.empty(*units.shape, size)
        for label in np.unique(units):
            numbers = np.broadcast_to(trials[:, None], units.shape)[units == label]
            rows[torch.from_numpy(units == label)] = draw_directions(
                seed, int(label), numbers, size
            )
        return rows
    if method == "augmented":
        return imprint(_gather(materials.augmented, units, drawn))
    support = _gather(materials.train, units, drawn)
    if method == "whitened":
        return whitened(support, materials.checkpoint.mean, materials.precision)
    rows = imprint(support)
    if method == "finetune-head":
        ways, shots = drawn.shape[1:]
        targets = torch.arange(ways).repeat_interleave(shots)
        flat = support.view(len(support), ways * shots, -1)
        rows = finetune_rows(rows, flat, targets, materials.shaping, config.finetune)
    return rows


def _score_full(
    piece: Piece,
    units: IntArray,
    drawn: IntArray,
    budget: float | None,
    materials: Materials,
    config: Config,
) -> tuple[Scores, Tensor]:
    """Fine-tune the whole network for one trial and score it."""
    checkpoint, dataset = materials.checkpoint, materials.dataset
    labels = units[0].tolist()
    supports = [
        dataset.train.of_class(label)[torch.from_numpy(positions)].tolist()
        for label, positions in zip(labels, drawn[0], strict=True)
    ]
    network = checkpoint.network()
    start = imprint(_gather(materials.train, units, drawn))[0]
    proxies = finetune_full(
        network,
        checkpoint.head.with_rows(start).proxies,
        checkpoint.head.scale,
        full_data(checkpoint, dataset, supports),
        config.finetune.model_copy(update={"scope": "full"}),
        int(hash_keys(config.seed, piece.shots, piece.start)[0] >> np.uint64(1)),
    )
    n_base = checkpoint.meta.n_base
    base_rows, rows = proxies[:n_base], proxies[n_base:][None]
    base_labels = [dataset.label(name) for name in checkpoint.base_classes]
    bias = torch.zeros(1)
    if budget is not None:
        _, holdout = split_holdout(dataset.train, base_labels, checkpoint.meta.holdout_per_class)
        calibration = BaseQueries.of(
            base_rows,
            embed(network, dataset.train.pixels[holdout[1::2]]),
            checkpoint.holdout_labels[1::2],
            checkpoint.holdout_right[1::2],
        )
        bias = operating_bias(rows, calibration, budget)
    test = [dataset.test.of_class(label) for label in [*base_labels, *labels]]
    embedded = [embed(network, dataset.test.pixels[index]) for index in test]
    base = BaseQueries.of(
        base_rows, torch.cat(embedded[:n_base]), materials.base_truth, materials.base_right
    )
    novel = {
        label: NovelQueries.of(base_rows, embeddings)
        for label, embeddings in zip(labels, embedded[n_base:], strict=True)
    }
    before = materials.base_accuracy
    return score_trials(rows, bias, torch.from_numpy(units), base, novel, before), bias
