"""Sweeps on Ray: the same rows as in one process, whatever dies on the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.cli.main import app
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import Interrupted, LowshotError
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.progress import Progress
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.sweep import ray_executor, trials
from lowshot_cli.sweep.plan import TrialBatch
from lowshot_cli.sweep.run import RunOptions, SweepResult, sweep
from lowshot_cli.sweep.run_folder import ABOUT, MODELS, ROWS
from lowshot_cli.sweep.trials import BatchResult, Executor
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from tests.conftest import RunCommand
from tests.faults.conftest import SMALL, wait_until, write_config

ray = pytest.importorskip("ray")

TILED = ("imprint", "random", "augmented", "whitened", "teen", "finetune-head")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    # At nice 15, their default, they would wait for all that runs beside these tests.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    settings = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=2, logging_level=logging.CRITICAL, **settings)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Bench:
    """A small base model and what it takes to sweep it."""

    base: Checkpoint
    glyphs: Dataset
    embedder: Embedder
    config: Config

    def sweep(
        self,
        folder: Path,
        changes: dict[str, Any],
        *,
        executor: Executor = trials.run,
        context: RunContext = DEFAULT_CONTEXT,
        **options: Any,
    ) -> SweepResult:
        changed = self.config.sweep.model_copy(update=changes)
        return sweep(
            self.base,
            self.glyphs,
            self.config.model_copy(update={"sweep": changed}),
            self.embedder,
            folder,
            options=RunOptions(**options),
            executor=executor,
            context=context,
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and, in the work folder beside it, the base model that it describes."""
    folder = tmp_path_factory.mktemp("small")
    path = write_config(
        folder,
        finetune={"epochs": 1, "precision": "fp32"},
        sweep={"trials": 2, "novel": 4, "shots": [1, 5], "methods": ["imprint", "whitened"]},
    )
    command = ["train-base", "--config", str(path), "--workdir", str(folder / "runs"), "--quiet"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    return path


@pytest.fixture(scope="module")
def bench(small: Path, glyphs: Dataset) -> Bench:
    base = load(small.parent / "runs" / "base.safetensors")
    embedder = Embedder(base.network(), cache=DiskCache(small.parent / "embedded", 10**9))
    return Bench(base, glyphs, embedder, load_config(small))


def processes_below(pid: int) -> dict[int, str]:
    """What runs below a process: numbers and command lines."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if state[0] != "Z":
                parents[int(folder.name)] = int(state[1])
                commands[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
    below, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        below |= more
    return {child: commands[child] for child in below}


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to look."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def busy_workers(pid: int) -> list[int]:
    """Ray's workers below a process that are at a task."""
    return [child for child, line in processes_below(pid).items() if line.startswith("ray::_")]


def test_rows_models_and_tables_equal_the_local_ones(
    two_workers: None, bench: Bench, tmp_path: Path
) -> None:
    changes = {"methods": TILED, "trials": 80}
    found = []
    # The threads of a worker, of which there are two, and those of this process.
    for name, settings in (
        ("local", {"threads": 3}),
        ("ray", {"threads": 1, "executor": ray_executor.run}),
    ):
        result = bench.sweep(tmp_path / name, changes, save_models=True, **settings)
        contents = [(tmp_path / name / file).read_bytes() for file in (ROWS, MODELS)]
        summary = [getattr(result.summary, key) for key in ("cells", "paired", "classes")]
        found.append((contents, summary))
    assert found[0] == found[1]
    assert not list((tmp_path / "ray").glob("early-*"))


def test_a_killed_worker_costs_no_row(two_workers: None, bench: Bench, tmp_path: Path) -> None:
    changes = {"methods": ("imprint", "finetune-full"), "trials": 1, "shots": (5,), "novel": 2}
    bench.sweep(tmp_path / "local", changes)
    killed: list[int] = []

    def kill(report: Progress) -> None:
        if report.stage == "trials" and not killed:
            wait_until(lambda: bool(busy_workers(os.getpid())))
            killed.append(busy_workers(os.getpid())[0])
            os.kill(killed[0], signal.SIGKILL)

    bench.sweep(
        tmp_path / "ray", changes, executor=ray_executor.run, context=RunContext(on_progress=kill)
    )
    assert len(killed) == 1
    assert (tmp_path / "ray" / ROWS).read_bytes() == (tmp_path / "local" / ROWS).read_bytes()


def backwards(
    work: Iterable[tuple[int, TrialBatch]], *arguments: Any, **settings: Any
) -> Iterator[tuple[int, BatchResult]]:
    """An executor whose last batch comes in first."""
    return trials.run(reversed(list(work)), *arguments, **settings)


def test_rows_that_come_early_wait_for_their_turn_and_are_not_made_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"methods": ("imprint", "whitened", "random"), "trials": 3}
    whole, early = tmp_path / "whole", tmp_path / "early"
    expected = bench.sweep(whole, changes, save_models=True).summary
    asked = chain([False, False], repeat(True))
    context = RunContext(should_stop=lambda: next(asked))
    settings = {"save_models": True, "executor": backwards, "context": context}
    with pytest.raises(Interrupted, match="36 of 72 trials"):
        bench.sweep(early, changes, **settings)
    assert sorted(path.name for path in early.glob("early-*")) == [
        f"early-{number}.csv" for number in (3, 4, 5)
    ]
    made = []
    run_batch = trials.run_batch
    monkeypatch.setattr(
        trials, "run_batch", lambda *a, **k: made.append(a[0]) or run_batch(*a, **k)
    )
    found = bench.sweep(early, changes, resume=True).summary
    assert [batch.shots for batch in made] == [1, 1, 1]
    for name in (ROWS, MODELS):
        assert (early / name).read_bytes() == (whole / name).read_bytes()
    assert found.cells == expected.cells
    assert not list(early.glob("early-*"))


def test_a_damaged_early_file_is_made_again(bench: Bench, tmp_path: Path) -> None:
    changes = {"methods": ("imprint", "whitened"), "trials": 3}
    bench.sweep(tmp_path / "whole", changes)
    torn = tmp_path / "torn"
    with pytest.raises(Interrupted):
        bench.sweep(torn, changes, executor=backwards, context=RunContext(should_stop=lambda: True))
    (left,) = torn.glob("early-*")
    left.write_bytes(left.read_bytes()[:100])
    bench.sweep(torn, changes, resume=True)
    assert (torn / ROWS).read_bytes() == (tmp_path / "whole" / ROWS).read_bytes()


def test_a_resumed_sweep_has_as_many_threads_as_it_began_with(bench: Bench, tmp_path: Path) -> None:
    changes = {"trials": 1}
    bench.sweep(tmp_path, changes)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "threads": 2}))
    (tmp_path / ROWS).write_text((tmp_path / ROWS).read_text().split("\n")[0] + "\n")
    seen = []

    def watched(*arguments: Any, **settings: Any) -> Iterator[tuple[int, BatchResult]]:
        seen.append(settings["threads"])
        return trials.run(*arguments, **settings)

    bench.sweep(tmp_path, changes, resume=True, executor=watched)
    assert seen == [2]


def test_a_worker_that_fits_nowhere_is_an_error_in_one_line(
    two_workers: None, bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(LowshotError, match=r"no node .* room for a worker: 64 CPUs of 2"):
        sweep(
            bench.base,
            bench.glyphs,
            bench.config,
            bench.embedder,
            tmp_path,
            options=RunOptions(threads=64),
            executor=ray_executor.run,
        )


def test_a_base_model_for_each_class_order_is_trained_once_and_added_up(
    two_workers: None, small: Path, lowshot: RunCommand, tmp_path: Path
) -> None:
    command = ("sweep", "--config", small, "--class-order-seeds", "0,1", "--json")
    local = lowshot(*command, "--workdir", tmp_path / "local")
    on_ray = lowshot(*command, "--executor", "ray", "--workdir", tmp_path / "ray")
    assert (local.exit_code, on_ray.exit_code) == (0, 0), on_ray.output
    found = [json.loads(result.stdout) for result in (local, on_ray)]
    assert found[0]["cells"] == found[1]["cells"]
    for name in ("order-0-resnet9", "order-1-resnet9"):
        models = [tmp_path / run / name / "base.safetensors" for run in ("local", "ray")]
        assert models[0].read_bytes() == models[1].read_bytes()
    members = found[0]["base_models"]
    assert [one["class_order_seed"] for one in members] == [0, 1]
    for place, cell in enumerate(found[0]["cells"]):
        means = [one["cells"][place]["ncr_at_2"]["mean"] for one in members]
        assert cell["ncr_at_2"]["mean"] == pytest.approx(sum(means) / 2)
        assert cell["ncr_at_2"]["std"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
        assert cell["n_bases"] == 2

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("*/*")}
    again = lowshot(*command, "--executor", "ray", "--workdir", tmp_path / "ray")
    assert json.loads(again.stdout) == found[1]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("*/*")}
    assert after == before


def test_a_sweep_over_base_models_goes_on_where_it_stopped(
    small: Path, lowshot: RunCommand, tmp_path: Path
) -> None:
    command = ("sweep", "--config", small, "--class-order-seeds", "0", "--workdir", tmp_path)
    first = lowshot(*command)
    assert first.exit_code == 0, first.output
    (rows,) = tmp_path.glob("order-0-resnet9/sweep-*/results.csv")
    content = rows.read_bytes()
    (rows.parent / "results.json").unlink()
    rows.write_bytes(content[:-200])
    assert lowshot(*command).exit_code == 0
    assert rows.read_bytes() == content
    assert len(list(tmp_path.glob("order-0-resnet9/sweep-*"))) == 1
    other = lowshot(*command, "--config", _trained_longer(tmp_path))
    assert other.exit_code == 3
    assert "was trained with other settings than the config's: epochs: 3 -> 4" in other.stderr


def _trained_longer(folder: Path) -> Path:
    return write_config(folder, train_base={**SMALL, "epochs": 4})


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (("--ray-address", "auto"), "add --executor ray"),
        (("--gpus-per-worker", "0.5"), "add --executor ray"),
        (("--executor", "ray", "--gpus-per-worker", "1.5"), "a whole number"),
        (("--threads", "0"), "1 or more"),
        (("--class-order-seeds", "0,0"), "each entry once"),
        (("--class-order-seeds", "0,x"), "--class-order-seed: should be a whole number"),
        (("--backbones", "resnet10"), "did you mean 'resnet18'?"),
        (("--class-order-seeds", "0", "--checkpoint", "base.safetensors"), "cannot be combined"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    small: Path, lowshot: RunCommand, typed: tuple[str, ...], complaint: str
) -> None:
    result = lowshot("sweep", "--config", small, *typed)
    assert result.exit_code == 2
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "Connection refused"), ("head", "should be HOST:PORT or auto")],
)
def test_a_cluster_that_is_not_there_is_said_so_at_once(address: str, reason: str) -> None:
    with pytest.raises(LowshotError, match=f"no Ray cluster at {address}: .*{reason}"):
        ray_executor._connect(ray, address)


def test_without_ray_the_command_that_installs_it_is_named(
    small: Path, lowshot: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = lowshot("sweep", "--config", small, "--executor", "ray")
    assert result.exit_code == 2
    assert "pip install 'lowshot-cli[ray]'" in result.stderr


@pytest.fixture
def started(small: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A sweep on a cluster of its own that has some rows, and its run folder."""
    runs = tmp_path / "runs"
    shutil.copytree(small.parent / "runs", runs)
    command = [sys.executable, "-m", "lowshot_cli", "sweep", "--config", str(small)]
    command += ["--method", "imprint,finetune-full", "--trials", "3", "--shots", "5"]
    command += ["--workdir", str(runs), "--executor", "ray"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0)

    def rows() -> int:
        return sum(path.read_text().count("\n") for path in runs.glob("sweep-*/results.csv"))

    wait_until(lambda: rows() > 1 + 12 + 2 or process.poll() is not None, 120)
    (folder,) = runs.glob("sweep-*")
    yield process, folder
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _resumed(
    lowshot: RunCommand, small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Go on with a sweep here, compare it with an undisturbed one; batches that it had to do."""
    made = []
    run_batch = trials.run_batch
    monkeypatch.setattr(
        trials, "run_batch", lambda *a, **k: made.append(a[0]) or run_batch(*a, **k)
    )
    resumed = lowshot("sweep", "--resume", folder, "--workdir", folder.parent)
    assert resumed.exit_code == 0, resumed.output
    again = len(made)
    typed = ("--method", "imprint,finetune-full", "--trials", "3", "--shots", "5")
    base = ("--checkpoint", folder.parent / "base.safetensors", "--workdir", folder.parent / "o")
    whole = lowshot("sweep", "--config", small, *typed, *base)
    assert whole.exit_code == 0, whole.output
    (rows,) = (folder.parent / "o").glob("sweep-*/results.csv")
    assert (folder / ROWS).read_bytes() == rows.read_bytes()
    return again


def _finished_batches(folder: Path) -> int:
    lines = (folder / ROWS).read_text().split("\n")[1:-1]
    tiles = sum(line.startswith("imprint") for line in lines) // 12
    alone = sum(line.startswith("finetune-full") for line in lines)
    return tiles + alone + len(list(folder.glob("early-*.csv")))


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_no_finished_work_is_done_again(
    started: tuple[subprocess.Popen[str], Path],
    small: Path,
    lowshot: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, folder = started
    below = processes_below(process.pid)
    assert any("raylet" in line for line in below.values())
    process.kill()
    process.wait()
    # Two helpers of Ray look a minute or two for the rest before they end as well.
    wait_until(lambda: not any(is_running(pid) for pid in below), 240)
    finished = _finished_batches(folder)
    assert 1 < finished < 13
    assert _resumed(lowshot, small, folder, monkeypatch) == 13 - finished


@pytest.mark.slow
def test_ctrl_c_ends_command_and_cluster_and_says_how_to_go_on(
    started: tuple[subprocess.Popen[str], Path],
    small: Path,
    lowshot: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, folder = started
    below = processes_below(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert f"--resume {folder}` continues" in err
    assert "Traceback" not in err
    wait_until(lambda: not any(is_running(pid) for pid in below))
    finished = _finished_batches(folder)
    assert f"stopped after {12 + finished - 1} of 24 trials" in err
    assert _resumed(lowshot, small, folder, monkeypatch) == 13 - finished
