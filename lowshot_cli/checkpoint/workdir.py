"""The chain of checkpoints in a work folder: each command reads its predecessor's file.

Headers and hashes show which checkpoints are stale and which is the furthest; no torch is needed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.checkpoint.metadata import Meta, how_to_make, read_metadata
from lowshot_cli.config.values import CHAIN
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.storage.files import file_hash

if TYPE_CHECKING:
    from lowshot_cli.checkpoint.checkpoint import Checkpoint


def chain_path(workdir: Path, stage: str) -> Path:
    """The file of a stage of the chain in a work folder."""
    return workdir / f"{stage}.safetensors"


def load_fresh(workdir: Path, stage: str) -> Checkpoint:
    """Load a stage of the chain, unless the file it was made from has changed since.

    Raises:
        CheckpointError: as `format.load`, or the stage is stale.
    """
    from lowshot_cli.checkpoint.format import load

    path = chain_path(workdir, stage)
    checkpoint = load(path)
    stale_because = staleness(workdir, stage, checkpoint.meta)
    if stale_because:
        raise CheckpointError(f"{path} is stale: {stale_because}", how_to_make(path))
    return checkpoint


def furthest(workdir: Path) -> tuple[Path, Meta]:
    """Path and metadata of the last stage of the chain that is not stale.

    Raises:
        CheckpointError: there is none, or the header of one is damaged.
    """
    for stage in reversed(CHAIN):
        path = chain_path(workdir, stage)
        if path.is_file():
            meta = read_metadata(path)
            if staleness(workdir, stage, meta) is None:
                return path, meta
    raise no_checkpoint_in(workdir)


def no_checkpoint_in(workdir: Path) -> CheckpointError:
    """The error that a work folder has no stage of the chain."""
    return CheckpointError(f"no checkpoint in {workdir}", "`lowshot train-base` makes the first")


def parent_hash(workdir: Path, stage: str, path: Path, meta: Meta, *, in_place: bool) -> str:
    """The hash that a new checkpoint records of its parent, the file it is made from.

    Args:
        workdir: work folder of the chain.
        stage: the stage that is made.
        path: the file that it is made from, which may be that stage itself or a later one.
        meta: metadata of that file.
        in_place: whether the new checkpoint goes to its place in the chain.

    Returns:
        The hash of the file, or of the stage before `stage` if the file is that stage or a later
        one and not stale.

    Raises:
        UsageError: it goes to its place, but is not made from the stage before, so it would be
            stale as soon as it is written.
    """
    position = CHAIN.index(stage)
    previous = chain_path(workdir, CHAIN[position - 1])
    places = {chain_path(workdir, later).resolve(): later for later in CHAIN[position:]}
    later = places.get(path.resolve())
    if later and staleness(workdir, later, meta) is None:
        path = previous
    parent = _hash(path) if path.is_file() else meta.parent or ""
    if in_place and previous.is_file() and _hash(previous) != parent:
        raise UsageError(
            f"{chain_path(workdir, stage)} is made from {previous}, not from another model",
            "leave out `checkpoint`, or give the new model a place of its own with `out`",
        )
    return parent


def staleness(workdir: Path, stage: str, meta: Meta) -> str | None:
    """Why a checkpoint of the chain no longer belongs to its predecessors, or None.

    Args:
        workdir: work folder of the chain.
        stage: stage of the checkpoint.
        meta: its metadata.

    Raises:
        CheckpointError: the header of a predecessor is damaged.
    """
    if meta.parent is None:
        return None
    before = CHAIN[CHAIN.index(stage) - 1]
    previous = chain_path(workdir, before)
    if not previous.is_file():
        return None
    if _hash(previous) != meta.parent:
        return f"{previous} has changed since it was made"
    return staleness(workdir, before, read_metadata(previous))


def _hash(path: Path) -> str:
    """The hash of a file, computed once, as a command needs it several times."""
    facts = path.stat()
    return _hash_once(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=32)
def _hash_once(path: Path, _state: tuple[int, int, int]) -> str:
    return file_hash(path)
