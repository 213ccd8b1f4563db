"""`--fit` decides how photos become squares, and the model's own framing where it is not given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lowshot_cli
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config
from lowshot_cli.data.framing import CROP, Framing, square
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.errors import ExitCode
from tests.conftest import RunCommand
from tests.tiny_world import make_dataset, make_linear_base

SQUARES = {"crop": CROP, "pad": Framing("pad")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three wide photos in `wide/`, and the squares they become in `crop/` and `pad/`."""
    lots = np.random.default_rng(0)
    for folder in ("wide", *SQUARES):
        (tmp_path / folder).mkdir()
    for number in range(3):
        coarse = lots.integers(0, 256, (4, 12, 3), dtype=np.uint8)
        wide = Image.fromarray(coarse).resize((90, 40), Image.Resampling.BICUBIC)
        wide.save(tmp_path / "wide" / f"{number}.png")
        for fit, framing in SQUARES.items():
            square(wide, 32, framing).save(tmp_path / fit / f"{number}.png")
    return tmp_path


def predicted(lowshot: RunCommand, *arguments: object) -> list[Any]:
    found = lowshot("predict", *arguments, "--json")
    assert found.exit_code == 0, found.stderr
    return [one["top"] for one in json.loads(found.stdout)]


def test_predict_frames_photos_as_the_model_does_or_as_asked(
    lowshot: RunCommand, workdir: Path, photos: Path
) -> None:
    cropped, padded = predicted(lowshot, "crop"), predicted(lowshot, "pad")
    assert cropped != padded
    assert predicted(lowshot, "wide") == cropped
    assert predicted(lowshot, "wide", "--fit", "pad") == padded
    path = workdir / "base.safetensors"
    model = load(path)
    meta = model.meta.model_copy(update={"framing": Framing("pad"), "format": 4})
    save(replace(model, meta=meta), path)
    assert predicted(lowshot, "wide") == padded
    assert predicted(lowshot, "wide", "--fit", "crop") == cropped
    found = [one.top for one in lowshot_cli.load(path)(photos / "wide")]
    assert found == [tuple(map(tuple, top)) for top in padded]


def test_imprint_frames_photos_as_asked(lowshot: RunCommand, workdir: Path, photos: Path) -> None:
    teach = ("imprint", "--class", "mug", "--images")
    taught = lowshot(*teach, "wide", "--fit", "pad")
    assert taught.exit_code == 0, taught.stderr
    assert "predict wide --fit pad" in " ".join(taught.stderr.split())
    hashes = load(workdir / "imprinted.safetensors").meta.supports[0].pixel_hashes
    for fit in SQUARES:
        lowshot(*teach, fit)
        again = load(workdir / "imprinted.safetensors").meta.supports[0].pixel_hashes
        assert (again == hashes) == (fit == "pad")


def test_classes_of_a_folder_are_framed_as_asked_or_as_the_model_does(
    lowshot: RunCommand, workdir: Path, photos: Path
) -> None:
    shutil.copytree("wide", "support/mug")
    model = lowshot_cli.load(workdir / "base.safetensors")
    expected = model.imprint("pad", "mug").checkpoint.meta.supports[0].pixel_hashes
    assert lowshot("imprint", "--images", "support", "--fit", "pad").exit_code == 0
    command = load(workdir / "imprinted.safetensors").meta
    meta = model.checkpoint.meta.model_copy(update={"framing": Framing("pad"), "format": 4})
    padded = replace(model, checkpoint=replace(model.checkpoint, meta=meta))
    taught = [padded.imprint(images).checkpoint.meta for images in ("support", {"mug": "wide"})]
    assert [one.supports[0].pixel_hashes for one in [command, *taught]] == [expected] * 3


def test_images_of_the_dataset_keep_the_framing_of_the_model(
    lowshot: RunCommand, workdir: Path
) -> None:
    refused = lowshot("imprint", "--class", "omega", "--fit", "pad")
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "the checkpoint was trained with --fit crop, not pad" in refused.stderr


def test_a_base_model_keeps_the_framing_of_its_dataset() -> None:
    padded = load_dataset(Config(dataset="glyphs", fit="pad"), 8)
    assert padded.framing == Framing("pad")
    assert load_dataset(Config(dataset="glyphs", fit="pad"), 8, framing=CROP).framing == CROP
    dataset = make_dataset(3, spread=80)
    assert make_linear_base(dataset).meta.format == 3
    model = make_linear_base(replace(dataset, framing=Framing("pad")))
    assert (model.meta.framing, model.meta.format) == (Framing("pad"), 4)
