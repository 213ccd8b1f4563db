"""The `--json` contract: a record for each command, made here, in `records.py` or by `to_json`.

`README.md` beside it describes every key.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.records import Record

if TYPE_CHECKING:
    from lowshot_cli.adaptation.imprint import SupportDraw
    from lowshot_cli.checkpoint.checkpoint import Checkpoint
    from lowshot_cli.estimate import Stage
    from lowshot_cli.evaluation.evaluate import Evaluation
    from lowshot_cli.evaluation.open_set import OpenSet
    from lowshot_cli.evaluation.predict import Prediction
    from lowshot_cli.evaluation.prediction_sets import Coverage
    from lowshot_cli.export.check import Check
    from lowshot_cli.training.result import TrainResult


def training_record(path: Path, result: TrainResult) -> Record:
    """Of `train-base`."""
    loaded = result.weights
    weights: Record = {}
    if loaded is not None:
        weights = {"weights": {"missing": loaded.missing, "unexpected": loaded.unexpected}}
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


def imprint_record(
    path: Path,
    method: str,
    taught: Checkpoint,
    drawn: Sequence[SupportDraw],
    *,
    before: Evaluation,
    after: Evaluation,
    expected_forgetting: float | None,
) -> Record:
    """Of `imprint`."""
    accuracies = {each.name: each.accuracy for each in after.per_class}
    return {
        "checkpoint": str(path),
        "method": method,
        "bias": taught.head.bias,
        "expected_forgetting": expected_forgetting,
        "base_accuracy_before": before.base_accuracy,
        "base_accuracy": after.base_accuracy,
        "novel_accuracy": after.novel_accuracy,
        "classes": [
            {"class": one.name, "support": list(one.indices), "accuracy": accuracies[one.name]}
            for one in drawn
        ],
    }


def finetune_record(
    scope: str,
    tuned: Checkpoint,
    *,
    before: tuple[Path, Evaluation],
    after: tuple[Path, Evaluation],
    expected_forgetting: float | None,
) -> Record:
    """Of `finetune`."""
    return {
        "checkpoint": str(after[0]),
        "scope": scope,
        "bias": tuned.head.bias,
        "expected_forgetting": expected_forgetting,
        "before": evaluation_record(*before),
        "after": evaluation_record(*after),
    }


def evaluation_record(
    path: Path, found: Evaluation, open_set: OpenSet | None = None, sets: Coverage | None = None
) -> Record:
    """One model of `evaluate`, or the whole record of `imprint --from-run`."""
    asked = {"open_set": open_set, "sets": sets}
    more = {name: one.to_json() for name, one in asked.items() if one}
    return {"checkpoint": str(path), **found.to_json(), **more}


def photo_evaluation_record(
    path: Path, found: Evaluation, repeated: int, sets: Coverage | None
) -> Record:
    """One model of `evaluate --images`."""
    return {**evaluation_record(path, found, sets=sets), "repeated": repeated}


def export_record(
    folder: Path, files: Sequence[str], opset: int | None, check: Check | None, images: str
) -> Record:
    """Of `export`.

    Args:
        folder: the export.
        files: names of its files.
        opset: of ONNX; None without an ONNX file.
        check: how the export compares with the checkpoint; None if it was not checked.
        images: what it was compared on, in words.
    """
    compared = {"images": images, **asdict(check)} if check else None
    return {"folder": str(folder), "files": list(files), "opset": opset, "check": compared}


@dataclass(frozen=True)
class ClassSize:
    """One class of `data classes` and its numbers of images."""

    name: str
    train: int
    test: int

    def to_json(self) -> Record:
        """As in the contract."""
        return {"class": self.name, "train": self.train, "test": self.test}


@dataclass(frozen=True)
class LookalikePair:
    """A test image and the training image that it resembles, from `data duplicates`.

    Attributes:
        test: the test image: its file or its number.
        test_class: its class.
        train: the training image.
        train_class: its class.
        similarity: at most 1.
    """

    test: str
    test_class: str
    train: str
    train_class: str
    similarity: float

    def to_json(self) -> Record:
        """As in the contract."""
        return {
            "test": self.test,
            "class": self.test_class,
            "train": self.train,
            "train_class": self.train_class,
            "similarity": self.similarity,
        }


def duplicates_record(
    at_least: float, n_test: int, n_same_class: int, pairs: Sequence[LookalikePair]
) -> Record:
    """Of `data duplicates`."""
    return {
        "at_least": at_least,
        "test_images": n_test,
        "found": len(pairs),
        "same_class": n_same_class,
        "pairs": [pair.to_json() for pair in pairs],
    }


@dataclass(frozen=True)
class CacheUse:
    """What one of the caches of `data cache` holds."""

    name: str
    entries: int
    size: int
    limit: int
    folder: str

    def to_json(self) -> Record:
        """As in the contract."""
        return {
            "cache": self.name,
            "entries": self.entries,
            "bytes": self.size,
            "limit_bytes": self.limit,
            "folder": self.folder,
        }


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` finds.

    Attributes:
        counts: what the command would work on, by name.
        stages: steps of the work.
        memory: peak memory of the rehearsal in bytes.
        paths: files that the command would write.
    """

    counts: Mapping[str, int]
    stages: Sequence[Stage]
    memory: int
    paths: Sequence[Path]

    @property
    def seconds(self) -> float:
        """Estimated time of all steps."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> Record:
        """As in the contract."""
        return {
            "counts": dict(self.counts),
            "stages": [stage.to_json() for stage in self.stages],
            "seconds": self.seconds,
            "memory_bytes": self.memory,
            "paths": [str(path) for path in self.paths],
        }


def predictions_csv(found: Sequence[Prediction]) -> str:
    """Predictions as a CSV document: one row per image, which ends with the runners-up.

    A prediction set is one value, written as `--classes` reads names.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = range(2, 1 + max((len(one.top) for one in found), default=1))
    others = [f"{column}_{place}" for place in places for column in ("class", "probability")]
    has_sets = any(one.prediction_set for one in found)
    sets = ["set"] if has_sets else []
    writer.writerow(["image", "class", "probability", "unknown", *sets, *others])
    for one in found:
        rest = [value for name, chance in one.top[1:] for value in (name, f"{chance:.6f}")]
        sets = [_names(one.prediction_set or ())] if has_sets else []
        row = [one.image, one.name, f"{one.probability:.6f}", one.unknown]
        writer.writerow([*row, *sets, *rest])
    return text.getvalue()


def _names(names: Sequence[str]) -> str:
    """Names separated by commas; one that has a comma or a quote itself is quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()
