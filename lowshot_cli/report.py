"""Plots of sweep results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's palette, told apart by people with any kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"


def plot_accuracy(summary: dict[str, Any], path: Path) -> None:
    """Novel accuracy and NCR@2 over shots, one line per method, as a PNG.

    Args:
        summary: of a sweep, as in the `--json` contract.
        path: where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = summary["cells"]
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    shots = sorted({cell["shots"] for cell in cells})
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"novel_accuracy": "novel accuracy", "ncr_at_2": "NCR@2"}
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for number, method in enumerate(methods):
            chosen = sorted((c for c in cells if c["method"] == method), key=lambda c: c["shots"])
            means = [cell[metric]["mean"] for cell in chosen]
            intervals = [
                cell[metric]["ci95"] or (m, m) for cell, m in zip(chosen, means, strict=True)
            ]
            axes.errorbar(
                [
                    shots.index(cell["shots"]) + 0.04 * (number - (len(methods) - 1) / 2)
                    for cell in chosen
                ],
                means,
                yerr=[
                    [mean - low for mean, (low, _) in zip(means, intervals, strict=True)],
                    [high - mean for mean, (_, high) in zip(means, intervals, strict=True)],
                ],
                label=method,
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                capsize=3,
            )
        axes.set_title(title)
        axes.set_xticks(range(len(shots)), [str(number) for number in shots])
        axes.set_xlabel("shots")
        axes.set_ylim(0, 100)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("percent of novel test images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4)
    figure.supxlabel(caption(summary), fontsize=8, color="#555555")
    figure.savefig(path, dpi=144, format="png", metadata={"Software": None})


def caption(summary: dict[str, Any]) -> str:
    """What the intervals of a sweep are about."""
    cell = summary["cells"][0]
    return (
        f"{cell['n_trials']:,} trials a point over {cell['n_classes']} novel classes; "
        "95 % intervals over class means,\nconditional on one base model and its base queries "
        f"(base accuracy before: {summary['base_accuracy_before']:.1f} %)"
    )
