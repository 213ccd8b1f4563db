"""What goes wrong for a new user ends in one clear line, and nothing of theirs is lost."""

from __future__ import annotations

import os
import pickle
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.refusals import BAD_INPUT, USAGE, USERS_OF_A_MODEL, content_of, refused
from tests.conftest import RunCommand


@pytest.fixture(autouse=True)
def _no_data_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unplugged(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    monkeypatch.setenv("LOWSHOT_DATA", str(tmp_path / "no data here"))


# Data


def test_absent_data_and_no_network_name_the_folder_and_two_ways_out(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    result = lowshot("train-base", "--data-dir", folder)
    refused(result, BAD_INPUT, folder, "cannot download https://", "--data-dir", "--dataset glyphs")
    assert list(folder.iterdir()) == []
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_data_folder_of_the_environment_is_the_one_looked_in(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "no data here"
    result = lowshot("train-base", env={"LOWSHOT_DATA": str(folder)})
    refused(result, BAD_INPUT, folder, "LOWSHOT_DATA")


class _Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def _cifar(tmp_path: Path, train: bytes) -> Path:
    """A data folder that looks right and holds the given bytes as `train`."""
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    names = {"fine_label_names": [f"class {number}" for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    for name in ("train", "test"):
        (folder / name).write_bytes(train)
    return folder


def test_a_pickle_in_place_of_cifars_images_does_not_run(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    marker = tmp_path / "the payload ran"
    content = pickle.dumps({"data": _Payload(marker), "fine_labels": []}, protocol=2)
    pickle.loads(content)
    marker.rmdir()
    folder = _cifar(tmp_path, content)
    before = content_of(folder)
    result = lowshot("train-base", "--data-dir", folder.parent)
    refused(result, BAD_INPUT, folder / "train", "mkdir", "delete")
    assert not marker.exists()
    assert content_of(folder) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "fine_labels": [0] * 5}, protocol=2),
        pickle.dumps({"data": "a" * 1000, "fine_labels": []}, protocol=2)[:500],
    ],
    ids=["empty", "text", "a list", "five images", "truncated"],
)
def test_cifar_files_of_another_content_are_refused(
    lowshot: RunCommand, tmp_path: Path, content: bytes
) -> None:
    folder = _cifar(tmp_path, content)
    result = lowshot("train-base", "--data-dir", folder.parent)
    refused(result, BAD_INPUT, folder / "train", "delete")


def test_a_folder_of_images_that_is_absent_is_named(lowshot: RunCommand, tmp_path: Path) -> None:
    result = lowshot("train-base", "--dataset", "folder", "--data-dir", tmp_path / "photos")
    refused(result, BAD_INPUT, tmp_path / "photos", "--data-dir")


# Checkpoints


@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_without_a_model_the_command_that_makes_it_is_named(
    lowshot: RunCommand, tmp_path: Path, command: str
) -> None:
    maker = "imprint" if command == "finetune" else "train-base"
    result = lowshot(*USERS_OF_A_MODEL[command])
    refused(result, BAD_INPUT, "runs", f"`lowshot {maker}`")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_a_truncated_checkpoint_is_named_and_left_alone(
    lowshot: RunCommand, workdir: Path, command: str, share: float
) -> None:
    path = workdir / f"{'imprinted' if command == 'finetune' else 'base'}.safetensors"
    content = (workdir / "base.safetensors").read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    before = content_of(workdir)
    refused(lowshot(*USERS_OF_A_MODEL[command]), BAD_INPUT, Path("runs") / path.name)
    assert content_of(workdir) == before


@pytest.mark.parametrize("kind", ["another safetensors file", "text", "a folder"])
@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_what_is_no_checkpoint_is_refused_by_name(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "other.safetensors"
    if kind == "another safetensors file":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "text":
        path.write_text("dear diary")
    else:
        path.mkdir()
    before = content_of(tmp_path)
    flag = [] if command == "evaluate" else ["--checkpoint"]
    refused(lowshot(*USERS_OF_A_MODEL[command], *flag, path), BAD_INPUT, path)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("command", ["imprint", "evaluate", "sweep"])
def test_a_checkpoint_of_another_dataset_is_refused(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str
) -> None:
    for name in ("omega", "A", "seven"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    before = content_of(workdir)
    flags = ["--dataset", "folder", "--data-dir", tmp_path / "photos"]
    result = lowshot(*USERS_OF_A_MODEL[command], *flags)
    refused(result, BAD_INPUT, "trained on glyphs, not on folder", "--dataset glyphs")
    assert content_of(workdir) == before


def test_the_wrong_dataset_is_noticed_before_it_is_fetched(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = lowshot("imprint", "--class", "apple", "--dataset", "cifar100")
    refused(result, BAD_INPUT, "trained on glyphs, not on cifar100")


def test_finetune_of_a_model_without_novel_classes_names_imprint(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = lowshot("finetune", "--checkpoint", workdir / "base.safetensors")
    refused(result, USAGE, "no novel class", "`lowshot imprint`")


# Writing


def test_a_base_model_is_not_overwritten_unasked(lowshot: RunCommand, workdir: Path) -> None:
    before = content_of(workdir)
    result = lowshot("train-base", "--dataset", "glyphs")
    refused(result, USAGE, Path("runs") / "base.safetensors", "--overwrite", "--workdir")
    assert content_of(workdir) == before


@pytest.mark.parametrize("command", ["train-base", "imprint", "finetune", "sweep"])
@pytest.mark.parametrize("place", ["notes.txt", "notes.txt/runs"])
def test_a_file_where_the_work_folder_should_be_is_named(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str, place: str
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    model = ["--checkpoint", workdir / "base.safetensors"]
    flags = ["--dataset", "glyphs"] if command == "train-base" else model
    before = content_of(tmp_path)
    arguments = USERS_OF_A_MODEL.get(command, [command])
    refused(lowshot(*arguments, *flags, "--workdir", tmp_path / place), BAD_INPUT, notes)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("command", ["train-base", "imprint", "sweep"])
def test_a_read_only_folder_is_noticed_before_any_work(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # Permissions do not bind every user, so the system calls themselves refuse here.
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    before = content_of(workdir)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "NamedTemporaryFile", refuse)
        patch.setattr(tempfile, "mkstemp", refuse)
        patch.setattr(os, "mkdir", refuse)
        arguments = USERS_OF_A_MODEL.get(command, ["train-base", "--dataset=cifar100"])
        flags = ["--overwrite"] if command == "train-base" else []
        result = lowshot(*arguments, *flags)
    refused(result, BAD_INPUT, "runs", "Permission denied", "--workdir")
    assert content_of(workdir) == before


def test_a_folder_where_a_file_is_to_be_written_is_named(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    before = content_of(tmp_path)
    result = lowshot("imprint", "--class", "omega", "--out", workdir, "--overwrite")
    refused(result, USAGE, workdir, "is a folder")
    assert content_of(tmp_path) == before


def test_a_disk_that_fills_up_leaves_the_old_model_whole(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    (workdir / "log.jsonl").unlink()
    before = content_of(workdir)

    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = lowshot("imprint", "--class", "A")
    refused(result, BAD_INPUT, Path("runs") / "imprinted.safetensors", "No space left", "unchanged")
    assert content_of(workdir) | {"log.jsonl": None} == before | {"log.jsonl": None}
