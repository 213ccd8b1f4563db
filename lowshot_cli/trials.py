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

from lowshot_cli.backbones import pick_device
from lowshot_cli.config import Config
from lowshot_cli.data.splits import draw_directions
from lowshot_cli.evaluate import Scores, score_trials
from lowshot_cli.finetune import finetune_rows
from lowshot_cli.full_trial import score_full_trial
from lowshot_cli.imprint import budget_of, cluster_means, operating_bias
from lowshot_cli.materials import Materials, Tile, gather, make_tile
from lowshot_cli.model import widened
from lowshot_cli.plan import TILE, Piece, Plan
from lowshot_cli.progress import OnProgress, ShouldStop
from lowshot_cli.results import Rows
from lowshot_cli.teach import rows_of

# Rows a class has with the method `proxies`.
PROXIES = 2


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


Work = Iterable[tuple[int, Piece]]
Outcomes = Iterator[tuple[int, Outcome]]
# What works off pieces: `run` here, or one that hands them to other processes, which may come back
# in another order.
Executor = Callable[[Work, Plan, Materials, Config, int, OnProgress, ShouldStop], Outcomes]


def run(
    work: Work,
    plan: Plan,
    materials: Materials,
    config: Config,
    threads: int,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> Outcomes:
    """Work off pieces in this process, one after the other.

    Args:
        work: pieces with their numbers in the plan.
        plan: of the sweep.
        materials: from `prepare`.
        config: `seed`, `device`, `finetune` and `sweep`.
        threads: of PyTorch; the last digits of rows depend on it.
        on_progress: told about the steps of long pieces.
        should_stop: asked after each piece; ends the iteration.
    """
    materials = materials.to(pick_device(config.device))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number, piece in work:
            yield number, run_piece(piece, plan, materials, config, on_progress)
            if should_stop():
                return
    finally:
        torch.set_num_threads(before)


def run_piece(
    piece: Piece, plan: Plan, materials: Materials, config: Config, on_progress: OnProgress
) -> Outcome:
    """Work off one piece of the plan."""
    alone = piece.method == "finetune-full"
    size = 1 if alone else TILE
    tile = make_tile(piece, plan, materials.available, materials.avoided, size)
    budget = budget_of(piece.method, config.sweep.max_forgetting)
    proxies = None
    if alone:
        scores, bias = score_full_trial(tile, materials, config, budget, on_progress)
    else:
        proxies = novel_rows(tile, materials, config)
        scores, bias = _score(proxies, tile, materials, budget)
        proxies = proxies[: tile.count].cpu()
    groups, trials = plan.locate(piece)
    most = scores.swallowed[: tile.count].max(1)
    rows = Rows(
        method=piece.method,
        shots=piece.shots,
        groups=groups,
        trials=trials,
        metrics={name: values[: tile.count] for name, values in scores.metrics.items()},
        bias=bias[: tile.count].cpu().double().numpy().round(6) + 0.0,
        swallower=most.indices.numpy(),
        swallowed=most.values.double().numpy().round(4),
    )
    return Outcome(piece, rows, proxies)


def _score(
    proxies: Tensor, tile: Tile, materials: Materials, budget: float | None
) -> tuple[Scores, Tensor]:
    bias = proxies.new_zeros(len(proxies))
    if budget is not None:
        bias = operating_bias(proxies, materials.calibration, budget)
    rows_each = proxies.shape[1] // tile.units.shape[1]
    units = torch.from_numpy(tile.units).repeat_interleave(rows_each, 1)
    before = materials.base_accuracy
    return score_trials(proxies, bias, units, materials.base, materials.novel, before), bias


def novel_rows(tile: Tile, materials: Materials, config: Config) -> Tensor:
    """Novel rows `(T, R, D)` by one of the methods that leave the base model as it is.

    R is the number of ways, times the rows a class has: `nearest`, a bound rather than a model to
    use, keeps every support image as a row, and `proxies` one for each of a few clusters.
    """
    checkpoint = materials.checkpoint
    if tile.method == "random":
        rows = _random_rows(tile, checkpoint.meta.embedding_size, config.seed)
        return widened(rows, checkpoint.head.size).to(checkpoint.device)
    if tile.method == "augmented":
        return rows_of("imprint", gather(materials.augmented, tile), checkpoint)
    support = gather(materials.train, tile)
    if tile.method == "nearest":
        return rows_of("imprint", support.flatten(1, 2).unsqueeze(2), checkpoint)
    if tile.method == "proxies":
        clusters = cluster_means(support, PROXIES)
        return rows_of("whitened", clusters.flatten(1, 2).unsqueeze(2), checkpoint)
    if tile.method == "finetune-head":
        rows = rows_of("whitened", support, checkpoint)
        ways, shots = tile.drawn.shape[1:]
        targets = torch.arange(ways, device=support.device).repeat_interleave(shots)
        flat = support.view(len(support), ways * shots, -1)
        return finetune_rows(rows, flat, targets, materials.shaping, config.finetune)
    return rows_of(tile.method, support, checkpoint)


def _random_rows(tile: Tile, size: int, seed: int) -> Tensor:
    rows = torch.empty(*tile.units.shape, size)
    for label in np.unique(tile.units):
        place = tile.units == label
        numbers = np.broadcast_to(tile.trials[:, None], place.shape)[place]
        rows[torch.from_numpy(place)] = draw_directions(seed, int(label), numbers, size)
    return rows
