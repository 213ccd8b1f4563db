"""Commands that use a model or change its classes: predict and classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lowshot_cli import checkpoint_file as ckpt
from lowshot_cli import predict as predicting
from lowshot_cli import tables, teach
from lowshot_cli.backbones import pick_device
from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.commands.common import model_in_use, tell_skipped
from lowshot_cli.config import Config, storable
from lowshot_cli.data.photos import find_photos
from lowshot_cli.data.store import cannot_read
from lowshot_cli.errors import UsageError
from lowshot_cli.locks import locked
from lowshot_cli.output import Output


def predict(
    config: Config,
    output: Output,
    sources: Sequence[str],
    most: int,
    false_alarm: float | None,
    as_csv: bool,
    source: Path | None,
) -> None:
    """Classify images; those that cannot be read are an error once the others are told of."""
    if as_csv and output.as_json:
        raise UsageError("--csv and --json are two ways to print", "give one of them")
    if not sources:
        raise UsageError("no images named", "name files or folders, or - for a list on stdin")
    files = find_photos(_listed(sources), deep=True)
    _, checkpoint = model_in_use(config, source)
    threshold = float("-inf")
    if false_alarm is not None:
        threshold = predicting.unknown_threshold(checkpoint, false_alarm)
    network = checkpoint.network(pick_device(config.device))
    with output.progress() as on_progress:
        found, unreadable = predicting.readable(
            predicting.predict(checkpoint, network, files, most, threshold, on_progress=on_progress)
        )
    if as_csv:
        print(tables.predictions_csv(found), end="", flush=True)
    else:
        output.data(tables.predictions_json(found))
        tables.show_predictions(output, found)
    lines = [f"{one.file} ({one.reason})" for one in unreadable]
    if unreadable and not config.skip_bad:
        raise cannot_read(lines, f"{len(files)} images")
    tell_skipped(output, lines)


def _listed(sources: Sequence[str]) -> Iterator[Path]:
    for source in sources:
        if source == "-":
            yield from (Path(line) for line in sys.stdin.read().splitlines() if line)
        else:
            yield Path(source)


def list_classes(config: Config, output: Output, source: Path | None) -> None:
    """List the classes of a model."""
    path, checkpoint = model_in_use(config, source)
    records = dict(zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True))
    rows: list[dict[str, Any]] = []
    for name in checkpoint.meta.classes:
        record = records.get(name)
        rows.append(
            {
                "class": name,
                "kind": "novel" if record else "base",
                "shots": len(record.pixel_hashes) if record else None,
                "method": f"imprint --method {record.method}" if record else "train-base",
            }
        )
    output.data(rows)
    tables.show_classes(output, rows, str(path))


def remove_class(
    config: Config, output: Output, name: str, force: bool, source: Path | None
) -> None:
    """Remove a class from a model, in its file."""
    with _changed(config, name, force, source) as (path, checkpoint):
        changed = teach.without_class(checkpoint, name)
        _rewrite(output, path, changed.noted("classes remove", {"class": name}))


def rename_class(
    config: Config, output: Output, name: str, new: str, force: bool, source: Path | None
) -> None:
    """Rename a class of a model, in its file."""
    try:
        storable(new)
    except ValueError as error:
        raise UsageError(f"{new!r} cannot be a class's name, which {error}") from None
    with _changed(config, name, force, source) as (path, checkpoint):
        changed = checkpoint.renamed(name, new)
        _rewrite(output, path, changed.noted("classes rename", {"class": name, "to": new}))


@contextmanager
def _changed(
    config: Config, name: str, force: bool, source: Path | None
) -> Iterator[tuple[Path, Checkpoint]]:
    """The model that is to change, in a folder that is this command's alone meanwhile."""
    folder = source.parent if source else config.workdir
    with locked(folder) if folder.is_dir() else nullcontext():
        path, checkpoint = model_in_use(config, source)
        checkpoint.position(name)
        if name in checkpoint.base_classes and not force:
            raise UsageError(
                f"{name!r} is a base class of {path}", "add --force to change it all the same"
            )
        yield path, checkpoint


def _rewrite(output: Output, path: Path, checkpoint: Checkpoint) -> None:
    ckpt.save(checkpoint, path)
    n_base, total = checkpoint.meta.n_base, len(checkpoint.meta.classes)
    output.data({"checkpoint": str(path), "classes": list(checkpoint.meta.classes)})
    output.line(f"{path}: {n_base} base and {total - n_base} novel classes")
    output.finish([path])
