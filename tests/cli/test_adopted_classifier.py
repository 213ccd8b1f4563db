"""The first commands of the README, as typed: a classifier is adopted, taught and given back."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images
from tests.pages import ROOT


def first_commands() -> list[str]:
    """The lines of the code block under the first heading about an adopted classifier."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("\n## Teach the classifier you have\n") :]
    return re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0].splitlines()


@pytest.fixture
def typed(lowshot: RunCommand, tmp_path: Path, glyphs: Dataset) -> list[list[str]]:
    """Photos where the commands look for them, and what the commands are given."""
    for folder, label, count in (("photos", 0, 12), ("mug-photos", 20, 5), ("new-photos", 20, 2)):
        images = glyphs.train.of_class(label)[-count:]
        save_images(glyphs.train.pixels[images], tmp_path / folder)
    return [shlex.split(line)[1:] for line in first_commands()]


def test_a_classifier_is_adopted_taught_used_and_given_back(
    lowshot: RunCommand, typed: list[list[str]], tmp_path: Path
) -> None:
    adopt, teach, use, give_back = typed
    result = lowshot(*adopt)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "classifier of 1,000 classes, as it was\n"
    assert "background: 12 photos" in result.stderr
    assert "shorter side to 256 (bicubic), centre crop to 224" in result.stderr
    found = lowshot(*teach, "--json")
    assert found.exit_code == 0, found.stderr
    record = json.loads(found.stdout)
    assert (record["n_background"], record["expected_forgetting"]) == (12, 0)
    assert "2 % of 12 background photos is less than one" in found.stderr
    found = lowshot(*use, "--json")
    assert "my mug" in {one["class"] for one in json.loads(found.stdout)}
    result = lowshot(*give_back)
    assert result.exit_code == 0, result.stderr
    runs = tmp_path / "runs"
    base, model = (load(runs / f"{name}.safetensors") for name in ("base", "imprinted"))
    state = load_file(runs / "export" / "model.safetensors")
    assert state["classifier.weight"].shape == (1001, 1280)
    assert (state["classifier.weight"][:1000] == base.head.proxies[:, :-1]).all()
    assert model.meta.classes == (*base.meta.classes, "my mug")


def test_without_a_background_imprint_says_what_to_do(
    lowshot: RunCommand, typed: list[list[str]]
) -> None:
    adopt, teach, *_ = typed
    assert lowshot(*adopt[:3]).exit_code == 0
    found = lowshot(*teach)
    assert "not calibrated: the class wins only what is very like its photos" in found.stdout
    assert "--background FOLDER calibrates it" in found.stdout
    found = lowshot(*teach, "--background", "photos", "--overwrite")
    assert found.exit_code == 0, found.stderr
    assert "decisions changed %" in found.stdout
    refused = lowshot("finetune")
    assert "--images; `Model.finetune` tunes new classes" in refused.stderr


def test_a_background_is_for_adopted_classifiers(
    lowshot: RunCommand, typed: list[list[str]]
) -> None:
    refused = lowshot("train-base", "--dataset", "glyphs", "--background", "photos")
    assert refused.exit_code == 2
    assert "--background is for a classifier that is adopted without images" in refused.stderr
