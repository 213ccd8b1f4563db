"""Training shared by several processes: the same steps, one voice, and no end without a word."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowshot_cli.checkpoint.format import load
from lowshot_cli.cli.torchrun import process_group
from lowshot_cli.config.schema import Config, FinetuneConfig
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.models.head import CosineClassifier, Head
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.distributed import ALONE, ProcessGroupView
from lowshot_cli.training.finetune_network import NetworkData, finetune_network
from lowshot_cli.training.steps import TrainingSteps
from lowshot_cli.training.task import build_network, make_task
from tests.faults.conftest import ROOT, SMALL, Running, Server, wait_until, write_config

TRAINING = {**SMALL, "width": 6, "epochs": 5, "cutout": 0, "lr": 0.1, "mixup": 0.1}


def _gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.contiguous() for n, p in module.named_parameters() if p.grad is not None}


def _one_step(ranks: ProcessGroupView, dataset: Dataset, training: bool) -> CosineClassifier:
    """Base training's, with every augmentation."""
    options = TrainBaseConfig(
        classes=4, width=8, embedding_size=16, batch_size=24, rotation=0.5, precision="fp32"
    )
    config = Config(dataset="glyphs", train_base=options)
    task = make_task(options, dataset)
    torch.manual_seed(0)
    network, size, _ = build_network(options, task, with_weights=False)
    trainee = CosineClassifier(network, 4 * len(task.names), size)
    steps = TrainingSteps(config, task, trainee.train(training), ranks)
    steps.take(0, steps.draw_order(0)[: steps.batch_size])
    return trainee


def train_gradients(ranks: ProcessGroupView, dataset: Dataset) -> dict[str, Tensor]:
    """Of one step of base training with BatchNorm in evaluation mode."""
    return _gradients(_one_step(ranks, dataset, training=False))


def first_means(ranks: ProcessGroupView, dataset: Dataset) -> dict[str, Tensor]:
    """Running means of the first BatchNorm after a step; what comes after it saw other batches."""
    buffers = dict(_one_step(ranks, dataset, training=True).named_buffers())
    return {"mean": buffers["network.backbone.early.1.1.running_mean"]}


def finetune_gradients(ranks: ProcessGroupView, dataset: Dataset) -> dict[str, Tensor]:
    """Of one step of fine-tuning on an odd number of images, and the rows after it."""
    options = TrainBaseConfig(classes=3, width=8, embedding_size=16)
    task = make_task(options, dataset)
    torch.manual_seed(0)
    network, size, _ = build_network(options, task, with_weights=False)
    network.eval()
    proxies = torch.nn.functional.normalize(torch.randn(4, size), dim=1)
    data = NetworkData(
        task.fit[::10], task.fit_labels[::10], task.fit[:3], torch.full((3,), 3), False
    )
    config = FinetuneConfig(
        scope="full", epochs=1, batch_size=999, distil=1.0, freeze_base="never", precision="fp32"
    )
    head, context = Head(proxies, 10.0, 3), RunContext(ranks=ranks)
    rows = finetune_network(network, head, data, config, seed=0, context=context)
    assert (len(data.base_labels) + 9) % 2
    return {"rows": rows, **_gradients(network)}


STEPS: dict[str, Callable[[ProcessGroupView, Dataset], dict[str, Tensor]]] = {
    "train-base": train_gradients,
    "finetune": finetune_gradients,
    "statistics": first_means,
}


def save_step(kind: str, path: str) -> None:
    """Called in each of the processes."""
    with process_group("cpu") as ranks:
        found = STEPS[kind](ranks, load_dataset(Config(dataset="glyphs")))
        ranks.require_leader()
        save_file(found, path)


@pytest.mark.parametrize("kind", STEPS)
def test_the_gradients_and_statistics_of_a_step_are_those_of_one_process(
    server: Server, glyphs: Dataset, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "step.safetensors"
    call = f"{__name__}:save_step"
    running = server.start(kind, path, cwd=tmp_path, ranks=2, call=call)
    alone = STEPS[kind](ALONE, glyphs)
    assert running.wait_all() == [0, 0], running.said(0)
    shared = load_file(path)
    assert shared.keys() == alone.keys()
    one, two = (torch.cat([g[name].flatten() for name in alone]) for g in (alone, shared))
    print(f"relative difference, {kind}: {(two - one).norm() / one.norm():.1e}")
    assert one.norm() > 0.01
    assert (two - one).norm() < 1e-6 * max(one.norm(), 1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finetuning = {"scope": "full", "epochs": 1, "lr": 0.01, "precision": "fp32"}
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder, train_base=TRAINING, finetune=finetuning, seed=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, server: Server, config: Path) -> Running:
    """A training by two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("shared")
    running = server.start("train-base", "--json", "--config", config, cwd=folder, ranks=2)
    assert running.wait_all() == [0, 0], running.said(0)
    running.folder = folder / "runs"  # type: ignore[attr-defined]
    return running


def _file(shared: Running) -> Path:
    return shared.folder / "base.safetensors"  # type: ignore[attr-defined,no-any-return]


def test_two_ranks_make_the_same_kind_of_file_as_one_and_the_first_alone_speaks(
    server: Server, config: Path, shared: Running, tmp_path: Path
) -> None:
    server.run("train-base", "--config", config, cwd=tmp_path)
    one, two = load(tmp_path / "runs" / "base.safetensors"), load(_file(shared))
    assert two.meta.model_copy(update={"base_counts": ()}) == one.meta.model_copy(
        update={"base_counts": ()}
    )
    assert one.base_accuracy is not None
    assert two.base_accuracy is not None
    assert min(one.base_accuracy, two.base_accuracy) > 40
    assert abs(one.base_accuracy - two.base_accuracy) < 15
    out, err = shared.said(0)
    assert json.loads(out)["base_accuracy"] == pytest.approx(two.base_accuracy)
    assert "epoch 5/5" in err
    assert shared.said(1) == ("", "")
    log = (_file(shared).parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log].count("end") == 1
    assert {path.name for path in _file(shared).parent.iterdir()} == {
        "base.safetensors",
        "log.jsonl",
    }


@pytest.mark.slow
def test_torchrun_itself_makes_the_same_bytes(
    config: Path, shared: Running, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "lowshot_cli", "train-base", "--config", str(config)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = tmp_path / "runs" / "base.safetensors"
    assert made.read_bytes() == _file(shared).read_bytes()


def _interrupted(
    server: Server, config: Path, folder: Path, *arguments: str, **job: Any
) -> Running:
    """A training that is interrupted once it has written a state to go on from."""
    state = folder / "runs" / "base.state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else 0
    running = server.start("train-base", "--config", config, *arguments, cwd=folder, **job)
    wait_until(lambda: state.exists() and state.stat().st_mtime_ns > before)
    for pid in running.pids:
        os.kill(pid, signal.SIGINT)
    return running


def test_ctrl_c_stops_all_ranks_and_resuming_ends_at_the_same_bytes(
    server: Server, config: Path, shared: Running, tmp_path: Path
) -> None:
    running = _interrupted(server, config, tmp_path, ranks=2)
    assert running.wait_all() == [130, 130]
    said = "".join(running.said(0) + running.said(1))
    assert said.count("error:") == said.count("nothing is lost") == 1
    assert "`torchrun --nproc-per-node 2 -m lowshot_cli train-base" in said
    assert "--resume` continues" in said
    resumed = server.start("train-base", "--config", config, "--resume", cwd=tmp_path, ranks=2)
    assert resumed.wait_all() == [0, 0]
    made = tmp_path / "runs" / "base.safetensors"
    assert made.read_bytes() == _file(shared).read_bytes()


def test_any_number_of_ranks_goes_on_with_a_training(
    server: Server, config: Path, shared: Running, tmp_path: Path
) -> None:
    assert _interrupted(server, config, tmp_path, ranks=2).wait_all() == [130, 130]
    assert _interrupted(server, config, tmp_path, "--resume").wait_all() == [130]
    resumed = server.start("train-base", "--config", config, "--resume", cwd=tmp_path, ranks=2)
    assert resumed.wait_all() == [0, 0]
    made = load(tmp_path / "runs" / "base.safetensors")
    assert made.meta.classes == load(_file(shared)).meta.classes


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_with_one_line(
    server: Server, config: Path, tmp_path: Path, victim: int
) -> None:
    running = server.start("train-base", "--config", config, cwd=tmp_path, ranks=2)
    state = tmp_path / "runs" / "base.state.safetensors"
    wait_until(state.exists)
    os.kill(running.pids[victim], signal.SIGKILL)
    statuses = running.wait_all()
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 130
    _, err = running.said(1 - victim)
    assert err.count("error: another rank has ended") == 1
    assert "--resume` continues" in err
    assert "Traceback" not in err
    assert state.exists()


def test_of_a_problem_that_all_ranks_have_one_tells(
    server: Server, config: Path, tmp_path: Path
) -> None:
    for arguments, problem, status in (
        (["train-base", "--config", config, "--batch-size", "31"], "shared evenly by 2 ranks", 2),
        (["train-base", "--config", config, "--lr", "1e9"], "not finite in epoch 1", 3),
        (["train-base", "--config", config, "--epochs", "0"], "but this command needs one", 2),
        (["train-base", "--config", config, "--epoch", "1"], "No such option", 2),
        (["finetune", "--scope", "head"], "but this command needs one", 2),
        (["evaluate"], "but this command needs one", 2),
    ):
        running = server.start(*arguments, cwd=tmp_path, ranks=2)
        assert status in running.wait_all()
        said = "".join(running.said(0) + running.said(1))
        assert said.count(problem) == 1, said
        assert said.lower().count("error:") == 1, said
        assert "Traceback" not in said


@pytest.mark.parametrize("batch_size", [128, 649])
def test_two_ranks_fine_tune_as_one_process_does(
    server: Server, config: Path, shared: Running, tmp_path: Path, batch_size: int
) -> None:
    """Of 650 samples the last batch may hold one, and so a rank has none."""
    heads = []
    for job in ({}, {"ranks": 2}):
        folder = tmp_path / str(len(heads))
        shutil.copytree(_file(shared).parent, folder / "runs")
        server.run("imprint", "--class", "Z", "--config", config, cwd=folder)
        tuning = ["finetune", "--config", config, "--batch-size", batch_size]
        running = server.start(*tuning, cwd=folder, **job)
        assert not any(running.wait_all()), running.said(1)
        heads.append(load(folder / "runs" / "finetuned.safetensors").head.proxies)
    before = load(tmp_path / "0" / "runs" / "imprinted.safetensors").head.proxies
    assert torch.allclose(*heads, rtol=0, atol=1e-5)
    assert not torch.allclose(before, heads[0], atol=1e-3)
