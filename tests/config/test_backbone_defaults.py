"""Defaults that depend on the backbone, and the backbone that depends on the dataset."""

from __future__ import annotations

import pytest

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import UsageError
from lowshot_cli.sweep.base_models import plan_base_models


def _resolved(**flags: object) -> TrainBaseConfig:
    return load_config(None, "train_base", flags).train_base


def test_photos_of_a_folder_get_a_pretrained_backbone_unless_another_is_named() -> None:
    assert _resolved().backbone == "resnet9"
    assert _resolved(dataset="glyphs").backbone == "resnet9"
    assert _resolved(dataset="folder").backbone == "efficientnet-lite0"
    assert _resolved(dataset="folder", backbone="resnet18").backbone == "resnet18"


def test_a_printed_config_shows_the_backbone_and_its_defaults() -> None:
    printed = load_config(None, "train_base", {"dataset": "folder"}).to_yaml()
    for line in ("backbone: efficientnet-lite0", "epochs: 0", "backbone_lr: 0.02", "cutout: 0"):
        assert f"\n  {line}\n" in printed


def test_a_pretrained_backbone_is_frozen_and_tuned_gently_by_default() -> None:
    own, scratch = _resolved(backbone="efficientnet-lite2"), _resolved()
    assert (own.epochs, own.lr, own.batch_size, own.warmup) == (0, 1.0, 64, 0.1)
    assert (own.backbone_lr, own.freeze_blocks, own.share) == (0.02, 3, 0.7)
    assert (own.weight_decay, own.cutout, own.crop, own.embedding_size) == (1e-4, 0, None, None)
    assert (scratch.epochs, scratch.lr, scratch.crop, scratch.embedding_size) == (32, 0.2, 3, 64)
    assert _resolved(backbone="efficientnet-lite2", epochs=3, lr=0.1).lr == 0.1


def test_a_pretrained_backbone_starts_from_its_own_weights_or_those_given() -> None:
    assert _resolved().start is None
    assert _resolved(dataset="folder").start == "DEFAULT"
    assert _resolved(dataset="folder", weights="mine.pth").start == "mine.pth"


def test_blending_needs_weights_to_blend_with() -> None:
    assert _resolved(blend=0.5, backbone="efficientnet-lite0").blend == 0.5
    assert _resolved(blend=1, weights="mine.pth").blend == 1
    for given in ({}, {"backbone": "torchvision:resnet50"}, {"dataset": "glyphs"}):
        with pytest.raises(UsageError, match=r"`blend`: needs `weights` to start from") as raised:
            _resolved(blend=0.5, **given)
        assert "\n" not in raised.value.message
    with pytest.raises(UsageError, match="`blend`: should be a number of at most 1 and above 0"):
        _resolved(blend=0, backbone="efficientnet-lite0")


def test_settings_that_were_left_alone_follow_the_backbone_of_each_base_model() -> None:
    given = TrainBaseConfig(batch_size=32)
    first, second = plan_base_models(
        Config(train_base=given), [], ["resnet9", "efficientnet-lite0"]
    )
    assert first.config.train_base == given
    own = second.config.train_base
    assert (own.batch_size, own.epochs, own.crop, own.embedding_size) == (32, 0, None, None)
