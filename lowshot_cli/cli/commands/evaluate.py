"""`lowshot evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.adaptation.supports import count_repeats
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    load_dataset_of,
    make_embedder,
    model_in_use,
    reject_with,
    set_quantile_of,
)
from lowshot_cli.cli.contract import evaluation_record, photo_evaluation_record
from lowshot_cli.cli.model_choice import choose_models
from lowshot_cli.cli.photos import photos_at
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import normal_name, user_path
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import Evaluation, evaluate_embeddings, test_embeddings
from lowshot_cli.evaluation.evaluate import evaluate as measure
from lowshot_cli.evaluation.open_set import OpenSet, open_set
from lowshot_cli.evaluation.prediction_sets import Coverage, coverage
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.report.findings import collect_for_model
from lowshot_cli.report.write import report_evaluation
from lowshot_cli.storage.files import ensure_free, ensure_writable


def evaluate(
    config: Config,
    output: Output,
    paths: Sequence[Path],
    report: Path | None = None,
    *,
    false_alarm: float | None = None,
    confidence: float | None = None,
) -> None:
    """Evaluate checkpoints side by side.

    With a false-alarm rate also on unknown classes, and with a confidence also prediction sets.
    """
    if report is not None:
        _check_page(report)
    found: list[tuple[Path, Evaluation]] = []
    unknown: list[tuple[str, OpenSet]] = []
    sets: list[tuple[str, Coverage]] = []
    answers = []
    for path in choose_models(config, paths):
        checkpoint = ckpt.load(path)
        quantile = set_quantile_of(checkpoint, output, confidence)
        dataset = load_dataset_of(checkpoint, config, output)
        with output.progress() as on_progress:
            embedder = make_embedder(checkpoint, config, on_progress)
            found.append((path, measure(checkpoint, dataset, embedder)))
            last = (checkpoint, dataset, embedder)
            rejected = covered = None
            if false_alarm is not None:
                rejected = open_set(checkpoint, dataset, embedder, false_alarm)
                unknown.append((path.stem, rejected))
            if quantile is not None:
                embedded = test_embeddings(checkpoint, dataset, embedder)
                covered = coverage(checkpoint, embedded, quantile)
                sets.append((path.stem, covered))
        answers.append(evaluation_record(*found[-1], rejected, covered))
    output.data(answers)
    tables.show_evaluations(output, [(path.stem, one) for path, one in found])
    for name, measured in unknown:
        tables.show_open_set(output, name, measured)
    tables.show_coverage(output, sets, confidence)
    tables.show_details(output, found[-1][1], found[-1][0].stem)
    if report is not None:
        shown = [(path.stem, one) for path, one in found]
        checkpoint, dataset, embedder = last
        data = collect_for_model(checkpoint, dataset, embedder)
        report_evaluation(report, shown, data, checkpoint, config, command=output.command)
        output.finish([report])


def _check_page(report: Path) -> None:
    """Check the place of a page before any work, and that no model is named by mistake.

    Raises:
        UsageError: it is a folder, or has not the name of an HTML file.
        LowshotError: its folder cannot be written to.
    """
    ensure_free(report, overwrite=True)
    if report.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"`report` {report}: a page is an HTML file", f"name it {report}.html")
    ensure_writable(report.parent)


def _photos_by_class(labelled: Sequence[str], known: Sequence[str]) -> dict[str, list[Path]]:
    """Paths by class, from texts such as `mug=photos/`; names and paths may contain `=`.

    Raises:
        UsageError: a text without a class or a path.
    """
    sources: dict[str, list[Path]] = {}
    for text in labelled:
        places = [position for position, letter in enumerate(text) if letter == "="]
        longest = (place for place in reversed(places) if normal_name(text[:place]) in known)
        at = next(longest, min(places, default=0))
        name, path = normal_name(text[:at]), text[at + 1 :]
        if not (name and path):
            missing = "path" if name else "class"
            hint = 'write it as "my mug"=photos/'
            raise UsageError(f"--images {text}: no {missing} is named", hint)
        sources.setdefault(name, []).append(user_path(path))
    return sources


def evaluate_photos(
    config: Config,
    output: Output,
    paths: Sequence[Path],
    labelled: Sequence[str],
    others: Sequence[str],
    *,
    confidence: float | None = None,
) -> None:
    """Evaluate models on photos outside the dataset, given as NAME=PATH.

    Raises:
        UsageError: a path without a class, or `others` names options that need test images.
    """
    reject_with("--images", others, "these options need the dataset's images")
    answers, shown, sets = [], [], []
    for named_path in paths or (None,):
        path, checkpoint = model_in_use(config, output, named_path)
        quantile = set_quantile_of(checkpoint, output, confidence)
        sources = _photos_by_class(labelled, checkpoint.meta.classes)
        network = fused(checkpoint.network(pick_device(config.device)))
        embedded, repeated = {}, 0
        for name, places in sources.items():
            checkpoint.position(name)
            photos = photos_at(config, output, places, checkpoint.meta)
            repeated += count_repeats(checkpoint, name, photos.pixels)
            embedded[name] = embed(network, photos.pixels)
        if repeated:
            output.note(f"photos among the support images of their class: {repeated}")
        found = evaluate_embeddings(checkpoint, embedded.items())
        covered = None
        if quantile is not None:
            covered = coverage(checkpoint, embedded.items(), quantile)
            sets.append((path.stem, covered))
        answers.append(photo_evaluation_record(path, found, repeated, covered))
        shown.append((path.stem, found))
    output.data(answers)
    tables.show_evaluations(output, shown, title="accuracy on your photos")
    tables.show_coverage(output, sets, confidence)
    tables.show_details(output, shown[-1][1], shown[-1][0])
