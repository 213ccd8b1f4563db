"""Results as tables for people and as JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowshot_cli.base_model import TrainResult
from lowshot_cli.evaluate import Evaluation
from lowshot_cli.output import Output, percent, with_interval
from lowshot_cli.predict import OpenSet, Prediction
from lowshot_cli.report import caption


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


def show_training(output: Output, result: TrainResult) -> None:
    """One row about a trained base model."""
    row = [
        result.checkpoint.meta.n_base,
        percent(result.base_accuracy),
        percent(result.holdout_accuracy),
        result.epochs,
        f"{result.train_seconds:.0f}",
        f"{result.images_per_second:.0f}",
    ]
    columns = ["base classes", "test accuracy %", "hold-out %", "epochs", "seconds", "images/s"]
    output.table(columns, [row], title="base model")


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


def show_change(output: Output, before: Evaluation, after: Evaluation, title: str) -> None:
    """Accuracies before and after."""
    columns = ["test images of", "before %", "after %", "change"]
    rows = []
    for name in ("base", "novel", "global"):
        old, new = getattr(before, f"{name}_accuracy"), getattr(after, f"{name}_accuracy")
        change = "–" if old is None or new is None else f"{new - old:+.1f}"
        label = "all classes" if name == "global" else f"{name} classes"
        rows.append([label, percent(old), percent(new), change])
    output.table(columns, rows, title=title)


def show_estimate(output: Output, before: float, after: float, title: str) -> None:
    """Base accuracy on the stored hold-out before and after, where no test images are at hand."""
    output.table(
        ["estimate, on the hold-out", "before %", "after %", "change"],
        [["base classes", percent(before), percent(after), f"{after - before:+.1f}"]],
        title=title,
    )


def show_evaluations(
    output: Output,
    found: Sequence[tuple[str, Evaluation]],
    title: str = "accuracy on test images",
) -> None:
    """One row per checkpoint."""
    output.table(
        ["checkpoint", "base %", "novel %", "all %", "harmonic", "forgetting", "classes"],
        [
            [
                name,
                percent(one.base_accuracy),
                percent(one.novel_accuracy),
                percent(one.global_accuracy),
                percent(one.harmonic_mean),
                percent(one.forgetting),
                f"{one.n_base} + {one.n_novel}",
            ]
            for name, one in found
        ],
        title=title,
    )


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


def show_predictions(output: Output, found: Sequence[Prediction]) -> None:
    """A line per image, whose path is never folded: class, probability, bar, runners-up."""
    rows = [
        (
            one.image,
            "unknown" if one.unknown else one.name,
            f"{100 * one.probability:5.1f} %",
            ("█" * round(_BAR * one.probability)).ljust(_BAR, "·"),
            _others(one),
        )
        for one in found
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for image, name, *rest in rows:
        cells = [image.ljust(widths[0]), name.ljust(widths[1]), *rest]
        output.line("  ".join(cells).rstrip())


_BAR = 10


def _others(one: Prediction) -> str:
    others = one.top if one.unknown else one.top[1:]
    return ", ".join(f"{name} {100 * chance:.1f}" for name, chance in others)


def predictions_csv(found: Sequence[Prediction]) -> str:
    """Predictions as a CSV document, one row per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", "unknown"])
    writer.writerows([one.image, one.name, f"{one.probability:.6f}", one.unknown] for one in found)
    return text.getvalue()


def show_classes(output: Output, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """One row per class of a model."""
    cells = [
        [row["class"], row["kind"], "–" if row["shots"] is None else row["shots"], row["method"]]
        for row in rows
    ]
    output.table(["class", "kind", "shots", "learnt by"], cells, title=title)


def show_open_set(output: Output, name: str, found: OpenSet) -> None:
    """How well images of classes the model never saw are told from those it knows."""
    row = [name, percent(found.auroc), percent(found.false_alarm), percent(found.detected)]
    output.table(
        ["checkpoint", "AUROC %", "false alarms %", "unknown found %"],
        [row],
        title="images of unknown classes",
        caption=f"{found.n_known:,} test images of known classes, {found.n_unknown:,} of others",
    )


def show_details(output: Output, found: Evaluation, name: str) -> None:
    """Accuracy by class, worst first, and the worst confusions."""
    rows = [
        [row.name, "base" if row.is_base else "novel", percent(row.accuracy), row.n]
        for row in sorted(found.per_class, key=lambda row: (row.is_base, row.accuracy or 0))
        if row.n or not row.is_base
    ]
    output.table(["class", "kind", "accuracy %", "n"], rows, title=f"{name}, by class")
    output.table(
        ["images of", "taken for", "n"],
        [[c.truth, c.taken_for, c.n] for c in found.confusions],
        title=f"{name}, worst confusions",
    )


def show_sessions(output: Output, summary: dict[str, Any]) -> None:
    """Accuracy over all classes after each session, and what it is made of after the last."""
    cells = sorted(summary["cells"], key=lambda c: (_order(summary, c), c["shots"]))
    steps: dict[tuple[str, int], list[str]] = {}
    for entry in summary["sessions"]:
        found = steps.setdefault((entry["method"], entry["shots"]), [])
        found.append(percent(entry["global_accuracy"]["mean"]))
    before = percent(summary["base_accuracy_before"])
    numbers = [str(number) for number in range(1, cells[0]["session"] + 1)]
    rows = [[c["method"], c["shots"], before, *steps[c["method"], c["shots"]]] for c in cells]
    title = "accuracy over all classes after each session, %"
    output.table(["method", "shots", "base", *numbers], rows, title=title)
    metrics = ("global_accuracy", "base_accuracy", "novel_accuracy", "harmonic_mean", "forgetting")
    rows = [[c["method"], c["shots"], *(with_interval(c[name]) for name in metrics)] for c in cells]
    output.table(
        ["method", "shots", "all %", "base %", "novel %", "harmonic", "forgetting"],
        rows,
        title="after the last session",
        caption=caption(summary),
    )


def show_sweep(output: Output, summary: dict[str, Any]) -> None:
    """One row per method and number of shots."""
    rows = [
        [
            cell["method"],
            cell["shots"],
            with_interval(cell["novel_accuracy"]),
            with_interval(cell["ncr_at_2"]),
            percent(cell["base_accuracy"]["mean"]),
            percent(cell["harmonic_mean"]["mean"]),
            f"{cell['forgetting']['mean']:.1f}",
        ]
        for cell in sorted(summary["cells"], key=lambda c: (_order(summary, c), c["shots"]))
    ]
    output.table(
        ["method", "shots", "novel %", "NCR@2", "base %", "harmonic", "forgetting"],
        rows,
        title="accuracy on test images, mean over novel classes",
        caption=caption(summary),
    )

    _show_paired(output, summary)
    _show_hardest(output, summary)


def _show_paired(output: Output, summary: dict[str, Any]) -> None:
    """What each method gains over the first one on the same draws."""
    first = summary["cells"][0]["method"]
    rows = [
        [pair["methods"][0], pair["shots"], *(with_interval(pair[name]) for name in _PAIRED)]
        for pair in sorted(summary["paired"], key=lambda p: (p["methods"][0], p["shots"]))
        if pair["methods"][1] == first
    ]
    if rows:
        columns = ["method", "shots", "novel", "NCR@2", "base"]
        output.table(columns, rows, title=f"points gained over {first} on the same draws")


_PAIRED = ("novel_accuracy", "ncr_at_2", "base_accuracy")


def _show_hardest(output: Output, summary: dict[str, Any], most: int = 5) -> None:
    """The novel classes that the last method learns worst, and what takes their images."""
    last = summary["cells"][-1]
    chosen = [
        entry
        for entry in summary["classes"]
        if (entry["method"], entry["shots"]) == (last["method"], last["shots"])
    ]
    hardest = sorted(chosen, key=lambda entry: entry["ncr_at_2"])[:most]
    rows = [
        [e["class"], percent(e["ncr_at_2"]), e["swallowed_by"], percent(e["swallowed"])]
        for e in hardest
    ]
    title = f"hardest classes for {last['method']} with {last['shots']} shots"
    output.table(["class", "NCR@2", "swallowed most by", "% of its images"], rows, title=title)


def _order(summary: dict[str, Any], cell: dict[str, Any]) -> int:
    return list(dict.fromkeys(c["method"] for c in summary["cells"])).index(cell["method"])
