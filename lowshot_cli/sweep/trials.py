"""Trials of a sweep, each from the pristine base model.

The backbone is frozen, so every image is embedded once; after that a trial is a mean and one dot
product per query. Trials run in tiles of a fixed size, so that a row depends on the seed, the model
and the data, but not on the other trials of the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.finetune import full_data
from lowshot_cli.adaptation.methods import Supports, make_proxies, make_whitened
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.splits import split_holdout
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.methods.operating_point import (
    BaseQueries,
    operating_bias,
    pooled_margins,
    resolve_budget,
)
from lowshot_cli.models.embedder import embed
from lowshot_cli.seeding import hash_keys
from lowshot_cli.sweep.embeddings import SweepEmbeddings
from lowshot_cli.sweep.plan import TILE, Plan, TrialBatch
from lowshot_cli.sweep.results import Rows
from lowshot_cli.sweep.scoring import NovelQueries, Scores, score_trials
from lowshot_cli.sweep.tiles import Tile, gather, make_tile
from lowshot_cli.threads import map_in_order
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.finetune_network import finetune_network


def score_full_trial(
    tile: Tile,
    embedded: SweepEmbeddings,
    config: Config,
    budget: float | None,
    context: RunContext,
) -> tuple[Scores, Tensor]:
    """Fine-tune the whole network from the imprinted model and score it.

    Args:
        tile: a single trial.
        embedded: of the sweep.
        config: `seed` and `finetune`.
        budget: forgetting budget in points that sets the bias; None for bias 0.
        context: gets a report of each step; the network runs on its device.

    Returns:
        Scores and bias `(1,)` of the one trial.
    """
    # Only the network runs on the device; it returns embeddings on the CPU.
    embedded = embedded.to(torch.device("cpu"))
    checkpoint, dataset = embedded.checkpoint, embedded.dataset
    labels = tile.units[0].tolist()
    supports = [
        dataset.train.of_class(label)[torch.from_numpy(positions)].tolist()
        for label, positions in zip(labels, tile.drawn[0], strict=True)
    ]
    network = checkpoint.network(context.device)
    start = make_whitened(gather(embedded.train, tile), embedded.backgrounds[0])[0]
    proxies = finetune_network(
        network,
        checkpoint.head.with_novel(start),
        full_data(checkpoint, dataset, supports),
        config.finetune.model_copy(update={"scope": "full"}),
        seed=_seed(tile, config),
        context=context,
    )
    n_base = checkpoint.meta.n_base
    base_proxies, novel_proxies = proxies[:n_base], proxies[n_base:][None]  # (C, D), (1, W, D)
    base_labels = checkpoint.base_labels(dataset)
    bias = torch.zeros(1)
    if budget is not None:
        _, holdout = split_holdout(dataset.train, base_labels, checkpoint.meta.holdout_per_class)
        pixels = dataset.train.picked(checkpoint.holdout.calibrating(holdout))
        held = checkpoint.holdout.queries_under(base_proxies, embed(network, pixels))
        bias = operating_bias(held.margins(novel_proxies), held, budget)
    test = [dataset.test.of_class(label) for label in [*base_labels, *labels]]
    queries = [embed(network, dataset.test.picked(index)) for index in test]
    base = BaseQueries.of(
        base_proxies, torch.cat(queries[:n_base]), embedded.base_truth, embedded.base_right
    )
    novel = {
        label: NovelQueries.of(base_proxies, embeddings)
        for label, embeddings in zip(labels, queries[n_base:], strict=True)
    }
    units, before = torch.from_numpy(tile.units), embedded.base_accuracy
    scores = score_trials(novel_proxies, bias, units, base, novel, base_accuracy_before=before)
    return scores, bias


def _seed(tile: Tile, config: Config) -> int:
    key = hash_keys(config.seed, tile.shots, int(tile.trials[0]), *tile.units[0].tolist())
    return int(key[0] >> np.uint64(1))


@dataclass(frozen=True)
class BatchResult:
    """Results of a batch of trials.

    Attributes:
        batch: the trials.
        rows: for `results.csv`.
        proxies: `(T, W, R)` novel proxies of the trials; None if the backbone changed too.
    """

    batch: TrialBatch
    rows: Rows
    proxies: Tensor | None


class Executor(Protocol):
    """Runs batches of trials: `run` in this process, or others on a cluster."""

    def __call__(
        self,
        work: Iterable[tuple[int, TrialBatch]],
        plan: Plan,
        embedded: SweepEmbeddings,
        config: Config,
        *,
        threads: int,
        context: RunContext,
    ) -> Iterator[tuple[int, BatchResult]]:
        """Run batches; yields their numbers and results in the order in which they finish.

        Args:
            work: batches with their numbers in the plan.
            plan: of the sweep.
            embedded: from `embed_for_sweep`.
            config: `seed`, `finetune` and `sweep`; on other machines also `device`.
            threads: of each process. Each works on a tile of its own, so rows do not depend on
                their number; but they share a fine-tuning of the whole network, and its rows do.
            context: gets reports of the steps of long batches in this process; once asked to stop,
                the iteration ends after the batches that are running.
        """


def run(
    work: Iterable[tuple[int, TrialBatch]],
    plan: Plan,
    embedded: SweepEmbeddings,
    config: Config,
    *,
    threads: int,
    context: RunContext,
) -> Iterator[tuple[int, BatchResult]]:
    """Run batches in this process, several tiles at once, as an `Executor`."""
    embedded = embedded.to(context.device)

    def run_one(numbered: tuple[int, TrialBatch]) -> tuple[int, BatchResult]:
        number, batch = numbered
        return number, run_batch(batch, plan, embedded, config, context=context)

    for alone, part in groupby(work, lambda numbered: METHODS[numbered[1].method].alone):
        at_once, each = (1, threads) if alone else (tiles_at_once(threads, context.device), 1)
        yield from map_in_order(
            run_one, part, at_once, threads_each=each, should_stop=context.should_stop
        )
        if context.should_stop():
            return


def tiles_at_once(threads: int, device: torch.device) -> int:
    """How many tiles a process with this many threads works on at once."""
    return threads if device.type == "cpu" else 1


def run_batch(
    batch: TrialBatch,
    plan: Plan,
    embedded: SweepEmbeddings,
    config: Config,
    *,
    context: RunContext,
) -> BatchResult:
    """Run one batch of the plan."""
    method = METHODS[batch.method]
    size = 1 if method.alone else TILE
    tile = make_tile(batch, plan, embedded.available, embedded.avoided, size)
    budget = resolve_budget(config.sweep.max_forgetting, biased=method.biased)
    proxies = None
    if method.alone:
        scores, bias = score_full_trial(tile, embedded, config, budget, context)
    else:
        made = make_novel_proxies(tile, embedded, config)
        proxies = made[0]  # (T, W, R)
        scores, bias = _score(made, tile, embedded, budget)
        proxies = proxies[: tile.count].cpu()
    groups, trials = plan.locate(batch)
    most = scores.confused_percent[: tile.count].max(1)  # over base classes
    rows = Rows(
        method=batch.method,
        shots=batch.shots,
        groups=groups,
        trials=trials,
        metrics={name: values[: tile.count] for name, values in scores.metrics.items()},
        bias=bias[: tile.count].cpu().double().numpy().round(6) + 0.0,
        confused_with=most.indices.numpy(),
        confused_percent=most.values.double().numpy().round(4),
    )
    return BatchResult(batch, rows, proxies)


def _score(
    made: Sequence[Tensor], tile: Tile, embedded: SweepEmbeddings, budget: float | None
) -> tuple[Scores, Tensor]:
    """Scores and bias `(T,)` of trials that add proxies to the base model.

    Args:
        made: `(T, P, R)` proxies on the background of the model, then on that of each fold.
        tile: the trials.
        embedded: of the sweep.
        budget: forgetting budget in points that sets the bias; None for bias 0.
    """
    proxies = made[0]
    bias = proxies.new_zeros(len(proxies))
    if budget is not None:
        folds = embedded.calibration
        margins = pooled_margins(folds, made[-len(folds) :])
        bias = operating_bias(margins, embedded.pooled_calibration, budget)
    proxies_each = proxies.shape[1] // tile.units.shape[1]
    units = torch.from_numpy(tile.units).repeat_interleave(proxies_each, 1)  # (T, P)
    scores = score_trials(
        proxies,
        bias,
        units,
        embedded.base,
        embedded.novel,
        base_accuracy_before=embedded.base_accuracy,
    )
    return scores, bias


def make_novel_proxies(tile: Tile, embedded: SweepEmbeddings, config: Config) -> list[Tensor]:
    """Novel proxies `(T, P, R)` by a method that leaves the base model unchanged.

    P is the number of ways times the proxies per class of the method. The first are those of the
    model; with cross-fitting, those of each fold follow.
    """
    supports = Supports(
        gather(embedded.train, tile),
        lambda: gather(embedded.augmented, tile),
        lambda size: random_directions(tile, size, config.seed),
    )
    backgrounds = embedded.backgrounds
    return [make_proxies(tile.method, supports, each, config) for each in backgrounds]


def random_directions(tile: Tile, size: int, seed: int) -> Tensor:
    """Unit directions `(T, W, size)`, which depend on the seed, the class and the trial number."""
    directions = torch.empty(*tile.units.shape, size)
    for label in np.unique(tile.units):
        place = tile.units == label  # (T, W)
        numbers = np.broadcast_to(tile.trials[:, None], place.shape)[place]  # (m,)
        drawn = draw_directions(seed, int(label), numbers, size)  # (m, size)
        directions[torch.from_numpy(place)] = drawn
    return directions
