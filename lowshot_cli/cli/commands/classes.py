"""`lowshot classes`; listing classes reads only the header of a checkpoint, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.model_choice import choose_model, tell_stale
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.records import changed_record, known_classes
from lowshot_cli.storage.locks import locked

if TYPE_CHECKING:
    from lowshot_cli.checkpoint.checkpoint import Checkpoint


def list_classes(config: Config, output: Output, source: Path | None) -> None:
    """List the classes of a model."""
    path = choose_model(config, output, source)
    classes = known_classes(read_metadata(path))
    output.data([one.to_json() for one in classes])
    cells = [
        [one.name, one.kind, "–" if one.shots is None else one.shots, one.method] for one in classes
    ]
    output.table(["class", "kind", "shots", "learnt by"], cells, title=str(path))


def remove_class(
    config: Config, output: Output, name: str, source: Path | None, *, force: bool
) -> None:
    """Remove a class from a model and rewrite its file."""
    from lowshot_cli.adaptation.bias import without_class

    with _changed(config, output, name, source, force=force) as (path, checkpoint):
        changed = without_class(checkpoint, name)
        _rewrite(output, path, changed.with_history("classes remove", {"class": name}))


def rename_class(
    config: Config, output: Output, name: str, new: str, source: Path | None, *, force: bool
) -> None:
    """Rename a class of a model and rewrite its file."""
    with _changed(config, output, name, source, force=force) as (path, checkpoint):
        changed = checkpoint.rename_class(name, new)
        _rewrite(output, path, changed.with_history("classes rename", {"class": name, "to": new}))


@contextmanager
def _changed(
    config: Config, output: Output, name: str, source: Path | None, *, force: bool
) -> Iterator[tuple[Path, Checkpoint]]:
    """Load the model to change, with its folder locked meanwhile."""
    from lowshot_cli.cli.context import model_in_use

    folder = source.parent if source else config.workdir
    with locked(folder) if folder.is_dir() else nullcontext():
        path, checkpoint = model_in_use(config, output, source)
        if checkpoint.position(name) < checkpoint.meta.n_base and not force:
            raise UsageError(
                f"{name!r} is a base class of {path}", "add --force to change it anyway"
            )
        yield path, checkpoint


def _rewrite(output: Output, path: Path, checkpoint: Checkpoint) -> None:
    from lowshot_cli.checkpoint.format import save

    save(checkpoint, path)
    n_base, total = checkpoint.meta.n_base, len(checkpoint.meta.classes)
    output.data(changed_record(path, checkpoint))
    output.line(f"{path}: {n_base} base and {total - n_base} novel classes")
    output.finish([path])
    tell_stale(output, path)
