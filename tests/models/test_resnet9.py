"""The default network: its first layer, and how it pools."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.models.backbones import PooledConv, WhiteningConv
from lowshot_cli.models.head import CosineClassifier
from lowshot_cli.training.steps import TrainingSteps
from lowshot_cli.training.task import build_network, make_task


def _trained_norm(layer: PooledConv, seed: int = 0) -> nn.BatchNorm2d:
    """The BatchNorm of a layer, with weights of both signs and statistics as after training."""
    norm = layer[1]
    assert isinstance(norm, nn.BatchNorm2d)
    lots = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            assert values is not None
            values.copy_(torch.randn(len(values), generator=lots))
    return norm


def test_training_pools_before_it_normalises() -> None:
    layer = PooledConv(2, 4).train()
    images = torch.randn(8, 2, 6, 6)
    pooled = F.max_pool2d(layer[0](images), 2)
    assert torch.equal(layer(images), nn.BatchNorm2d(4).train()(pooled))
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {"0.weight", "1.bias"}


def test_both_orders_of_pooling_and_normalising_give_the_same_after_training() -> None:
    layer = PooledConv(2, 4)
    norm, images = _trained_norm(layer), torch.randn(8, 2, 6, 6)
    with torch.no_grad():
        norm.weight.abs_()
    layer.eval()
    assert torch.equal(layer(images), norm(F.max_pool2d(layer[0](images), 2)))


def test_an_older_model_whose_weights_of_batchnorm_were_trained_says_the_same_in_training() -> None:
    layer = PooledConv(2, 64)
    norm, images = _trained_norm(layer), torch.randn(8, 2, 6, 6)
    before = layer.eval()(images)
    assert bool((norm.weight < 0).any())
    assert torch.equal(layer.train().eval()(images), before)
    assert bool((norm.weight > 0).all())


@pytest.mark.parametrize("width", [1, 3, 32, 96])
def test_the_first_layer_makes_neighbouring_values_uncorrelated_with_either_sign(
    width: int,
) -> None:
    layer = WhiteningConv(width)
    images = F.avg_pool2d(
        torch.randn(64, 3, 34, 34, generator=torch.Generator().manual_seed(0)), 3, 1
    )
    layer.fit(images.split(10))
    inside = layer[0](images)[:, :, 1:-1, 1:-1].transpose(0, 1).flatten(1)  # (width, N)
    half = min(math.ceil(width / 2), 27)
    spread = torch.cov(inside[:half]).view(half, half)
    assert torch.allclose(spread, spread.diagonal().diag(), atol=1e-4)
    assert spread.diagonal().min() > 0.2
    assert torch.equal(layer[0].weight[math.ceil(width / 2) :], -layer[0].weight[: width // 2])


def test_the_first_layer_of_resnet9_is_set_from_images_and_stays(
    tiny_config: Config, glyphs: Dataset
) -> None:
    config = tiny_config.with_settings("train_base", classes=4, width=4, epochs=1)
    task = make_task(config.train_base, glyphs)
    network, _, _ = build_network(config.train_base, task, with_weights=False)
    first = network.backbone.get_submodule("early.0")
    set_to = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    steps = TrainingSteps(config, task, CosineClassifier(network, 4, network.trained_size).train())
    steps.take(0, torch.arange(steps.batch_size))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, set_to[name]), name
    assert torch.equal(set_to["1.running_var"], torch.ones(4)), "its BatchNorm changes nothing"
