"""What a library does to images before it classifies them, and what its classes are called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.models import get_model_weights

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.framing import Framing, square
from lowshot_cli.errors import UsageError
from lowshot_cli.models.evaluation import class_names, evaluation
from lowshot_cli.models.weights import Preprocessing


def _config(backbone: str, **settings: Any) -> Config:
    common = {name: settings.pop(name) for name in ("image_size", "fit") if name in settings}
    return Config.model_validate(
        {"dataset": "none", **common, "train_base": {"backbone": backbone, **settings}}
    )


def _applied(how: Preprocessing, picture: Image.Image) -> torch.Tensor:
    pixels = torch.frombuffer(
        bytearray(square(picture, how.side, how.framing).tobytes()), dtype=torch.uint8
    )
    pixels = pixels.reshape(1, how.side, how.side, 3).permute(0, 3, 1, 2)
    return how.normalisation.apply(pixels, torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = torch.randint(0, 256, (400, 301, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(noise.to(torch.uint8).numpy())


@pytest.mark.parametrize(
    "backbone",
    [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
        "torchvision:vit_b_16",
        "torchvision:efficientnet_b0",
        "timm:resnet18",
        "timm:tf_efficientnet_lite0",
        "timm:vit_base_patch16_clip_224.openai_ft_in1k",
        "timm:convnext_tiny.in12k_ft_in1k_384",  # squashed
        "efficientnet-lite0",
    ],
)
def test_images_are_those_of_the_library(backbone: str, picture: Image.Image) -> None:
    library, _, name = backbone.partition(":")
    if library == "torchvision":
        transform: Any = get_model_weights(name).DEFAULT.transforms()
    else:
        config = timm.get_pretrained_cfg(name or "tf_efficientnet_lite0").to_dict()
        transform = create_transform(**resolve_data_config({}, pretrained_cfg=config))
    ours = _applied(evaluation(_config(backbone)), picture)
    torch.testing.assert_close(ours, transform(picture), rtol=0, atol=2e-6)


def test_settings_go_before_the_library() -> None:
    found = evaluation(
        _config(
            "torchvision:resnet18",
            image_size=96,
            resize=100,
            interpolation="bicubic",
            mean="0.5",
            std="0.2,0.4,1",
        )
    )
    assert found.side == 96
    assert found.framing == Framing("crop", 100, "bicubic")
    assert found.normalisation.mean == (127.5, 127.5, 127.5)
    assert found.normalisation.std == (51, 102, 255)


def test_another_size_keeps_the_share_that_is_cropped() -> None:
    assert evaluation(_config("torchvision:resnet18", image_size=112)).framing.resize == 128


def test_photos_are_padded_where_the_user_says_so() -> None:
    assert evaluation(_config("torchvision:resnet18", fit="pad")).framing.fit == "pad"


def test_borders_that_timm_puts_around_images_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = replace(timm.get_pretrained_cfg("resnet18"), crop_mode="border")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: cfg)
    with pytest.raises(UsageError, match="images with borders"):
        evaluation(_config("timm:resnet18"))
    assert evaluation(_config("timm:resnet18", fit="pad")).framing.fit == "pad"


@pytest.mark.parametrize("mean", ["0.5,0.5", "123.7,116.3,103.5", "a,b,c", "0.1,nan,0.1"])
def test_means_that_are_no_shares_of_three_channels_are_refused(mean: str) -> None:
    with pytest.raises(ValueError, match="three numbers from 0 to 1, of red, green and blue"):
        TrainBaseConfig.model_validate({"mean": mean})


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        TrainBaseConfig.model_validate({"std": "0.2,0,0.2"})


def _names(**settings: Any) -> tuple[str, ...]:
    return class_names(TrainBaseConfig.model_validate(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "efficientnet-lite0"},
        {"backbone": "torchvision:resnet18", "weights": "DEFAULT"},
        {"backbone": "timm:resnet18", "weights": "DEFAULT"},
        {"backbone": "timm:resnet18", "weights": "model.pth", "class_names": "imagenet"},
    ],
)
def test_published_weights_have_the_names_of_imagenet(settings: dict[str, str]) -> None:
    names = _names(**settings)
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[134], names[517], names[999]) == (
        "tench",
        "crane bird",
        "crane",
        "toilet tissue",
    )


def test_larger_sets_of_timm_have_distinct_names() -> None:
    names = _names(backbone="timm:vit_tiny_patch16_224.augreg_in21k", weights="DEFAULT")
    assert len(set(names)) == len(names) == 21843


def test_names_are_those_that_settings_give(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cup\nmug\n")
    assert _names(class_names=str(tmp_path / "names.txt")) == ("cup", "mug")
    assert _names(classes="cup,plate") == ("cup", "plate")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "torchvision:resnet18", "weights": "m.pth"}, "outputs of m.pth have no name"),
        ({"classes": 3}, "`classes` is a number"),
        ({"classes": "a,b", "class_names": "n.txt"}, "both name the classes"),
    ],
)
def test_a_classifier_without_names_is_told_how_to_give_them(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        _names(**settings)
