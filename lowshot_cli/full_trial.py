"""One trial of a sweep that fine-tunes the whole network, and so shares nothing with others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.backbones import pick_device
from lowshot_cli.checkpoint import CALIBRATION
from lowshot_cli.config import Config
from lowshot_cli.data.splits import hash_keys, split_holdout
from lowshot_cli.embed import embed
from lowshot_cli.evaluate import NovelQueries, Scores, score_trials
from lowshot_cli.finetune_full import finetune_full
from lowshot_cli.imprint import BaseQueries, operating_bias
from lowshot_cli.materials import Materials, Tile, gather
from lowshot_cli.progress import OnProgress, silent
from lowshot_cli.teach import rows_of
from lowshot_cli.tuning import full_data


def score_full_trial(
    tile: Tile,
    materials: Materials,
    config: Config,
    budget: float | None,
    on_progress: OnProgress = silent,
) -> tuple[Scores, Tensor]:
    """Fine-tune the whole network from the imprinted model and score it.

    Args:
        tile: with a single trial.
        materials: of the sweep.
        config: `seed`, `device` and `finetune`.
        budget: forgetting budget in points that sets the bias; None for bias 0.
        on_progress: told after each step.

    Returns:
        Scores and bias of the one trial.
    """
    # The network alone runs on the device, and its embeddings come back from there.
    materials = materials.to(torch.device("cpu"))
    checkpoint, dataset = materials.checkpoint, materials.dataset
    labels = tile.units[0].tolist()
    supports = [
        dataset.train.of_class(label)[torch.from_numpy(positions)].tolist()
        for label, positions in zip(labels, tile.drawn[0], strict=True)
    ]
    network = checkpoint.network(pick_device(config.device))
    start = rows_of("whitened", gather(materials.train, tile), checkpoint)[0]
    proxies = finetune_full(
        network,
        checkpoint.head.with_rows(start).proxies,
        checkpoint.head.scale,
        full_data(checkpoint, dataset, supports),
        config.finetune.model_copy(update={"scope": "full"}),
        _seed(tile, config),
        on_progress,
    )
    n_base = checkpoint.meta.n_base
    base_rows, rows = proxies[:n_base], proxies[n_base:][None]
    base_labels = checkpoint.base_labels(dataset)
    bias = torch.zeros(1)
    if budget is not None:
        _, holdout = split_holdout(dataset.train, base_labels, checkpoint.meta.holdout_per_class)
        pixels = dataset.train.picked(holdout[CALIBRATION])
        calibration = checkpoint.calibration_with(base_rows, embed(network, pixels))
        bias = operating_bias(rows, calibration, budget)
    test = [dataset.test.of_class(label) for label in [*base_labels, *labels]]
    embedded = [embed(network, dataset.test.picked(index)) for index in test]
    base = BaseQueries.of(
        base_rows, torch.cat(embedded[:n_base]), materials.base_truth, materials.base_right
    )
    novel = {
        label: NovelQueries.of(base_rows, embeddings)
        for label, embeddings in zip(labels, embedded[n_base:], strict=True)
    }
    before = materials.base_accuracy
    return score_trials(rows, bias, torch.from_numpy(tile.units), base, novel, before), bias


def _seed(tile: Tile, config: Config) -> int:
    key = hash_keys(config.seed, tile.shots, int(tile.trials[0]), *tile.units[0].tolist())
    return int(key[0] >> np.uint64(1))
