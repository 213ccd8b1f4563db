"""Reports: one self-contained HTML page each."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
import numpy as np
import torch
from markupsafe import escape
from torch import Tensor

from lowshot_cli.evaluation.evaluate import Evaluation
from lowshot_cli.evaluation.statistics import FloatArray
from lowshot_cli.report import plots
from lowshot_cli.report.findings import EmbeddingMap, ModelReportData, ReportData
from lowshot_cli.report.plots import caption
from lowshot_cli.report.tables import (
    Cells,
    class_rows,
    evaluation_rows,
    hardest_rows,
    is_number,
    paired_rows,
    session_rows,
    sweep_rows,
)
from lowshot_cli.sweep.summary import Cell, SweepSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THUMBNAIL = 48
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^)"]+)')
_ID = re.compile(r' id="([^"]+)"')


@dataclass(frozen=True)
class _FactList:
    facts: Facts
    kind: str = "facts"


@dataclass(frozen=True)
class _Code:
    summary: str
    text: str
    kind: str = "code"


@dataclass(frozen=True)
class _Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]  # right-aligned columns
    caption: str
    kind: str = "table"


@dataclass(frozen=True)
class _Figure:
    svg: str
    width: int  # pixels
    caption: str
    kind: str = "figure"


@dataclass(frozen=True)
class _Images:
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Sequence[str]]]]  # a name, then data URIs per column
    caption: str
    kind: str = "images"


# Parts of a section; the template reads `kind`.
_Block = _FactList | _Code | _Table | _Figure | _Images
# A heading and blocks; a section without blocks is left out.
_Section = tuple[str, Sequence[_Block]]
Facts = Sequence[tuple[str, str]]


def sweep_page(
    summary: SweepSummary,
    findings: ReportData,
    figures: Mapping[str, Figure],
    facts: Facts,
    config: str,
) -> str:
    """The report of a sweep.

    Args:
        summary: of the sweep.
        findings: curves, confusions, map and support images.
        figures: from `plots`: `accuracy` and, if they exist, `tradeoff` and `per_class`.
        facts: names and values that say what was run, where and with what.
        config: the resolved config as YAML.
    """
    is_sequence = summary.is_sequence
    cells = session_rows(summary) if is_sequence else sweep_rows(summary)
    numbers: list[_Block] = [_table(cells, f"{caption(summary)}. {_MEANING}")]
    if not is_sequence and len(gained := paired_rows(summary)) > 1:
        first = summary.methods[0]
        numbers.append(_table(gained, f"Points gained over {first} on the same draws."))
    sections: list[_Section] = [
        ("What was run", [_FactList(facts), _Code("the whole config", config)]),
        ("Results", numbers),
        ("Accuracy", [_accuracy(summary, figures["accuracy"])]),
    ]
    if not is_sequence:
        last = summary.cells[-1]
        sections += [
            ("What novel accuracy costs", _trade_offs(figures.get("tradeoff"))),
            ("Class by class", _classes(summary, findings, figures["per_class"])),
            ("Confusions", _confusion_blocks(findings, last)),
            ("Embeddings", _map(findings.map)),
        ]
    lead = (
        f"{sum(cell.n_trials for cell in summary.cells):,} trials, each from the base model, "
        f"which has a test accuracy of {summary.base_accuracy_before:.1f} %."
    )
    return _page("Sweep of novel classes", lead, sections)


def evaluation_page(
    found: Sequence[tuple[str, Evaluation]], data: ModelReportData, facts: Facts, config: str
) -> str:
    """The report of an evaluation; its details are about the last model.

    Args:
        found: name and evaluation of each model.
        data: of the last model.
        facts: as for `sweep_page`.
        config: the resolved config as YAML.
    """
    last_name, last = found[-1]
    confused, percent = _confusions(data.names, last.counts)
    matrix = plots.confusion(confused, confused, percent)
    costs: list[_Block] = []
    if data.trade_off and last.forgetting is not None and last.novel_accuracy is not None:
        mark = (last.forgetting, last.novel_accuracy)
        note = f"{last.n_novel} novel classes together"
        drawn = plots.trade_off([data.trade_off], [mark], data.budget, note)
        costs = [_figure(drawn, "Novel accuracy against base accuracy given up.", _COST)]
    learnt = [(name, [_thumbnails(images)]) for name, images in data.supports.items()]
    sections: list[_Section] = [
        ("What was run", [_FactList(facts), _Code("the whole config", config)]),
        ("Results", [_table(evaluation_rows(found), _EVALUATED)]),
        ("What novel accuracy costs", costs),
        ("Class by class", [_table(class_rows(last), f"Accuracy of {last_name} by class.")]),
        ("Support images", [_Images(["class", "images"], learnt, _LEARNT)] if learnt else []),
        (
            "Confusions",
            [_figure(matrix, "Matrix of confusions.", _CONFUSED)],
        ),
        ("Embeddings", _map(data.map)),
    ]
    lead = f"Models on test images: {len(found)}. Details are about {last_name}."
    return _page("Evaluation", lead, sections)


def _confusions(names: Sequence[str], counts: Tensor) -> tuple[list[str], FloatArray]:
    """The classes with the most errors, and percent of images that each takes from another.

    Args:
        names: of all classes.
        counts: `(K, 3)`, as in `Evaluation`.
    """
    truth, taken, times = counts.unbind(1)
    zeros, wrong = times.new_zeros(len(names)), truth != taken
    sizes = zeros.index_add(0, truth, times)
    errors = zeros.index_add(0, truth[wrong], times[wrong]).index_add(0, taken[wrong], times[wrong])
    shown = errors.argsort(descending=True, stable=True)[:_MOST_CONFUSED].sort().values
    place = torch.full_like(zeros, -1)
    place[shown] = torch.arange(len(shown))
    kept = wrong & (place[truth] >= 0) & (place[taken] >= 0)
    table = times.new_zeros(len(shown), len(shown))
    table[place[truth[kept]], place[taken[kept]]] = times[kept]
    percent = 100 * table / sizes[shown].clamp(min=1)[:, None]
    return [names[i] for i in shown.tolist()], percent.double().numpy()


# A larger matrix would be unreadable.
_MOST_CONFUSED = 200
_MEANING = (
    "NCR@2 is novel recall when the novel logit is shifted until at most 2 points of base accuracy "
    "are lost; forgetting is in points."
)
_COST = (
    "The dotted line is the budget that sets the bias on the hold-out; marks, measured on test "
    "images, lie near it if the hold-out is representative."
)
_EVALUATED = (
    "Accuracies in percent of test images, over all classes of the head; forgetting in points."
)
_LEARNT = "The support images of each novel class."
_CONFUSED = (
    "The largest confusions; a row shows where the images of a class go, in percent of them."
)


def _accuracy(summary: SweepSummary, drawn: Figure) -> _Block:
    along = "sessions" if summary.is_sequence else "numbers of shots"
    text = f"Accuracy of each method over {along}; the numbers are in the table of results."
    return _figure(drawn, text, "Error bars are the intervals of the table above.")


def _trade_offs(drawn: Figure | None) -> list[_Block]:
    if drawn is None:
        return []
    text = "Novel accuracy against base accuracy given up, one line per method."
    return [_figure(drawn, text, _COST)]


def _classes(summary: SweepSummary, findings: ReportData, drawn: Figure) -> list[_Block]:
    text = "NCR@2 of each novel class; the hardest are also in the table."
    blocks: list[_Block] = [_figure(drawn, text, "Mean over the trials of each class.")]
    blocks.append(_table(hardest_rows(summary, 10), "The hardest classes."))
    method, shots = findings.supports_of
    shown = [
        (f"{one.name}, {one.ncr_at_2:.0f}", [_thumbnails(one.best), _thumbnails(one.worst)])
        for one in findings.supports
    ]
    note = (
        f"Support images of the best and the worst trial of the hardest and the easiest classes, "
        f"{method} with {shots} shots. Beside each name is the mean NCR@2 of the class."
    )
    columns = ["class, NCR@2", "best", "worst"]
    return [*blocks, _Images(columns, shown, note)] if shown else blocks


def _confusion_blocks(findings: ReportData, last: Cell) -> list[_Block]:
    drawn = plots.confusion(findings.novel_names, findings.base_names, findings.confused_percent)
    note = (
        f"Percent of a novel class's test images that a base class takes, {last.method} with "
        f"{last.shots} shots: the {plots.MOST_CONFUSIONS} largest rows and columns. Each trial "
        "counts only the base class that takes most."
    )
    return [_figure(drawn, "Matrix of novel classes against base classes.", note)]


def _map(shown: EmbeddingMap | None) -> list[_Block]:
    if shown is None:
        return []
    note = (
        "Where embeddings lie in the two directions in which class means differ most: crosses are "
        "base classes, points test images of novel classes, stars their proxies. Two of many "
        "directions show neighbourhoods, not distances."
    )
    names = ", ".join(shown.names)
    return [_figure(plots.embedding_map(shown), f"Map of embeddings of {names}.", note)]


def _table(cells: Cells, note: str) -> _Block:
    columns, *body = cells
    numbers = [n for n in range(len(columns)) if all(is_number(row[n]) for row in body)]
    return _Table(columns, body, numbers, note)


def _figure(drawn: Figure, text: str, note: str) -> _Block:
    width = round(drawn.get_figwidth() * 100)
    return _Figure(_inline(drawn, text), width, note)


def _inline(drawn: Figure, text: str) -> str:
    """A figure as inline SVG, in the page's text colour and with a text for screen readers."""
    svg = plots.as_svg(drawn)
    svg = svg[svg.index("<svg") :].replace(plots.INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(_REFERENCE.findall(svg))
    svg = _ID.sub(lambda found: found.group(0) if found.group(1) in used else "", svg)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1)


def _thumbnails(images: Tensor) -> list[str]:
    """Images `(k, 3, H, W)` uint8 as small PNGs in data URIs."""
    from PIL import Image

    made = []
    for image in images:
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        if picture.width > _THUMBNAIL:
            picture = picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        made.append(f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}")
    return made


def _page(title: str, lead: str, sections: Sequence[_Section]) -> str:
    """Fill the template; everything but the package's own SVG is escaped."""
    loader = jinja2.PackageLoader("lowshot_cli", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = [{"heading": heading, "blocks": blocks} for heading, blocks in sections if blocks]
    template = environment.get_template("report/page.html.jinja")
    return f"{template.render(title=title, lead=lead, sections=shown)}\n"
