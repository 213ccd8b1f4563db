"""Full disks, Ctrl-C, damaged states and two processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.errors import LowshotError
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.storage.files import write_atomically
from lowshot_cli.storage.locks import LOCK, locked
from lowshot_cli.storage.tensors import read_tensors
from tests.conftest import RunCommand
from tests.faults.conftest import ROOT, Server, wait_until, write_config

BAD_INPUT, INTERRUPTED = 3, 130


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, server: Server, config: Path) -> Path:
    """A base model, and a class added to it."""
    folder = tmp_path_factory.mktemp("trained")
    server.run("train-base", "--config", config, cwd=folder)
    server.run("imprint", "--class", "Z", "--config", config, cwd=folder)
    return folder / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A work folder of the test's own."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


# Disks that are full


@pytest.mark.parametrize(
    "arguments",
    [
        ["imprint", "--class", "Z", "--shots", "3"],
        ["finetune"],
        ["classes", "rename", "Z", "zed"],
        ["train-base", "--overwrite"],
    ],
)
def test_a_full_disk_leaves_the_old_files(
    server: Server, config: Path, runs: Path, arguments: list[str]
) -> None:
    before = {path.name: path.read_bytes() for path in runs.glob("*.safetensors")}
    with_config = [] if arguments[0] == "classes" else ["--config", config]
    running = server.start(*arguments, *with_config, cwd=runs.parent, fsize=20_000)
    assert running.wait() == BAD_INPUT, running.stderr
    assert "Traceback" not in running.stderr
    assert running.stderr.strip().splitlines()[-2].startswith("error: cannot write")
    after = {path.name: path.read_bytes() for path in runs.glob("*") if path.name in before}
    assert after == before
    assert not list(runs.glob(".*"))


def test_a_sweep_on_a_full_disk_keeps_its_rows_and_goes_on(server: Server, runs: Path) -> None:
    sweep = ["sweep", "--trials", "260", "--novel", "6", "--shots", "1", "--method", "imprint"]
    running = server.start(*sweep, cwd=runs.parent, fsize=70_000)
    assert running.wait() == BAD_INPUT
    error, hint = running.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: cannot write to runs/sweep-")
    assert "continues" in hint
    (folder,) = runs.glob("sweep-*")
    server.run("sweep", "--resume", folder, cwd=runs.parent)
    resumed = (folder / "results.csv").read_bytes()
    shutil.rmtree(folder)
    server.run(*sweep, cwd=runs.parent)
    assert next(runs.glob("sweep-*/results.csv")).read_bytes() == resumed


def _has_own_disks() -> bool:
    answer = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    return answer.returncode == 0


@pytest.mark.skipif(
    shutil.which("unshare") is None or not _has_own_disks(), reason="no disks of one's own here"
)
@pytest.mark.parametrize("command", ["sweep", "predict"])
def test_a_disk_too_small_for_mapped_arrays_is_an_error_and_no_signal(
    runs: Path, tmp_path: Path, command: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = "sweep --trials 260 --novel 20 --save-models --workdir disk/runs"
    if command == "predict":
        arguments = "train-base --dataset folder --data-dir photos --backbone resnet9 "
        arguments += "--epochs 0 --holdout 2"
        for name in "ab":
            _photos(tmp_path / "photos" / name)
    script = (
        "mount -t tmpfs -o size=300k tmpfs disk && mkdir disk/runs && "
        f"cp runs/base.safetensors disk/runs && {sys.executable} -m lowshot_cli {arguments}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if command == "predict":
        environment["XDG_CACHE_HOME"] = str(disk)
    environment.pop("LOWSHOT_WORKDIR", None)
    answer = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in answer.stderr
    if command == "sweep":
        assert answer.returncode == BAD_INPUT, answer.stderr
        assert "No space left" in answer.stderr
    else:
        # A cache that is full is done without; the model is refused for its tiny data alone.
        assert answer.returncode >= 0, answer.stderr
        assert "No space left" not in answer.stderr


def _photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


# Ctrl-C


def _interrupt_training(server: Server, config: Path, folder: Path, times: int) -> tuple[int, str]:
    runs = folder / "runs"
    running = server.start("train-base", "--config", config, "--epochs", "60", cwd=folder)
    wait_until((runs / "base.state.safetensors").exists)
    for _ in range(times):
        os.kill(running.pid, signal.SIGINT)
        time.sleep(0.002)
    return running.wait(), running.stderr


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(
    server: Server, config: Path, tmp_path: Path
) -> None:
    status, told = _interrupt_training(server, config, tmp_path, 1)
    assert status == INTERRUPTED
    error, hint = told.strip().splitlines()[-2:]
    assert error.startswith("error: stopped in epoch")
    command = f"lowshot train-base --config {config} --epochs 60 --resume"
    assert hint == f"  -> `{command}` continues"
    read_tensors(tmp_path / "runs" / "base.state.safetensors")


def test_a_second_ctrl_c_ends_at_once_with_whole_files(
    server: Server, config: Path, tmp_path: Path
) -> None:
    status, told = _interrupt_training(server, config, tmp_path, 2)
    assert status == INTERRUPTED
    assert "Traceback" not in told
    for state in (tmp_path / "runs").glob("*.safetensors"):
        read_tensors(state)
    assert not list((tmp_path / "runs").glob(".*.tmp"))


def test_ctrl_c_while_a_class_is_imprinted_leaves_what_was_there(
    server: Server, config: Path, runs: Path
) -> None:
    before = (runs / "imprinted.safetensors").read_bytes()
    running = server.start("finetune", "--config", config, cwd=runs.parent)
    lock = runs / LOCK
    # It holds the name of its owner from when that is sure to remove it.
    wait_until(lambda: lock.exists() and lock.read_bytes() != b"")
    os.kill(running.pid, signal.SIGINT)
    assert running.wait() == INTERRUPTED
    assert running.stderr.strip() == "error: interrupted; existing files are intact"
    assert (runs / "imprinted.safetensors").read_bytes() == before
    assert not list(runs.glob(".*"))


def _swept(server: Server, trained: Path, folder: Path, *options: str) -> Path:
    """A work folder with a whole sweep, to be copied."""
    runs = Path(shutil.copytree(trained, folder / "runs"))
    server.run("sweep", *options, cwd=folder)
    return runs


@pytest.fixture(scope="module")
def many_trials(trained: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["--trials", "90", "--novel", "6", "--shots", "1,2", "--method", "imprint"]
    return _swept(server, trained, tmp_path_factory.mktemp("many"), *options)


@pytest.fixture(scope="module")
def few_trials(trained: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ["--trials", "3", "--novel", "2", "--shots", "1"]
    return _swept(server, trained, tmp_path_factory.mktemp("few"), *options)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.4999, 0.77, 0.9999])
def test_a_sweep_that_was_cut_off_within_a_row_redoes_it(
    server: Server, many_trials: Path, tmp_path: Path, kept: float
) -> None:
    runs = Path(shutil.copytree(many_trials, tmp_path / "runs"))
    (folder,) = runs.glob("sweep-*")
    rows = folder / "results.csv"
    whole = rows.read_bytes()
    # Somewhere within a row, as the disk has it after a crash.
    end = max(whole.index(b"\n") + 1, int(kept * len(whole)))
    rows.write_bytes(whole[: end - 1 if whole[end - 1 : end] == b"\n" and kept else end])
    server.run("sweep", "--resume", folder, cwd=runs.parent)
    assert rows.read_bytes() == whole


@pytest.mark.parametrize("left", [None, b"", b"method,sho"])
def test_a_sweep_that_was_cut_off_before_its_first_row_begins_again(
    server: Server, few_trials: Path, tmp_path: Path, left: bytes | None
) -> None:
    runs = Path(shutil.copytree(few_trials, tmp_path / "runs"))
    (folder,) = runs.glob("sweep-*")
    rows = folder / "results.csv"
    whole = rows.read_bytes()
    rows.unlink() if left is None else rows.write_bytes(left)
    server.run("sweep", "--resume", folder, cwd=runs.parent)
    assert rows.read_bytes() == whole


# Damaged training states


@pytest.fixture(scope="module")
def longer(server: Server, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of six epochs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("longer")
    server.run("train-base", "--config", config, "--epochs", "6", cwd=folder)
    return folder / "runs" / "base.safetensors"


@pytest.mark.parametrize("damage", ["truncated", "one bit"])
def test_a_damaged_state_falls_back_to_the_one_before(
    server: Server, config: Path, tmp_path: Path, longer: Path, damage: str
) -> None:
    command = ["train-base", "--config", config, "--epochs", "6"]
    state = tmp_path / "runs" / "base.state.safetensors"
    running = server.start(*command, cwd=tmp_path)
    wait_until(lambda: state.with_suffix(".previous.safetensors").exists() and state.exists())
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    content = bytearray(state.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[-5] ^= 4
    state.write_bytes(content)
    resumed = server.run(*command, "--resume", cwd=tmp_path)
    assert "warning: " in resumed.stderr
    assert str(state.relative_to(tmp_path)) in resumed.stderr
    assert "continuing from the state before it, epoch" in resumed.stderr
    assert (tmp_path / "runs" / "base.safetensors").read_bytes() == longer.read_bytes()
    assert not list(state.parent.glob("*.state*"))


def test_a_sweep_goes_on_with_its_training_from_the_state_before(
    server: Server, tmp_path: Path, trained: Path
) -> None:
    """A disk may fill up, or a kill come, between moving a state aside and writing the next."""
    sweep = {"trials": 1, "shots": [1], "novel": 1, "methods": ["imprint"], "train_base": True}
    config = write_config(tmp_path, sweep=sweep)
    state = tmp_path / "runs" / "base.state.safetensors"
    running = server.start("train-base", "--config", config, cwd=tmp_path)
    wait_until(state.exists)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    state.replace(state.with_suffix(".previous.safetensors"))
    said = server.run("sweep", "--config", config, cwd=tmp_path).stderr
    assert "training epoch 1/" not in said
    made = tmp_path / "runs" / "base.safetensors"
    assert load(made).digest == load(trained / "base.safetensors").digest


def test_two_damaged_states_are_an_error(server: Server, config: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("base.state", "base.state.previous"):
        (tmp_path / "runs" / f"{name}.safetensors").write_bytes(b"nothing")
    running = server.start("train-base", "--config", config, "--resume", cwd=tmp_path)
    assert running.wait() == BAD_INPUT
    assert "error: runs/base.state.safetensors is damaged" in running.stderr


def test_resuming_with_another_config_shows_the_difference(
    server: Server, config: Path, tmp_path: Path
) -> None:
    running = server.start("train-base", "--config", config, "--epochs", "60", cwd=tmp_path)
    wait_until((tmp_path / "runs" / "base.state.safetensors").exists)
    os.kill(running.pid, signal.SIGINT)
    running.wait()
    changed = ["--epochs", "60", "--lr", "0.3", "--width", "5", "--resume"]
    running = server.start("train-base", "--config", config, *changed, cwd=tmp_path)
    assert running.wait() == BAD_INPUT
    assert "train_base.width: 4 -> 5; train_base.lr: 0.2 -> 0.3" in running.stderr


# Two at once


def test_a_second_run_in_a_work_folder_is_refused_and_told_whose_it_is(
    server: Server, config: Path, runs: Path
) -> None:
    before = {path.name: path.read_bytes() for path in runs.iterdir()}
    with locked(runs):
        for command in (["imprint", "--class", "Z"], ["finetune"], ["train-base", "--overwrite"]):
            running = server.start(*command, "--config", config, cwd=runs.parent)
            assert running.wait() == BAD_INPUT
            owner = f"process {os.getpid()} on {os.uname().nodename}"
            assert f"error: runs is in use by {owner}" in running.stderr
    assert {path.name: path.read_bytes() for path in runs.iterdir()} == before


def test_the_lock_of_a_dead_process_is_taken_over(
    server: Server, config: Path, tmp_path: Path
) -> None:
    running = server.start("train-base", "--config", config, "--epochs", "60", cwd=tmp_path)
    wait_until((tmp_path / "runs" / LOCK).exists)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert (tmp_path / "runs" / LOCK).exists()
    server.run("train-base", "--config", config, cwd=tmp_path)
    assert not (tmp_path / "runs" / LOCK).exists()


def test_a_run_that_is_under_way_is_not_resumed_a_second_time(
    server: Server, few_trials: Path, tmp_path: Path
) -> None:
    runs = Path(shutil.copytree(few_trials, tmp_path / "runs"))
    (folder,) = runs.glob("sweep-*")
    with locked(folder):
        running = server.start("sweep", "--resume", folder, cwd=runs.parent)
        assert running.wait() == BAD_INPUT
    assert "is in use by process" in running.stderr


def test_a_lock_is_one_processs_alone(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LowshotError, match="in use"), locked(tmp_path):
        raise AssertionError
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_two_runs_that_share_the_cache_both_get_it_right(
    server: Server,
    runs: Path,
    lowshot: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them in a process of its own, the other in this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sweep = ["sweep", "--trials", "1", "--novel", "12", "--json"]
    running = server.start(*sweep, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert lowshot(*sweep).exit_code == 0
    assert running.wait() == 0
    first, second = (path.read_bytes() for path in sorted(runs.glob("sweep-*/results.csv")))
    assert first == second
    assert not list((tmp_path / "cache").rglob(".*.tmp"))


def test_what_a_killed_writer_left_is_cleared_away_but_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    abandoned = tmp_path / ".model.safetensors.abcdefgh.tmp"
    abandoned.write_bytes(b"half")
    code = (
        "import os, sys, time; from pathlib import Path; from lowshot_cli.storage.files import "
        "create_temporary; print(create_temporary(Path(sys.argv[1]))[1], flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "model.safetensors")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as writer:
        assert writer.stdout is not None
        written = Path(writer.stdout.readline().strip())
        write_atomically(tmp_path / "model.safetensors", b"whole")
        assert not abandoned.exists()
        assert written.exists()
        writer.kill()
    write_atomically(tmp_path / "model.safetensors", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_flipped_bit_in_a_checkpoint_is_noticed(
    runs: Path, lowshot: RunCommand, tmp_path: Path
) -> None:
    path = runs / "base.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    result = lowshot("evaluate", path)
    assert result.exit_code == BAD_INPUT
    assert "it is damaged: its checksum does not match" in result.stderr


def test_a_damaged_cache_entry_is_made_again(runs: Path, server: Server, tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = server.run("evaluate", "--json", cwd=runs.parent, env=cache).stdout
    entries = DiskCache(tmp_path / "cache" / "lowshot" / "embeddings", 1).entries()
    assert entries
    for entry in entries:
        content = bytearray(entry.path.read_bytes())
        content[-3] ^= 64
        entry.path.write_bytes(content)
    assert server.run("evaluate", "--json", cwd=runs.parent, env=cache).stdout == first
    load(runs / "base.safetensors")
