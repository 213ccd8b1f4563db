"""A base model without training: a backbone as it is, whose base classes are imprinted."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from lowshot_cli.base_model import BaseTask, TrainResult, make_checkpoint
from lowshot_cli.config import Config
from lowshot_cli.data import Dataset, Images
from lowshot_cli.embed import Embedder
from lowshot_cli.errors import Interrupted, TrainingError
from lowshot_cli.imprint import imprint
from lowshot_cli.model import EmbeddingNetwork
from lowshot_cli.progress import OnProgress, Progress, ShouldStop
from lowshot_cli.weights import LoadedWeights


def adopt(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    network: EmbeddingNetwork,
    loaded: LoadedWeights | None,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> TrainResult:
    """Imprint the base classes from all their fit images (Qi et al. 2018, section 3.2).

    The scale, which training would have learnt, is the likeliest on half of the hold-out.

    Raises:
        Interrupted: `should_stop` said so.
        TrainingError: the backbone tells nothing about a class.
    """

    def report(progress: Progress) -> None:
        on_progress(replace(progress, stage="imprinting"))
        if should_stop():
            raise Interrupted("stopped while imprinting", "the same command starts anew")

    started = time.perf_counter()
    as_used = EmbeddingNetwork(network.backbone, task.normalisation, mirror=task.flip)
    embedder = Embedder(as_used, on_progress=report)
    fit = Images(task.fit, task.fit_labels)
    rows = torch.stack([imprint(e) for e in embedder.classes(fit, range(len(task.names)))])
    _ensure_unit(rows, task)
    seconds = time.perf_counter() - started
    checkpoint, holdout_accuracy = make_checkpoint(
        config, dataset, task, network, rows, None, on_progress
    )
    return TrainResult(
        checkpoint=checkpoint,
        base_accuracy=checkpoint.base_accuracy,
        holdout_accuracy=holdout_accuracy,
        epochs=0,
        train_seconds=seconds,
        images_per_second=len(task.fit) / max(seconds, 1e-9),
        weights=loaded,
    )


def _ensure_unit(rows: Tensor, task: BaseTask) -> None:
    for name, length in zip(task.names, rows.norm(dim=1).tolist(), strict=True):
        if not 0.5 < length < 2:
            raise TrainingError(
                f"the backbone's features of {name!r} are zero or not finite",
                "give weights with --weights, or train with --epochs",
            )
