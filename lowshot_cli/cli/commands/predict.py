"""`lowshot predict`."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import model_in_use, set_quantile_of
from lowshot_cli.cli.contract import predictions_csv
from lowshot_cli.cli.photos import report_blank, report_skipped
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import user_path
from lowshot_cli.data.image_files import Unused
from lowshot_cli.data.image_store import cannot_read
from lowshot_cli.data.photos import find_photos
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.predict import predict as classify
from lowshot_cli.evaluation.predict import readable


def predict(
    config: Config,
    output: Output,
    sources: Sequence[str],
    source: Path | None,
    *,
    top: int,
    false_alarm: float | None,
    confidence: float | None,
    as_csv: bool,
) -> None:
    """Classify images; unreadable ones are an error once the others are reported."""
    if as_csv and output.as_json:
        raise UsageError("--csv and --json are two formats", "give one of them")
    if not sources:
        raise UsageError("no images named", "name files or folders, or - for a list on stdin")
    files = files_at(config, output, sources)
    _, checkpoint = model_in_use(config, output, source)
    checkpoint = checkpoint.with_fit(config.fit)
    threshold = unknown_threshold(checkpoint, false_alarm)
    quantile = set_quantile_of(checkpoint, output, confidence)
    network = checkpoint.network(pick_device(config.device))
    with output.progress() as on_progress:
        found, unreadable = readable(
            classify(
                checkpoint,
                network,
                files,
                most=top,
                threshold=threshold,
                quantile=quantile,
                on_progress=on_progress,
            )
        )
    if as_csv:
        print(predictions_csv(found), end="", flush=True)
    else:
        output.data([one.to_json() for one in found])
        tables.show_predictions(output, found)
    report_blank(output, [one.image for one in found if one.blank])
    lines = [f"{one.file} ({one.reason})" for one in unreadable]
    if unreadable and not config.skip_bad:
        raise cannot_read(lines, f"{len(files)} images")
    report_skipped(output, lines)


def files_at(config: Config, output: Output, sources: Sequence[str]) -> list[Path]:
    """The image files that were named, each once, and as often as a list on stdin names it."""
    files: list[Path] = []
    unused: dict[Unused, None] = {}
    known: set[Path] = set()
    for place, is_listed in _places(output, sources):
        found = find_photos([place], strict=config.strict)
        files += [file for file in found.files if is_listed or file not in known]
        unused |= dict.fromkeys(found.unused)
        known.update(found.files)
    report_skipped(output, (), list(unused))
    return files


def _places(output: Output, sources: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Files, folders and globs, each with whether it comes from a list on stdin."""
    for source in sources:
        if source != "-":
            if not source:  # it would be the current folder
                raise UsageError("the name of an image is empty", "name files or folders")
            yield user_path(source), False
            continue
        if sys.stdin.isatty():
            output.note("type the names of images, one a line, then Ctrl-D")
        listed = listed_paths(sys.stdin.buffer.read())
        if not listed:
            output.note("the list on stdin is empty")
        yield from ((path, True) for path in listed)


def listed_paths(content: bytes) -> list[Path]:
    """Paths in a list: a line each, or separated by NUL characters as `find -print0` does.

    Names of files are bytes, so they are decoded as Python decodes names of files, which never
    fails and is undone when they are opened.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    parts = (
        content.split(b"\0") if b"\0" in content else content.replace(b"\r\n", b"\n").split(b"\n")
    )
    return [Path(os.fsdecode(part)) for part in parts if part]
