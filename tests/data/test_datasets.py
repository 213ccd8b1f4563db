"""Datasets: glyphs from fonts, folders of images, CIFAR-100's own files."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowshot_cli.config.schema import Config
from lowshot_cli.data import cifar100 as cifar
from lowshot_cli.data import glyphs
from lowshot_cli.data import image_folder as folder
from lowshot_cli.data.dataset import Dataset, compute_digest
from lowshot_cli.data.decoding import decode
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.errors import DataError
from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.storage.cache import DiskCache


def test_glyphs_are_many_even_and_repeatable(glyphs: Dataset) -> None:
    assert len(set(glyphs.class_names)) == len(glyphs.class_names) > 100
    assert {"omega", "A", "seven"} <= set(glyphs.class_names)
    assert torch.bincount(glyphs.train.labels).unique().tolist() == [150]
    assert torch.bincount(glyphs.test.labels).unique().tolist() == [50]
    again = _fresh_glyphs()
    assert torch.equal(again.train.pixels, glyphs.train.pixels)
    assert again.content_hash == glyphs.content_hash


def _fresh_glyphs(cache: DiskCache | None = None) -> Dataset:
    return glyphs.draw(glyphs.IMAGE_SIZE, cache)


def test_glyphs_are_drawn_once_for_all_processes(
    glyphs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, limit=10**9)
    _fresh_glyphs(cache)
    monkeypatch.setattr(
        "lowshot_cli.data.glyphs._draw_split", lambda *_: pytest.fail("drawn again")
    )
    kept = _fresh_glyphs(cache)
    assert torch.equal(kept.train.pixels, glyphs.train.pixels)
    assert torch.equal(kept.test.pixels, glyphs.test.pixels)


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
    monkeypatch.setattr(Image, "open", None)
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
    pixels = decode(tmp_path / "turned.png", 20)
    assert pixels.shape == (3, 20, 20)
    assert pixels.mean() > 250


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (20, 20), (250, 250, 250)).convert(mode).save(tmp_path / f"x.{suffix}")
    assert decode(tmp_path / f"x.{suffix}", 16).mean() > 240


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
    with pytest.raises(DataError, match=r"2 of 2 images .* a/[xy]\.png \(unknown image format\)"):
        folder.load(tmp_path, 16)


def test_at_most_ten_unreadable_images_are_named(photos: Path) -> None:
    for number in range(14):
        (photos / "a" / f"bad{number:02}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="14 of 24 images") as caught:
        folder.load(photos, 16)
    assert caught.value.message.count("bad") == 10
    assert caught.value.message.endswith("and 4 more")
    assert "`skip_bad=True`" in str(caught.value.hint)


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_left_out_on_demand(
    photos: Path, image_cache: DiskCache, cached: bool
) -> None:
    content = (photos / "b" / "1.png").read_bytes()
    (photos / "a" / "2.png").write_bytes(content[:60])
    (photos / "a" / "3.png").write_bytes(b"")
    cache = image_cache if cached else None
    for _ in range(2):
        data = folder.load(photos, 16, cache, skip_bad=True)
        assert len(data.skipped) == 2
        assert all(line.startswith(("a/2.png (", "a/3.png (")) for line in data.skipped)
        for images in (data.train, data.test):
            assert images.files is not None
            for file, pixels, label in zip(images.files, images.pixels, images.labels, strict=True):
                assert Path(file).parts[0] == data.class_names[label]
                assert pixels[0].unique().tolist() == [int(Path(file).stem)]
            for label in range(2):
                expected = compute_digest(images.pixels[images.of_class(label)].numpy())
                assert images.digest(label) == expected
        with pytest.raises(DataError, match="2 of 10 images"):
            folder.load(photos, 16, cache)


def test_new_classes_and_images_move_no_image_into_testing(photos: Path) -> None:
    before = folder.load(photos, 16)
    for number in range(5):
        _write(photos / "Aardvark" / f"{number}.png", (number, 9, 9))
    after = folder.load(photos, 16)
    assert set(before.test.files or ()) <= set(after.test.files or ())


@pytest.mark.parametrize("inside", ["", "photos/", "a/b/photos/"])
@pytest.mark.parametrize("layout", ["flat", "split"])
def test_an_archive_is_read_in_place_like_a_folder(
    tmp_path: Path, inside: str, layout: str
) -> None:
    home, archive = tmp_path / "home", tmp_path / "photos.zip"
    for split, count in (("train", 4), ("test", 2)):
        for name in ("my mug", "Äpfel [rot]"):
            for number in range(count):
                place = home / split / name if layout == "split" else home / name
                _write(place / f"{split}{number}.png", (number * 40, len(name), count))
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(home.rglob("*.png")):
            file.write(path, inside + path.relative_to(home).as_posix())
        file.writestr(f"__MACOSX/{inside}._x.png", b"")
        file.writestr(f"{inside}notes.txt", b"")
    from_folder, from_archive = folder.load(home, 16), folder.load(archive, 16)
    assert from_archive.class_names == from_folder.class_names == ("my mug", "Äpfel [rot]")
    assert from_archive.content_hash == from_folder.content_hash
    assert torch.equal(from_archive.train.pixels, from_folder.train.pixels)
    assert not list(tmp_path.glob("photos/*"))


def test_a_member_of_an_archive_that_cannot_be_opened_is_like_any_unreadable_image(
    tmp_path: Path,
) -> None:
    _write(tmp_path / "x.png", (9, 9, 9))
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("./", b"")
        for name in "ab":
            for number in range(4):
                file.writestr(f"./{name}/{number}.png", (tmp_path / "x.png").read_bytes())
        damaged = file.getinfo("./a/2.png").header_offset
    assert len(folder.load(archive, 16).train.labels) == 6
    content = bytearray(archive.read_bytes())
    content[damaged] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 8 images .*a/2\.png"):
        folder.load(archive, 16)
    assert len(folder.load(archive, 16, skip_bad=True).skipped) == 1


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt is neither a folder nor a zip archive"):
        folder.load(tmp_path / "notes.txt", 16)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    more = {"save_all": True, "append_images": [second]} if suffix == "gif" else {}
    first.save(tmp_path / f"x.{suffix}", **more)
    pixels = decode(tmp_path / f"x.{suffix}", 16).astype(int)
    assert abs(pixels - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_sixteen_bits_and_fractions_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float64)[None].repeat(32, 0)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    for name in ("deep.png", "float.tiff"):
        row = decode(tmp_path / name, 32)[0, 0].astype(float)
        assert abs(row - ramp[0] * 255).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_over_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    picture = clear.convert(mode)
    if mode == "P":
        picture.info["transparency"] = picture.getpixel((0, 0))
    picture.save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png", 16).min() == 255


def test_large_photos_are_decoded_close_to_what_they_are(tmp_path: Path) -> None:
    wave = np.sin(np.linspace(0, 9, 900))[:, None] * np.cos(np.linspace(0, 7, 1200))[None]
    picture = Image.fromarray(np.stack([wave * 120 + 128] * 3, 2).astype(np.uint8))
    picture.save(tmp_path / "x.jpg", quality=95)
    picture.save(tmp_path / "x.png")
    jpeg, png = (decode(tmp_path / f"x.{s}", 32).astype(int) for s in ("jpg", "png"))
    assert abs(jpeg - png).mean() < 2


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
