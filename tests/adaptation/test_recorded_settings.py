"""A checkpoint and its history say which settings made it, as they were used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lowshot_cli
from lowshot_cli.adaptation.bias import set_bias, without_class
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.photos import Photos
from tests.conftest import RunCommand, save_images


@pytest.fixture
def photos(glyphs: Dataset) -> Photos:
    index = glyphs.train.of_class(glyphs.label("omega"))[:4]
    return Photos(glyphs.train.pixels[index], tuple(Path(f"{n}.png") for n in range(4)))


def _about(path: Path) -> tuple[object, ...]:
    """Dataset, seed and whole settings that a checkpoint records, and those of its last step."""
    meta = load(path).meta
    step = meta.history[-1]
    return meta.config["dataset"], meta.config["seed"], step["command"], step["seed"]


def test_commands_record_the_dataset_that_they_were_not_told(
    lowshot: RunCommand, workdir: Path
) -> None:
    for typed, command, stage in (
        (["imprint", "--class", "omega", "--shots", "3", "--seed", "4"], "imprint", "imprinted"),
        (["finetune", "--steps", "5", "--seed", "4"], "finetune", "finetuned"),
    ):
        assert lowshot(*typed).exit_code == 0
        path = workdir / f"{stage}.safetensors"
        assert _about(path) == ("glyphs", 4, command, 4)
    base, tuned = load(workdir / "base.safetensors").meta, load(path).meta
    assert tuned.config["train_base"] == base.config["train_base"]
    assert tuned.config["image_size"] == base.config["image_size"]
    assert tuned.config["finetune"]["steps"] == 5
    assert tuned.config["finetune"] == tuned.history[-1]["options"]


def test_a_step_records_what_stood_for_the_settings_that_were_not_given(
    lowshot: RunCommand, workdir: Path, base: Checkpoint
) -> None:
    used = base.meta.history[0]["options"]
    assert used["precision"] in ("fp32", "bf16")
    assert (used["flip"], base.meta.config["train_base"]["flip"]) == (base.meta.mirror, None)
    assert base.meta.config["image_size"] == base.meta.image_size
    for method, budget in (("imprint", "none"), ("calibrated", 2)):
        assert lowshot("imprint", "--class", "omega", "--method", method).exit_code == 0
        options = load(workdir / "imprinted.safetensors").meta.history[-1]["options"]
        assert (options["shots"], options["max_forgetting"]) == (5, budget)
    assert options["method"] == "teen"
    assert lowshot("finetune", "--steps", "2").exit_code == 0
    options = load(workdir / "finetuned.safetensors").meta.history[-1]["options"]
    assert (options["freeze_base"], options["max_forgetting"]) == ("always", 2)


def test_a_later_step_leaves_the_settings_of_an_earlier_one(
    lowshot: RunCommand, workdir: Path
) -> None:
    typed = ["--class", "omega", "--shots", "3", "--method", "teen", "--max-forgetting", "4"]
    assert lowshot("imprint", *typed).exit_code == 0
    assert lowshot("finetune", "--steps", "2").exit_code == 0
    imprinted, tuned = (load(workdir / f"{n}.safetensors").meta for n in ("imprinted", "finetuned"))
    assert imprinted.config["imprint"] == tuned.config["imprint"] == tuned.history[1]["options"]
    assert tuned.config["imprint"]["method"] == "teen"


def test_photos_record_how_many_were_used_and_the_models_own_dataset(
    lowshot: RunCommand, workdir: Path, glyphs: Dataset
) -> None:
    index = glyphs.train.of_class(glyphs.label("omega"))[:4]
    save_images(glyphs.train.pixels[index], workdir / "mugs")
    typed = ["--class", "mug", "--images", workdir / "mugs"]
    assert lowshot("imprint", *typed).exit_code == 0
    path = workdir / "imprinted.safetensors"
    assert _about(path) == ("glyphs", 0, "imprint", 0)
    assert load(path).meta.history[-1]["options"]["shots"] == 4
    assert lowshot("imprint", *typed, "--shots", 2).exit_code == 0
    assert load(path).meta.history[-1]["options"]["shots"] == 2


def test_python_records_the_models_own_dataset(workdir: Path, photos: Photos) -> None:
    model = lowshot_cli.load(workdir / "base.safetensors")
    taught = model.imprint(photos.pixels, "mug", seed=7).finetune(steps=5)
    meta = taught.checkpoint.meta
    assert meta.config["dataset"] == "glyphs"
    assert [step["command"] for step in meta.history] == ["train_base", "imprint", "finetune"]
    assert meta.history[1]["seed"] == 7


def test_a_model_without_hold_out_records_the_method_it_was_really_taught_by(
    base: Checkpoint, photos: Photos
) -> None:
    empty = Holdout(base.holdout.embeddings[:0], base.holdout.labels[:0], base.holdout.right[:0])
    model = replace(base, holdout=empty)
    taught, _ = imprint_photos(model, base.network(), {"mug": photos}, Config())
    options = taught.meta.history[-1]["options"]
    assert (options["method"], options["max_forgetting"]) == ("imprint", "none")
    assert taught.meta.supports[-1].method == "imprint"


def test_photos_that_are_the_same_picture_are_counted_as_duplicates(
    base: Checkpoint, photos: Photos
) -> None:
    twice = Photos(torch.cat([photos.pixels] * 2), photos.files * 2)
    _, (draw,) = imprint_photos(base, base.network(), {"mug": twice}, Config())
    assert (draw.n_duplicates, draw.n_replaced) == (4, 0)


def test_the_budget_of_the_bias_stands_in_the_metadata(base: Checkpoint, photos: Photos) -> None:
    def taught(model: Checkpoint, name: str, **options: object) -> Checkpoint:
        config = Config.model_validate({"imprint": options})
        return imprint_photos(model, base.network(), {name: photos}, config)[0]

    assert base.meta.max_forgetting is None
    assert taught(base, "mug").meta.max_forgetting == 2
    assert taught(base, "mug", max_forgetting=7).meta.max_forgetting == 7
    assert taught(base, "mug", max_forgetting="none").meta.max_forgetting is None
    assert taught(base, "mug", method="imprint").meta.max_forgetting is None
    seven = taught(taught(base, "mug"), "cup", max_forgetting=7)
    five = Config.model_validate({"finetune": {"max_forgetting": 5, "steps": 2}})
    assert finetune(seven, five).meta.max_forgetting == 5
    left = without_class(seven, "mug")
    assert left.head.bias == set_bias(left, 7).head.bias != set_bias(left, 2).head.bias
    nobody = without_class(left, "cup")
    assert (nobody.head.bias, nobody.meta.max_forgetting) == (0, None)


def test_a_step_that_mentions_the_setting_does_not_change_the_budget(
    base: Checkpoint, photos: Photos
) -> None:
    config = Config.model_validate({"imprint": {"max_forgetting": 7}})
    model, _ = imprint_photos(base, base.network(), {"mug": photos}, config)
    noted = model.with_history("note", {"max_forgetting": 1})
    both, _ = imprint_photos(noted, base.network(), {"cup": photos}, config)
    assert without_class(both, "cup").head.bias == pytest.approx(model.head.bias)
