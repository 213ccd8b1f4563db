"""Which files are listed as images: one rule for folders, archives and globs."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config, make_section
from lowshot_cli.data import image_files
from lowshot_cli.data import image_folder as folder
from lowshot_cli.data.decoding import FORMATS
from lowshot_cli.data.image_files import SUFFIXES, list_photos
from lowshot_cli.data.in_memory import list_images
from lowshot_cli.data.photos import find_photos, load_photos
from lowshot_cli.errors import DataError, LowshotError
from lowshot_cli.storage.files import LOG
from lowshot_cli.storage.locks import LOCK

Made = Callable[..., Path]


def _png(path: Path, grey: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(path, "PNG")
    return path


@pytest.fixture
def cluttered(tmp_path: Path) -> Path:
    """A class folder such as people have: 4 images, 5 pictures that are not read, and clutter."""
    red = tmp_path / "data" / "red"
    for name in ("a.PNG", "b.jfif", "2023/may/c.jpe", "elsewhere.png"):
        _png(red / name)
    (red / "elsewhere.png").rename(tmp_path / "elsewhere.png")
    (red / "link.png").symlink_to(tmp_path / "elsewhere.png")
    _png(tmp_path / "album" / "d.png")
    (red / "album").symlink_to(tmp_path / "album")
    (red / "loop").symlink_to(tmp_path / "data")
    for name in ("e.HEIC", "2023/f.jxl", "g.cr2"):
        (red / name).write_bytes(b"")
    (red / "h.svg").write_text("<svg/>")
    os.mkfifo(red / "pipe.jpg")
    for name in (".hidden.png", "._a.png", ".git/x.png", "__MACOSX/x.png", "@eaDir/a.png/x.jpg"):
        _png(red / name)
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "desktop.ini", "README"):
        (red / name).write_bytes(b"clutter")
    return tmp_path / "data"


IMAGES = ["2023/may/c.jpe", "a.PNG", "album/d.png", "b.jfif", "link.png"]


def test_a_folder_is_listed_at_any_depth_through_links_and_without_clutter(
    cluttered: Path,
) -> None:
    listed = list_photos(cluttered)
    assert [photo.name for photo in listed.photos] == [f"red/{name}" for name in IMAGES]
    assert {Path(file.name).name: file.reason for file in listed.unused} == {
        "e.HEIC": "HEIC is not read, convert to JPEG",
        "f.jxl": "JXL is not read, convert to JPEG",
        "g.cr2": "CR2 is not read, convert to JPEG",
        "h.svg": "SVG is not read, convert to JPEG",
        "pipe.jpg": "not a regular file",
    }


def test_named_folders_and_globs_list_the_same_images(
    cluttered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = cluttered / "red"
    found = find_photos([red])
    assert sorted(found.files) == sorted(red / name for name in IMAGES)
    assert len(found.unused) == 5
    monkeypatch.chdir(cluttered)
    for pattern in ("red/*", "r?d", "re[d]/**", "**/*"):
        matched = find_photos([Path(pattern)])
        assert set(matched.files) == {Path("red") / name for name in IMAGES}
        assert len(matched.unused) == 5
    assert find_photos([Path("**/*.png")]).files == [
        Path("red/album/d.png"),
        Path("red/link.png"),
    ]
    assert len(load_photos(find_photos([red]).files, 16).files) == 5


def test_every_suffix_of_a_format_that_is_read_is_listed() -> None:
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known <= SUFFIXES
    assert {".jif", ".pjpeg", ".pjp"} <= SUFFIXES, "as old browsers and cameras name JPEGs"


def test_strict_refuses_what_is_otherwise_counted(cluttered: Path) -> None:
    with pytest.raises(DataError, match=r"1 file \(HEIC is not read, convert to JPEG\): .*e\.HEIC"):
        find_photos([cluttered], strict=True)
    _png(cluttered / "red" / "ok" / "x.png")
    for number in range(2):
        _png(cluttered / "blue" / f"{number}.png")
    assert len(folder.load(cluttered, 16).unused) == 5
    with pytest.raises(DataError, match="HEIC"):
        folder.load(cluttered, 16, strict=True)


def test_python_warns_of_what_is_not_used(cluttered: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out .*1 file \(HEIC is not read"):
        found, is_one = list_images(cluttered)
    assert (len(found), is_one) == (5, False)


def test_strict_and_skip_bad_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(LowshotError, match="`strict`: contradicts `skip_bad=True`"):
        make_section(Config, strict=True, skip_bad=True)
    path = tmp_path / "c.yaml"
    path.write_text("strict: true\nskip_bad: true\n")
    with pytest.raises(LowshotError, match="contradicts"):
        load_config(path)


def test_a_folder_without_images_says_what_it_holds_instead(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.heic").write_bytes(b"")
    expected = r"has no images; 5 files \(HEIC is not read, convert to JPEG\): .* and 2 more"
    with pytest.raises(DataError, match=expected):
        find_photos([tmp_path])
    with pytest.raises(DataError, match=r"no image at .*\*\.heic; 5 files"):
        find_photos([tmp_path / "*.heic"])


def test_a_pipe_that_is_named_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    files = [tmp_path / "x.jpg", _png(tmp_path / "y.png")]
    with pytest.raises(DataError, match=r"1 of 2 images cannot .*x\.jpg \(not a regular file\)"):
        load_photos(find_photos(files).files, 16)
    assert load_photos(files, 16, skip_bad=True).files == (files[1],)


def test_a_link_that_leads_nowhere_is_an_unreadable_file(tmp_path: Path) -> None:
    _png(tmp_path / "good.png")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    for sources in ([tmp_path], [tmp_path / "*"], list(tmp_path.iterdir())):
        files = find_photos(sources).files
        with pytest.raises(DataError, match=r"2 of 3 images .*lost\.jpg"):
            load_photos(files, 16)
        assert len(load_photos(files, 16, skip_bad=True).skipped) == 2


def test_a_link_that_may_stand_for_a_lost_class_folder_is_refused(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        for number in range(2):
            _png(tmp_path / name / f"{number}.png")
    (tmp_path / "green").symlink_to(tmp_path / "unplugged" / "green")
    with pytest.raises(DataError, match="green leads nowhere"):
        folder.load(tmp_path, 16)


def test_a_folder_that_cannot_be_read_is_named(
    cluttered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("may"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(image_files.os, "scandir", scandir)
    with pytest.raises(DataError, match=r"folder .*may cannot be read: Permission denied"):
        list_photos(cluttered)
    with pytest.raises(DataError, match="Permission denied"):
        find_photos([cluttered / "red" / "2023"])


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_an_archive_is_listed_by_the_same_rules(tmp_path: Path, separator: str) -> None:
    png = _png(tmp_path / "x.png").read_bytes()
    names = ["red/a.PNG", "red/2023/b.jfif", "blue/a.png", "blue/b.png"]
    others = ["red/c.heic", "cover.jpg", "red/.d.png", "__MACOSX/red/._a.png", "red/notes.txt"]
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("photos/", "photos/red/", *(f"photos/{n}" for n in (*names, *others))):
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", separator)
            archive.writestr(member, png)
    dataset = folder.load(path, 16)
    assert dataset.class_names == ("blue", "red")
    files = (*(dataset.train.files or ()), *(dataset.test.files or ()))
    assert sorted(files) == sorted(f"photos/{name}" for name in names)
    assert [file.name for file in dataset.unused] == ["photos/red/c.heic", "photos/cover.jpg"]


def test_names_of_classes_have_one_form_and_files_keep_theirs(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (decomposed, "tea"):
        for number in range(2):
            _png(tmp_path / name / f"{decomposed}{number}.png", 50 * number)
    dataset = folder.load(tmp_path, 16)
    assert dataset.class_names == (composed, "tea")
    assert dataset.label(decomposed) == 0
    assert (dataset.test.files or ("",))[0].startswith(f"{decomposed}/{decomposed}")
    _png(tmp_path / composed / "2.png")
    with pytest.raises(DataError, match="2 folders named 'café'"):
        folder.load(tmp_path, 16)


@pytest.mark.parametrize("mark", [LOG, LOCK])
def test_a_work_folder_within_the_data_is_no_class(tmp_path: Path, mark: str) -> None:
    _png(tmp_path / "red" / "a.png")
    _png(tmp_path / "runs" / "sweep-1" / "accuracy.png")
    (tmp_path / "runs" / mark).touch()
    assert [photo.name for photo in list_photos(tmp_path).photos] == ["red/a.png"]
    _png(tmp_path / "red" / "2023" / "b.png")
    (tmp_path / "red" / mark).touch()
    listed = [photo.name for photo in list_photos(tmp_path).photos]
    assert sorted(listed) == ["red/2023/b.png", "red/a.png"], "a class in which a command ran"
    inside = tmp_path / "runs" / "sweep-1"
    assert [photo.name for photo in list_photos(inside).photos] == ["accuracy.png"]
