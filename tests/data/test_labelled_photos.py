"""How folders, archives and CSV files say which class each photo is of."""

from __future__ import annotations

import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest

from lowshot_cli.data.labelled_photos import find_classes, read_table, split_classes
from lowshot_cli.data.photos import load_photos
from lowshot_cli.errors import DataError, UsageError
from tests.conftest import save_colours


def _table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_folder_of_class_folders_names_the_classes(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug/deep/er", "mug", ".hidden", count=2)
    save_colours(tmp_path, "cafe\u0301", count=1)
    (tmp_path / "mug" / "a.heic").write_bytes(b"")
    found = find_classes([tmp_path])
    assert list(found.files) == ["caf\u00e9", "mug"]
    inside = [str(file.relative_to(tmp_path / "mug")) for file in found.files["mug"]]
    assert inside == ["0.png", "1.png", "deep/er/0.png", "deep/er/1.png"]
    assert [file.name for file in found.unused] == [str(tmp_path / "mug" / "a.heic")]
    with pytest.raises(DataError, match="HEIC"):
        find_classes([tmp_path], strict=True)


@pytest.mark.parametrize(
    ("folders", "said", "hint"),
    [
        (["."], r"has 3 images and no class folders: 0\.png, 1\.png, 2\.png", "`classes`"),
        ([".", "mug"], r"has 3 images beside its class folders", "`classes`"),
        (["train/mug", "test/mug"], r"has test/ and train/ with folders in it", "test"),
        (["mug/red", "mug/blue"], r"has one class folder, mug/", "mug; if they are one class"),
    ],
)
def test_other_layouts_are_told_what_was_found(
    tmp_path: Path, folders: list[str], said: str, hint: str
) -> None:
    save_colours(tmp_path, *folders)
    with pytest.raises(DataError, match=said) as caught:
        find_classes([tmp_path])
    assert hint in (caught.value.hint or "")


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug")
    (tmp_path / "cup").mkdir()
    with pytest.raises(DataError, match="cup has no images"):
        find_classes([tmp_path])


def test_an_archive_is_read_as_the_folder_it_was_made_of(tmp_path: Path) -> None:
    save_colours(tmp_path / "support", "mug", "cup")
    archive = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "support"))
    folder, zipped = find_classes([tmp_path / "support"]), find_classes([archive])
    assert list(zipped.files) == ["cup", "mug"]
    assert zipped.files["mug"][0] == archive / "support/mug/0.png"
    expected = split_classes(load_photos(folder.all.files, 16), folder.files)
    read = load_photos(zipped.all.files, 16, archived=zipped.archived)
    for name, photos in split_classes(read, zipped.files).items():
        assert photos.pixels.equal(expected[name].pixels)


def test_names_in_an_archive_may_be_utf_8_without_saying_so(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug", count=1)
    archive = tmp_path / "zipped.zip"
    for name in (b"caf\xc3\xa9", b"caf\x82"):  # UTF-8, and code page 437
        with ZipFile(archive, "w") as members:
            members.write(tmp_path / "mug" / "0.png", f"{'X' * len(name)}/0.png")
            members.write(tmp_path / "mug" / "0.png", "mug/0.png")
        archive.write_bytes(archive.read_bytes().replace(b"X" * len(name), name))
        found = find_classes([archive])
        assert list(found.files) == ["caf\u00e9", "mug"]
        assert len(load_photos(found.all.files, 16, archived=found.archived).pixels) == 2


def test_a_damaged_member_of_an_archive_is_an_unreadable_photo(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug", "cup")
    archive = tmp_path / "zipped.zip"
    with ZipFile(archive, "w") as members:  # not compressed
        for file in sorted(tmp_path.rglob("*.png")):
            members.write(file, file.relative_to(tmp_path))
    content = archive.read_bytes()
    at = content.index(b"IDAT")
    archive.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
    found = find_classes([archive])
    with pytest.raises(DataError, match=r"1 of 6 images cannot be read: .*zipped\.zip/cup/0"):
        load_photos(found.all.files, 16, archived=found.archived)


def test_several_sources_add_up(tmp_path: Path) -> None:
    save_colours(tmp_path / "one", "mug")
    save_colours(tmp_path / "two", "mug", "cup")
    table = _table(tmp_path, "one/mug/0.png,mug\none/mug/1.png,bowl\n")
    found = find_classes([tmp_path / "one", tmp_path / "two", table])
    assert {name: len(files) for name, files in found.files.items()} == {
        "bowl": 1,
        "cup": 3,
        "mug": 6,
    }


@pytest.mark.parametrize(
    "text",
    [
        "a/0.png,mug\na/1.png,red cup\n",
        "file,class\na/0.png,mug\na/1.png,red cup\n",
        "\ufeffFile;Class\r\na/0.png;mug\r\na/1.png;red cup\r\n",
        'a/0.png\t"mug"\n\na/1.png\tred cup',
        '"a/0.png", "mug"\na/../a/1.png , red cup,,\na/1.png,red cup\n',
    ],
)
def test_a_table_is_read_as_people_write_it(tmp_path: Path, text: str) -> None:
    save_colours(tmp_path, "a")
    expected = {"mug": [tmp_path / "a/0.png"], "red cup": [tmp_path / "a/1.png"]}
    assert read_table(_table(tmp_path, text)) == expected


def test_names_in_a_table_keep_commas_and_start_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_colours(tmp_path, "a, b")
    text = f'"~/a, b/0.png","mug, red"\n"{tmp_path}/a, b/1.png",cafe\u0301\n'
    files = read_table(_table(tmp_path, text))
    assert list(files) == ["mug, red", "caf\u00e9"]
    assert files["mug, red"] == [tmp_path / "a, b/0.png"]
    semicolons = _table(tmp_path, "a, b/0.png;mug\n", "other.CSV")
    assert list(find_classes([semicolons]).files) == ["mug"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows"),
        ("file,class\n\n", "has no rows"),
        ("a/0.png,mug\na/0.png,cup\n", "two classes: 'mug' in line 1, 'cup' in line 2"),
        (
            "a/0.png,mug\nmug.png,mug\na,cup\n",
            r"files that do not exist, 1 of 3: .*mug\.png",
        ),
        ("a/0.png,mug\na,cup\n", r"names folders: .*a .*a row for each image"),
        ("class,file\nmug,a/0.png\nmug,a/1.png\n", r"do not exist, 2 of 2: .*`file,class`"),
        (
            "image,class\na/0.png,mug\n",
            r"do not exist, 1 of 2: .*image .*header.* `file,class`",
        ),
        ("a/0.png,mug\na/1.png\n", r"line 2: no row of `file,class`"),
        ("a/0.png,mug\na/1.png,red, large\n", r"line 2: no row of `file,class`"),
        ("a/0.png,mug\n,mug\n", r"line 2: no row of `file,class`"),
        ("a/0.png,m\0g\n", "line 1: the class should not be empty or contain NUL"),
        ('a/0.png,"mug\n', "is no CSV file"),
    ],
)
def test_a_wrong_table_is_told_where(tmp_path: Path, text: str, said: str) -> None:
    save_colours(tmp_path, "a")
    with pytest.raises(DataError) as caught:
        read_table(_table(tmp_path, text))
    assert caught.match(said)


def test_what_names_no_class_is_refused(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug")
    with pytest.raises(UsageError, match="no class is named"):
        find_classes([tmp_path / "mug" / "0.png"])
    with pytest.raises(DataError, match="there is nothing at"):
        find_classes([tmp_path / "mgu"])
    latin = tmp_path / "latin.csv"
    latin.write_bytes("mug/0.png,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        find_classes([latin])


def test_a_class_without_a_readable_photo_is_refused(tmp_path: Path) -> None:
    save_colours(tmp_path, "mug", "cup")
    for file in (tmp_path / "cup").iterdir():
        file.write_bytes(b"no image")
    found = find_classes([tmp_path])
    photos = load_photos(found.all.files, 16, skip_bad=True)
    with pytest.raises(DataError, match="no image of 'cup' can be read, of 3"):
        split_classes(photos, found.files)
