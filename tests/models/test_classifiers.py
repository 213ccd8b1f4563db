"""A classifier is read out of a state dict as it is, and makes the library's own logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.models.classifier import read_classifier
from lowshot_cli.models.pretrained import PretrainedBackbone
from lowshot_cli.models.weights import load_weights, read_weights

SHUFFLENET = "torchvision:shufflenet_v2_x0_5"
N_CLASSES = 7
State = dict[str, Tensor]


def _backbone(name: str, side: int = 32) -> PretrainedBackbone:
    backbone = build_backbone(name, 1, None, side)
    assert isinstance(backbone, PretrainedBackbone)
    return backbone


def _whole(backbone: PretrainedBackbone) -> nn.Module:
    """The library's model with random biases, which it would begin with at zero."""
    torch.manual_seed(0)
    whole = backbone.whole(N_CLASSES)
    with torch.no_grad():
        for name, tensor in whole.named_parameters():
            if name.endswith("bias"):
                tensor.copy_(torch.rand(tensor.shape))
    return whole.eval()


def _named(name: str, side: int) -> object:
    slow = [pytest.mark.slow] if "vit" in name or "convnext" in name or "swin" in name else []
    return pytest.param(name, side, marks=slow)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        _named("torchvision:resnet18", 32),
        _named("torchvision:mobilenet_v3_small", 32),
        _named("torchvision:vit_b_16", 32),
        _named("torchvision:convnext_tiny", 64),
        _named("torchvision:swin_t", 64),
        _named("timm:tf_efficientnet_lite0", 64),
        _named("timm:mobilenetv3_small_050", 64),
        _named("timm:vit_tiny_patch16_224", 224),
    ],
)
def test_the_classifier_makes_the_logits_of_the_library(name: str, side: int) -> None:
    backbone = _backbone(name, side)
    whole = _whole(backbone)
    load_weights(backbone, whole.state_dict(), "theirs")
    weight, bias = read_classifier(backbone, whole.state_dict())
    assert weight.shape == (N_CLASSES, backbone.embedding_size)
    assert bias.abs().min() > 0
    images = torch.rand(3, 3, side, side)
    with torch.no_grad():
        (features,) = backbone.eval()(images)
        torch.testing.assert_close(features @ weight.T + bias, whole(images), rtol=1e-5, atol=1e-5)


def test_the_classifier_of_the_package_is_that_of_its_weights() -> None:
    name = "efficientnet-lite0"
    tensors = read_weights(TrainBaseConfig(backbone=name))
    weight, bias = read_classifier(build_backbone(name, 1, None, 64), tensors)
    assert torch.equal(weight, tensors["classifier.weight"])
    assert torch.equal(bias, tensors["classifier.bias"])
    assert weight.shape == (1000, 1280)


@pytest.fixture(scope="module")
def state() -> State:
    """The state dict of a small network with seven classes."""
    return dict(_whole(_backbone(SHUFFLENET)).state_dict())


@pytest.mark.parametrize(
    ("suffix", "key", "prefix"),
    [
        (".pt", "state_dict", "module."),
        (".pth", "model_ema", "net.backbone."),
        (".safetensors", None, "_orig_mod."),
    ],
)
def test_it_is_read_from_any_file_and_wrapper(
    state: State, tmp_path: Path, suffix: str, key: str | None, prefix: str
) -> None:
    content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    path = tmp_path / f"model{suffix}"
    if key:
        torch.save({key: content, "epoch": 3}, path)
    else:
        save_file(content, path)
    tensors = read_weights(TrainBaseConfig(weights=str(path)))
    weight, bias = read_classifier(_backbone(SHUFFLENET), tensors)
    assert torch.equal(weight, state["fc.weight"])
    assert torch.equal(bias, state["fc.bias"])


def test_it_may_lie_within_the_layer_of_the_library(state: State) -> None:
    nested = {name.replace("fc.", "fc.1."): tensor for name, tensor in state.items()}
    assert nested.keys() != state.keys()
    weight, bias = read_classifier(_backbone(SHUFFLENET), nested)
    assert torch.equal(weight, state["fc.weight"])
    assert torch.equal(bias, state["fc.bias"])


def test_a_classifier_without_biases_has_zeros(state: State) -> None:
    without = {name: tensor for name, tensor in state.items() if name != "fc.bias"}
    assert not read_classifier(_backbone(SHUFFLENET), without)[1].any()


def test_halves_become_single_precision(state: State) -> None:
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    weight, bias = read_classifier(_backbone(SHUFFLENET), halves)
    assert weight.dtype == bias.dtype == torch.float32
    assert torch.equal(weight, halves["fc.weight"].float())


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({}, r"hold no classifier: fc\.weight is not in them"),
        ({"fc.0": (9, 1024), "fc.2": (5, 9)}, r"no classifier of one layer: it is fc\.0, fc\.2"),
        ({"fc": (5, 9)}, r"of this backbone's 1024 features: fc\.weight is \[5, 9\]"),
        ({"fc": (1, 1024)}, r"the classifier fc has one output, so it cannot tell classes apart"),
    ],
)
def test_what_is_no_linear_classifier_of_the_features_is_refused(
    state: State, layers: dict[str, tuple[int, int]], said: str
) -> None:
    others = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    rows = {f"{name}.weight": torch.rand(*shape) for name, shape in layers.items()}
    with pytest.raises(CheckpointError, match=said):
        read_classifier(_backbone(SHUFFLENET), {**others, **rows})


def test_a_classifier_that_is_not_finite_is_refused(state: State) -> None:
    broken = {**state, "fc.bias": torch.full((N_CLASSES,), torch.nan)}
    with pytest.raises(CheckpointError, match=r"fc\.bias holds numbers that are not finite"):
        read_classifier(_backbone(SHUFFLENET), broken)


def test_biases_of_another_number_than_the_rows_are_refused(state: State) -> None:
    broken = {**state, "fc.bias": torch.zeros(N_CLASSES - 1)}
    with pytest.raises(CheckpointError, match=r"fc\.bias is \[6\], but fc\.weight has 7 rows"):
        read_classifier(_backbone(SHUFFLENET), broken)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:squeezenet1_1",  # an activation after the last layer
        "timm:efficientvit_m0",  # a BatchNorm before it, which timm leaves out with it
        pytest.param("timm:deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),  # two heads
    ],
)
def test_logits_that_are_not_linear_in_the_features_are_refused(name: str) -> None:
    backbone = _backbone(name, 224)
    with pytest.raises(UsageError, match="not a linear function of its features"):
        read_classifier(backbone, _whole(backbone).state_dict())
