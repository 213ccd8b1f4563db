"""Results as records for programs: the `--json` contract."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowshot_cli.evaluation.evaluate import Evaluation
from lowshot_cli.evaluation.predict import Prediction
from lowshot_cli.training.result import TrainResult


def training_json(path: Path, result: TrainResult) -> dict[str, Any]:
    """A training as in the `--json` contract."""
    loaded = result.weights
    weights = {"weights": asdict(loaded)} if loaded else {}
    return {
        "checkpoint": str(path),
        "base_accuracy": result.base_accuracy,
        "holdout_accuracy": result.holdout_accuracy,
        "epochs": result.epochs,
        "train_seconds": result.train_seconds,
        "images_per_second": result.images_per_second,
        "n_classes": result.checkpoint.meta.n_base,
        **weights,
    }


def evaluation_json(path: Path, found: Evaluation) -> dict[str, Any]:
    """An evaluation as in the `--json` contract."""
    values = asdict(found)
    per_class = [
        {"class": row.name, "accuracy": row.accuracy, "n": row.n} for row in found.per_class
    ]
    keys = ("n_base", "n_novel", "base_accuracy", "novel_accuracy", "global_accuracy")
    return {
        "checkpoint": str(path),
        **{key: values[key] for key in (*keys, "harmonic_mean", "forgetting")},
        "per_class": per_class,
    }


def predictions_json(found: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as in the `--json` contract."""
    return [
        {
            "image": one.image,
            "class": one.name,
            "probability": one.probability,
            "top": [list(entry) for entry in one.top],
            "unknown": one.unknown,
        }
        for one in found
    ]


def predictions_csv(found: Sequence[Prediction]) -> str:
    """Predictions as a CSV document, one row per image, with the runners-up at its end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = range(2, 1 + max((len(one.top) for one in found), default=1))
    others = [f"{column}_{place}" for place in places for column in ("class", "probability")]
    writer.writerow(["image", "class", "probability", "unknown", *others])
    for one in found:
        rest = [value for name, chance in one.top[1:] for value in (name, f"{chance:.6f}")]
        writer.writerow([one.image, one.name, f"{one.probability:.6f}", one.unknown, *rest])
    return text.getvalue()
