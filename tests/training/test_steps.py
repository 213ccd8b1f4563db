"""Steps of base training: whose weights are averaged, and what their images are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.models.head import CosineClassifier
from lowshot_cli.training.average import sample_number
from lowshot_cli.training.steps import TrainingSteps
from lowshot_cli.training.task import build_network, make_task
from lowshot_cli.training.train import train_base


def _steps(config: Config, dataset: Dataset, **settings: object) -> TrainingSteps:
    config = config.with_settings("train_base", classes=4, width=4, epochs=2, **settings)
    task = make_task(config.train_base, dataset)
    torch.manual_seed(0)
    network, size, _ = build_network(config.train_base, task, with_weights=False)
    return TrainingSteps(config, task, CosineClassifier(network, 4, size).train())


def _weights_after_each(steps: TrainingSteps) -> list[dict[str, Tensor]]:
    order, taken = steps.draw_order(0), []
    for step in range(steps.total):
        steps.take(step, order[: steps.batch_size])
        state = steps.trainee.state_dict()
        taken.append({name: tensor.clone() for name, tensor in state.items()})
    return taken


def test_every_tenth_step_of_the_last_third_counts_back_from_the_last() -> None:
    numbers = {step: sample_number(step, 100, 1 / 3) for step in range(100)}
    assert {step: n for step, n in numbers.items() if n} == {69: 1, 79: 2, 89: 3, 99: 4}


@pytest.mark.parametrize(("share", "expected"), [(0, []), (0.01, [6]), (1, [6])])
def test_the_last_step_of_a_short_training_counts_unless_none_does(
    share: float, expected: list[int]
) -> None:
    assert [step for step in range(7) if sample_number(step, 7, share)] == expected


def test_the_last_step_leaves_the_mean_of_the_weights_and_statistics(
    tiny_config: Config, glyphs: Dataset
) -> None:
    raw = _weights_after_each(_steps(tiny_config, glyphs, average=0))
    averaged = _weights_after_each(_steps(tiny_config, glyphs, average=0.9))
    assert len(raw) == 24
    for name, last in averaged[-1].items():
        assert torch.equal(averaged[-2][name], raw[-2][name]), "nothing changes before the end"
        if last.is_floating_point():
            mean = torch.stack([raw[step][name] for step in (3, 13, 23)]).mean(0)
            assert torch.allclose(last, mean, atol=1e-6), name
        else:
            assert torch.equal(last, raw[-1][name]), name
    assert not torch.allclose(averaged[-1]["proxies"], raw[-1]["proxies"], atol=1e-3)


def test_a_training_that_was_cut_off_after_its_last_step_needs_no_other(
    tiny_config: Config, glyphs: Dataset, tmp_path: Path
) -> None:
    config = tiny_config.with_settings("train_base", classes=4, width=4, epochs=2, average=0.9)
    state = tmp_path / "state.safetensors"
    whole = train_base(config, glyphs, state)
    resumed = train_base(config, glyphs, state, resume=True)
    assert torch.equal(whole.checkpoint.head.proxies, resumed.checkpoint.head.proxies)
    kept, again = whole.checkpoint.holdout, resumed.checkpoint.holdout
    assert torch.equal(kept.embeddings, again.embeddings)


def test_every_image_is_mirrored_in_every_second_epoch(
    tiny_config: Config, glyphs: Dataset
) -> None:
    steps = _steps(tiny_config, glyphs, flip=True, crop=0, cutout=0, mixup=0)
    chosen = torch.arange(64)
    first, second, third = (
        steps.make_batch(epoch * steps.per_epoch, chosen).images for epoch in range(3)
    )
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    plain = steps.task.normalisation.apply(steps.task.fit[chosen], torch.device("cpu"))
    as_they_are = (first == plain).flatten(1).all(1).sum().item()
    assert 20 < as_they_are < 44
