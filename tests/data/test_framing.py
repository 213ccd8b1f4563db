"""A picture of any shape becomes the square that the model's own images became."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.data import image_folder
from lowshot_cli.data.decoding import decode
from lowshot_cli.data.framing import CROP, GREY, Framing, square
from lowshot_cli.data.in_memory import decode_any
from lowshot_cli.data.photos import load_photos
from lowshot_cli.errors import DataError
from lowshot_cli.export.model_card import model_card
from lowshot_cli.storage.cache import DiskCache

SHAPES = [(60, 80), (80, 60), (65, 64), (64, 65), (1, 1), (3, 7), (56, 56), (400, 9), (9, 400)]
SHAPES += [(333, 101)]
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def picture(width: int, height: int) -> Image.Image:
    lots = np.random.default_rng(width + 1000 * height)
    return Image.fromarray(lots.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **how: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **how)
    file.seek(0)
    return file


def as_pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_resize_gives_the_bytes_of_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = picture(*shape)
    for resize, side in ((64, 56), (57, 56), (56, 56), (50, 56), (64, 55)):
        for name in FILTERS:
            how, crop = InterpolationMode(name), CenterCrop(side)
            expected = crop(Resize(resize, how)(image))
            framing = Framing(resize=resize, interpolation=name)  # type: ignore[arg-type]
            assert square(image, side, framing).tobytes() == expected.tobytes()
            expected = crop(Resize((resize, resize), how)(image))
            squashed = square(image, side, replace(framing, fit="squash"))
            assert squashed.tobytes() == expected.tobytes()


def test_a_resize_gives_the_bytes_of_the_libraries_own_transforms() -> None:
    from timm.data import create_transform
    from torchvision.transforms._presets import ImageClassification

    published = ImageClassification(crop_size=48, resize_size=55, mean=(0, 0, 0), std=(1, 1, 1))
    options: dict[str, Any] = {"input_size": (3, 48, 48), "crop_pct": 0.875, "normalize": False}
    centre = create_transform(**options, interpolation="bicubic")
    squash = create_transform(**options, interpolation="bicubic", crop_mode="squash")
    for shape in SHAPES:
        file = encoded(picture(*shape), "JPEG", quality=95)
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        found = decode(file, 48, Framing(resize=55))
        assert np.array_equal(found, (published(image) * 255).round().byte().numpy())
        for fit, transform in (("crop", centre), ("squash", squash)):
            framing = Framing(fit, 54, "bicubic")  # type: ignore[arg-type]
            assert np.array_equal(decode(file, 48, framing), transform(image).numpy())


@pytest.mark.parametrize("framing", [CROP, Framing("pad"), Framing(resize=20), Framing("squash")])
def test_every_kind_of_file_is_framed_as_its_upright_rgb(framing: Framing) -> None:
    image, exif = picture(50, 30), Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, "PNG", exif=exif)
    grey, clear = image.convert("L"), image.convert("RGBA")
    clear.putalpha(0)
    for file, expected in (
        (encoded(image, "PNG"), image),
        (turned, image.transpose(Image.Transpose.ROTATE_270)),
        (encoded(grey, "PNG"), grey.convert("RGB")),
        (encoded(clear, "PNG"), Image.new("RGB", image.size, "white")),
    ):
        framed = as_pixels(square(expected, 16, framing))
        assert np.array_equal(decode(file, 16, framing), framed)
        file.seek(0)
        assert np.array_equal(decode_any(Image.open(file), 16, framing), framed)


def test_without_a_framing_photos_are_cropped_as_ever() -> None:
    for shape in SHAPES:
        image = picture(*shape)
        expected = as_pixels(ImageOps.fit(image, (16, 16), Image.Resampling.BILINEAR))
        assert np.array_equal(decode(encoded(image, "PNG"), 16), expected)
    photo = encoded(picture(333, 101), "JPEG")
    reduced = Image.open(io.BytesIO(photo.getvalue()))
    reduced.draft(None, (32, 32))
    assert reduced.width < 333
    expected = as_pixels(ImageOps.fit(reduced, (16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(photo, 16), expected)


def test_padding_shows_the_whole_picture_on_grey() -> None:
    for shape, beside in (((80, 40), np.s_[:, 0:4]), ((40, 80), np.s_[:, :, 0:4])):
        pixels = decode(encoded(Image.new("RGB", shape, "red"), "PNG"), 16, Framing("pad"))
        assert (pixels[beside] == GREY[0]).all()
        assert (pixels[0] == 255).sum() == 16 * 8
    edge = Image.new("RGB", (80, 40))
    edge.paste("white", (70, 0, 80, 40))
    assert square(edge, 16).getextrema()[0][1] == 0
    assert square(edge, 16, Framing("pad")).getextrema()[0][1] == 255


def test_a_padded_jpeg_is_read_at_a_scale_of_twice_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    real = Image.Image.resize

    def noted(self: Image.Image, *how: Any, **more: Any) -> Image.Image:
        asked.append(self.size)
        return real(self, *how, **more)

    file = encoded(picture(640, 320), "JPEG")
    monkeypatch.setattr(Image.Image, "resize", noted)
    decode(file, 20, Framing("pad"))
    file.seek(0)
    decode(file, 20, Framing("pad", resize=24))
    assert asked == [(80, 40), (640, 320)]


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2, 5000)])
def test_a_line_of_pixels_fits_the_memory(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *how: Any, **more: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return real(self, size, *how, **more)

    monkeypatch.setattr(Image.Image, "resize", noted)
    for framing in (CROP, Framing("pad"), Framing(resize=256), Framing("squash", resize=256)):
        assert square(picture(*shape), 224, framing).size == (224, 224)
    assert max(made) <= 256 * 256 * 101


def test_the_cache_keeps_framings_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            picture(30 + number, 20).save(tmp_path / "photos" / name / f"{number}.png")
    cache, framings = DiskCache(tmp_path / "cache", 10**9), (CROP, Framing("pad"))
    for _ in range(2):
        found = [image_folder.load(tmp_path / "photos", 16, cache, framing=one) for one in framings]
        assert [one.framing for one in found] == list(framings)
        assert found[0].content_hash != found[1].content_hash
    assert len([one for one in cache.folder.iterdir() if one.is_dir()]) == 2
    files = [tmp_path / "photos" / "a" / f"{number}.png" for number in range(2)]
    for dataset, framing in zip(found, framings, strict=True):
        pixels = {
            image.numpy().tobytes() for image in load_photos(files, 16, framing=framing).pixels
        }
        images = (*dataset.train.pixels, *dataset.test.pixels)
        assert pixels <= {image.numpy().tobytes() for image in images}


def with_framing(model: Checkpoint, framing: Framing, number: int = 4) -> Checkpoint:
    meta = {**model.meta.model_dump(), "framing": framing, "format": number}
    return replace(model, meta=Meta.model_validate(meta))


def test_a_checkpoint_keeps_its_framing(base: Checkpoint, tmp_path: Path) -> None:
    framing = Framing("pad", 256, "bicubic")
    path = tmp_path / "padded.safetensors"
    save(with_framing(base, framing), path)
    assert load(path).meta.framing == framing
    assert load(path).with_fit("crop").meta.framing == Framing("crop", 256, "bicubic")
    # Earlier versions read formats up to 3, and would crop.
    with pytest.raises(ValueError, match="needs format 4"):
        with_framing(base, framing, 2)


def test_a_cropping_checkpoint_reads_as_ever(base: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save(base, path)
    assert b"framing" not in path.read_bytes()
    assert load(path).meta.framing == CROP


@pytest.mark.parametrize(
    "framing", [CROP, Framing("pad"), Framing(resize=40), Framing("squash", interpolation="box")]
)
def test_the_example_in_the_card_makes_the_square(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: Framing
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(90, 61).save("photo.jpg", "PNG")
    card = model_card(with_framing(base, framing), "onnx")
    side = base.meta.image_size
    code = card.split("```python\n")[1].split("session")[0].replace("import onnxruntime\n", "")
    made: dict[str, Any] = {}
    exec(code, made)
    assert np.array_equal(made["images"][0], decode(Path("photo.jpg"), side, framing))


def test_what_is_no_image_is_refused_by_every_framing() -> None:
    for framing in (CROP, Framing("pad"), Framing(resize=20)):
        with pytest.raises(DataError, match="unknown image format"):
            decode(io.BytesIO(b"no image"), 16, framing)
