"""Sweeps over several base models: plans the models and summarises their sweeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.workdir import chain_path
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.yaml_file import make_section
from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.evaluation.statistics import (
    METRICS,
    Interval,
    MetricName,
    interval_to_json,
    t_interval,
)
from lowshot_cli.sweep.run_folder import ABOUT, SUMMARY, changes_since, read_run
from lowshot_cli.sweep.summary import Cell, SweepSummary

BASES_SUMMARY = "base-models.json"


@dataclass(frozen=True)
class BaseModel:
    """One of the base models: its name, and its config, which names its own work folder."""

    name: str
    config: Config

    @property
    def path(self) -> Path:
        """Path of its checkpoint."""
        return chain_path(self.config.workdir, "base")


def plan_base_models(
    config: Config, class_order_seeds: Sequence[str], backbones: Sequence[str]
) -> list[BaseModel]:
    """Plan a base model for each pair of a class order and a backbone.

    Args:
        config: of all base models; it also gives the class order or backbone if a list is empty.
        class_order_seeds: as they were typed.
        backbones: their names.

    Raises:
        UsageError: a seed or backbone is not valid, or seeds would change nothing.
    """
    given = config.train_base
    if class_order_seeds and (given.split == "alphabetical" or isinstance(given.classes, tuple)):
        raise UsageError(
            "`class_order_seeds` changes nothing if base classes are named or alphabetical",
            "leave it out, or give split: seeded and a number of classes",
        )
    orders = class_order_seeds or [str(given.class_order_seed)]
    return [_base_model(config, *pair) for pair in product(orders, backbones or [given.backbone])]


def _base_model(config: Config, order: str, backbone: str) -> BaseModel:
    given = config.train_base
    values = given.model_dump()
    if backbone != given.backbone:  # defaults of one do not apply to another
        usual = make_section(TrainBaseConfig, backbone=given.backbone).model_dump()
        values = {name: value for name, value in values.items() if value != usual[name]}
    values |= {"class_order_seed": order, "backbone": backbone}
    options = make_section(TrainBaseConfig, **values)
    name = f"order-{options.class_order_seed}-{re.sub('[^A-Za-z0-9_.]', '-', backbone)}"
    trained = config.sweep.model_copy(update={"train_base": True})
    changes = {"train_base": options, "sweep": trained, "workdir": config.workdir / name}
    return BaseModel(name, config.model_copy(update=changes))


def find_run(
    config: Config, base: Checkpoint, *, threads: int | None, save_models: bool
) -> Path | None:
    """The newest run folder of this sweep, or None.

    Args:
        config: of the sweep; its work folder is searched.
        base: its base model.
        threads: number that the run must have started with; None for any.
        save_models: whether the run must keep the models of its trials.
    """
    for about in sorted(config.workdir.glob(f"sweep-*/{ABOUT}"), reverse=True):
        folder = about.parent
        with suppress(LowshotError, OSError, ValueError):
            found = read_run(folder, base)
            suffices = found.has_models or not save_models
            same_threads = threads in (None, found.threads)
            if suffices and same_threads and not changes_since(folder, config):
                return folder
    return None


def is_finished(run_dir: Path) -> bool:
    """Whether the sweep of a run folder is finished."""
    return (run_dir / SUMMARY).exists()


@dataclass(frozen=True)
class MeanOverBases:
    """A metric over base models, in percent or points.

    Attributes:
        mean: mean over the means of base models.
        std: standard deviation over these means; None for a single base model.
        ci95: t interval over base models; None for a single base model.
    """

    mean: float
    std: float | None
    ci95: Interval | None


@dataclass(frozen=True)
class BasesCell:
    """What a method reaches with one number of shots, over the base models of one backbone."""

    backbone: str
    method: str
    shots: int
    n_bases: int
    metrics: Mapping[MetricName, MeanOverBases]

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        metrics: dict[str, Any] = {
            name: {"mean": one.mean, "std": one.std, "ci95": interval_to_json(one.ci95)}
            for name, one in self.metrics.items()
        }
        about = {"backbone": self.backbone, "method": self.method, "shots": self.shots}
        return {**about, "n_bases": self.n_bases, **metrics}


@dataclass(frozen=True)
class SweptBase:
    """A base model and its sweep."""

    model: BaseModel
    summary: SweepSummary

    @property
    def backbone(self) -> str:
        """Backbone of the base model."""
        return self.model.config.train_base.backbone

    @property
    def class_order_seed(self) -> int:
        """Seed of the class order of the base model."""
        return self.model.config.train_base.class_order_seed

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return {
            "name": self.model.name,
            "backbone": self.backbone,
            "class_order_seed": self.class_order_seed,
            "checkpoint": str(self.model.path),
            **self.summary.to_json(),
        }


@dataclass(frozen=True)
class BasesSummary:
    """The content of `base-models.json`: the base models, and cells over them."""

    base_models: tuple[SweptBase, ...]
    cells: tuple[BasesCell, ...]

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return {
            "base_models": [one.to_json() for one in self.base_models],
            "cells": [cell.to_json() for cell in self.cells],
        }


def summarise_bases(swept: Sequence[SweptBase]) -> BasesSummary:
    """Summarise the sweeps of several base models: one cell per backbone, method and shots."""
    alike: dict[tuple[str, str, int], list[Cell]] = {}
    for one in swept:
        for cell in one.summary.cells:
            alike.setdefault((one.backbone, cell.method, cell.shots), []).append(cell)
    cells = []
    for (backbone, method, shots), found in alike.items():
        metrics = {}
        for name in METRICS:
            means = np.array([cell.metrics[name].mean for cell in found])
            interval = t_interval(means)
            std = float(means.std(ddof=1)) if interval else None
            metrics[name] = MeanOverBases(float(means.mean()), std, interval)
        cells.append(BasesCell(backbone, method, shots, len(found), metrics))
    return BasesSummary(tuple(swept), tuple(cells))
