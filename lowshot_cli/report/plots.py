"""Plots of results: matplotlib figures for files of their own or for a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowshot_cli.evaluation.statistics import FloatArray, MetricName
from lowshot_cli.report.findings import BUDGETS, EmbeddingMap, ReportData, TradeOff
from lowshot_cli.storage.files import write_atomically
from lowshot_cli.sweep.summary import Cell, SweepSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#B3A400")
_MARKERS = "osD^vPX*"
# Colour of text and lines, which a page replaces with that of its own text.
INK = "#010203"
_MOST_CLASSES = 60
# Largest numbers of rows and columns of a confusion matrix.
MOST_CONFUSIONS = 15


def figure(width: float, height: float) -> Figure:
    """An empty figure, width x height inches, drawn without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained")


def as_png(drawn: Figure) -> bytes:
    """A figure as a PNG on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _arrange(drawn, "white")
    content = BytesIO()
    FigureCanvasAgg(drawn).print_png(content, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return content.getvalue()


# A page shows the figures that are saved beside it, and drawing takes longer than all else.
@lru_cache(maxsize=8)
def as_svg(drawn: Figure) -> str:
    """A figure as SVG on a transparent background; the same figure gives the same text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    _arrange(drawn, "none")
    content = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lowshot"}):
        FigureCanvasSVG(drawn).print_svg(content, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return content.getvalue()


def _arrange(drawn: Figure, background: str) -> None:
    """Place the parts of a finished figure once, as `savefig` would do for every format anew."""
    drawn.set_facecolor(background)
    if engine := drawn.get_layout_engine():
        engine.execute(drawn)
        drawn.set_layout_engine("none")


def save(drawn: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.png and `stem`.svg; returns their paths.

    Raises:
        OSError: the folder cannot be written to.
    """
    contents = {".png": as_png(drawn), ".svg": as_svg(drawn).encode()}
    for suffix, content in contents.items():
        write_atomically(stem.with_suffix(suffix), content)
    return [stem.with_suffix(suffix) for suffix in contents]


_OVER_SESSIONS: dict[MetricName, str] = {
    "global_accuracy": "accuracy over all classes",
    "harmonic_mean": "harmonic mean",
}
_OVER_SHOTS: dict[MetricName, str] = {"novel_accuracy": "novel accuracy", "ncr_at_2": "NCR@2"}


def accuracy(summary: SweepSummary) -> Figure:
    """Two metrics over shots, or over the sessions of a sequence, one line per method."""
    along = "session" if summary.is_sequence else "shots"
    titles = _OVER_SESSIONS if summary.is_sequence else _OVER_SHOTS
    lines = _lines(summary)
    ticks = sorted({place for line in lines.values() for place in line})
    made = figure(9, 4.2)
    panels = made.subplots(1, 2, sharey=True)
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        for number, (name, chosen) in enumerate(lines.items()):
            shown = [cell.metrics[metric] for cell in chosen.values()]
            means = [one.mean for one in shown]
            intervals = [one.ci95 or (one.mean, one.mean) for one in shown]
            aside = 0.04 * (number - (len(lines) - 1) / 2)
            axes.errorbar(
                [ticks.index(place) + aside for place in chosen],
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
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set_ylim(0, 100)
        _dress(axes, title, along)
    panels[0].set_ylabel("percent of test images", color=INK)
    _legend(made, panels[0], caption(summary))
    return made


def sweep_trade_off(summary: SweepSummary, findings: ReportData, budget: float | None) -> Figure:
    """`trade_off` of each method of a sweep.

    Args:
        summary: of the sweep.
        findings: of the same sweep, with trade-offs.
        budget: points of base accuracy that the novel bias may cost on the hold-out.
    """
    curves = findings.trade_offs
    cells = {(cell.method, cell.shots): cell.metrics for cell in summary.cells}
    chosen = [cells[curve.method, curve.shots] for curve in curves]
    marks = [(one["forgetting"].mean, one["novel_accuracy"].mean) for one in chosen]
    n_classes = len(findings.novel_names)
    note = f"{curves[0].shots} shots; each line is the mean of one trial for {n_classes} classes"
    return trade_off(curves, marks, budget, note)


def trade_off(
    curves: Sequence[TradeOff],
    marks: Sequence[tuple[float, float]],
    budget: float | None,
    note: str,
) -> Figure:
    """Novel accuracy over the base accuracy given up for it.

    Args:
        curves: one line each.
        marks: for each curve the points of base accuracy given up and the novel accuracy in percent
            of the model with its own bias.
        budget: points of base accuracy that the novel bias may cost on the hold-out.
        note: what was measured, as a caption.
    """
    made = figure(6.4, 4.6)
    axes = made.subplots()
    for number, (curve, mark) in enumerate(zip(curves, marks, strict=True)):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(BUDGETS, curve.recall, color=colour, label=curve.method)
        axes.plot(*mark, color=colour, marker=marker, markersize=8, markeredgecolor=INK)
    if budget is not None:
        axes.axvline(budget, color=INK, linewidth=1, linestyle=":")
        axes.text(budget + 0.1, 3, f"budget {budget:g}", color=INK)
    axes.set_xlim(0, BUDGETS[-1])
    axes.set_ylim(0, 100)
    _dress(axes, "what novel accuracy costs", "points of base accuracy given up", "both")
    axes.set_ylabel("novel accuracy, percent of test images", color=INK)
    _legend(made, axes, f"lines: best bias for each cost; marks: bias from the hold-out\n{note}")
    return made


def per_class(summary: SweepSummary) -> Figure:
    """NCR@2 of each novel class with the last method, one colour per number of shots."""
    cell = summary.cells[-1]
    results = [one for one in summary.classes if one.method == cell.method]
    shots = sorted({one.shots for one in results})
    last = [one for one in results if one.shots == shots[-1]]
    names = [one.name for one in sorted(last, key=lambda one: one.metrics["ncr_at_2"])]
    half = _MOST_CLASSES // 2
    shown = names[:half] + names[max(len(names) - half, half) :]
    made = figure(6.4, 1.6 + 0.19 * len(shown))
    axes = made.subplots()
    for number, count in enumerate(shots):
        found = {one.name: one.metrics["ncr_at_2"] for one in results if one.shots == count}
        axes.plot(
            [found.get(name, np.nan) for name in shown],
            range(len(shown)),
            linestyle="",
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            label="1 shot" if count == 1 else f"{count} shots",
        )
    axes.set_yticks(range(len(shown)), [_plain(name) for name in shown])
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    title = f"novel classes, hardest at the bottom, {cell.method}"
    _dress(axes, title, "NCR@2, percent of test images", "both")
    trials = cell.n_trials * summary.ways // max(cell.n_classes, 1)
    kind = "classes" if summary.ways == 1 else "groups"
    _legend(made, axes, f"mean over {trials:,} trials of each of {len(names)} {kind}")
    return made


def confusion(rows: Sequence[str], columns: Sequence[str], percent: FloatArray) -> Figure:
    """A confusion matrix, reduced to its largest rows and columns.

    Args:
        rows: names of the true classes.
        columns: names of the classes that their images are taken for.
        percent: `(rows, columns)` percent of the images of each row.
    """
    worst = np.argsort(-percent.max(1), kind="stable")[:MOST_CONFUSIONS]
    takers = np.argsort(-percent[worst].max(0), kind="stable")[:MOST_CONFUSIONS]
    shown = percent[np.ix_(worst, takers)]
    made = figure(7.2, 1.9 + 0.3 * len(worst))
    axes = made.subplots()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(float(shown.max()), 1.0), aspect="auto")
    for y, x in np.argwhere(shown >= 0.5):
        ink = "white" if shown[y, x] > 0.6 * shown.max() else "black"
        axes.text(x, y, f"{shown[y, x]:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(
        range(len(takers)), [_plain(columns[t]) for t in takers], rotation=60, ha="right"
    )
    axes.set_yticks(range(len(worst)), [_plain(rows[w]) for w in worst])
    _dress(axes, "percent of a class's test images taken for another", "taken for", None)
    axes.set_ylabel("images of", color=INK)
    return made


def embedding_map(shown: EmbeddingMap) -> Figure:
    """Base class means, test images of some novel classes, and the proxies of these classes."""
    made = figure(6.4, 5.4)
    axes = made.subplots()
    axes.scatter(
        shown.base[:, 0],
        shown.base[:, 1],
        s=22,
        color="#999999",
        marker="x",
        label="mean of a base class",
    )
    for number, (name, places) in enumerate(zip(shown.names, shown.queries, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number % len(_MARKERS)]
        x, y = places.T
        axes.scatter(x, y, s=10, color=colour, alpha=0.5, marker=marker, label=_plain(name))
        x, y = shown.proxies[number]
        axes.scatter(x, y, s=190, color=colour, marker="*", edgecolor=INK, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    _dress(axes, f"embeddings; stars are proxies, {shown.method}, {shown.shots} shots", "", None)
    _legend(made, axes, "the two directions in which class means differ most")
    return made


def _dress(
    axes: Axes, title: str, label: str, grid: Literal["x", "y", "both"] | None = "y"
) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, color=INK, fontsize=11)
    axes.set_xlabel(label, color=INK)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    if grid:
        axes.grid(axis=grid, alpha=0.3)


def _legend(made: Figure, axes: Axes, below: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4, labelcolor=INK)
    made.supxlabel(below, fontsize=8, color=INK)


def _plain(name: str) -> str:
    """A class name for a tick label: shortened, and not parsed as mathematics."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return short.replace("$", r"\$").replace("\n", "↵")


def _lines(summary: SweepSummary) -> dict[str, dict[int, Cell]]:
    """Cells of each line of a plot, by their place on the axis: a session or a number of shots.

    A line is a method, or a method with one number of shots if sessions are the axis.
    """
    lines: dict[str, dict[int, Cell]] = {}
    several = summary.is_sequence and len({cell.shots for cell in summary.sessions}) > 1
    cells = summary.sessions or summary.cells
    for cell in sorted(cells, key=_place):
        name = f"{cell.method}, {cell.shots} shots" if several else cell.method
        lines.setdefault(name, {})[_place(cell)] = cell
    first = list(dict.fromkeys(cell.method for cell in cells))

    def order(line: tuple[str, dict[int, Cell]]) -> int:
        return first.index(next(iter(line[1].values())).method)

    return dict(sorted(lines.items(), key=order))


def _place(cell: Cell) -> int:
    return cell.shots if cell.session is None else cell.session


def caption(summary: SweepSummary) -> str:
    """What the intervals of a sweep are over, as a caption."""
    cell = summary.cells[0]
    about = (
        "conditional on one base model and its base queries; base accuracy before "
        f"{summary.base_accuracy_before:.1f} %"
    )
    if summary.is_sequence:
        return (
            f"{cell.n_trials:,} support draws of {cell.n_classes} classes in "
            f"{cell.session} sessions; 95 % intervals over draws,\n{about}"
        )
    ways = summary.ways
    over, means = f"{cell.n_classes} novel classes", "class means"
    if ways > 1:
        over, means = f"{cell.n_classes // ways} groups of {ways} classes", "groups"
    return f"{cell.n_trials:,} trials a point over {over}; 95 % intervals over {means},\n{about}"
