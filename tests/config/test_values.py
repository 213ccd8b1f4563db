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


def test_a_key_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("seed: 1\n{{ name }}: 3\n", "seed: 1\n[a]: 1\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="the key in line 2 is no text"):
            load_config(path)


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


@pytest.mark.parametrize("text", ["sweep:\nseed: 3\n", "train_base: ~\nseed: 3\n", "", "# none\n"])
def test_an_empty_section_and_an_empty_file_have_no_settings(tmp_path: Path, text: str) -> None:
    path = _yaml(tmp_path, text)
    for section in (None, "train_base", "sweep"):
        config = load_config(path, section, {"seed": 3})
        assert config == load_config(None, None, {"seed": 3})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_mark_that_windows_puts_before_text_is_no_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("imprint: {classes: [café]}\n", encoding=encoding)
    assert load_config(path).imprint.classes == ("café",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ntrain_base:\n\tepochs: 3\n", "line 3 is indented with a tab"),
        ("train_base:\n  epochs: 3\n \tlr: 1\n", "line 3 is indented with a tab"),
        ("- seed: 1\n", "must contain `key: value` lines, not a list"),
        ("just words\n", "must contain `key: value` lines"),
        ("seed: 1: 2\n", "is not valid YAML: .* line 1"),
    ],
)
def test_what_is_no_config_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(_yaml(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("red,green", ("red", "green")),
        (' "red, blue" , green', ("red, blue", "green")),
        ('"40"', ("40",)),
        ('5" disk,"a ""b"""', ('5" disk', 'a "b"')),
    ],
)
def test_quotes_keep_a_comma_and_a_number_in_a_name(
    tmp_path: Path, given: str, names: tuple[str, ...]
) -> None:
    flags = load_config(None, "train_base", {"classes": given})
    assert flags.train_base.classes == names
    assert load_config(None, "sweep", {"novel": given}).sweep.novel == names
    (tmp_path / "printed.yaml").write_text(flags.to_yaml())
    assert load_config(tmp_path / "printed.yaml") == flags


def test_names_in_a_yaml_list_are_taken_as_they_are(tmp_path: Path) -> None:
    text = 'train_base: {classes: ["red, blue", "\\"a\\""]}\nimprint: {classes: "my, mug"}\n'
    config = load_config(_yaml(tmp_path, text))
    assert config.train_base.classes == ("red, blue", '"a"')
    assert config.imprint.classes == ("my, mug",)


@pytest.mark.parametrize("empty", [("--workdir", ""), ("--data-dir=",)])
def test_an_empty_path_is_not_the_current_folder(
    lowshot: RunCommand, empty: tuple[str, ...]
) -> None:
    result = lowshot("evaluate", *empty, "--print-config")
    assert result.exit_code == 2
    assert f"{empty[0].removesuffix('=')}: should not be empty" in result.stderr
    assert lowshot("evaluate", "--workdir", ".", "--print-config").exit_code == 0
