"""The chain of checkpoints in a work folder: each command reads its predecessor's file.

Headers and hashes show which checkpoints are stale and which is the furthest; no torch is needed.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.checkpoint.metadata import MAKERS, Meta, read_metadata
from lowshot_cli.config.values import CHAIN
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.storage.files import file_hash

if TYPE_CHECKING:
    from lowshot_cli.checkpoint.checkpoint import Checkpoint


def chain_path(workdir: Path, stage: str) -> Path:
    """The file of a stage of the chain in a work folder."""
    return workdir / f"{stage}.safetensors"


def load_fresh(workdir: Path, stage: str) -> Checkpoint:
    """Load a stage of the chain, unless it is stale.

    Raises:
        CheckpointError: as `format.load`, or the stage is stale.
    """
    from lowshot_cli.checkpoint.format import load

    checkpoint = load(chain_path(workdir, stage))
    if stale := staleness(workdir, stage, checkpoint.meta):
        raise stale
    return checkpoint


def present(workdir: Path) -> list[Path]:
    """The files of the chain that are in a work folder, in order; never empty.

    Raises:
        CheckpointError: there is none.
    """
    paths = [path for stage in CHAIN if (path := chain_path(workdir, stage)).is_file()]
    if not paths:
        raise CheckpointError(f"no checkpoint in {workdir}", "`lowshot train-base` makes the first")
    return paths


def furthest(workdir: Path) -> tuple[Path, Meta]:
    """Path and metadata of the last stage of the chain, which must not be stale.

    A stale one is an error rather than passed over, as a command that takes an earlier stage in
    its place works on another model than the one meant.

    Raises:
        CheckpointError: there is none, it is stale, or its header or an earlier one is damaged.
    """
    path = present(workdir)[-1]
    meta = read_metadata(path)
    if stale := staleness(workdir, path.stem, meta):
        raise stale
    return path, meta


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
    previous = chain_path(workdir, _before(stage))
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


def staleness(workdir: Path, stage: str, meta: Meta) -> CheckpointError | None:
    """The error that a stage of the chain was not made from the one before it, or None.

    If that one is not in the folder, nothing can be told, and the stage counts as fresh.

    Args:
        workdir: work folder of the chain.
        stage: stage of the checkpoint.
        meta: its metadata.

    Raises:
        CheckpointError: the header of an earlier stage is damaged.
    """
    broken = _broken_link(workdir, stage, meta)
    if broken is None:
        return None
    again = CHAIN[CHAIN.index(broken) : CHAIN.index(stage) + 1]
    makers = " and ".join(f"`lowshot {MAKERS[one]}`" for one in again)
    path, previous = chain_path(workdir, broken), chain_path(workdir, _before(broken))
    which = "it" if broken == stage else path
    return CheckpointError(
        f"{chain_path(workdir, stage)} is stale: {previous} is not the model that {which} was "
        "made from",
        f"{makers} {'makes' if broken == stage else 'make'} it again; or delete it, or name a "
        "`checkpoint`",
    )


def stale_since(path: Path) -> list[Path]:
    """The later stages of the chain that are stale, once a file of it has been written.

    Args:
        path: the file; one that is no stage of a chain has no later stages.
    """
    later = CHAIN[CHAIN.index(path.stem) + 1 :] if is_stage(path) else ()
    found = []
    for stage in later:
        with suppress(CheckpointError):  # a damaged one is told of when it is read
            place = chain_path(path.parent, stage)
            if staleness(path.parent, stage, read_metadata(place)):
                found.append(place)
    return found


def is_stage(path: Path) -> bool:
    """Whether a file has the name of a stage of the chain."""
    return path.stem in CHAIN and path == chain_path(path.parent, path.stem)


def _before(stage: str) -> str:
    return CHAIN[CHAIN.index(stage) - 1]


def _broken_link(workdir: Path, stage: str, meta: Meta) -> str | None:
    """The first stage, up to this one, that was not made from the file before it."""
    if stage == CHAIN[0]:
        return None
    previous = chain_path(workdir, _before(stage))
    if not previous.is_file():
        return None
    earlier = _broken_link(workdir, _before(stage), read_metadata(previous))
    return earlier or (stage if _hash(previous) != meta.parent else None)


def _hash(path: Path) -> str:
    """The hash of a file, computed once, as a command needs it several times."""
    facts = path.stat()
    return _hash_once(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=32)
def _hash_once(path: Path, _state: tuple[int, int, int]) -> str:
    return file_hash(path)
