"""One trial of a finished sweep, made into a model again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.supports import support_record
from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.config.methods import METHODS, find_method
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import supports_seen_in_test, without_lookalikes
from lowshot_cli.errors import CheckpointError, DataError
from lowshot_cli.methods.operating_point import resolve_budget
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.sweep.plan import TrialBatch, make_plan
from lowshot_cli.sweep.run_folder import CONFIG, ROWS, open_models, read_run
from lowshot_cli.sweep.tiles import make_tile


def rebuild(
    base: Checkpoint,
    dataset: Dataset,
    run_dir: Path,
    trial: int,
) -> Checkpoint:
    """The full model of one trial of a sweep that was run with `--save-models`.

    Args:
        base: the base model that the sweep started from.
        dataset: the one it was trained on.
        run_dir: the sweep's folder.
        trial: number of the row in `results.csv`, the first being 0.

    Raises:
        DataError: no models in the folder, or no such row.
    """
    read_run(run_dir, base)
    config = load_config(run_dir / CONFIG)
    plan = make_plan(base, dataset, config)
    models = open_models(run_dir, plan, base.head.size, "r")
    with (run_dir / ROWS).open(newline="", encoding="utf-8") as file:
        finished = sum(1 for _ in csv.reader(file)) - 1
    if not 0 <= trial < finished:
        raise DataError(f"{run_dir} has no trial {trial}", f"give 0 to {finished - 1}")
    model = torch.from_numpy(models[trial].astype(np.float32))
    first = 0
    for piece in plan.pieces():
        if trial < first + piece.stop - piece.start:
            break
        first += piece.stop - piece.start
    offset = trial - first
    only = TrialBatch(piece.method, piece.shots, piece.start + offset, piece.start + offset + 1)
    labels = plan.groups[int(plan.locate(only)[0][0])]
    members = {label: dataset.train.of_class(label) for label in labels}
    available = {label: len(members[label]) for label in labels}
    tested = without_lookalikes(dataset) if config.sweep.drop_duplicates else dataset
    avoided = {label: supports_seen_in_test(tested, label) for label in labels}
    tile = make_tile(only, plan, available, avoided, 1)
    rebuilt = from_trial(
        base,
        dataset,
        base.network(),
        [dataset.class_names[label] for label in labels],
        model[:-1].view(plan.ways, -1),
        model[-1].item(),
        [
            members[label][torch.from_numpy(positions)]
            for label, positions in zip(labels, tile.drawn[0], strict=True)
        ],
        piece.method,
    )
    budget = resolve_budget(config.sweep.max_forgetting, biased=METHODS[piece.method].biased)
    return rebuilt.with_bias(rebuilt.head.bias, budget)


def as_imprinting(run_dir: Path, rebuilt: Checkpoint) -> Config:
    """The config that would have imprinted the model of a trial as the sweep did.

    Args:
        run_dir: the sweep's folder.
        rebuilt: the trial's model.
    """
    run, record = load_config(run_dir / CONFIG), rebuilt.meta.supports[-1]
    options: dict[str, object] = {
        "classes": rebuilt.novel_classes,
        "shots": len(record.indices or ()),
        "max_forgetting": run.sweep.max_forgetting,
    }
    method = find_method(record.method)
    if method and method.in_imprint:
        options["method"] = method.name
    return run.model_copy(update={"imprint": run.imprint.model_copy(update=options)})


def from_trial(
    checkpoint: Checkpoint,
    dataset: Dataset,
    network: EmbeddingNetwork,
    names: Sequence[str],
    rows: Tensor,
    bias: float,
    indices: Sequence[Tensor],
    method: str,
) -> Checkpoint:
    """Rebuild the model of one trial of a sweep.

    Args:
        checkpoint: the base model that the sweep started from.
        dataset: the one it was trained on.
        network: the checkpoint's embedding network.
        names: the trial's novel classes.
        rows: `(W, D)` their rows.
        bias: of the trial.
        indices: per class the indices `(k,)` of its support images.
        method: of the trial.

    Raises:
        CheckpointError: another dataset, or a base model of another embedding size.
    """
    check_dataset(checkpoint, dataset)
    if rows.shape[1] != checkpoint.head.size:
        raise CheckpointError("the run's rows do not fit this base model")
    for name, row, chosen in zip(names, rows, indices, strict=True):
        support = embed(network, dataset.train.pixels[chosen])
        record = support_record(dataset.train, chosen, method)
        checkpoint = checkpoint.with_class(name, row, support, record)
    return replace(checkpoint, head=replace(checkpoint.head, bias=bias))
