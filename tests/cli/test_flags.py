"""Flags follow from the schema: each sets the setting of its name and says what the schema says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lowshot_cli.cli.flags import (
    ALL_SETTINGS,
    default_text,
    flag_name,
    range_text,
    reword,
    setting_flags,
)
from lowshot_cli.config.presentation import presentation
from lowshot_cli.config.schema import Config
from lowshot_cli.config.section import Section
from tests.conftest import RunCommand

SECTIONS = {"train_base": "train-base", "imprint": "imprint", "finetune": "finetune"} | {
    "sweep": "sweep"
}
# A value for each setting that is not its default, where one cannot be made from the default.
VALUES = {
    "classes": "apple,bus",
    "backbone": "resnet18",
    "embedding_size": 32,
    "weights": "DEFAULT",
    "input_size": 96,
    "resize": 300,
    "interpolation": "lanczos",
    "mean": "0.25,0.5,0.75",
    "std": "0.25",
    "backbone_lr": 0.5,
    "shots": "3,7",
    "method": "teen",
    "max_forgetting": 1.5,
    "novel_weight": 40.0,
    "novel": "apple,bus",
    "methods": "imprint,whitened",
    "split": "alphabetical",
    "scope": "full",
    "loss": "plain",
    "freeze_base": "never",
    "precision": "fp32",
    "dataset": "glyphs",
    "data_dir": "photos",
    "image_size": 64,
    "device": "cpu",
    "workdir": "elsewhere",
}


def _fields(section: str) -> dict[str, Any]:
    model = Config.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    return dict(model.model_fields)


def _flags() -> Iterator[tuple[str, str]]:
    needing_others = ("blend", "freeze_blocks")
    for section in SECTIONS:
        names = (flag.name for flag in setting_flags(section, ()))
        yield from ((section, name) for name in names if name not in needing_others)


@pytest.mark.parametrize(("section", "name"), list(_flags()), ids=".".join)
def test_a_flag_sets_its_setting_and_no_other(lowshot: RunCommand, section: str, name: str) -> None:
    command, field = SECTIONS[section], _fields(section)[name]
    before = yaml.safe_load(lowshot(command, "--print-config").stdout)
    value = VALUES.get(name, 7 if not isinstance(field.default, bool) else None)
    if (section, name) == ("imprint", "shots"):
        value = 3
    typed = [flag_name(name, field)] + ([] if value is None else [str(value)])
    result = lowshot(command, *typed, "--print-config")
    assert result.exit_code == 0, result.stderr
    after = yaml.safe_load(result.stdout)
    changed = after[section].pop(name)
    assert changed != before[section].pop(name)
    assert str(value if value is not None else True).split(",")[0] in str(changed)
    assert after == before


@pytest.mark.parametrize("name", ALL_SETTINGS)
def test_a_common_flag_sets_its_setting(lowshot: RunCommand, name: str) -> None:
    field = Config.model_fields[name]
    value = VALUES.get(name, 7 if name == "seed" else None)
    typed = [flag_name(name, field)] + ([] if value is None else [str(value)])
    found = yaml.safe_load(lowshot("evaluate", *typed, "--print-config").stdout)
    assert found[name] == (True if value is None else value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_described_in_one_place(section: str) -> None:
    for name, field in _fields(section).items():
        assert field.description, f"{section}.{name} is not described"
        assert field.description.endswith(".")
        if field.default is None and presentation(field).panel and not presentation(field).repeat:
            assert presentation(field).unset, f"{section}.{name}: what does no value mean?"


def test_defaults_and_ranges_are_shown_as_people_write_them() -> None:
    sweep, common = _fields("sweep"), Config.model_fields
    assert default_text(sweep["shots"]) == "1,5,10,20"
    assert default_text(sweep["drop_duplicates"]) == "off"
    assert default_text(common["workdir"]) == "runs"
    assert range_text(common["image_size"]) == "8 to 1024"
    assert range_text(common["seed"]) == ""
    assert range_text(_fields("finetune")["max_forgetting"]) == "0 to 100"


def test_settings_in_errors_of_the_engine_become_flags() -> None:
    flags = {"shots": "--shots", "replace": "--replace", "max_forgetting": "--max-forgetting"}
    assert reword("`shots` is 12, the class has 5 images", flags) == (
        "--shots is 12, the class has 5 images"
    )
    assert reword("`replace=True` imprints it again", flags) == "--replace imprints it again"
    assert reword("try `max_forgetting=1`", flags) == "try --max-forgetting 1"
    assert reword("`lowshot train-base` makes it, `none`", flags) == (
        "`lowshot train-base` makes it, `none`"
    )


def test_an_error_of_the_engine_names_the_flag_that_was_typed(lowshot: RunCommand) -> None:
    result = lowshot("evaluate", "--device", "cuda", "--workdir", "nowhere")
    assert result.exit_code == 3
    assert "`" not in result.stderr.replace("`lowshot train-base`", "")
