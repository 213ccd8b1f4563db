"""Datasets: glyphs from fonts, folders of images, CIFAR-100's own files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowshot_cli.backbones import build_backbone
from lowshot_cli.cache import DiskCache
from lowshot_cli.config import Config
from lowshot_cli.data import Dataset, cifar, folder, glyphs, load_dataset
from lowshot_cli.errors import DataError


def test_glyphs_are_many_even_and_repeatable(glyphs: Dataset) -> None:
    assert len(set(glyphs.class_names)) == len(glyphs.class_names) > 100
    assert {"omega", "A", "seven"} <= set(glyphs.class_names)
    assert torch.bincount(glyphs.train.labels).unique().tolist() == [150]
    assert torch.bincount(glyphs.test.labels).unique().tolist() == [50]
    again = _fresh_glyphs()
    assert torch.equal(again.train.pixels, glyphs.train.pixels)
    assert again.content_hash == glyphs.content_hash


def _fresh_glyphs() -> Dataset:
    return glyphs.make.__wrapped__(glyphs.IMAGE_SIZE)


def test_test_glyphs_come_from_typefaces_that_training_never_saw() -> None:
    train, test = (set(glyphs._STYLES[split]) for split in ("train", "test"))
    assert len(train) == 12
    assert len(test) == 4
    families = {name.split("-")[0].removesuffix(".ttf") for name in train}
    assert not any(name.startswith(family) for name in test for family in families - {"DejaVuSans"})
    assert not train & test


def _write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in (("my mug", (200, 0, 0)), ("Äpfel [rot]", (0, 200, 0))):
            for number in range(count):
                _write(tmp_path / split / name / f"{number}.png", colour)
    (tmp_path / "train" / "my mug" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "my mug" / "Thumbs.db").write_bytes(b"")
    data = load_dataset(Config(dataset="folder", data_dir=tmp_path, image_size=16))
    assert data.class_names == ("my mug", "Äpfel [rot]")
    assert data.train.pixels.shape == (6, 3, 16, 16)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.train.describe(0) == str(Path("train") / "my mug" / "0.png")
    assert data.train.pixels[0, :, 8, 8].tolist() == [200, 0, 0]


def test_one_level_of_folders_keeps_a_fifth_for_testing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            _write(tmp_path / name / f"{number}.png", (number, 0, 0))
    data = folder.load(tmp_path, 16)
    assert torch.bincount(data.test.labels).tolist() == [2, 2]
    assert torch.bincount(data.train.labels).tolist() == [8, 8]
    assert not set(data.train.files or ()) & set(data.test.files or ())
    assert folder.load(tmp_path, 16).test.files == data.test.files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for number in range(5):
            _write(tmp_path / "photos" / name / f"{number}.png", (number, 9, 0))
    return tmp_path / "photos"


@pytest.fixture
def image_cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", limit=10**9)


def test_files_are_decoded_once(
    photos: Path, image_cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, first = folder.load(photos, 16), folder.load(photos, 16, image_cache)
    monkeypatch.setattr(folder.Image, "open", None)
    again = folder.load(photos, 16, image_cache)
    for other in (first, again):
        assert torch.equal(other.train.pixels, fresh.train.pixels)
        assert torch.equal(other.test.labels, fresh.test.labels)
        assert other.test.files == fresh.test.files
        assert other.content_hash == fresh.content_hash
    assert len(image_cache.entries()) == 1


def test_a_changed_file_is_decoded_again(photos: Path, image_cache: DiskCache) -> None:
    before = folder.load(photos, 16, image_cache)
    changed = photos / str((before.train.files or ())[0])
    _write(changed, (200, 200, 200))
    after = folder.load(photos, 16, image_cache)
    assert int(after.train.pixels[0].min()) == 200
    assert torch.equal(after.train.pixels[1:], before.train.pixels[1:])
    # The mapped images are the process's own: writing to them must not reach the cache.
    after.train.pixels.zero_()
    assert int(folder.load(photos, 16, image_cache).train.pixels[0].min()) == 200


@pytest.mark.parametrize("damage", ["truncated", "gone", "nonsense"])
def test_damaged_decoded_images_are_made_again(
    photos: Path, image_cache: DiskCache, damage: str
) -> None:
    expected = folder.load(photos, 16, image_cache).train.pixels.clone()
    (home,) = (entry.path for entry in image_cache.entries())
    if damage == "truncated":
        (home / "train.npy").write_bytes((home / "train.npy").read_bytes()[:300])
    elif damage == "gone":
        (home / "test.npy").unlink()
    else:
        (home / "about.json").write_text("{")
    assert torch.equal(folder.load(photos, 16, image_cache).train.pixels, expected)
    assert sorted(path.name for path in home.iterdir()) == ["about.json", "test.npy", "train.npy"]


def test_a_cache_that_cannot_be_written_to_is_done_without(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    data = folder.load(photos, 16, DiskCache(tmp_path / "file" / "cache", 10**9))
    assert len(data.train.labels) == 8


def test_photos_are_turned_upright_and_cropped_to_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    pixels = folder.decode(tmp_path / "turned.png", 20)
    assert pixels.shape == (3, 20, 20)
    assert pixels.mean() > 250


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (20, 20), (250, 250, 250)).convert(mode).save(tmp_path / f"x.{suffix}")
    assert folder.decode(tmp_path / f"x.{suffix}", 16).mean() > 240


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        folder.load(tmp_path / "absent", 16)
    with pytest.raises(DataError, match="no class folders"):
        folder.load(tmp_path, 16)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="has no images"):
        folder.load(tmp_path, 16)
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    (tmp_path / "a" / "y.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read the image .*\.png"):
        folder.load(tmp_path, 16)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_strangers_pickle_does_not_run(tmp_path: Path) -> None:
    home = tmp_path / cifar.FOLDER
    home.mkdir()
    marker = tmp_path / "payload-ran"
    for name in ("train", "test", "meta"):
        (home / name).write_bytes(pickle.dumps(_Payload(marker)))
    with pytest.raises(DataError, match=r"meta is damaged: it names posix\.system"):
        cifar.load(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", ["resnet9", "resnet18"])
def test_backbones_take_small_and_large_images(name: str, side: int) -> None:
    network = build_backbone(name, 8, 24, side).eval()
    with torch.no_grad():
        features, late, early = network(torch.zeros(2, 3, side, side))
    assert features.shape == (2, 24)
    assert late.shape == (2, 64 if name == "resnet9" else 512)
    assert early.shape == (2, 32 if name == "resnet9" else 256)


def test_resnet18_keeps_small_images_whole() -> None:
    small, large = (build_backbone("resnet18", 8, 24, side) for side in (32, 128))
    assert small.early[0].stride == (1, 1)
    assert large.early[0].stride == (2, 2)
