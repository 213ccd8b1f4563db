"""Which checkpoints of a work folder are stale shows in their headers and hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.checkpoint import workdir
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.storage.files import file_hash


@pytest.fixture
def runs(workdir: Path, base: Checkpoint) -> Path:
    """A work folder with all three stages, each made from the one before."""
    for stage, before in (("imprinted", "base"), ("finetuned", "imprinted")):
        parent = file_hash(workdir / f"{before}.safetensors")
        save(base.as_child_of(parent), workdir / f"{stage}.safetensors")
    return workdir


def _change(path: Path) -> None:
    save(load(path).with_history("change", {}), path)


def test_the_metadata_is_that_of_the_whole_checkpoint(runs: Path) -> None:
    for stage in ("base", "finetuned"):
        path = runs / f"{stage}.safetensors"
        assert read_metadata(path) == load(path).meta


def test_the_furthest_is_the_last_that_is_not_stale(runs: Path) -> None:
    assert workdir.furthest(runs)[0].stem == "finetuned"
    _change(runs / "imprinted.safetensors")
    assert workdir.furthest(runs)[0].stem == "imprinted"
    _change(runs / "base.safetensors")
    assert workdir.furthest(runs)[0].stem == "base"
    with pytest.raises(CheckpointError, match="is stale"):
        workdir.load_fresh(runs, "imprinted")
    (runs / "base.safetensors").unlink()
    (runs / "imprinted.safetensors").unlink()
    (runs / "finetuned.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        workdir.furthest(runs)


def test_no_tensor_is_read_and_each_file_is_hashed_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.stem)
        return file_hash(path)

    monkeypatch.setattr(workdir, "file_hash", counting)
    for stage in ("base", "imprinted", "finetuned"):
        path = runs / f"{stage}.safetensors"
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(content[:header])  # the tensors are gone
    metas = {s: read_metadata(runs / f"{s}.safetensors") for s in ("imprinted", "finetuned")}
    for stage, meta in metas.items():
        assert workdir.staleness(runs, stage, meta) is not None
        workdir.parent_hash(runs, stage, runs / f"{stage}.safetensors", meta, in_place=False)
    assert sorted(hashed) == sorted(set(hashed))


def test_what_would_be_stale_at_once_is_not_put_in_its_place(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save(load(runs / "base.safetensors").with_history("change", {}), other)
    meta = read_metadata(other)
    with pytest.raises(UsageError, match="not from another model"):
        workdir.parent_hash(runs, "imprinted", other, meta, in_place=True)
    assert workdir.parent_hash(runs, "imprinted", other, meta, in_place=False) == file_hash(other)


def test_what_is_made_from_a_later_stage_keeps_its_parent(runs: Path) -> None:
    path = runs / "finetuned.safetensors"
    meta = read_metadata(path)
    parent = workdir.parent_hash(runs, "finetuned", path, meta, in_place=True)
    assert parent == file_hash(runs / "imprinted.safetensors")
