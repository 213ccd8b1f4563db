"""Classes that have training images and no test images, as photos that people add often do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images

BASE, NOVEL = ("A", "E", "T"), ("Z", "omega")
SMALL = ["--image-size", "32", "--holdout", "8", "--width", "4", "--epochs", "1"]
SMALL += ["--backbone", "resnet9"]


@pytest.fixture
def photos(tmp_path: Path, glyphs: Dataset) -> Path:
    """Twenty images of each class to train on and five to test on, but none of `T` and `omega`."""
    folder = tmp_path / "photos"
    for name in (*BASE, *NOVEL):
        images = glyphs.train.pixels[glyphs.train.of_class(glyphs.label(name))[:25]]
        save_images(images[:20], folder / "train" / name)
        if name not in ("T", "omega"):
            save_images(images[20:], folder / "test" / name)
    return folder


@pytest.fixture
def data(photos: Path, lowshot: RunCommand) -> list[object]:
    """Where the photos are; a base model of them is in the work folder."""
    found = ["--dataset", "folder", "--data-dir", photos]
    result = lowshot("train-base", *found, "--classes", ",".join(BASE), *SMALL)
    assert result.exit_code == 0, result.stderr
    return found


def test_they_are_taught_and_measured_on_what_there_is(
    lowshot: RunCommand, data: list[object]
) -> None:
    for command in (
        ["imprint", "--class", "omega", "--shots", "3"],
        ["finetune"],
        ["evaluate", "--report", "report.html"],
        ["sweep", "--novel", "Z", "--trials", "2", "--shots", "1,3"],
    ):
        result = lowshot(*command, *data)
        assert result.exit_code == 0, result.stderr
    *_, last = json.loads(lowshot("evaluate", "--json", *data).stdout)
    by_class = {row["class"]: (row["n"], row["accuracy"]) for row in last["per_class"]}
    assert by_class["omega"] == by_class["T"] == (0, None)
    assert [by_class[name][0] for name in ("A", "E")] == [5, 5]
    assert last["novel_accuracy"] is None
    assert last["base_accuracy"] is not None


def test_a_sweep_of_one_is_refused(lowshot: RunCommand, data: list[object]) -> None:
    result = lowshot("sweep", "--trials", "2", "--shots", "1", *data)
    assert result.exit_code == 2
    assert "'omega' has no test images" in result.stderr


def test_a_sweep_that_drops_all_test_images_of_a_class_is_refused(
    lowshot: RunCommand, data: list[object], photos: Path
) -> None:
    for copy in (photos / "test" / "Z").iterdir():
        shutil.copy(photos / "train" / "Z" / "0.png", copy)
    base = ["train-base", *data, "--classes", ",".join(BASE), *SMALL, "--overwrite"]
    assert lowshot(*base).exit_code == 0
    sweep = ["sweep", "--novel", "Z", "--trials", "2", "--shots", "1", *data]
    assert lowshot(*sweep).exit_code == 0
    result = lowshot(*sweep, "--drop-duplicates")
    assert result.exit_code == 2
    assert "'Z' has no test images" in result.stderr
