"""Which checkpoints of a work folder are stale shows in their headers and hashes."""

from __future__ import annotations

import re
import shutil
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


def test_the_furthest_is_the_last_and_never_an_earlier_one_in_place_of_a_stale_one(
    runs: Path,
) -> None:
    base, imprinted, finetuned = (runs / f"{stage}.safetensors" for stage in workdir.CHAIN)
    assert workdir.furthest(runs)[0] == finetuned
    _change(imprinted)
    refused = rf"{finetuned} is stale: {imprinted} is not the model that it was made from"
    with pytest.raises(CheckpointError, match=re.escape(refused)) as caught:
        workdir.furthest(runs)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("`lowshot finetune` makes it again; or delete it, or name")
    finetuned.unlink()
    assert workdir.furthest(runs)[0] == imprinted
    _change(base)
    for read in (workdir.furthest, lambda folder: workdir.load_fresh(folder, "imprinted")):
        with pytest.raises(CheckpointError, match=r"imprinted\.safetensors is stale"):
            read(runs)
    imprinted.unlink()
    assert workdir.furthest(runs)[0] == base
    base.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        workdir.furthest(runs)


def test_a_change_of_the_base_makes_every_later_stage_stale(runs: Path) -> None:
    base, imprinted, finetuned = (runs / f"{stage}.safetensors" for stage in workdir.CHAIN)
    assert workdir.stale_since(base) == []
    _change(base)
    assert workdir.stale_since(base) == [imprinted, finetuned]
    with pytest.raises(CheckpointError, match=re.escape(f"that {imprinted} was made from")) as told:
        workdir.furthest(runs)
    assert told.value.hint is not None
    assert "`lowshot imprint` and `lowshot finetune` make it again" in told.value.hint
    assert workdir.stale_since(runs / "other.safetensors") == []


def test_files_that_were_copied_in_are_stale_beside_another_model(runs: Path) -> None:
    base, imprinted, finetuned = (runs / f"{stage}.safetensors" for stage in workdir.CHAIN)
    shutil.copy(base, imprinted)  # a base model where an imprinted one belongs
    finetuned.unlink()
    with pytest.raises(CheckpointError, match=r"imprinted\.safetensors is stale"):
        workdir.furthest(runs)
    base.unlink()
    assert workdir.furthest(runs)[0] == imprinted  # nothing contradicts it


def test_a_base_model_that_was_made_from_another_file_is_not_stale(runs: Path) -> None:
    """A model that was taught may be the base of a folder of its own."""
    base, imprinted, finetuned = (runs / f"{stage}.safetensors" for stage in workdir.CHAIN)
    shutil.copy(imprinted, base)
    assert workdir.staleness(runs, "base", read_metadata(base)) is None
    assert workdir.stale_since(base) == [imprinted, finetuned]


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


def test_a_folder_is_no_checkpoint_and_a_file_in_it_may_be(runs: Path) -> None:
    for read in (load, read_metadata):
        with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
            read(runs)
