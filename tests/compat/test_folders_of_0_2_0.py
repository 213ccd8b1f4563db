"""Models that version 0.2.0 made of people's folders know their own photos again."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data import image_folder as folder
from lowshot_cli.data.image_files import FIRST_LISTING
from lowshot_cli.storage.tensors import read_tensors
from tests.conftest import RunCommand, save_colours

DECOMPOSED = unicodedata.normalize("NFD", "é")
CLASSES = ("red", DECOMPOSED, "f")
# What 0.2.0 computed for these folders: with `<class>/*`, and with `train/` and `test/`.
HASHES = {"flat": "e85e1b000ee647427b872cd2edcafc44", "split": "753055719bfc7abdeb899bc144e985fb"}


def _photos(root: Path, layout: str) -> None:
    if layout == "flat":
        save_colours(root, *CLASSES, count=5)
    else:
        save_colours(root, *(f"train/{name}" for name in CLASSES))
        save_colours(root, *(f"test/{name}" for name in CLASSES), count=2)


def _more_photos(root: Path, layout: str) -> None:
    """Seven images that 0.2.0 did not list, and three that no version uses."""
    home = root if layout == "flat" else root / "train"
    save_colours(home, "red/2023", f"{DECOMPOSED}/x/y")
    save_colours(root, ".")
    Image.new("RGB", (16, 16)).save(home / "red" / "7.jfif", "JPEG")


@pytest.mark.parametrize("layout", ["flat", "split"])
def test_its_rules_find_the_images_that_it_found(tmp_path: Path, layout: str) -> None:
    _photos(tmp_path, layout)
    before = folder.load(tmp_path, 16, rules=FIRST_LISTING)
    assert before.content_hash == HASHES[layout]
    assert before.class_names == ("é", "f", "red")
    assert not before.unused
    _more_photos(tmp_path, layout)
    after = folder.load(tmp_path, 16, rules=FIRST_LISTING)
    assert after.content_hash == HASHES[layout]
    reasons = [file.reason for file in after.unused]
    assert sum("train again" in reason for reason in reasons) == 7
    assert len(reasons) == 10
    now = folder.load(tmp_path, 16)
    assert now.content_hash != HASHES[layout]
    assert len(now.train.labels) + len(now.test.labels) == 15 + 7


def _train(lowshot: RunCommand, photos: Path) -> Path:
    """A model of a folder, imprinted rather than trained."""
    size = ["--backbone", "resnet9", "--width", 4, "--embedding-size", 8, "--image-size", 16]
    size += ["--epochs", 0, "--holdout", 2]
    result = lowshot("train-base", "--dataset", "folder", "--data-dir", photos, *size)
    assert result.exit_code == 0, result.stderr
    return Path("runs/base.safetensors")


def _as_written_by_0_2_0(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    meta = json.loads(metadata["lowshot"])
    del meta["listing"]
    meta["classes"] = [unicodedata.normalize("NFD", name) for name in meta["classes"]]
    meta["dataset_hash"] = HASHES["flat"]
    save_file(tensors, path, {"lowshot": json.dumps(meta)})


def test_its_models_work_on_with_the_photos_that_they_were_made_with(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    _photos(photos, "flat")
    path = _train(lowshot, photos)
    _as_written_by_0_2_0(path)
    model = load(path)
    assert set(model.base_classes) == {"é", "f", "red"}
    assert model.position(DECOMPOSED) == model.position("é")
    _more_photos(photos, "flat")
    result = lowshot("evaluate", "--data-dir", photos)
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "train again" in line]
    assert line.startswith("left out 7 files (not listed by the version that trained the model")
    removed = lowshot("classes", "remove", DECOMPOSED, "--force")
    assert removed.exit_code == 0, removed.stderr
    assert load(path).meta.listing == 1
    assert lowshot("evaluate", "--data-dir", photos).exit_code == 0
    assert lowshot("evaluate", "--data-dir", photos, "--strict").exit_code == 3


def test_a_class_that_was_added_later_is_named_with_the_command_that_teaches_it(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    _photos(photos, "flat")
    _train(lowshot, photos)
    save_colours(photos, "green tea", count=5)
    result = lowshot("evaluate", "--data-dir", photos)
    assert result.exit_code == 3
    assert "have a class that the checkpoint was not trained with: green tea" in result.stderr
    typed = f"lowshot imprint --class 'green tea' --images '{photos / 'green tea'}'"
    assert typed in result.stderr
    for file in (photos / "red").iterdir():
        file.unlink()
    (photos / "red").rmdir()
    result = lowshot("evaluate", "--data-dir", photos)
    assert "lack a class that the checkpoint was trained on: red" in result.stderr


def test_a_model_with_two_names_that_look_alike_still_loads(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    _photos(tmp_path / "photos", "flat")
    path = _train(lowshot, tmp_path / "photos")
    tensors, metadata = read_tensors(path)
    meta = json.loads(metadata["lowshot"])
    meta["classes"] = ["é", DECOMPOSED, "red"]
    save_file(tensors, path, {"lowshot": json.dumps(meta)})
    assert load(path).base_classes == ("é", DECOMPOSED, "red")
