"""Which checkpoint a command works on, and which ones a change makes stale; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.checkpoint.metadata import MAKERS
from lowshot_cli.checkpoint.workdir import furthest, present, stale_since
from lowshot_cli.cli.console import Output
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import CheckpointError


def choose_model(config: Config, output: Output, named: Path | None) -> Path:
    """The named checkpoint, or the furthest one in the work folder, which must not be stale.

    Says which it is if there are several.

    Raises:
        CheckpointError: none is named, and there is none or the furthest one is stale.
    """
    if named:
        return named
    path, _ = furthest(config.workdir)
    models = [each for each in path.parent.glob("*.safetensors") if ".state." not in each.name]
    if len(models) > 1:
        output.note(f"using {path}")
    return path


def choose_models(config: Config, named: Sequence[Path]) -> Sequence[Path]:
    """The named checkpoints, or all in the work folder, the last of which must not be stale.

    Raises:
        CheckpointError: as `choose_model`.
    """
    if named:
        return named
    try:
        furthest(config.workdir)
    except CheckpointError as problem:
        # It is `evaluate` that asks for all, and takes their names without a flag.
        problem.hint = problem.hint and problem.hint.replace(
            "a `checkpoint`", "the files to evaluate"
        )
        raise
    return present(config.workdir)


def tell_stale(output: Output, path: Path) -> None:
    """Name the checkpoints of a work folder that are stale now that another one is written."""
    for later in stale_since(path):
        output.note(f"{later} is stale now; `lowshot {MAKERS[later.stem]}` makes it again")
