"""How folders become classes and splits, and what is said of folders that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.data import image_folder as folder
from lowshot_cli.errors import DataError
from tests.conftest import save_colours


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_are_for_testing_where_there_is_no_test_folder(
    tmp_path: Path, name: str
) -> None:
    save_colours(tmp_path, "train/red", "train/blue/deep")
    save_colours(tmp_path, f"{name}/red", f"{name}/blue", count=1)
    dataset = folder.load(tmp_path, 16)
    assert dataset.class_names == ("blue", "red")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (6, 2)
    assert dataset.unused == ()
    save_colours(tmp_path, "test/red")
    dataset = folder.load(tmp_path, 16)
    assert len(dataset.test.labels) == 3
    assert [file.name for file in dataset.unused] == [f"{name}/blue/0.png", f"{name}/red/0.png"]


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    save_colours(tmp_path, ".", "red", "blue/2023", "blue")
    dataset = folder.load(tmp_path, 16)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 9
    assert dataset.n_skipped == 3
    assert {file.reason for file in dataset.unused} == {"beside the class folders"}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["."], r"no class folders, only 3 images"),
        (["train/red", "train/blue"], r"has train/ with folders in it.*name .*train, of which"),
        (["Training/red", "Test/red"], r"has Test/ and Training/ with folders in it"),
        (["train", "test/red"], r"train has no class folders, only 3 images"),
        (["photos/red", "photos/blue"], r"one class folder, photos/.*blue, red.*name .*photos"),
        (["train/red", "test/blue"], r"test has classes that train lacks: blue"),
    ],
)
def test_other_layouts_are_told_what_was_found(
    tmp_path: Path, folders: list[str], said: str
) -> None:
    save_colours(tmp_path, *folders)
    with pytest.raises(DataError) as caught:
        folder.load(tmp_path, 16)
    assert caught.match(said)


def test_a_class_folder_with_pictures_that_are_not_read_alone_says_so(tmp_path: Path) -> None:
    save_colours(tmp_path, "red", "blue")
    (tmp_path / "green").mkdir()
    (tmp_path / "green" / "x.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"green has no images; 1 file \(HEIC is not read"):
        folder.load(tmp_path, 16)
