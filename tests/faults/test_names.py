"""Class names as people and attackers have them."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.cli.console import printable
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand
from tests.faults.test_images import ACCEPTED

NAMES = [
    "[/red]",
    "../../x",
    "a\nb",
    "\x1b[31mred",
    "ש ל ו ם",
    "👩‍🔬",
    "a + b",
    "$x_1$",
    "2",
    "10",
    "-",
]
LONG = "long " * 51  # as long as may be


@pytest.fixture
def photo(tmp_path: Path, glyphs: Dataset) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(glyphs.train.pixels[0].permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.mark.parametrize("name", ["caf\udce9", "a\0b", " ", LONG + "x"])
def test_no_class_is_renamed_to_what_a_file_cannot_hold(
    lowshot: RunCommand, workdir: Path, name: str
) -> None:
    path = workdir / "base.safetensors"
    before, known = path.read_bytes(), load(path).meta.classes[0]
    result = lowshot("classes", "rename", known, name, "--force", "--workdir", workdir)
    assert result.exit_code == 2
    assert "cannot be the name of a class" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [*NAMES, LONG])
def test_a_name_is_kept_and_shown_as_it_is(
    lowshot: RunCommand, workdir: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    typed = ["--workdir", workdir]
    taught = lowshot("imprint", f"--class={name}", "--images", photo, *typed)
    assert taught.exit_code == 0, taught.stderr
    assert taught.stdout.startswith(f"{printable(name)}: learnt from")
    checkpoint = load(workdir / "imprinted.safetensors")
    assert checkpoint.novel_classes == (name,)
    (found,) = json.loads(lowshot("predict", photo, "--json", "--top", "13", *typed).stdout)
    assert name in [known for known, _ in found["top"]]
    (_, row) = csv.reader(io.StringIO(lowshot("predict", photo, "--csv", *typed).stdout))
    assert found["class"] in row
    listed = lowshot("classes", "list", *typed)
    flat = "".join(listed.stdout.split())
    assert "".join(printable(name).split())[:40] in flat
    for output in (taught.stdout, listed.stdout):
        assert "\x1b" not in output
    if name != LONG:
        renamed = lowshot("classes", "rename", *typed, "--", name, "new")
        assert renamed.exit_code == 0, renamed.stderr
        assert load(workdir / "imprinted.safetensors").novel_classes == ("new",)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_numbers_as_names_keep_their_order_from_training_to_prediction(
    lowshot: RunCommand, tmp_path: Path, glyphs: Dataset
) -> None:
    from PIL import Image

    members = {"2": "A", "10": "Z", "1": "omega"}
    for name, glyph in members.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        of_class = glyphs.train.of_class(glyphs.label(glyph))
        for number, pixels in enumerate(glyphs.train.pixels[of_class[:60]]):
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.save(tmp_path / "photos" / name / f"{number}.png")
    data = ["--dataset", "folder", "--data-dir", tmp_path / "photos"]
    small = ["--image-size", "32", "--holdout", "8", "--width", "8", "--epochs", "12"]
    small += ["--backbone", "resnet9"]
    trained = lowshot("train-base", *data, *small, "--batch-size", "16", "--lr", "0.1")
    assert trained.exit_code == 0, trained.stderr
    assert load(tmp_path / "runs" / "base.safetensors").meta.classes == ("1", "2", "10")
    for name in members:
        result = lowshot("predict", tmp_path / "photos" / name, "--json")
        found = [one["class"] for one in json.loads(result.stdout)]
        assert max(set(found), key=found.count) == name
    named = lowshot(
        "train-base", *data, *small, "--classes", "10,2", "--epochs", "1", "--overwrite"
    )
    assert named.exit_code == 0, named.stderr
    assert load(tmp_path / "runs" / "base.safetensors").meta.classes == ("10", "2")


def test_names_that_are_no_utf_8_make_checkpoints_that_load(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"mug\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"photo\xff.png")).write_bytes(ACCEPTED["a png.jpg"])
    imprinted = lowshot("imprint", "--class", "mug", "--images", folder, "--workdir", workdir)
    assert imprinted.exit_code == 0, imprinted.stderr
    (record,) = load(workdir / "imprinted.safetensors").meta.supports
    assert record.files == (r"photo\xff.png",)
    refused = lowshot("imprint", "--class", os.fsdecode(b"mug\xe9"), "--workdir", workdir)
    assert refused.exit_code == 2
    assert "should be valid UTF-8" in refused.stderr


def test_folders_with_odd_names_are_classes_with_these_names(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    names = [name.replace("../../", "up_up_") for name in NAMES if name != "[/red]"]
    for name in [*names, os.fsdecode(b"caf\xe9")]:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(ACCEPTED["a png.jpg"])
    arguments = ["data", "classes", "--dataset", "folder", "--data-dir", tmp_path / "photos"]
    listed: list[dict[str, Any]] = json.loads(lowshot(*arguments, "--json").stdout)
    assert [one["class"] for one in listed] == sorted([*names, r"caf\xe9"])
    assert lowshot(*arguments).exit_code == 0


def test_what_steers_a_terminal_is_written_out_and_the_rest_left_alone() -> None:
    assert printable("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert printable("ש [/red] 👩‍🔬 é") == "ש [/red] 👩‍🔬 é"
