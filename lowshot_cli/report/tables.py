"""Results as rows of text, for tables on a terminal and in a page. The first row is the header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowshot_cli.evaluation.evaluate import Evaluation

Cells = list[list[str]]


_PAIRED = ("novel_accuracy", "ncr_at_2", "base_accuracy")


def percent(value: float | None) -> str:
    """A percentage with one decimal, an en dash where there is none."""
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


def with_interval(summary: dict[str, Any]) -> str:
    """`62.6 ± 2.1` from a metric's summary."""
    interval = summary["ci95"]
    if interval is None:
        return f"{summary['mean']:.1f}"
    return f"{summary['mean']:.1f} ± {(interval[1] - interval[0]) / 2:.1f}"


def is_number(cell: object) -> bool:
    """Whether a cell is set to the right."""
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


def sweep_rows(summary: dict[str, Any]) -> Cells:
    """One row per method and number of shots."""
    return [
        ["method", "shots", "novel %", "NCR@2", "base %", "harmonic", "forgetting"],
        *(
            [
                cell["method"],
                str(cell["shots"]),
                with_interval(cell["novel_accuracy"]),
                with_interval(cell["ncr_at_2"]),
                percent(cell["base_accuracy"]["mean"]),
                percent(cell["harmonic_mean"]["mean"]),
                f"{cell['forgetting']['mean']:.1f}",
            ]
            for cell in sorted(summary["cells"], key=lambda c: (order(summary, c), c["shots"]))
        ),
    ]


def over_bases_rows(cells: Sequence[dict[str, Any]]) -> Cells:
    """One row per method and number of shots, with intervals over base models."""
    metrics = ("novel_accuracy", "ncr_at_2", "base_accuracy", "harmonic_mean", "forgetting")
    return [
        ["method", "shots", "novel %", "NCR@2", "base %", "harmonic", "forgetting"],
        *([c["method"], str(c["shots"]), *(with_interval(c[n]) for n in metrics)] for c in cells),
    ]


def session_rows(summary: dict[str, Any]) -> Cells:
    """What the model of a sequence reaches after its last session."""
    metrics = ("global_accuracy", "base_accuracy", "novel_accuracy", "harmonic_mean", "forgetting")
    return [
        ["method", "shots", "all %", "base %", "novel %", "harmonic", "forgetting"],
        *(
            [c["method"], str(c["shots"]), *(with_interval(c[name]) for name in metrics)]
            for c in sorted(summary["cells"], key=lambda c: (order(summary, c), c["shots"]))
        ),
    ]


def paired_rows(summary: dict[str, Any]) -> Cells:
    """What each method gains over the first one on the same draws."""
    first = summary["cells"][0]["method"]
    return [
        ["method", "shots", "novel", "NCR@2", "base"],
        *(
            [pair["methods"][0], str(pair["shots"]), *(with_interval(pair[n]) for n in _PAIRED)]
            for pair in sorted(summary["paired"], key=lambda p: (p["methods"][0], p["shots"]))
            if pair["methods"][1] == first
        ),
    ]


def hardest_rows(summary: dict[str, Any], most: int) -> Cells:
    """The novel classes that the last method learns worst, and what takes their images."""
    last = summary["cells"][-1]
    chosen = [
        entry
        for entry in summary["classes"]
        if (entry["method"], entry["shots"]) == (last["method"], last["shots"])
    ]
    hardest = sorted(chosen, key=lambda entry: float(entry["ncr_at_2"]))[:most]
    return [
        ["class", "NCR@2", "confused most with", "% of its images"],
        *(
            [e["class"], percent(e["ncr_at_2"]), e["confused_with"], percent(e["confused_percent"])]
            for e in hardest
        ),
    ]


def order(summary: dict[str, Any], cell: dict[str, Any]) -> int:
    """Place of a cell's method among those of a sweep."""
    return list(dict.fromkeys(c["method"] for c in summary["cells"])).index(cell["method"])
