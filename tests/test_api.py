"""The Python interface does what the commands do."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lowshot_cli
import lowshot_cli.api
from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.checkpoint.workdir import furthest
from lowshot_cli.config.values import CHAIN
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, DataError, UsageError
from lowshot_cli.evaluation.predict import Prediction
from lowshot_cli.models.embedder import fused
from tests.conftest import RunCommand
from tests.far_device import far_device


@pytest.fixture
def photos(glyphs: Dataset, base: Checkpoint, tmp_path: Path) -> list[Path]:
    name = next(name for name in glyphs.class_names if name not in base.meta.classes)
    paths = []
    for number, index in enumerate(glyphs.train.of_class(glyphs.label(name))[:5].tolist()):
        paths.append(tmp_path / f"mug{number + 1}.png")
        Image.fromarray(glyphs.train.pixels[index].permute(1, 2, 0).numpy()).save(paths[-1])
    return paths


@pytest.fixture
def model(workdir: Path) -> Model:
    return lowshot_cli.load(workdir / "base.safetensors")


@pytest.fixture
def taught(model: Model, photos: list[Path]) -> Model:
    return model.imprint(photos, "mug")


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


def test_several_classes_are_taught_from_a_mapping_a_folder_or_a_table(
    model: Model, photos: list[Path], tmp_path: Path
) -> None:
    for path, name in zip(photos, ["mug", "mug", "mug", "cup", "cup"], strict=True):
        (tmp_path / "support" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "support" / name)
    (tmp_path / "support.csv").write_text(
        "".join(f"{path},{'mug' if n < 3 else 'cup'}\n" for n, path in enumerate(photos))
    )
    given = {"mug": photos[:3], "cup": photos[3:]}
    taught = [
        model.imprint(images)
        for images in (given, tmp_path / "support", str(tmp_path / "support.csv"))
    ]
    for one in taught:
        assert one.classes[-2:] == ("cup", "mug")
        assert torch.equal(one.checkpoint.head.proxies, taught[0].checkpoint.head.proxies)
    with pytest.raises(UsageError, match="named beside a mapping"):
        model.imprint(given, "mug")
    with pytest.raises(UsageError, match="no class is named"):
        model.imprint(photos)


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


def test_one_image_gives_one_prediction_and_many_a_list(
    taught: Model, photos: list[Path], tmp_path: Path
) -> None:
    picture, array = Image.open(photos[0]), np.asarray(Image.open(photos[0]))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for one in (photos[0], str(photos[0]), picture, array, tensor, tensor / 255):
        found = taught.predict(one)
        assert isinstance(found, Prediction)
        assert found.top[0] == pytest.approx(taught([one])[0].top[0])
    folder = tmp_path / "many"
    folder.mkdir()
    for path in photos:
        shutil.copy(path, folder)
    for many in (photos, tuple(photos), iter(photos), folder, str(folder), [folder]):
        found = taught.predict(many)
        assert [Path(one.image).name for one in found] == [path.name for path in photos]
    for many in (np.stack([array] * 2), torch.stack([tensor] * 2)):
        assert [one.image for one in taught.predict(many)] == ["0", "1"]


def test_a_prediction_names_as_many_classes_as_asked_and_the_unknown(
    model: Model, photos: list[Path]
) -> None:
    assert len(model(photos[0], top=5).top) == 5
    assert not model(photos[0]).unknown
    assert [one.unknown for one in model(photos, false_alarm=100)] == [True] * 5
    with pytest.raises(UsageError, match="`top` is 0"):
        model(photos, top=0)
    with pytest.raises(UsageError, match="`false_alarm` is 101"):
        model(photos, false_alarm=101)


def test_probabilities_are_in_the_order_of_the_classes(taught: Model, photos: list[Path]) -> None:
    chances = taught.predict_proba(photos)
    assert (chances.shape, chances.dtype) == ((5, len(taught.classes)), torch.float32)
    assert torch.allclose(chances.sum(1), torch.ones(5))
    for one, row in zip(taught.predict(photos), chances, strict=True):
        assert one.name == taught.classes[int(row.argmax())]
        assert one.probability == pytest.approx(row.max().item())
    assert taught.predict_proba(photos[0]).shape == (1, len(taught.classes))
    assert taught.embed(photos[0]).shape == (1, taught.checkpoint.head.size)


def test_a_model_is_one_line_and_itself_alone(model: Model, taught: Model) -> None:
    assert repr(model) == "Model(resnet9, 12 base + 0 novel classes, cpu)"
    assert repr(taught) == "Model(resnet9, 12 base + 1 novel classes, cpu)"
    assert model == model  # noqa: PLR0124
    assert model != lowshot_cli.api.Model(model.checkpoint, model.network)
    assert len({model, taught, model}) == 2


def test_a_path_may_begin_with_a_home_and_is_never_empty(
    taught: Model, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    taught.save("~/mine.safetensors")
    assert lowshot_cli.load("~/mine.safetensors").classes == taught.classes
    assert not (tmp_path / "~").exists()
    shutil.copy(photos[0], tmp_path / "one.png")
    assert taught("~/one.png").top == taught(photos[0]).top
    for use in (taught, taught.save, taught.export, lowshot_cli.load):
        with pytest.raises(UsageError, match="a path is empty"):
            use("")


def test_the_image_that_cannot_be_read_is_named(taught: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: unknown image format"):
        taught([tmp_path / "bad.png"])


def test_a_class_is_learnt_again_where_that_is_asked_for(taught: Model, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="already knows") as caught:
        taught.imprint(photos[:2], "mug")
    assert caught.value.hint == "`replace=True` imprints it again"
    assert isinstance(caught.value, ValueError)
    again = taught.imprint(photos[:2], "mug", replace=True)
    assert again.classes == taught.classes
    assert len(again.checkpoint.supports[0]) == 2


def test_the_seed_draws_the_shots(model: Model, photos: list[Path]) -> None:
    def files(seed: int) -> tuple[str, ...] | None:
        return model.imprint(photos, "mug", shots=2, seed=seed).checkpoint.meta.supports[0].files

    drawn = {files(seed) for seed in range(8)}
    assert len(drawn) > 1
    assert all(chosen and len(chosen) == 2 for chosen in drawn)
    assert files(3) == files(3)
    with pytest.raises(UsageError, match="`shots` is 9, there are 5 images"):
        model.imprint(photos, "mug", shots=9)


def test_views_are_averaged_by_the_method_that_makes_them(model: Model, photos: list[Path]) -> None:
    few, many = (
        model.imprint(photos, "mug", method="augmented", views=views).checkpoint.head.proxies[-1]
        for views in (2, 10)
    )
    assert not torch.equal(few, many)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "imprnt"}, "`method`.*'imprint'"),
        ({"shots": 0}, "`shots`"),
        ({"max_forgetting": 101}, "`max_forgetting`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_a_setting_out_of_range_is_named(
    model: Model, photos: list[Path], settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        model.imprint(photos, "mug", **settings)


def test_finetuning_is_that_of_the_command(
    lowshot: RunCommand, workdir: Path, photos: list[Path], taught: Model
) -> None:
    typed = [part for path in photos for part in ("--images", path)]
    assert lowshot("imprint", "--class", "mug", *typed).exit_code == 0
    imprinted = ("--checkpoint", workdir / "imprinted.safetensors")
    assert lowshot("finetune", "--steps", 7, *imprinted).exit_code == 0
    command = load(workdir / "finetuned.safetensors")
    tuned = taught.finetune(steps=7)
    assert torch.equal(tuned.checkpoint.head.proxies, command.head.proxies)
    assert tuned.checkpoint.head.bias == command.head.bias
    assert not torch.equal(tuned.checkpoint.head.proxies, taught.checkpoint.head.proxies)


def test_finetuning_needs_a_novel_class(model: Model) -> None:
    with pytest.raises(UsageError, match="no novel class"):
        model.finetune()


def test_a_model_is_measured_on_images_with_labels(taught: Model, photos: list[Path]) -> None:
    labels = ["mug", "mug", "mug", taught.classes[0], taught.classes[1]]
    found = taught.evaluate(photos, labels)
    names = [one.name for one in taught.predict(photos)]
    assert found.novel_accuracy == 100 * sum(name == "mug" for name in names[:3]) / 3
    assert found.base_accuracy == 100 * ((names[3] == labels[3]) + (names[4] == labels[4])) / 2
    assert found.forgetting is None
    assert taught.evaluate(photos, "mug").novel_accuracy is not None
    with pytest.raises(DataError, match="5 images and 4 labels"):
        taught.evaluate(photos, labels[:4])
    with pytest.raises(UsageError, match="knows no class 'cup'"):
        taught.evaluate(photos, "cup")


def test_a_class_is_renamed(taught: Model, photos: list[Path]) -> None:
    renamed = taught.rename("mug", "blue mug")
    assert renamed(photos[0]).name == "blue mug"
    assert "mug" in taught.classes
    for name in (taught.classes[0], " "):
        with pytest.raises(UsageError):
            renamed.rename("blue mug", name)


def test_a_model_is_exported(taught: Model, tmp_path: Path) -> None:
    taught.export(tmp_path / "export", format="torch")
    written = {path.name for path in (tmp_path / "export").iterdir()}
    assert written == {"model.pt2", "labels.json", "README.md"}
    labels = json.loads((tmp_path / "export" / "labels.json").read_text())
    assert tuple(labels) == taught.classes


def test_a_device_is_kept_by_the_models_made_from_it(
    workdir: Path, photos: list[Path], taught: Model
) -> None:
    path = workdir / "base.safetensors"
    with far_device(doubles=False) as device:
        model = Model(load(path), fused(load(path).network()).to(device))
        far = model.imprint(photos, "mug").finetune(steps=3).rename("mug", "cup")
        assert far.device == device
        assert repr(far).endswith(f"{device})")
        assert far.embed(photos).device.type == "cpu"
        assert far(photos[0]).name == taught(photos[0]).name.replace("mug", "cup")
        far.save(workdir / "far.safetensors")
    assert lowshot_cli.load(workdir / "far.safetensors", device="auto").classes == far.classes


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "mps:1"])
def test_a_device_that_is_not_there_is_refused(workdir: Path, device: str) -> None:
    with pytest.raises(UsageError, match=r"GPU|`device`"):
        lowshot_cli.load(workdir / "base.safetensors", device=device)


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
    assert result.attempted == 9
    assert result.failed == 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import lowshot_cli, sys; assert 'torch' not in sys.modules; lowshot_cli.load"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        lowshot_cli.absent  # noqa: B018


def test_a_model_that_was_taught_here_has_its_place_in_a_work_folder(
    workdir: Path, glyphs: Dataset
) -> None:
    """It is a child of the file it was loaded from, as one that a command has made."""
    base, imprinted, finetuned = (workdir / f"{stage}.safetensors" for stage in CHAIN)
    pixels = list(glyphs.test.pixels[:3])
    opened = lowshot_cli.load
    taught = opened(base).imprint(pixels[:1], "mug")
    taught.imprint(pixels[1:2], "cup").save(imprinted)
    assert furthest(workdir)[0] == imprinted
    opened(imprinted).imprint(pixels[2:], "jug").save(imprinted)
    assert furthest(workdir)[0] == imprinted
    for path in (imprinted, finetuned):
        opened(path).finetune(steps=1).save(finetuned)
        assert furthest(workdir)[0] == finetuned
    opened(base).rename(taught.classes[0], "other").save(base)
    with pytest.raises(CheckpointError, match="is stale"):
        furthest(workdir)
