"""`lowshot imprint`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.adaptation.bias import expected_accuracy, expected_forgetting
from lowshot_cli.adaptation.imprint import ensure_classes, imprint_classes
from lowshot_cli.adaptation.imprint import imprint_photos as imprint_from_photos
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    evaluate_next,
    load_dataset_of,
    make_embedder,
    next_command,
    open_parent,
    output_file,
    photos_at,
    reject_with,
)
from lowshot_cli.cli.contract import (
    evaluation_record,
    imprint_record,
    photo_imprint_record,
    with_skipped,
)
from lowshot_cli.config.schema import Config
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import evaluate
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
    output.data(with_skipped(record, dataset.n_skipped))
    for d in drawn:
        output.listing(f"{d.name}: learnt from", d.described)
        if d.n_replaced:
            output.note(
                f"{d.name}: supports replaced, as they resemble test images: {d.n_replaced}"
            )
    title = f"{method}, bias {taught.head.bias:+.3f}"
    tables.show_change(output, before, after, title, cost)
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
    """Add one class from photos, without the dataset, and write `imprinted.safetensors`."""
    with output_file(config, output, "imprinted", out, overwrite=overwrite) as path:
        usual = "imprinted" if add else "base"
        _, parent, ancestor = open_parent(config, "imprinted", usual, source, out)
        photos = photos_at(config, output, images, parent.meta.image_size)
        network = parent.network(pick_device(config.device))
        taught, drawn = imprint_from_photos(parent, network, photos, config, replace_known=replace)
        cost = expected_forgetting(taught)
        ckpt.save(taught.as_child_of(ancestor), path)
    method = taught.meta.supports[-1].method
    record = photo_imprint_record(path, method, taught, drawn, expected_forgetting=cost)
    output.data(with_skipped(record, photos.n_skipped))
    output.listing(f"{drawn.name}: learnt from", drawn.described)
    if drawn.n_duplicates:
        output.note(f"photos left out, as they repeat another one: {drawn.n_duplicates}")
    title = f"{method}, bias {taught.head.bias:+.3f}"
    if expected := expected_accuracy(taught):
        tables.show_estimate(output, *expected, title)
    else:
        output.line(f"{title}, not calibrated: the model has no hold-out images")
    output.finish([path], next_command(config, path, "predict", str(images[0])))


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
