"""Base training: resumed and repeated runs, schedules, and what the checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import save
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, Interrupted, TrainingError
from lowshot_cli.models.backbones import ResNet9
from lowshot_cli.models.embedder import embed
from lowshot_cli.progress import Progress
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.steps import one_cycle
from lowshot_cli.training.train import train_base


def _with(config: Config, **changes: object) -> Config:
    options = config.train_base.model_copy(update=changes)
    return config.model_copy(update={"train_base": options})


@pytest.fixture
def short(tiny_config: Config) -> Config:
    return _with(tiny_config, classes=4, epochs=2)


@pytest.mark.parametrize("stop_after", [1, 12, 13])
def test_a_resumed_run_ends_at_the_same_bytes(
    short: Config, glyphs: Dataset, tmp_path: Path, stop_after: int
) -> None:
    short = _with(short, average=0.9)
    state = tmp_path / "state.safetensors"
    whole = train_base(short, glyphs, tmp_path / "other.safetensors").checkpoint
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    with pytest.raises(Interrupted, match="nothing is lost"):
        train_base(short, glyphs, state, context=RunContext(should_stop=should_stop))
    assert state.is_file()
    resumed = train_base(short, glyphs, state, resume=True).checkpoint
    for name, checkpoint in {"whole": whole, "resumed": resumed}.items():
        save(checkpoint, tmp_path / f"{name}.safetensors")
    whole_bytes = (tmp_path / "whole.safetensors").read_bytes()
    assert whole_bytes == (tmp_path / "resumed.safetensors").read_bytes()


def test_another_seed_gives_another_model(short: Config, glyphs: Dataset, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    one = train_base(short, glyphs, state).checkpoint
    other = train_base(short.model_copy(update={"seed": 1}), glyphs, state).checkpoint
    assert one.meta.classes == other.meta.classes
    assert not torch.equal(one.head.proxies, other.head.proxies)


def test_resuming_with_another_config_shows_the_difference(
    short: Config, glyphs: Dataset, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        train_base(short, glyphs, state, context=RunContext(should_stop=lambda: True))
    with pytest.raises(CheckpointError, match=r"train_base\.lr: 0\.1 -> 0\.3"):
        train_base(_with(short, lr=0.3), glyphs, state, resume=True)
    assert state.is_file()


def test_resuming_without_a_state_says_so(short: Config, glyphs: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no training to resume"):
        train_base(short, glyphs, tmp_path / "absent.safetensors", resume=True)


def test_a_loss_that_is_not_finite_stops_before_the_step(
    short: Config, glyphs: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="not finite in epoch 1"):
        train_base(_with(short, lr=1e9), glyphs, tmp_path / "state.safetensors")


def test_what_a_library_s_network_leaves_to_chance_hangs_on_the_seed_alone(
    glyphs: Dataset, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ResNet9.forward

    def dropping(self: ResNet9, images: Tensor) -> tuple[Tensor, ...]:
        first, *stages = plain(self, images)
        return F.dropout(first, 0.5, self.training), *stages

    monkeypatch.setattr(ResNet9, "forward", dropping)
    options = tiny_config.train_base.model_copy(update={"classes": 3, "width": 4, "epochs": 1})
    config = tiny_config.model_copy(update={"train_base": options})
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        made.append(train_base(config, glyphs, tmp_path / "state").checkpoint)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0].head.proxies, made[1].head.proxies)


def test_training_learns_and_reports(short: Config, glyphs: Dataset, tmp_path: Path) -> None:
    reports: list[Progress] = []
    config = _with(short, epochs=6)
    result = train_base(
        config, glyphs, tmp_path / "s.safetensors", context=RunContext(on_progress=reports.append)
    )
    assert result.holdout_accuracy > 60
    assert reports[0].facts["loss"] > 1.2
    training = [report for report in reports if report.stage == "training"]
    assert training[-1].done == training[-1].total
    assert sum(report.milestone for report in training) == 6
    assert training[-1].facts["images_per_second"] > 0
    right, total = (sum(column) for column in zip(*result.checkpoint.meta.base_counts, strict=True))
    assert result.base_accuracy == pytest.approx(100 * right / total)


def test_turned_images_train_the_embedding_and_leave_no_rows(
    short: Config, glyphs: Dataset, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    plain, turned = (
        train_base(_with(short, rotation=share), glyphs, state).checkpoint for share in (0.0, 0.5)
    )
    assert turned.head.proxies.shape == plain.head.proxies.shape == (4, plain.head.size)
    assert not torch.allclose(turned.head.proxies, plain.head.proxies)


def test_the_checkpoint_holds_the_holdout_embeddings(base: Checkpoint, glyphs: Dataset) -> None:
    from lowshot_cli.data.splits import split_holdout

    labels = [glyphs.label(name) for name in base.base_classes]
    fit, holdout = split_holdout(glyphs.train, labels, 50)
    embedded = embed(base.network(), glyphs.train.pixels[holdout])
    assert torch.allclose(base.holdout.embeddings.float(), embedded, atol=1e-3)
    expected = (embedded @ base.head.proxies.T).argmax(1) == base.holdout.labels
    assert torch.equal(base.holdout.right, expected)
    assert len(fit) == 12 * 100


def test_the_learning_rate_rises_to_its_peak_and_falls() -> None:
    rates = [one_cycle(step, 1000, 0.2) for step in range(1000)]
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) == 200
    assert rates[:201] == sorted(rates[:201])
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert rates[-8:] == [0.01] * 8
    assert rates[-9] > 0.01
