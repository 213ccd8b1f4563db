"""A class is not learnt from images that it is then tested on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.data.duplicates import NEAR, distances, supports_seen_in_test
from lowshot_cli.data.supports import draw_supports


def _leaky(glyphs: Dataset, name: str, places: list[int]) -> Dataset:
    """The dataset with some training images of a class put over its test images, a shade darker."""
    label = glyphs.label(name)
    pixels = glyphs.test.pixels.clone()
    own = glyphs.train.pixels[glyphs.train.of_class(label)[places]]
    pixels[glyphs.test.of_class(label)[: len(places)]] = (own.int() - 3).clamp(min=0).byte()
    return replace(glyphs, test=Images(pixels, glyphs.test.labels))


def test_distances_are_in_pixel_values() -> None:
    image = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    others = torch.stack([image[0] + 60, image[0] + 7])
    assert distances(image, others).item() == pytest.approx(7, abs=0.3)
    assert distances(image, image).item() < 0.3
    assert distances(image, others[:0]).isinf().all()


def test_near_test_images_are_found_by_position(glyphs: Dataset) -> None:
    assert len(supports_seen_in_test(glyphs, glyphs.label("omega"))) == 0
    leaky = _leaky(glyphs, "omega", [4, 70])
    assert supports_seen_in_test(leaky, glyphs.label("omega")).tolist() == [4, 70]
    assert NEAR > 3


def test_avoided_images_are_drawn_last_and_move_no_other_draw() -> None:
    plain = draw_supports(0, 3, range(200), 5, 30)
    avoiding = draw_supports(0, 3, range(200), 5, 30, avoided=[7, 9])
    assert not np.isin(avoiding, [7, 9]).any()
    untouched = ~np.isin(plain, [7, 9]).any(1)
    assert 20 < untouched.sum() < 200
    assert (plain[untouched] == avoiding[untouched]).all()
    for before, after in zip(plain, avoiding, strict=True):
        kept = [place for place in before if place not in (7, 9)]
        assert after[: len(kept)].tolist() == kept
    assert sorted(draw_supports(0, 3, [0], 30, 30, avoided=[7])[0].tolist()) == list(range(30))


def test_a_support_that_is_a_test_image_is_drawn_anew(base: Checkpoint, glyphs: Dataset) -> None:
    label = glyphs.label("omega")
    drawn = draw_supports(0, label, [0], 5, len(glyphs.train.of_class(label)))[0]
    leaky = _leaky(glyphs, "omega", [int(drawn[2])])
    meta = base.meta.model_copy(update={"dataset_hash": leaky.content_hash})
    config = Config(imprint=ImprintConfig(classes=("omega",)))
    _, (found,) = imprint_classes(replace(base, meta=meta), leaky, base.network(), config)
    members = glyphs.train.of_class(label).tolist()
    assert found.n_replaced == 1
    assert members[drawn[2]] not in found.indices
    kept = [members[place] for place in drawn if place != drawn[2]]
    assert list(found.indices[:4]) == kept
