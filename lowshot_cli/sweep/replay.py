"""Rebuilds the model of one trial of a sweep."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.methods import Supports, augmented_views, make_proxies
from lowshot_cli.adaptation.supports import support_record
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import supports_seen_in_test, without_lookalikes
from lowshot_cli.errors import DataError
from lowshot_cli.methods.operating_point import budget_setting, resolve_budget
from lowshot_cli.models.embedder import Views, embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.sweep.plan import Plan, TrialBatch, make_plan
from lowshot_cli.sweep.run_folder import CONFIG, ROWS, open_models, read_run
from lowshot_cli.sweep.tiles import make_tile
from lowshot_cli.sweep.trials import random_directions


def rebuild(
    base: Checkpoint,
    dataset: Dataset,
    run_dir: Path,
    trial: int,
) -> Checkpoint:
    """Rebuild the whole model of one trial of a sweep that kept its models.

    Args:
        base: the base model that the sweep started from.
        dataset: the one it was trained on.
        run_dir: the run folder.
        trial: row of `results.csv`, counted from 0.

    Raises:
        DataError: the folder has no models, or no such row.
    """
    read_run(run_dir, base)
    config = load_config(run_dir / CONFIG)
    plan = make_plan(base, dataset, config)
    models = open_models(run_dir, plan, base.head.proxies.shape[1], "r")
    with (run_dir / ROWS).open(newline="", encoding="utf-8") as file:
        finished = sum(1 for _ in csv.reader(file)) - 1
    if not 0 <= trial < finished:
        raise DataError(f"{run_dir} has no trial {trial}", f"give 0 to {finished - 1}")
    model = torch.from_numpy(models[trial].astype(np.float32))  # (W·R + 1,)
    only = _find_trial(plan, trial)
    labels = plan.groups[int(plan.locate(only)[0][0])]
    members = {label: dataset.train.of_class(label) for label in labels}
    available = {label: len(members[label]) for label in labels}
    tested = without_lookalikes(dataset) if config.sweep.drop_duplicates else dataset
    avoided = {label: supports_seen_in_test(tested, label) for label in labels}
    tile = make_tile(only, plan, available, avoided, 1)
    proxies = model[:-1].view(plan.ways, -1)  # (W, R)
    network, rebuilt = base.network(), base
    chosen = [
        members[label][torch.from_numpy(positions)]  # (k,)
        for label, positions in zip(labels, tile.drawn[0], strict=True)
    ]
    embed_all = partial(_embed_supports, network, dataset, chosen)
    views = augmented_views(config.imprint, base.meta.mirror)
    supports = Supports(
        embed_all(),
        partial(embed_all, views),
        lambda size: random_directions(tile, size, config.seed),
    )
    # Those of the folds are made again, as a run folder keeps those of the model alone.
    of_folds = [
        make_proxies(only.method, supports, background, config)[0]
        for background in base.backgrounds[1:]
    ]
    made = torch.stack([proxies, *of_folds], 1)  # (W, 1 + F, R)
    for label, index, own, support in zip(
        labels, chosen, made, supports.embeddings[0], strict=True
    ):
        record = support_record(dataset.train, index, only.method)
        rebuilt = rebuilt.with_class(dataset.class_names[label], own, support, record)
    budget = resolve_budget(config.sweep.max_forgetting, biased=METHODS[only.method].biased)
    return rebuilt.with_bias(model[-1].item(), budget)


def _embed_supports(
    network: EmbeddingNetwork,
    dataset: Dataset,
    chosen: Sequence[Tensor],
    views: Views | None = None,
) -> Tensor:
    """Embeddings `(1, W, k, D)` of the supports of each novel class, given their positions."""
    each = [embed(network, dataset.train.pixels[index], views=views) for index in chosen]
    return torch.stack(each)[None]


def _find_trial(plan: Plan, row: int) -> TrialBatch:
    """A batch with the one trial that wrote a row of `results.csv`."""
    first = 0
    for batch in plan.batches():
        size = batch.stop - batch.start
        if row < first + size:
            start = batch.start + row - first
            return TrialBatch(batch.method, batch.shots, start, start + 1)
        first += size
    raise AssertionError


def as_imprinting(run_dir: Path, rebuilt: Checkpoint) -> Config:
    """The config with which `imprint` would have made the model of a trial.

    Args:
        run_dir: the run folder.
        rebuilt: the trial's model.
    """
    run, record = load_config(run_dir / CONFIG), rebuilt.meta.supports[-1]
    options: dict[str, object] = {
        "classes": rebuilt.novel_classes,
        "shots": len(record.indices or ()),
        "method": record.method,  # also one that `imprint` does not offer
        "max_forgetting": budget_setting(rebuilt.meta.max_forgetting),
    }
    return run.with_settings("imprint", **options)
