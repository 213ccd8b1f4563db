"""SIGKILL while files are being written: nothing is lost, nothing half written, nothing left.

`pytest -n0 -s -m slow tests/faults/test_kills.py` makes 50 kills and says which writes they hit.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from tests.faults.conftest import SMALL, Running, Server, write_config

SWEEP = {"trials": 260, "shots": [1, 2], "novel": 6, "methods": ["imprint", "whitened"]}
# Kills of each of five commands that have to hit a write.
FEW, MANY = 2, 10


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def kill_at_write(running: Running, folder: Path, nth: int, seen: Callable[[], object]) -> bool:
    """Kill a command when it writes for the n-th time; False if it ended before.

    Args:
        running: the command.
        folder: watched for temporary files.
        nth: which write to hit.
        seen: a value that changes when a file grows in place.
    """
    writing, count, last = False, 0, seen()
    while True:
        try:
            os.kill(running.pid, 0)
        except ProcessLookupError:
            break
        now = seen()
        busy = bool(temporaries(folder)) or now != last
        last = now
        if busy and not writing:
            count += 1
            if count == nth:
                time.sleep(random.Random(nth).random() * 0.001)
                try:
                    os.kill(running.pid, signal.SIGKILL)
                except ProcessLookupError:
                    break
                break
        writing = busy
    return running.wait() == -signal.SIGKILL


def nothing() -> None:
    return None


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    longer = {**SMALL, "epochs": 4}
    return write_config(tmp_path_factory.mktemp("config"), train_base=longer, sweep=SWEEP)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: Server, config: Path) -> Path:
    """The folder that uninterrupted commands leave."""
    folder = tmp_path_factory.mktemp("whole")
    server.run("train-base", "--config", config, cwd=folder)
    server.run("imprint", "--class", "Z", "--config", config, cwd=folder)
    server.run("finetune", "--config", config, cwd=folder)
    server.run("sweep", "--config", config, cwd=folder)
    return folder / "runs"


def rows(folder: Path) -> bytes:
    (found,) = folder.glob("sweep-*/results.csv")
    return found.read_bytes()


def train_under_fire(server: Server, config: Path, folder: Path, kills: int) -> int:
    """Train while being killed `kills` times at least, resuming each time."""
    folder.mkdir()
    runs, hits, lots = folder / "runs", 0, random.Random(0)
    while True:
        state = runs / "base.state.safetensors"
        resumable = state.exists() or state.with_suffix(".previous.safetensors").exists()
        resume = ["--resume"] if resumable else []
        running = server.start("train-base", "--config", config, *resume, cwd=folder)
        if hits >= kills:
            assert running.wait() == 0, running.stderr
            return hits
        hits += kill_at_write(running, runs, lots.choice((1, 1, 2, 3)), nothing)
        assert len(temporaries(runs)) <= 1
        if (runs / "base.safetensors").exists():
            load(runs / "base.safetensors")
            shutil.rmtree(runs)


def replaced_under_fire(
    server: Server, arguments: list[object], path: Path, whole: Path, kills: int
) -> int:
    """Write a file of the chain again and again, killed every time."""
    hits, before = 0, path.read_bytes()
    for _ in range(max(16, 4 * kills)):
        running = server.start(*arguments, cwd=path.parent.parent)
        hits += kill_at_write(running, path.parent, 1, nothing)
        load(path)
        assert path.read_bytes() in (before, whole.read_bytes())
        assert len(temporaries(path.parent)) <= 1
        if hits >= kills:
            break
    server.run(*arguments, cwd=path.parent.parent)
    assert path.read_bytes() == whole.read_bytes()
    assert not temporaries(path.parent)
    return hits


def sweep_under_fire(server: Server, config: Path, base: Path, folder: Path, kills: int) -> int:
    runs = folder / "runs"
    runs.mkdir(parents=True)
    shutil.copy(base, runs)
    hits, lots = 0, random.Random(1)

    def size() -> int:
        return sum(path.stat().st_size for path in runs.glob("sweep-*/results.csv"))

    while True:
        started = list(runs.glob("sweep-*/run.json"))
        arguments = ["--resume", started[0].parent] if started else ["--config", config]
        running = server.start("sweep", *arguments, cwd=folder)
        if hits >= kills:
            assert running.wait() == 0, running.stderr
            return hits
        hits += kill_at_write(running, runs, lots.randint(1, 5), size)
        assert len(temporaries(runs)) <= 1
        for empty in runs.glob("sweep-*"):
            if not (empty / "run.json").exists():
                shutil.rmtree(empty)


def embed_under_fire(server: Server, folder: Path, whole: Path, kills: int) -> int:
    cache = folder / "cache"
    environment = {"XDG_CACHE_HOME": str(cache)}
    shutil.copytree(whole, folder / "runs")
    hits, lots = 0, random.Random(2)
    for _ in range(max(16, 4 * kills)):
        shutil.rmtree(cache, ignore_errors=True)
        running = server.start("evaluate", "--json", cwd=folder, env=environment)
        hits += kill_at_write(running, cache, lots.randint(1, 4), nothing)
        assert len(temporaries(cache)) <= 1
        found = server.run("evaluate", "--json", cwd=folder, env=environment)
        reference = server.run("evaluate", "--json", cwd=whole.parent)
        assert found.stdout == reference.stdout
        if hits >= kills:
            break
    return hits


def shell(server: Server, config: Path, whole: Path, folder: Path, kills: int) -> dict[str, int]:
    """Kill every command that writes, at least `kills` times each; how often writes were hit."""
    hits = {"train-base": train_under_fire(server, config, folder / "train", kills)}
    trained = folder / "train" / "runs" / "base.safetensors"
    assert trained.read_bytes() == (whole / "base.safetensors").read_bytes()
    assert not temporaries(trained.parent)
    assert not list(trained.parent.glob("*.state*"))

    chain = folder / "chain" / "runs"
    shutil.copytree(whole, chain)
    for name, arguments in (
        ("imprint", ["imprint", "--class", "Z", "--config", config]),
        ("finetune", ["finetune", "--config", config]),
    ):
        file = f"{name}ed.safetensors" if name == "imprint" else "finetuned.safetensors"
        hits[name] = replaced_under_fire(server, arguments, chain / file, whole / file, kills)

    base = whole / "base.safetensors"
    hits["sweep"] = sweep_under_fire(server, config, base, folder / "sweep", kills)
    assert rows(folder / "sweep" / "runs") == rows(whole)
    hits["cache"] = embed_under_fire(server, folder / "embed", whole, kills)
    return hits


def test_kills_at_a_write_lose_nothing(
    server: Server, config: Path, whole: Path, tmp_path: Path
) -> None:
    hits = shell(server, config, whole, tmp_path, FEW)
    assert min(hits.values()) >= FEW


@pytest.mark.slow
def test_fifty_kills_at_a_write_lose_nothing(
    server: Server, config: Path, whole: Path, tmp_path: Path
) -> None:
    hits = shell(server, config, whole, tmp_path, MANY)
    print(f"kills that hit a write: {hits}")
    assert sum(hits.values()) >= 50
