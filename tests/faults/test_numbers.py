"""Settings and data that drive numbers out of bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.errors import CheckpointError
from tests.conftest import RunCommand

USAGE, BAD_INPUT = 2, 3


def test_a_huge_learning_rate_stops_before_it_spoils_what_was_learnt(
    lowshot: RunCommand, tiny_yaml: Path, tmp_path: Path
) -> None:
    result = lowshot("train-base", "--config", tiny_yaml, "--lr", "1e9", "--quiet")
    assert result.exit_code == BAD_INPUT
    error, hint = result.stderr.strip().splitlines()
    assert "not finite in epoch" in error
    assert "start again with a smaller --lr than 1e+09" in hint
    assert not (tmp_path / "runs" / "base.safetensors").exists()
    for state in (tmp_path / "runs").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(state).values())


@pytest.mark.parametrize("scope", ["full", "head"])
def test_a_huge_rate_of_fine_tuning_leaves_no_broken_model(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, scope: str
) -> None:
    typed = ["--workdir", workdir]
    assert lowshot("imprint", "--class", "Z", *typed).exit_code == 0
    rate = tmp_path / "rate.yaml"
    rate.write_text(json.dumps({"finetune": {"head_lr": 1e9, "lr": 1e9}}))
    result = lowshot("finetune", "--config", rate, "--scope", scope, *typed)
    if scope == "head":  # its rows are normalised after every step
        assert result.exit_code == 0, result.stderr
        load(workdir / "finetuned.safetensors")
    else:
        assert result.exit_code == BAD_INPUT
        assert "in epoch 1" in result.stderr
        assert "give a smaller --lr" in result.stderr
        assert not (workdir / "finetuned.safetensors").exists()


def test_a_model_that_could_not_be_read_again_is_not_written(
    base: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save(base, path)
    before = path.read_bytes()
    broken = torch.full_like(base.head.proxies, torch.nan)
    with pytest.raises(CheckpointError, match=r"head\.proxies holds numbers that are not finite"):
        save(replace(base, head=replace(base.head, proxies=broken)), path)
    assert path.read_bytes() == before


def _black(folder: Path, names: str, count: int) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / name / f"{number}.png")


def _train(lowshot: RunCommand, folder: Path, *more: object) -> tuple[int, str]:
    result = lowshot(
        *["train-base", "--dataset", "folder", "--data-dir", folder, "--image-size", "16"],
        *["--backbone", "resnet9", "--width", "4", "--epochs", "2", *more],
    )
    return result.exit_code, result.stderr


def test_black_images_make_a_model_that_works(lowshot: RunCommand, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    _black(folder, "abc", 30)
    status, told = _train(lowshot, folder, "--holdout", "4", "--classes", "a,b")
    assert status == 0, told
    data = ["--data-dir", folder]
    for method in ("whitened", "imprint", "teen", "augmented"):
        three = ["imprint", "--class", "c", "--shots", "3", "--method", method]
        taught = lowshot(*three, *data)
        if method != "teen" and taught.exit_code:  # where rounding leaves no direction at all
            assert taught.exit_code == BAD_INPUT
            assert "the images of 'c' have no direction of their own" in taught.stderr
        else:  # the directions of the base classes are added by `teen`
            assert taught.exit_code == 0, taught.stderr
            load(tmp_path / "runs" / "imprinted.safetensors")
    tuned = lowshot("finetune", *data)
    assert tuned.exit_code == 0, tuned.stderr
    load(tmp_path / "runs" / "finetuned.safetensors")
    assert lowshot("evaluate", *data).exit_code == 0
    assert lowshot("predict", folder / "a").exit_code == 0
    swept = lowshot("sweep", "--trials", "2", "--shots", "1", "--json", *data)
    assert swept.exit_code == 0, swept.stderr
    assert "NaN" not in swept.stdout


def test_one_image_a_class_and_one_class_say_what_is_needed(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    _black(tmp_path / "single", "ab", 1)
    status, told = _train(lowshot, tmp_path / "single")
    assert status == BAD_INPUT
    assert "has one image, training and testing need two" in told
    _black(tmp_path / "few", "ab", 3)
    status, told = _train(lowshot, tmp_path / "few")
    assert status == USAGE
    assert "give a --holdout below 2" in told
    _black(tmp_path / "one", "a", 30)
    status, told = _train(lowshot, tmp_path / "one", "--holdout", "4")
    assert status == USAGE
    assert "a base model needs" in told or "has 1 classes" in told
