"""`lowshot serve` as a command: it tells its address, holds the folder, and ends well."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.workdir import furthest
from lowshot_cli.cli.commands import serve as command
from tests.conftest import RunCommand
from tests.faults.conftest import Server, wait_until
from tests.serve.asking import form
from tests.serve.conftest import files


@contextmanager
def serving(server: Server, folder: Path, end: signal.Signals) -> Iterator[HTTPConnection]:
    """A connection to a server in a process of its own, which a signal ends."""
    running = server.start("serve", "--workdir", folder, "--port", "0", cwd=folder.parent)
    try:
        wait_until(lambda: running.err.exists() and "until Ctrl-C" in running.stderr)
        port = running.stderr.split("http://127.0.0.1:")[1].split("/")[0]
        with closing(HTTPConnection("127.0.0.1", int(port), timeout=60)) as connection:
            yield connection
    except BaseException:
        end = signal.SIGKILL
        raise
    finally:
        os.kill(running.pid, end)
        ended = running.wait()
    assert ended == (-end if end == signal.SIGKILL else 0)
    assert "Traceback" not in running.stderr


def status(connection: HTTPConnection, method: str, target: str, body: bytes = b"") -> int:
    kind, _ = form([])
    connection.request(method, target, body, {"Content-Type": kind})
    response = connection.getresponse()
    response.read()
    return response.status


def test_a_class_taught_before_a_kill_is_there_after_it_and_ctrl_c_is_the_usual_end(
    server: Server, folder: Path, lowshot: RunCommand
) -> None:
    with serving(server, folder, signal.SIGKILL) as connection:
        assert status(connection, "POST", "/classes/f", form(files("f"))[1]) == 200
        held = lowshot("classes", "remove", "f", "--workdir", folder)
        assert (held.exit_code, "is in use by process" in held.stderr) == (3, True)
    assert furthest(folder)[1].novel_classes == ("f",)
    with serving(server, folder, signal.SIGINT) as connection:
        assert status(connection, "POST", "/undo") == 200
    assert furthest(folder)[0].name == "base.safetensors"
    assert not (folder / ".lowshot.lock").exists()


def test_a_termination_is_as_orderly_an_end_as_ctrl_c(server: Server, folder: Path) -> None:
    with serving(server, folder, signal.SIGTERM) as connection:
        assert status(connection, "GET", "/health") == 200
    assert not (folder / ".lowshot.lock").exists()


def test_a_file_that_is_not_there_is_named(lowshot: RunCommand, tmp_path: Path) -> None:
    found = lowshot("serve", "--checkpoint", tmp_path / "nope.safetensors", "--workdir", "nowhere")
    assert found.exit_code == 3
    assert "nope.safetensors" in found.stderr
    assert ".lowshot.lock" not in found.stderr


def test_without_the_extra_it_says_how_to_install_it(
    lowshot: RunCommand, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = lowshot("serve", "--workdir", folder)
    assert found.exit_code == 3
    assert "pip install 'lowshot-cli[serve]'" in found.stderr


def test_a_folder_without_a_model_says_what_makes_one(lowshot: RunCommand, tmp_path: Path) -> None:
    found = lowshot("serve", "--workdir", tmp_path)
    assert found.exit_code == 3
    assert "`lowshot train-base` makes the first" in found.stderr


def test_every_package_that_is_asked_for_is_one_of_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    (extra,) = [line for line in text.splitlines() if line.startswith("serve = ")]
    for name in command._PACKAGES:
        assert f'"{name.replace("_", "-")}>=' in extra
