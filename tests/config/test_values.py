"""What people write in configs and flags, and what they are told where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import ConfigError, UsageError
from tests.conftest import RunCommand


def _yaml(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seed: 1\ntrain_base: {epochs: 1}\ntrain_base: {epochs: 2}\n", "train_base", "2 and 3"),
        ("train_base:\n  epochs: 1\n  lr: 0.1\n  epochs: 2\n", "epochs", "2 and 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, key: str, lines: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' is given twice, in lines {lines}"):
        load_config(_yaml(tmp_path, text))


def test_a_name_in_two_sections_is_no_repetition(tmp_path: Path) -> None:
    config = load_config(_yaml(tmp_path, "train_base: {lr: 0.1}\nfinetune: {lr: 0.2}\n"))
    assert (config.train_base.lr, config.finetune.lr) == (0.1, 0.2)


def test_home_folders_are_found_in_yaml_and_in_flags(
    tmp_path: Path, lowshot: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(_yaml(tmp_path, "workdir: ~/w\ndata_dir: ~/photos\n"))
    assert config.workdir == tmp_path / "home" / "w"
    assert config.data_dir == tmp_path / "home" / "photos"
    for command in (["evaluate", "~/a.safetensors"], ["export", "--checkpoint=~/a.safetensors"]):
        result = lowshot(*command)
        assert str(tmp_path / "home" / "a.safetensors") in result.stderr


@pytest.mark.parametrize("given", ["0,5", "101", "-1", "nan", "a lot"])
def test_a_budget_out_of_range_is_answered_with_the_range(given: str) -> None:
    with pytest.raises(UsageError, match="points from 0 to 100, or none"):
        load_config(None, "imprint", {"max_forgetting": given})


def test_numbers_as_names_need_quotes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="put quotes around 0"):
        load_config(_yaml(tmp_path, "train_base: {classes: [0, 1]}\n"))
    named = load_config(_yaml(tmp_path, 'train_base: {classes: ["0", "1"]}\n'))
    assert named.train_base.classes == ("0", "1")
