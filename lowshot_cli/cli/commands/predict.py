"""`lowshot predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import model_in_use, report_skipped
from lowshot_cli.cli.contract import predictions_csv
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import user_path
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
    as_csv: bool,
) -> None:
    """Classify images; unreadable ones are an error once the others are reported."""
    if as_csv and output.as_json:
        raise UsageError("--csv and --json are two formats", "give one of them")
    if not sources:
        raise UsageError("no images named", "name files or folders, or - for a list on stdin")
    files = find_photos(_listed(sources), deep=True)
    _, checkpoint = model_in_use(config, output, source)
    threshold = float("-inf")
    if false_alarm is not None:
        threshold = unknown_threshold(checkpoint, false_alarm)
    network = checkpoint.network(pick_device(config.device))
    with output.progress() as on_progress:
        found, unreadable = readable(
            classify(
                checkpoint,
                network,
                files,
                most=top,
                threshold=threshold,
                on_progress=on_progress,
            )
        )
    if as_csv:
        print(predictions_csv(found), end="", flush=True)
    else:
        output.data([one.to_json() for one in found])
        tables.show_predictions(output, found)
    lines = [f"{one.file} ({one.reason})" for one in unreadable]
    if unreadable and not config.skip_bad:
        raise cannot_read(lines, f"{len(files)} images")
    report_skipped(output, lines)


def _listed(sources: Sequence[str]) -> Iterator[Path]:
    for source in sources:
        if source == "-":
            yield from (Path(line) for line in sys.stdin.read().splitlines() if line)
        else:
            yield user_path(source)
