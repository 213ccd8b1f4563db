"""The commands for your own photos, as their README types them, on files such as people have."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand

README = Path(__file__).parents[2] / "lowshot_cli" / "data" / "README.md"
# The network that photos get by default is tested with its weights.
SHORTER = [
    *("--backbone=resnet9", "--image-size=32"),
    *("--epochs=20", "--width=8", "--batch-size=32", "--lr=0.1", "--holdout=20"),
    "--precision=fp32",
]
_MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16")


def _as_people_have_them(pixels: torch.Tensor, folder: Path, names: Iterator[int]) -> None:
    """Write images `(N, 3, S, S)` as files of several sizes, orientations, modes and formats."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in pixels:
        number = next(names)
        mode = _MODES[number % len(_MODES)]
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize((60 + 7 * (number % 5), 60 + 7 * (number % 5)))
        if mode == "I;16":
            grey = np.asarray(picture.convert("L"), dtype=np.uint16) * 257
            Image.fromarray(grey).save(folder / f"IMG {number}.png")
        elif mode in ("P", "RGBA"):
            picture.convert(mode).save(folder / f"{number} (copy).PNG")
        elif number % 4 == 0:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned by a right angle, to be turned back when shown
            turned = picture.transpose(Image.Transpose.ROTATE_90)
            turned.convert(mode).save(folder / f"DSC{number}.jpg", exif=exif, quality=95)
        else:
            picture.convert(mode).save(folder / f"{number}.jpeg", quality=95)
    (folder / "Thumbs.db").write_bytes(b"no image")


def photo_commands() -> list[str]:
    """The lines of the README's first code block."""
    block = re.findall(r"^```\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.M)[0]
    return block.splitlines()


@pytest.fixture
def photos(tmp_path: Path, glyphs: Dataset) -> Path:
    """The folders that the README speaks of: twelve classes, another one, and photos to come."""
    names = iter(range(10_000))
    taken = {"A": "cup 2", "omega": "тарелка", "seven": "[bowl]"}
    taken |= {name: name for name in ("B", "E", "K", "P", "Q", "T", "X", "phi", "three")}
    for name, called in taken.items():
        members = glyphs.train.of_class(glyphs.label(name))[:100]
        _as_people_have_them(glyphs.train.pixels[members], tmp_path / "photos" / called, names)
    mug = glyphs.train.pixels[glyphs.train.of_class(glyphs.label("Z"))]
    _as_people_have_them(mug[:5], tmp_path / "mug-photos", names)
    _as_people_have_them(mug[5:25], tmp_path / "more-mug-photos", names)
    _as_people_have_them(mug[25:31], tmp_path / "new-photos", names)
    return tmp_path


def test_the_chain_runs_as_typed_in_the_readme(lowshot: RunCommand, photos: Path) -> None:
    commands = [shlex.split(line)[1:] for line in photo_commands()]
    typed = [line[0] for line in commands]
    assert typed == ["train-base", "imprint", "predict", "evaluate", "export", "classes"]
    for line in commands:
        arguments = line + (SHORTER if line[0] == "train-base" else [])
        result = lowshot(*arguments)
        assert result.exit_code == 0, (line, result.stderr)
        if line[0] == "evaluate":
            found = json.loads(lowshot(*line, "--json").stdout)[0]
            assert found["novel_accuracy"] > 20
        if line[0] == "predict":
            assert len(result.stdout.splitlines()) == 6
    classes = sorted(folder.name for folder in (photos / "photos").iterdir())
    base, model = (load(photos / "runs" / f"{n}.safetensors") for n in ("base", "imprinted"))
    assert base.meta.classes == model.meta.classes
    assert sorted(base.meta.classes) == classes
    assert (photos / "runs" / "export" / "model.onnx").is_file()
