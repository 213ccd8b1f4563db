"""How image files are read: memory, errors that pass, pictures of which nothing is left."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image

from lowshot_cli.data import decoding
from lowshot_cli.data import image_folder as folder
from lowshot_cli.data.decoding import UnreadError, decode
from lowshot_cli.data.framing import Framing
from lowshot_cli.data.photos import load_photos, read_photos
from lowshot_cli.errors import DataError
from lowshot_cli.storage.cache import DiskCache
from tests.conftest import RunCommand

PASSING = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    home = tmp_path / "photos"
    for name in "ab":
        (home / name).mkdir(parents=True)
        for number in range(5):
            colour = (40 * number, 9, 9)
            Image.new("RGB", (20, 20), colour).save(home / name / f"{number}.png")
    return home


@pytest.fixture
def image_cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 10**9)


class _Failing:
    """A file that raises when it is read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self, size: int = -1) -> bytes:
        raise self.error

    def seek(self, place: int, whence: int = 0) -> int:
        return place

    def tell(self) -> int:
        return 0


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_an_error_of_the_system_is_no_damage(error: BaseException) -> None:
    file: Any = _Failing(error)
    with pytest.raises(UnreadError) as caught:
        decode(file, 16)
    assert "damaged" not in caught.value.message


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(UnreadError, match=r"^No such file or directory$"):
        decode(tmp_path / "absent.png", 16)


def _failing_on(name: str, error: BaseException) -> Callable[..., Any]:
    real = decode

    def decode_or_fail(source: Path | IO[bytes], size: int, framing: Framing) -> Any:
        is_it = str(getattr(source, "name", source)).endswith(name)
        return real(_Failing(error) if is_it else source, size, framing)  # type: ignore[arg-type]

    return decode_or_fail


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_an_error_that_passes_is_forgotten(
    photos: Path,
    image_cache: DiskCache,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    skip_bad: bool,
) -> None:
    expected = folder.load(photos, 16)
    monkeypatch.setattr(folder, "decode", _failing_on("a/2.png", error))
    for _ in range(2):
        if skip_bad:
            assert len(folder.load(photos, 16, image_cache, skip_bad=True).skipped) == 1
        else:
            with pytest.raises(DataError, match=r"1 of 10 images .*a/2\.png"):
                folder.load(photos, 16, image_cache)
    monkeypatch.undo()
    found = folder.load(photos, 16, image_cache, skip_bad=skip_bad)
    assert not found.skipped
    assert found.content_hash == expected.content_hash
    assert torch.equal(found.train.pixels, expected.train.pixels)


def test_what_was_read_stays_in_the_cache_while_a_file_cannot_be(
    photos: Path, image_cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a" / "3.png").write_bytes(b"no image")
    monkeypatch.setattr(folder, "decode", _failing_on("a/2.png", PASSING[0]))
    folder.load(photos, 16, image_cache, skip_bad=True)
    tried = []
    failing = _failing_on("a/2.png", PASSING[1])
    monkeypatch.setattr(
        folder, "decode", lambda source, *how: [tried.append(source.name), failing(source, *how)][1]
    )
    skipped = folder.load(photos, 16, image_cache, skip_bad=True).skipped
    assert [Path(name).name for name in tried] == ["2.png"]
    assert set(skipped) == {"a/2.png (Input/output error)", "a/3.png (unknown image format)"}


def test_pixels_of_other_rules_are_decoded_again(
    photos: Path, image_cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.load(photos, 16, image_cache)
    monkeypatch.setattr("lowshot_cli.data.image_store.RULES", decoding.RULES + 1)
    monkeypatch.setattr(folder, "decode", lambda *_: np.full((3, 16, 16), 7, np.uint8))
    assert folder.load(photos, 16, image_cache).train.pixels.unique().tolist() == [7]


def _by_photos(photos: Path, size: int) -> None:
    list(read_photos(sorted(photos.rglob("*.png")), size))


def _by_dataset(photos: Path, size: int) -> None:
    folder.load(photos, size)


@pytest.mark.parametrize("read", [_by_photos, _by_dataset])
@pytest.mark.parametrize(("room", "most"), [(900, 2), (400, 1), (399, 1), (10, 1)])
def test_images_are_decoded_together_only_as_far_as_their_pixels_fit(
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path, int], None],
    room: int,
    most: int,
) -> None:
    both, together, seen = threading.Barrier(most), [0], [0]
    real, lock = decoding.as_pixels, threading.Lock()

    def counted(image: Image.Image, *how: Any) -> Any:
        with lock:
            together[0] += 1
            seen[0] = max(seen[0], together[0])
        if most > 1:
            both.wait(10)
        pixels = real(image, *how)
        with lock:
            together[0] -= 1
        return pixels

    monkeypatch.setattr(decoding, "_ROOM", decoding._Room(room))
    monkeypatch.setattr("lowshot_cli.data.image_store._CHUNK", 1)
    monkeypatch.setattr(decoding, "as_pixels", counted)
    read(photos, 16)
    assert seen == [most]


def test_room_is_free_again_after_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_ROOM", decoding._Room(400))
    content = (photos / "a" / "1.png").read_bytes()
    (photos / "a" / "0.png").write_bytes(content[:60])
    files = sorted((photos / "a").iterdir()) * 3
    assert len(load_photos(files, 16, skip_bad=True).unreadable) == 3


def test_a_jpeg_takes_the_room_of_its_reduced_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    room = decoding._Room(10**6)
    real = room.taken
    monkeypatch.setattr(room, "taken", lambda pixels: [taken.append(pixels), real(pixels)][1])
    monkeypatch.setattr(decoding, "_ROOM", room)
    for progressive in (False, True):
        Image.new("RGB", (800, 400)).save(tmp_path / "x.jpg", progressive=progressive)
        decode(tmp_path / "x.jpg", 16)
    assert taken == [100 * 50, 800 * 400]


def test_images_of_which_nothing_is_left_are_noted(
    lowshot: RunCommand, workdir: Path, photos: Path, image_cache: DiskCache
) -> None:
    Image.new("RGBA", (20, 20)).save(photos / "a" / "0.png")
    Image.new("L", (20, 20), 255).save(photos / "b" / "3.png")
    for _ in range(2):
        assert folder.load(photos, 16, image_cache).blank == ("a/0.png", "b/3.png")
    result = lowshot("predict", photos / "a", "--workdir", workdir)
    assert f"1 image is blank, every pixel white or transparent: {photos}" in result.stderr
    shutil.rmtree(photos / "b")
    result = lowshot("imprint", "--class", "mug", "--images", photos / "a", "--workdir", workdir)
    assert result.exit_code == 0
    assert "1 image is blank" in result.stderr
