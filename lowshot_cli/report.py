"""Plots of sweep results."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from lowshot_cli.files import write_atomically

# Okabe and Ito's palette, told apart by people with any kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = "osD^vPX*"


def plot_accuracy(summary: dict[str, Any], path: Path) -> None:
    """Two metrics over shots, or over the sessions of a sequence, one line a method, as a PNG.

    Args:
        summary: of a sweep, as in the `--json` contract.
        path: where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if "sessions" in summary:
        entries, along = summary["sessions"], "session"
        titles = {"global_accuracy": "accuracy over all classes", "harmonic_mean": "harmonic mean"}
    else:
        entries, along = summary["cells"], "shots"
        titles = {"novel_accuracy": "novel accuracy", "ncr_at_2": "NCR@2"}
    lines = _lines(entries, along)
    ticks = sorted({entry[along] for entry in entries})
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for number, (name, chosen) in enumerate(lines.items()):
            means = [entry[metric]["mean"] for entry in chosen]
            intervals = [e[metric]["ci95"] or (m, m) for e, m in zip(chosen, means, strict=True)]
            aside = 0.04 * (number - (len(lines) - 1) / 2)
            axes.errorbar(
                [ticks.index(entry[along]) + aside for entry in chosen],
                means,
                yerr=[
                    [mean - low for mean, (low, _) in zip(means, intervals, strict=True)],
                    [high - mean for mean, (_, high) in zip(means, intervals, strict=True)],
                ],
                label=name,
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                capsize=3,
            )
        axes.set_title(title)
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set_xlabel(along)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("percent of test images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4)
    figure.supxlabel(caption(summary), fontsize=8, color="#555555")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=144, format="png", metadata={"Software": None})
    write_atomically(path, drawn.getvalue())


def _lines(entries: list[dict[str, Any]], along: str) -> dict[str, list[dict[str, Any]]]:
    """Entries by method, and by number of shots where that is not the axis, in order of `along`."""
    lines: dict[str, list[dict[str, Any]]] = {}
    several = along != "shots" and len({entry["shots"] for entry in entries}) > 1
    for entry in sorted(entries, key=lambda e: e[along]):
        name = f"{entry['method']}, {entry['shots']} shots" if several else entry["method"]
        lines.setdefault(name, []).append(entry)
    first = list(dict.fromkeys(entry["method"] for entry in entries))
    return dict(sorted(lines.items(), key=lambda item: first.index(item[1][0]["method"])))


def caption(summary: dict[str, Any]) -> str:
    """What the intervals of a sweep are about."""
    cell = summary["cells"][0]
    about = (
        "conditional on one base model and its base queries "
        f"(base accuracy before: {summary['base_accuracy_before']:.1f} %)"
    )
    if "sessions" in summary:
        return (
            f"{cell['n_trials']:,} draws of supports for the same {cell['n_classes']} classes in "
            f"{cell['session']} sessions; 95 % intervals over draws,\n{about}"
        )
    return (
        f"{cell['n_trials']:,} trials a point over {cell['n_classes']} novel classes; "
        f"95 % intervals over class means,\n{about}"
    )
