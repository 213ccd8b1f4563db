"""Results as rows of text, for tables on a terminal and in a page; the first is the header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowshot_cli.evaluation.evaluate import Evaluation
    from lowshot_cli.evaluation.statistics import Metric, MetricName
    from lowshot_cli.sweep.base_models import BasesCell, MeanOverBases
    from lowshot_cli.sweep.summary import MeanDifference, SweepSummary

Cells = list[list[str]]
_PAIRED: tuple[MetricName, ...] = ("novel_accuracy", "ncr_at_2", "base_accuracy")
_OVER_BASES: tuple[MetricName, ...] = (
    "novel_accuracy",
    "ncr_at_2",
    "base_accuracy",
    "harmonic_mean",
    "forgetting",
)
_LAST_SESSION: tuple[MetricName, ...] = (
    "global_accuracy",
    "base_accuracy",
    "novel_accuracy",
    "harmonic_mean",
    "forgetting",
)


def percent(value: float | None) -> str:
    """A percentage with one decimal; an en dash for None."""
    return "–" if value is None else f"{value:.1f}"


def duration(seconds: float) -> str:
    """`0.4 s`, `35 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def with_interval(metric: Metric | MeanDifference | MeanOverBases) -> str:
    """`62.6 ± 2.1`: a mean with half the length of its interval."""
    if metric.ci95 is None:
        return f"{metric.mean:.1f}"
    low, high = metric.ci95
    return f"{metric.mean:.1f} ± {(high - low) / 2:.1f}"


def is_number(cell: object) -> bool:
    """Whether a cell is a number, which tables align to the right."""
    return str(cell)[:1] in set("0123456789+-−–") or str(cell) == ""


def evaluation_rows(found: Sequence[tuple[str, Evaluation]]) -> Cells:
    """One row per model."""
    return [
        ["checkpoint", "base %", "novel %", "all %", "harmonic", "forgetting", "classes"],
        *(
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
        ),
    ]


def class_rows(found: Evaluation) -> Cells:
    """Accuracy by class, novel ones first, worst first."""
    return [
        ["class", "kind", "accuracy %", "n"],
        *(
            [row.name, "base" if row.is_base else "novel", percent(row.accuracy), str(row.n)]
            for row in sorted(found.per_class, key=lambda row: (row.is_base, row.accuracy or 0))
            if row.n or not row.is_base
        ),
    ]


def sweep_rows(summary: SweepSummary) -> Cells:
    """One row per method and number of shots."""
    return [
        ["method", "shots", "novel %", "NCR@2", "base %", "harmonic", "forgetting"],
        *(
            [
                cell.method,
                str(cell.shots),
                with_interval(cell.metrics["novel_accuracy"]),
                with_interval(cell.metrics["ncr_at_2"]),
                percent(cell.metrics["base_accuracy"].mean),
                percent(cell.metrics["harmonic_mean"].mean),
                percent(cell.metrics["forgetting"].mean),
            ]
            for cell in summary.sorted_cells()
        ),
    ]


def over_bases_rows(cells: Sequence[BasesCell]) -> Cells:
    """One row per method and number of shots, with intervals over base models."""
    return [
        ["method", "shots", "novel %", "NCR@2", "base %", "harmonic", "forgetting"],
        *(
            [cell.method, str(cell.shots), *(with_interval(cell.metrics[n]) for n in _OVER_BASES)]
            for cell in cells
        ),
    ]


def session_rows(summary: SweepSummary) -> Cells:
    """One row per method and number of shots: the model after the last session."""
    return [
        ["method", "shots", "all %", "base %", "novel %", "harmonic", "forgetting"],
        *(
            [cell.method, str(cell.shots), *(with_interval(cell.metrics[n]) for n in _LAST_SESSION)]
            for cell in summary.sorted_cells()
        ),
    ]


def paired_rows(summary: SweepSummary) -> Cells:
    """The gains of each method over the first one on the same draws."""
    first = summary.methods[0]
    pairs = [pair for pair in summary.paired if pair.methods[1] == first]
    return [
        ["method", "shots", "novel", "NCR@2", "base"],
        *(
            [pair.methods[0], str(pair.shots), *(with_interval(pair.metrics[n]) for n in _PAIRED)]
            for pair in sorted(pairs, key=lambda pair: (pair.methods[0], pair.shots))
        ),
    ]


def hardest_rows(summary: SweepSummary, most: int) -> Cells:
    """The novel classes that the last method learns worst, and what takes their images."""
    last = summary.cells[-1]
    chosen = [
        one for one in summary.classes if (one.method, one.shots) == (last.method, last.shots)
    ]
    hardest = sorted(chosen, key=lambda one: one.metrics["ncr_at_2"])[:most]
    return [
        ["class", "NCR@2", "confused most with", "% of its images"],
        *(
            [
                one.name,
                percent(one.metrics["ncr_at_2"]),
                one.confused_with,
                percent(one.confused_percent),
            ]
            for one in hardest
        ),
    ]
