"""`predict -`: lists of images on standard input, and names of files as they come."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from lowshot_cli.cli.app import open_standard_streams
from lowshot_cli.cli.commands.predict import files_at, listed_paths
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.main import app
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images


@pytest.fixture
def photos(tmp_path: Path, glyphs: Dataset) -> list[Path]:
    save_images(glyphs.test.pixels[:2], tmp_path / "photos")
    return [tmp_path / "photos" / f"{number}.png" for number in range(2)]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb.png\n", ["a.png", "b.png"]),
        (b"a.png\r\n\r\nb.png", ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        (b" a .png\n\x0cb\xc2\x85.png\n", [" a .png", "\x0cb\x85.png"]),
        (b"a\nb\r\n.png\0c.png\0", ["a\nb\r\n.png", "c.png"]),
        (b"a.png\na.png\n", ["a.png", "a.png"]),
        (b"\n\n", []),
    ],
)
def test_a_list_has_a_name_a_line_or_between_nul_characters(
    content: bytes, names: list[str]
) -> None:
    assert listed_paths(content) == [Path(name) for name in names]


def test_names_in_a_list_are_bytes_as_names_of_files_are(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    (listed,) = listed_paths(name + b"\n")
    listed.touch()
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b"caf\xe9.png"]


def test_a_list_gets_a_result_a_line_and_images_that_are_typed_one_each(
    lowshot: RunCommand, workdir: Path, photos: list[Path]
) -> None:
    one, other = photos
    listed = f"{one}\n{other}\n{one}\n"
    found = json.loads(lowshot("predict", "-", "--json", input=listed).stdout)
    assert [each["image"] for each in found] == [str(one), str(other), str(one)]
    assert found[0] == found[2]
    assert len(json.loads(lowshot("predict", one, other, one, "--json").stdout)) == 2
    empty = lowshot("predict", "-", "--json", input="\n")
    assert (empty.exit_code, empty.stdout) == (0, "[]\n")
    assert "the list on stdin is empty" in empty.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("form", ["--json", "--csv", "--quiet"])
def test_a_name_that_is_no_utf_8_is_printed_in_any_encoding(
    lowshot: RunCommand,
    workdir: Path,
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    form: str,
) -> None:
    name = os.fsdecode("é 👩 caf".encode() + b"\xe9.png")
    shutil.copy(photos[0], name)
    stdin = io.TextIOWrapper(io.BytesIO(os.fsencode(name)), encoding="utf-8")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", stdout)
    open_standard_streams()
    get_command(app).main(["predict", "-", form], "lowshot", standalone_mode=False)
    stdout.flush()
    text = stdout.buffer.getvalue().decode(encoding)
    if form == "--json":
        assert json.loads(text)[0]["image"] == name
    else:
        escaped = name.encode(encoding, "backslashreplace").decode(encoding)
        assert escaped in text
        assert "\\u2588" not in text


def test_a_terminal_is_told_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO())
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert files_at(Config(), Output(), ["-"]) == []
    assert "type the names of images, one a line, then Ctrl-D" in capsys.readouterr().err
