"""What looks like input and is not used is counted and named; `--strict` makes it an error."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.models.backbones import build_backbone
from tests.conftest import RunCommand, save_colours, save_images


@pytest.fixture
def mugs(tmp_path: Path, glyphs: Dataset) -> Path:
    """Three photos, two HEICs, and a folder below with two more photos."""
    folder = tmp_path / "mugs"
    members = glyphs.train.of_class(glyphs.label("Z"))[:5]
    save_images(glyphs.train.pixels[members[:3]], folder)
    save_images(glyphs.train.pixels[members[3:]], folder / "2023")
    for name in ("a.HEIC", "2023/b.heic"):
        (folder / name).write_bytes(b"")
    return folder


NOTE = "left out 2 files (HEIC is not read, convert to JPEG): "


def test_every_command_that_reads_photos_counts_them(
    lowshot: RunCommand, workdir: Path, mugs: Path
) -> None:
    taught = lowshot("imprint", "--class", "mug", "--images", mugs, "--json")
    assert json.loads(taught.stdout)["n_skipped"] == 2
    assert len(json.loads(taught.stdout)["classes"][0]["support"]) == 5
    predicted = lowshot("predict", mugs, "--json")
    assert len(json.loads(predicted.stdout)) == 5
    measured = lowshot("evaluate", "--images", f"mug={mugs}", "--json")
    assert json.loads(measured.stdout)[0]["novel_accuracy"] is not None
    for result in (taught, predicted, measured):
        assert result.stderr.count(NOTE) == 1
        assert str(mugs / "2023" / "b.heic") in result.stderr


@pytest.mark.slow
def test_checking_an_export_counts_them(lowshot: RunCommand, workdir: Path, mugs: Path) -> None:
    exported = lowshot("export", "--format", "torch", "--check", "--images", mugs, "--json")
    assert json.loads(exported.stdout)["n_skipped"] == 2
    assert exported.stderr.count(NOTE) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["imprint", "--class", "mug", "--images", "mugs"],
        ["predict", "mugs"],
        ["evaluate", "--images", "A=mugs"],
    ],
)
def test_strict_makes_an_error_of_them(
    lowshot: RunCommand, workdir: Path, mugs: Path, command: list[str]
) -> None:
    known = load(workdir / "base.safetensors").base_classes[0]
    result = lowshot(*(each.replace("A=", f"{known}=") for each in command), "--strict")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "not used: 2 files (HEIC is not read, convert to JPEG)" in result.stderr
    assert "omit --strict" in result.stderr
    both = lowshot(*command, "--strict", "--skip-bad")
    assert both.exit_code == 2
    assert "--strict: contradicts --skip-bad" in both.stderr


def test_strict_refuses_repeated_photos_and_unused_weights(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    save_colours(tmp_path / "photos", ".", count=2)
    shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photos" / "again.png")
    taught = ("imprint", "--class", "mug", "--images", "photos")
    refused = lowshot(*taught, "--strict")
    assert refused.exit_code == 3
    assert "1 of 3 images repeat another one" in refused.stderr
    assert lowshot(*taught).exit_code == 0
    state = build_backbone("resnet9", 4, 8, 32, None).state_dict()
    torch.save(state | {"extra.weight": torch.ones(1)}, tmp_path / "weights.pth")
    small = ("--dataset", "glyphs", "--classes", 2, "--width", 4, "--embedding-size", 8)
    given = ("--epochs", 0, "--weights", "weights.pth", "--out", "own.safetensors")
    refused = lowshot("train-base", *small, *given, "--strict")
    assert refused.exit_code == 2
    assert "1 not used: extra.weight" in refused.stderr
    assert lowshot("train-base", *small, *given).exit_code == 0


def test_training_counts_the_files_of_its_dataset(lowshot: RunCommand, tmp_path: Path) -> None:
    save_colours(tmp_path / "data", ".", "red", "blue", count=5)
    data = ("--dataset", "folder", "--data-dir", "data")
    size = ("--backbone", "resnet9", "--width", 4, "--embedding-size", 8, "--image-size", 16)
    size += ("--epochs", 0, "--holdout", 2)
    result = lowshot("train-base", *data, *size, "--json")
    assert json.loads(result.stdout)["n_skipped"] == 5
    assert "left out 5 files (beside the class folders): 0.png, 1.png, 2.png" in result.stderr
    listed = lowshot("data", "classes", *data, "--json")
    assert [row["train"] for row in json.loads(listed.stdout)] == [4, 4]
    assert "left out 5 files" in listed.stderr
    assert lowshot("data", "classes", *data, "--strict").exit_code == 3


def test_a_folder_with_one_class_is_told_that_two_are_needed(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    save_colours(tmp_path / "data", "red", count=5)
    result = lowshot("train-base", "--dataset", "folder", "--data-dir", "data")
    assert result.exit_code == 2
    assert "needs at least two classes, the folder dataset has one: red" in result.stderr


def test_a_class_has_one_name_however_it_is_encoded(
    lowshot: RunCommand, workdir: Path, mugs: Path
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert lowshot("imprint", "--class", decomposed, "--images", mugs).exit_code == 0
    assert load(workdir / "imprinted.safetensors").novel_classes == (composed,)
    for name in (composed, decomposed):
        again = lowshot("imprint", "--class", name, "--images", mugs, "--add")
        assert "already knows 'café'" in again.stderr
        measured = lowshot("evaluate", "--images", f"{name}={mugs}", "--json")
        assert json.loads(measured.stdout)[0]["per_class"][-1]["class"] == composed
    assert lowshot("classes", "rename", decomposed, f"{decomposed} 2").exit_code == 0
    assert load(workdir / "imprinted.safetensors").novel_classes == (f"{composed} 2",)
    assert lowshot("classes", "remove", f"{decomposed} 2").exit_code == 0
