"""`imprint --images` of a folder of class folders, or of a CSV file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images

MODEL = Path("runs/imprinted.safetensors")


@pytest.fixture
def support(tmp_path: Path, glyphs: Dataset) -> Path:
    """Class folders of five and of three photos."""
    for name, count in (("omega", 5), ("Z", 3)):
        members = glyphs.train.of_class(glyphs.label(name))[:count]
        save_images(glyphs.train.pixels[members], tmp_path / "support" / f"my {name}")
    return tmp_path / "support"


def test_a_folder_of_class_folders_teaches_them_all(
    lowshot: RunCommand, workdir: Path, support: Path
) -> None:
    told = lowshot("imprint", "--images", "support/")
    assert told.exit_code == 0, told.stderr
    rows = [line.split() for line in told.stdout.splitlines() if " my " in line]
    assert rows == [
        ["my", "Z", "3", "support/my", "Z"],
        ["my", "omega", "5", "support/my", "omega"],
    ]
    assert "next: lowshot predict support" in told.stderr
    folder = load(MODEL)
    assert folder.novel_classes == ("my Z", "my omega")
    lines = [f"{file.relative_to(support)},{file.parent.name}" for file in support.rglob("*.png")]
    (support / "labels.csv").write_text("\n".join(["file,class", *sorted(lines)]))
    found = lowshot("imprint", "--images", "support/labels.csv", "--json")
    records = json.loads(found.stdout)["classes"]
    assert all({"confused", "outliers"} <= set(record) for record in records)
    classes = [(record["class"], len(record["support"])) for record in records]
    assert classes == [("my Z", 3), ("my omega", 5)]
    table = load(MODEL)
    assert (table.novel_classes, table.head.bias) == (folder.novel_classes, folder.head.bias)


def test_with_a_class_everything_below_is_of_it(
    lowshot: RunCommand, workdir: Path, support: Path
) -> None:
    assert lowshot("imprint", "--class", "mug", "--images", support).exit_code == 0
    assert load(MODEL).meta.supports[0].files is not None
    assert len(load(MODEL).supports[0]) == 8


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--images", "support/my Z"], "3 images and no class folders"),
        (["--images", "support/my Z"], "--class"),
        (["--images", "support", "--shots", "4"], "--shots is 4, there are 3 images of 'my Z'"),
        (["--class", "mug", "--images", "labels.csv"], "labels.csv names the classes itself"),
        (["--images", "labels.csv"], "that do not exist, 1 of 2: absent.png"),
        (["--images", "shared"], "two classes share a picture"),
    ],
)
def test_nothing_is_written_where_one_class_cannot_be_taught(
    lowshot: RunCommand, workdir: Path, support: Path, typed: list[str], said: str
) -> None:
    shutil.copytree(support / "my Z", "shared/a")
    shutil.copytree(support / "my Z", "shared/b")
    Path("labels.csv").write_text("support/my Z/0.png,a\nabsent.png,b\n")
    result = lowshot("imprint", *typed)
    assert result.exit_code in (2, 3)
    assert said in result.stderr.replace("\n  ", " ")
    assert not MODEL.exists()
