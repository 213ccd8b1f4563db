"""Trials of a sweep, each from the pristine base model.

The backbone is frozen, so every image is embedded once; after that a trial is a mean and one dot
product per query. Trials run in tiles of a fixed size, so that a row depends on the seed, the model
and the data, and not on which other trials were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.finetune import full_data
from lowshot_cli.adaptation.methods import Supports, make_proxies, make_start
from lowshot_cli.checkpoint.holdout import calibration_half
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.splits import split_holdout
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.environment import pick_device
from lowshot_cli.methods.operating_point import BaseQueries, operating_bias, resolve_budget
from lowshot_cli.models.embedder import embed
from lowshot_cli.progress import OnProgress, ShouldStop, silent
from lowshot_cli.seeding import hash_keys
from lowshot_cli.sweep.embeddings import SweepEmbeddings
from lowshot_cli.sweep.plan import TILE, Plan, TrialBatch
from lowshot_cli.sweep.results import Rows
from lowshot_cli.sweep.scoring import NovelQueries, Scores, score_trials
from lowshot_cli.sweep.tiles import Tile, gather, make_tile
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.finetune_network import finetune_network


def score_full_trial(
    tile: Tile,
    embedded: SweepEmbeddings,
    config: Config,
    budget: float | None,
    on_progress: OnProgress = silent,
) -> tuple[Scores, Tensor]:
    """Fine-tune the whole network from the imprinted model and score it.

    Args:
        tile: with a single trial.
        embedded: of the sweep.
        config: `seed`, `device` and `finetune`.
        budget: forgetting budget in points that sets the bias; None for bias 0.
        on_progress: told after each step.

    Returns:
        Scores and bias of the one trial.
    """
    # The network alone runs on the device, and its embeddings come back from there.
    embedded = embedded.to(torch.device("cpu"))
    checkpoint, dataset = embedded.checkpoint, embedded.dataset
    labels = tile.units[0].tolist()
    supports = [
        dataset.train.of_class(label)[torch.from_numpy(positions)].tolist()
        for label, positions in zip(labels, tile.drawn[0], strict=True)
    ]
    network = checkpoint.network(pick_device(config.device))
    start = make_start(gather(embedded.train, tile), checkpoint)[0]
    proxies = finetune_network(
        network,
        checkpoint.head.with_novel(start),
        full_data(checkpoint, dataset, supports),
        config.finetune.model_copy(update={"scope": "full"}),
        seed=_seed(tile, config),
        context=RunContext(on_progress=on_progress),
    )
    n_base = checkpoint.meta.n_base
    base_rows, rows = proxies[:n_base], proxies[n_base:][None]
    base_labels = checkpoint.base_labels(dataset)
    bias = torch.zeros(1)
    if budget is not None:
        _, holdout = split_holdout(dataset.train, base_labels, checkpoint.meta.holdout_per_class)
        pixels = dataset.train.picked(calibration_half(holdout))
        calibration = checkpoint.holdout.calibration_half_under(base_rows, embed(network, pixels))
        bias = operating_bias(rows, calibration, budget)
    test = [dataset.test.of_class(label) for label in [*base_labels, *labels]]
    queries = [embed(network, dataset.test.picked(index)) for index in test]
    base = BaseQueries.of(
        base_rows, torch.cat(queries[:n_base]), embedded.base_truth, embedded.base_right
    )
    novel = {
        label: NovelQueries.of(base_rows, embeddings)
        for label, embeddings in zip(labels, queries[n_base:], strict=True)
    }
    before = embedded.base_accuracy
    return score_trials(rows, bias, torch.from_numpy(tile.units), base, novel, before), bias


def _seed(tile: Tile, config: Config) -> int:
    key = hash_keys(config.seed, tile.shots, int(tile.trials[0]), *tile.units[0].tolist())
    return int(key[0] >> np.uint64(1))


@dataclass(frozen=True)
class BatchResult:
    """What a piece of work yields.

    Attributes:
        piece: the work.
        rows: for `results.csv`.
        proxies: `(T, W, D)` the trials' novel rows; None where the backbone changed as well.
    """

    piece: TrialBatch
    rows: Rows
    proxies: Tensor | None


Work = Iterable[tuple[int, TrialBatch]]


Outcomes = Iterator[tuple[int, BatchResult]]


# What works off pieces: `run` here, or one that hands them to other processes, which may come back
# in another order.
Executor = Callable[[Work, Plan, SweepEmbeddings, Config, int, OnProgress, ShouldStop], Outcomes]


def run(
    work: Work,
    plan: Plan,
    embedded: SweepEmbeddings,
    config: Config,
    threads: int,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> Outcomes:
    """Work off pieces in this process, one after the other.

    Args:
        work: pieces with their numbers in the plan.
        plan: of the sweep.
        embedded: from `prepare`.
        config: `seed`, `device`, `finetune` and `sweep`.
        threads: of PyTorch; the last digits of rows depend on it.
        on_progress: told about the steps of long pieces.
        should_stop: asked after each piece; ends the iteration.
    """
    embedded = embedded.to(pick_device(config.device))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number, piece in work:
            yield number, run_piece(piece, plan, embedded, config, on_progress)
            if should_stop():
                return
    finally:
        torch.set_num_threads(before)


def run_piece(
    piece: TrialBatch,
    plan: Plan,
    embedded: SweepEmbeddings,
    config: Config,
    on_progress: OnProgress,
) -> BatchResult:
    """Work off one piece of the plan."""
    method = METHODS[piece.method]
    size = 1 if method.alone else TILE
    tile = make_tile(piece, plan, embedded.available, embedded.avoided, size)
    budget = resolve_budget(config.sweep.max_forgetting, biased=method.biased)
    proxies = None
    if method.alone:
        scores, bias = score_full_trial(tile, embedded, config, budget, on_progress)
    else:
        proxies = novel_rows(tile, embedded, config)
        scores, bias = _score(proxies, tile, embedded, budget)
        proxies = proxies[: tile.count].cpu()
    groups, trials = plan.locate(piece)
    most = scores.confused_percent[: tile.count].max(1)
    rows = Rows(
        method=piece.method,
        shots=piece.shots,
        groups=groups,
        trials=trials,
        metrics={name: values[: tile.count] for name, values in scores.metrics.items()},
        bias=bias[: tile.count].cpu().double().numpy().round(6) + 0.0,
        confused_with=most.indices.numpy(),
        confused_percent=most.values.double().numpy().round(4),
    )
    return BatchResult(piece, rows, proxies)


def _score(
    proxies: Tensor, tile: Tile, embedded: SweepEmbeddings, budget: float | None
) -> tuple[Scores, Tensor]:
    bias = proxies.new_zeros(len(proxies))
    if budget is not None:
        bias = operating_bias(proxies, embedded.calibration, budget)
    rows_each = proxies.shape[1] // tile.units.shape[1]
    units = torch.from_numpy(tile.units).repeat_interleave(rows_each, 1)
    before = embedded.base_accuracy
    return score_trials(proxies, bias, units, embedded.base, embedded.novel, before), bias


def novel_rows(tile: Tile, embedded: SweepEmbeddings, config: Config) -> Tensor:
    """Novel rows `(T, R, D)` by one of the methods that leave the base model as it is.

    R is the number of ways, times the proxies that the method gives a class.
    """
    supports = Supports(
        gather(embedded.train, tile),
        lambda: gather(embedded.augmented, tile),
        lambda size: _random_rows(tile, size, config.seed),
    )
    return make_proxies(tile.method, supports, embedded.checkpoint, config)


def _random_rows(tile: Tile, size: int, seed: int) -> Tensor:
    rows = torch.empty(*tile.units.shape, size)
    for label in np.unique(tile.units):
        place = tile.units == label
        numbers = np.broadcast_to(tile.trials[:, None], place.shape)[place]
        rows[torch.from_numpy(place)] = draw_directions(seed, int(label), numbers, size)
    return rows
