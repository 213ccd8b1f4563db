"""The chain of checkpoints in a work folder: each command reads its predecessor's file."""

from __future__ import annotations

from pathlib import Path

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import how_to_make, load
from lowshot_cli.config.schema import CHAIN
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.storage.files import file_hash


def chain_path(workdir: Path, stage: str) -> Path:
    """Where a stage of the chain lies in a work folder."""
    return workdir / f"{stage}.safetensors"


def load_fresh(workdir: Path, stage: str) -> Checkpoint:
    """Load a stage of the chain, unless the file it was made from has changed since.

    Raises:
        CheckpointError: as `load`, or stale.
    """
    path = chain_path(workdir, stage)
    checkpoint = load(path)
    stale_because = staleness(workdir, stage, checkpoint)
    if stale_because:
        raise CheckpointError(f"{path} is stale: {stale_because}", how_to_make(path))
    return checkpoint


def furthest(workdir: Path) -> tuple[Path, Checkpoint]:
    """The last stage of the chain that is there and not stale, with its path.

    Raises:
        CheckpointError: none of them is, or the last that is fresh is damaged.
    """
    for stage in reversed(CHAIN):
        path = chain_path(workdir, stage)
        if path.is_file():
            checkpoint = load(path)
            if staleness(workdir, stage, checkpoint) is None:
                return path, checkpoint
    raise CheckpointError(f"no checkpoint in {workdir}", "`lowshot train-base` makes the first")


def parent_hash(workdir: Path, stage: str, path: Path, checkpoint: Checkpoint) -> str:
    """What a checkpoint that is made from another records as its parent.

    Args:
        workdir: of the chain.
        stage: that is made.
        path: the file that it is made from, which may be that stage itself or a later one.
        checkpoint: in that file.

    Returns:
        The hash of the file, or of the stage before where the file is later and not stale.
    """
    position = CHAIN.index(stage)
    places = {chain_path(workdir, later).resolve(): later for later in CHAIN[position:]}
    later = places.get(path.resolve())
    if later and staleness(workdir, later, checkpoint) is None:
        path = chain_path(workdir, CHAIN[position - 1])
    return file_hash(path) if path.is_file() else checkpoint.meta.parent or ""


def ensure_follows(workdir: Path, stage: str, parent: str) -> None:
    """Refuse a stage that would be stale as soon as it is written.

    Args:
        workdir: of the chain.
        stage: that is to be written to its place in the chain.
        parent: the hash that it will record.

    Raises:
        UsageError: the stage before it is there and is another one.
    """
    previous = chain_path(workdir, CHAIN[CHAIN.index(stage) - 1])
    if previous.is_file() and file_hash(previous) != parent:
        raise UsageError(
            f"{chain_path(workdir, stage)} is made from {previous}, not from another model",
            "leave out --checkpoint, or give the new model a place of its own with --out",
        )


def staleness(workdir: Path, stage: str, checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint of the chain no longer belongs to its predecessors, or None."""
    if checkpoint.meta.parent is None:
        return None
    before = CHAIN[CHAIN.index(stage) - 1]
    previous = chain_path(workdir, before)
    if not previous.is_file():
        return None
    if file_hash(previous) != checkpoint.meta.parent:
        return f"{previous} has changed since it was made"
    return staleness(workdir, before, load(previous))
