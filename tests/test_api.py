"""The Python interface does what the commands do."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lowshot_cli
import lowshot_cli.api
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import DataError, UsageError
from tests.conftest import RunCommand


@pytest.fixture
def photos(glyphs: Dataset, base: Checkpoint, tmp_path: Path) -> list[Path]:
    name = next(name for name in glyphs.class_names if name not in base.meta.classes)
    paths = []
    for number, index in enumerate(glyphs.train.of_class(glyphs.label(name))[:5].tolist()):
        paths.append(tmp_path / f"mug{number + 1}.png")
        Image.fromarray(glyphs.train.pixels[index].permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


def test_the_model_taught_in_python_is_the_one_that_the_command_makes(
    lowshot: RunCommand, workdir: Path, photos: list[Path]
) -> None:
    arguments = [part for path in photos for part in ("--images", path)]
    assert lowshot("imprint", "--class", "my mug", *arguments).exit_code == 0
    command = load(workdir / "imprinted.safetensors")
    model = lowshot_cli.load(workdir / "base.safetensors").imprint(photos, name="my mug")
    assert model.classes == command.meta.classes
    assert torch.equal(model.checkpoint.head.proxies, command.head.proxies)
    assert model.checkpoint.head.bias == command.head.bias
    assert model.checkpoint.meta.supports == command.meta.supports


def test_every_kind_of_image_is_the_same_image(workdir: Path, photos: list[Path]) -> None:
    model = lowshot_cli.load(workdir / "base.safetensors")
    picture = Image.open(photos[0])
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [photos[0], str(photos[0]), picture, array, array / 255, tensor, tensor / 255]
    embeddings = model.embed(kinds)
    for embedding in embeddings[1:]:
        torch.testing.assert_close(embedding, embeddings[0])


@pytest.mark.parametrize(
    "image",
    [
        np.full((4, 4, 3), 7.0),
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(4, 4),
        "absent.png",
    ],
)
def test_what_is_no_image_is_refused(workdir: Path, image: lowshot_cli.api.AnyImage) -> None:
    with pytest.raises(DataError):
        lowshot_cli.load(workdir / "base.safetensors").predict([image])


def test_the_bias_is_that_of_the_command(workdir: Path, photos: list[Path]) -> None:
    model = lowshot_cli.load(workdir / "base.safetensors")
    biases = {
        (method, budget): model.imprint(
            photos, "mug", method=method, max_forgetting=budget
        ).checkpoint.head.bias
        for method in ("imprint", "whitened")
        for budget in (None, 2.0, "none")
    }
    assert biases["imprint", None] == biases["imprint", "none"] == biases["whitened", "none"] == 0
    assert biases["whitened", None] == biases["whitened", 2.0] != 0
    assert biases["imprint", 2.0] != 0


def test_a_model_is_not_changed_by_what_is_made_of_it(workdir: Path, photos: list[Path]) -> None:
    model = lowshot_cli.load(workdir / "base.safetensors")
    taught = model.imprint(photos, name="mug")
    assert "mug" not in model.classes
    assert taught.predict(photos)[0].name == "mug"
    assert taught.remove("mug").classes == model.classes
    with pytest.raises(UsageError, match="already knows"):
        taught.imprint(photos, name="mug")
    with pytest.raises(UsageError, match="knows no class"):
        taught.remove("cup")
    taught.save(workdir / "with-mug.safetensors")
    assert lowshot_cli.load(workdir / "with-mug.safetensors").classes == taught.classes


def test_the_examples_of_the_interface_run(
    workdir: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workdir.parent
    monkeypatch.chdir(folder)
    shutil.copy(workdir / "base.safetensors", folder)
    for path in photos:
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".jpg"))
    result = doctest.testmod(lowshot_cli.api)
    assert result.attempted == 7
    assert result.failed == 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import lowshot_cli, sys; assert 'torch' not in sys.modules; lowshot_cli.load"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        lowshot_cli.absent  # noqa: B018
