"""A backbone's name that is not quite right is answered with the one that was meant."""

from __future__ import annotations

import pytest

from lowshot_cli.config.backbone_names import TORCHVISION
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import UsageError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("resent9", "resnet9"),
        ("ResNet18", "resnet18"),
        ("resnet50", "torchvision:resnet50"),
        ("ResNet-50", "torchvision:resnet50"),
        ("torchvision/resnet50", "torchvision:resnet50"),
        ("torchvision.models.resnet50", "torchvision:resnet50"),
        ("torchvison:resnet18", "torchvision:resnet18"),
        ("ViT-B/16", "torchvision:vit_b_16"),
        ("mobilenetv2", "torchvision:mobilenet_v2"),
        ("mobilenet_v3", "torchvision:mobilenet_v3_large"),
        ("efficientnet-b0", "torchvision:efficientnet_b0"),
        ("efficientnet", "torchvision:efficientnet_b0"),
        ("resnext50", "torchvision:resnext50_32x4d"),
        ("dense121", "torchvision:densenet121"),
        ("timm/resnet50.a1_in1k", "timm:resnet50"),
        ("hf-hub:timm/vit_small_patch16_224", "timm:vit_small_patch16_224"),
        ("vit_small_patch16_224", "timm:vit_small_patch16_224"),
        ("resnet50d", "timm:resnet50d"),
        ("tf_efficientnet_b0", "timm:tf_efficientnet_b0"),
    ],
)
def test_the_backbone_that_was_meant_is_proposed(given: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        load_config(None, "train_base", {"backbone": given})


@pytest.mark.parametrize("given", ["nonsense", "torchvision:", ":", "x"])
def test_nothing_is_proposed_for_what_resembles_no_backbone(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, "train_base", {"backbone": given})
    assert "did you mean" not in caught.value.message


def test_every_name_that_is_proposed_exists() -> None:
    from torchvision import models

    assert set(TORCHVISION) <= set(models.list_models(module=models))
