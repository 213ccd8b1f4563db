"""`lowshot imprint`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.adaptation.background import ensure_adopted
from lowshot_cli.adaptation.bias import expected_accuracy, expected_forgetting
from lowshot_cli.adaptation.imprint import ensure_classes, imprint_classes
from lowshot_cli.adaptation.imprint import imprint_photos as imprint_from_photos
from lowshot_cli.adaptation.review import review_classes, weakened_classes
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    evaluate_next,
    load_dataset_of,
    make_embedder,
    next_command,
    open_parent,
    output_file,
    reject_with,
)
from lowshot_cli.cli.contract import evaluation_record, imprint_record
from lowshot_cli.cli.photos import load_found, photos_at, with_background
from lowshot_cli.config.schema import Config
from lowshot_cli.data.labelled_photos import find_classes, is_table, split_classes
from lowshot_cli.data.photos import Photos
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.methods.operating_point import allowed_losses
from lowshot_cli.records import photo_imprint_record, with_reviews, with_skipped
from lowshot_cli.sweep.replay import as_imprinting, rebuild


def imprint(
    config: Config,
    output: Output,
    source: Path | None,
    out: Path | None,
    *,
    add: bool,
    replace: bool,
    overwrite: bool,
) -> None:
    """Add classes to the base model and write `imprinted.safetensors`."""
    ensure_classes(config.imprint)
    with output_file(config, output, "imprinted", out, overwrite=overwrite) as path:
        usual = "imprinted" if add else "base"
        _, parent, ancestor = open_parent(config, "imprinted", usual, source, out)
        dataset = load_dataset_of(parent, config, output)
        if config.background is not None:
            ensure_adopted(parent)  # which no model with a dataset is
        with output.progress() as on_progress:
            embedder = make_embedder(parent, config, on_progress)
            taught, drawn = imprint_classes(
                parent, dataset, embedder.network, config, replace_known=replace
            )
            before = evaluate(parent, dataset, embedder)
            after = evaluate(taught, dataset, embedder)
        ckpt.save(taught.as_child_of(ancestor), path)
    cost, method = expected_forgetting(taught), taught.meta.supports[-1].method
    record = imprint_record(
        path,
        method,
        taught,
        drawn,
        before=before,
        after=after,
        expected_forgetting=cost,
    )
    reviews = review_classes(taught, [one.name for one in drawn])
    weakened = weakened_classes(parent, taught)
    output.data(with_skipped(with_reviews(record, reviews, weakened), dataset.n_skipped))
    for d in drawn:
        output.listing(f"{d.name}: learnt from", d.described)
        if d.n_replaced:
            output.note(
                f"{d.name}: supports replaced, as they resemble test images: {d.n_replaced}"
            )
    title = f"{method}, bias {taught.head.bias:+.3f}"
    tables.show_change(output, before, after, title, cost)
    tables.show_reviews(output, reviews, drawn, "another --seed draws others")
    tables.show_weakened(output, weakened, taught.head.bias)
    output.finish([path], next_command(config, path, "finetune"))


def imprint_photos(
    config: Config,
    output: Output,
    images: Sequence[Path],
    source: Path | None,
    out: Path | None,
    *,
    add: bool,
    replace: bool,
    overwrite: bool,
) -> None:
    """Add classes from photos, without the dataset, and write `imprinted.safetensors`."""
    with output_file(config, output, "imprinted", out, overwrite=overwrite) as path:
        usual = "imprinted" if add else "base"
        _, parent, ancestor = open_parent(config, "imprinted", usual, source, out)
        classes, n_skipped = _photos_by_class(config, output, images, parent.meta)
        network = parent.network(pick_device(config.device))
        parent = with_background(config, output, parent, network)
        taught, drawn = imprint_from_photos(parent, network, classes, config, replace_known=replace)
        cost = expected_forgetting(taught)
        ckpt.save(taught.as_child_of(ancestor), path)
    method = taught.meta.supports[-1].method
    record = photo_imprint_record(path, method, taught, drawn, expected_forgetting=cost)
    reviews = review_classes(taught, [one.name for one in drawn])
    weakened = weakened_classes(parent, taught)
    output.data(with_skipped(with_reviews(record, reviews, weakened), n_skipped))
    tables.show_supports(output, drawn)
    if repeated := sum(one.n_duplicates for one in drawn):
        output.note(f"photos left out, as they repeat another one: {repeated}")
    title = f"{method}, bias {taught.head.bias:+.3f}"
    if expected := expected_accuracy(taught):
        tables.show_estimate(output, *expected, title, taught.n_background)
        _note_small(output, taught)
    elif taught.meta.adopted:
        output.line(f"{title}, not calibrated: the class wins only what is very like its photos")
        output.line("--background FOLDER calibrates it on ordinary photos")
    else:
        output.line(f"{title}, not calibrated: the model has no hold-out images")
    advice = "imprint the class again without those that do not belong"
    held = "background photos" if taught.n_background else "hold-out images"
    tables.show_reviews(output, reviews, drawn, advice, held)
    tables.show_weakened(output, weakened, taught.head.bias)
    to_predict = str(images[0]) if config.imprint.classes or images[0].is_dir() else "photos/"
    fit = ["--fit", config.fit] if config.fit else []
    output.finish([path], next_command(config, path, "predict", to_predict, *fit))


def _note_small(output: Output, taught: Checkpoint) -> None:
    """Say if the background is so small that its budget allows nothing."""
    budget, count = taught.meta.max_forgetting, taught.n_background
    if budget and count and not allowed_losses(budget, count):
        least = math.ceil(100 / budget)
        output.note(
            f"{budget:g} % of {count} background photos is less than one, so none of them may "
            f"change; give {least:,} or more"
        )


def _photos_by_class(
    config: Config, output: Output, images: Sequence[Path], meta: Meta
) -> tuple[dict[str, Photos], int]:
    """The photos of the one class that is named, or else of each class folder or class of a CSV.

    Returns:
        Photos by class, and the number of files that look like images and are not used.

    Raises:
        UsageError: several classes are named, or one beside a CSV file, which names its own.
        DataError: no photos are found, or some cannot be read.
    """
    names = config.imprint.classes
    if not names:
        classes = find_classes(images, strict=config.strict)
        photos = load_found(config, output, classes.all, meta, archived=classes.archived)
        return split_classes(photos, classes.files), photos.n_skipped
    if len(names) != 1:
        raise UsageError(
            "`images` must be of one class",
            "name just one in `classes`, or none for a folder of class folders",
        )
    if table := next(filter(is_table, images), None):
        raise UsageError(f"{table} names the classes itself", "leave out `classes`")
    photos = photos_at(config, output, images, meta)
    return {names[0]: photos}, photos.n_skipped


def imprint_from_run(
    config: Config,
    output: Output,
    run_dir: Path | None,
    trial: int | None,
    source: Path | None,
    out: Path | None,
    *,
    overwrite: bool,
    others: Sequence[str],
) -> None:
    """Rebuild the model of one trial of a sweep and write `imprinted.safetensors`.

    Raises:
        UsageError: one of the two is missing, or `others` names options that the trial decides.
    """
    if run_dir is None or trial is None:
        raise UsageError("--from-run and --trial need each other", "give both")
    hint = "leave it out: the trial decides which classes were learnt, and how"
    reject_with("--from-run", others, hint)
    with output_file(config, output, "imprinted", out, overwrite=overwrite) as path:
        _, base, ancestor = open_parent(config, "imprinted", "base", source, out)
        dataset = load_dataset_of(base, config, output)
        rebuilt = rebuild(base, dataset, run_dir, trial)
        with output.progress() as on_progress:
            found = evaluate(rebuilt, dataset, make_embedder(base, config, on_progress))
        rebuilt = rebuilt.with_settings("imprint", as_imprinting(run_dir, rebuilt))
        ckpt.save(rebuilt.as_child_of(ancestor), path)
    output.data(with_skipped(evaluation_record(path, found), dataset.n_skipped))
    tables.show_evaluations(output, [(path.name, found)])
    output.finish([path], evaluate_next(config, path))
