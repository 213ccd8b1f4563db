"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.adaptation.imprint import SupportDraw
from lowshot_cli.adaptation.review import Review, Weakened
from lowshot_cli.cli.console import Output, prints_unicode
from lowshot_cli.cli.contract import DryRun
from lowshot_cli.errors import first_few
from lowshot_cli.evaluation.evaluate import Evaluation
from lowshot_cli.evaluation.open_set import OpenSet
from lowshot_cli.evaluation.predict import Prediction
from lowshot_cli.evaluation.prediction_sets import Coverage
from lowshot_cli.report.plots import caption
from lowshot_cli.report.tables import (
    class_rows,
    duration,
    evaluation_rows,
    hardest_rows,
    over_bases_rows,
    paired_rows,
    percent,
    session_rows,
    sweep_rows,
)
from lowshot_cli.sweep.base_models import BasesSummary
from lowshot_cli.sweep.summary import SweepSummary
from lowshot_cli.training.result import TrainResult


def show_plan(output: Output, plan: DryRun) -> None:
    """What a command would work on, its estimated cost, and the files it would write."""
    output.table(["works on", "n"], [[name, f"{n:,}"] for name, n in plan.counts.items()])
    table = [[one.name, f"{one.n:,}", one.unit, duration(one.seconds)] for one in plan.stages]
    table.append(["total", "", "", duration(plan.seconds)])
    memory = f"memory {plan.memory / 2**30:.1f} GiB"
    note = f"estimated from the first seconds of the work; {memory}"
    output.table(["step", "n", "of", "time"], table, caption=note)
    output.line("would write")
    for path in plan.paths:
        output.line(f"  {path}")


def show_training(output: Output, result: TrainResult) -> None:
    """One row about a trained base model, or a line about an adopted one."""
    meta = result.checkpoint.meta
    if meta.adopted:
        output.line(f"classifier of {meta.n_base:,} classes, as it was")
        return
    row = [
        meta.n_base,
        percent(result.base_accuracy),
        percent(result.holdout_accuracy),
        result.epochs,
        f"{result.train_seconds:.0f}",
        f"{result.images_per_second:.0f}",
    ]
    columns = ["base classes", "test accuracy %", "hold-out %", "epochs", "seconds", "images/s"]
    output.table(columns, [row], title="base model")


def show_change(
    output: Output, before: Evaluation, after: Evaluation, title: str, expected: float | None
) -> None:
    """Accuracies before and after classes were added, and the expected forgetting in points."""
    columns = ["test images of", "before %", "after %", "change"]
    rows = []
    for name in ("base", "novel", "global"):
        old, new = getattr(before, f"{name}_accuracy"), getattr(after, f"{name}_accuracy")
        change = "–" if old is None or new is None else f"{new - old:+.1f}"
        label = "all classes" if name == "global" else f"{name} classes"
        rows.append([label, percent(old), percent(new), change])
    output.table(columns, rows, title=title)
    cost = "not known, as no images of it are left"
    if expected is not None:
        cost = f"{expected:.1f} points of base accuracy"
    output.line(f"expected cost, estimated on the hold-out: {cost}")


def show_supports(output: Output, drawn: Sequence[SupportDraw]) -> None:
    """What each class was learnt from: a list for one class, a table for several."""
    if len(drawn) == 1:
        output.listing(f"{drawn[0].name}: learnt from", drawn[0].described)
        return
    rows = []
    for one in drawn:
        folders = dict.fromkeys(str(Path(file).parent) for file in one.described)
        rows.append([one.name, len(one.described), first_few(list(folders), _MOST_FOLDERS)])
    output.table(["class", "images", "learnt from"], rows)


def show_estimate(
    output: Output, before: float, after: float, title: str, n_background: int | None
) -> None:
    """What classes cost the others, where there are no test images.

    That is base accuracy on the stored hold-out, or how many of the background photos of an adopted
    classifier keep their decision.
    """
    if n_background:
        changed = f"{100 - after:.1f}"
        output.table(
            ["estimated on", "photos", "decisions changed %"],
            [["the background", f"{n_background:,}", changed]],
            title=title,
        )
        return
    output.table(
        ["estimated on the hold-out", "before %", "after %", "change"],
        [["base classes", percent(before), percent(after), f"{after - before:+.1f}"]],
        title=title,
    )


def show_reviews(
    output: Output,
    reviews: Sequence[Review],
    drawn: Sequence[SupportDraw],
    advice: str,
    held: str = "hold-out images",
) -> None:
    """What may mislead classes: nothing if nothing does.

    Args:
        output: where to.
        reviews: of each class.
        drawn: the supports of each class.
        advice: what to do about supports that do not belong.
        held: what the base images are that set the bias.
    """
    for review, draw in zip(reviews, drawn, strict=True):
        for one in review.confused:
            counts = []
            if one.lost:
                counts.append(f"loses {one.lost} of its {one.n_holdout} {held}")
            if one.won:
                counts.append(f"gets {one.won} of the {review.n_support} supports")
            output.sentence(
                f"{review.name} is confused with {one.name}, which {' and '.join(counts)}"
            )
        if review.outliers:
            named = [
                f"{draw.described[one.position]} (like {one.resembles})" for one in review.outliers
            ]
            output.listing(f"{review.name}: unlike the other supports:", named)
        won, shots = review.supports_won, review.n_support
        # A support that does not belong may be why some are not known, but not why none is.
        if won is not None and 2 * won < shots and not (won and review.outliers):
            output.sentence(
                f"{review.name} gets {won} of its {shots} supports if it is learnt from the "
                "others, so few other photos of it will be known"
            )
            output.sentence(
                f"the background may show {review.name}: take such photos out of it, "
                "or allow more --max-forgetting"
            )
    if any(review.outliers for review in reviews):
        output.line(f"look at them; {advice}")


def show_weakened(output: Output, weakened: Sequence[Weakened], bias: float) -> None:
    """Classes taught earlier that are known less well, if there are any."""
    for one in weakened:
        output.sentence(
            f"{one.name} is known less well now: of its {one.n_support} supports, each judged by "
            f"the others, it gets {one.after}, before {one.before}"
        )
    if weakened:
        output.sentence(
            f"all new classes share one bias, now {bias:+.3f}; a larger --max-forgetting raises it"
        )


def show_evaluations(
    output: Output,
    found: Sequence[tuple[str, Evaluation]],
    title: str = "accuracy on test images",
) -> None:
    """One row per checkpoint."""
    columns, *cells = evaluation_rows(found)
    output.table(columns, cells, title=title)


def show_predictions(output: Output, found: Sequence[Prediction]) -> None:
    """A line per image, never folded: path, class, probability, bar, runners-up, set of classes."""
    full, empty = ("█", "·") if prints_unicode() else ("#", ".")
    rows = [
        (
            one.image,
            "unknown" if one.unknown else one.name,
            f"{100 * one.probability:5.1f} %",
            (full * round(_BAR * one.probability)).ljust(_BAR, empty),
            _others(one),
            _set(one),
        )
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        output.line("  ".join(cells).rstrip())


_BAR, _HARDEST, _MOST_IN_SET, _MOST_FOLDERS = 10, 5, 10, 2


def _set(one: Prediction) -> str:
    if one.prediction_set is None:
        return ""
    return f"{{{first_few(one.prediction_set, _MOST_IN_SET)}}}"


def _others(one: Prediction) -> str:
    others = one.top if one.unknown else one.top[1:]
    return ", ".join(f"{name} {100 * chance:.1f}" for name, chance in others)


def show_open_set(output: Output, name: str, found: OpenSet) -> None:
    """How well the model tells images of unknown classes from those of known ones."""
    row = [name, percent(found.auroc), percent(found.false_alarm), percent(found.detected)]
    output.table(
        ["checkpoint", "AUROC %", "false alarms %", "unknown found %"],
        [row],
        title="images of unknown classes",
        caption=f"{found.n_known:,} test images of known classes, {found.n_unknown:,} of others",
    )


def show_coverage(
    output: Output, found: Sequence[tuple[str, Coverage]], confidence: float | None
) -> None:
    """How often the sets of each model hold the right class, and how large they are; if any."""
    if not found:
        return
    rows = [
        [
            name,
            percent(one.base_coverage),
            _size(one.base_size),
            percent(one.novel_coverage),
            _size(one.novel_size),
        ]
        for name, one in found
    ]
    output.table(
        ["checkpoint", "base covered %", "set size", "novel covered %", "set size"],
        rows,
        title=f"sets of classes with a confidence of {confidence}",
        caption="promised on average over images of base classes; set size: mean number of classes",
    )


def _size(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.2f}"


def show_details(output: Output, found: Evaluation, name: str) -> None:
    """Accuracy by class, worst first, and the worst confusions."""
    columns, *cells = class_rows(found)
    output.table(columns, cells, title=f"{name}, by class")
    if found.confusions:
        output.table(
            ["images of", "taken for", "n"],
            [[c.truth, c.taken_for, c.n] for c in found.confusions],
            title=f"{name}, worst confusions",
        )


def show_sessions(output: Output, summary: SweepSummary) -> None:
    """Accuracy over all classes after each session, and all metrics after the last."""
    cells = summary.sorted_cells()
    steps: dict[tuple[str, int], list[str]] = {}
    for cell in summary.sessions:
        found = steps.setdefault((cell.method, cell.shots), [])
        found.append(percent(cell.metrics["global_accuracy"].mean))
    before = percent(summary.base_accuracy_before)
    numbers = [str(number) for number in range(1, (cells[0].session or 0) + 1)]
    after = [[c.method, c.shots, before, *steps[c.method, c.shots]] for c in cells]
    title = "accuracy over all classes after each session, %"
    output.table(["method", "shots", "base", *numbers], after, title=title)
    columns, *last = session_rows(summary)
    output.table(columns, last, title="after the last session", caption=caption(summary))


def show_sweep(output: Output, summary: SweepSummary) -> None:
    """One row per method and number of shots, what methods gain, and the hardest classes."""
    columns, *cells = sweep_rows(summary)
    title = "accuracy on test images, mean over novel classes"
    output.table(columns, cells, title=title, caption=caption(summary))
    columns, *pairs = paired_rows(summary)
    if pairs:
        title = f"points gained over {summary.methods[0]} on the same draws"
        output.table(columns, pairs, title=title)
    last = summary.cells[-1]
    columns, *hardest = hardest_rows(summary, _HARDEST)
    title = f"hardest classes for {last.method} with {last.shots} shots"
    output.table(columns, hardest, title=title)


def show_over_bases(output: Output, summary: BasesSummary) -> None:
    """The base models that were swept, and for each backbone the means over their sweeps."""
    models = [
        [
            one.model.name,
            one.backbone,
            one.class_order_seed,
            percent(one.summary.base_accuracy_before),
        ]
        for one in summary.base_models
    ]
    output.table(["base model", "backbone", "class order", "base %"], models, title="base models")
    for backbone in dict.fromkeys(cell.backbone for cell in summary.cells):
        cells = [cell for cell in summary.cells if cell.backbone == backbone]
        columns, *found = over_bases_rows(cells)
        n = cells[0].n_bases
        title = f"{backbone}, mean over {n} base model{'s' * (n != 1)}"
        output.table(columns, found, title=title, caption="95 % intervals over base models")
