"""Several classes of photos, taught in one step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import DataError, UsageError
from lowshot_cli.models.embedding import EmbeddingNetwork
from tests.tiny_world import LINEAR, N_BASE, tiny_world

Model = tuple[Checkpoint, EmbeddingNetwork]


def _photos(place: int, count: int = 4) -> Photos:
    """The first images of a class that the base models do not know."""
    train = tiny_world("plain")[0].train
    pixels = train.pixels[train.of_class(N_BASE + place)[:count]]
    return Photos(pixels, tuple(Path(f"{place}/{number}.png") for number in range(count)))


def _config(**options: object) -> Config:
    return Config.model_validate({"imprint": options})


@pytest.fixture(params=["plain", *LINEAR[:1]])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_world(request.param)[1:]


@pytest.mark.parametrize("method", ["whitened", "augmented", "random"])
def test_together_or_one_after_the_other_is_the_same(model: Model, method: str) -> None:
    base, network = model
    config = _config(method=method)
    photos = {"mug": _photos(1, 3), "cup": _photos(0)}
    together, draws = imprint_photos(base, network, photos, config)
    assert together.novel_classes == tuple(draw.name for draw in draws) == ("cup", "mug")
    one = base
    for name in ("cup", "mug"):
        one, (draw,) = imprint_photos(one, network, {name: photos[name]}, config)
        assert draw in draws
    torch.testing.assert_close(together.head.proxies, one.head.proxies)
    torch.testing.assert_close(together.fold_proxies, one.fold_proxies)
    torch.testing.assert_close(together.supports, one.supports)
    assert together.head.bias == pytest.approx(one.head.bias, abs=1e-5)
    assert together.meta.supports == one.meta.supports


def test_one_step_of_the_history_names_all_classes(model: Model) -> None:
    base, network = model
    photos = {"cup": _photos(0), "mug": _photos(1, 3)}
    taught, _ = imprint_photos(base, network, photos, _config())
    assert len(taught.meta.history) == len(base.meta.history) + 1
    options = taught.meta.history[-1]["options"]
    assert (options["classes"], options["shots"]) == (["cup", "mug"], None)
    taught, draws = imprint_photos(base, network, photos, _config(shots=2))
    assert taught.meta.history[-1]["options"]["shots"] == 2
    assert [len(draw.described) for draw in draws] == [2, 2]


def test_the_class_with_too_few_photos_is_named(model: Model) -> None:
    photos = {"cup": _photos(0), "mug": _photos(1, 1)}
    with pytest.raises(UsageError, match=r"`shots` is 2, there is 1 image of 'mug'"):
        imprint_photos(*model, photos, _config(shots=2))


def test_a_picture_of_two_classes_is_refused(model: Model) -> None:
    mixed = torch.cat([_photos(1).pixels, _photos(0).pixels[2:3]])
    other = Photos(mixed, tuple(Path(f"mug/{number}.png") for number in range(5)))
    with pytest.raises(DataError, match=r"0/2\.png of 'cup' and mug/4\.png of 'mug'"):
        imprint_photos(*model, {"cup": _photos(0), "mug": other}, _config())


def test_known_classes_are_replaced_only_when_asked(model: Model) -> None:
    base, network = model
    first, _ = imprint_photos(base, network, {"cup": _photos(0)}, _config())
    photos = {"cup": _photos(1), "mug": _photos(2)}
    with pytest.raises(UsageError, match="already knows 'cup'"):
        imprint_photos(first, network, photos, _config())
    again, _ = imprint_photos(first, network, photos, _config(), replace_known=True)
    fresh, _ = imprint_photos(base, network, photos, _config())
    assert torch.equal(again.head.proxies, fresh.head.proxies)
    assert again.head.bias == fresh.head.bias


def test_names_are_checked_as_those_of_commands_are(model: Model) -> None:
    for photos, said in (
        ({}, "at least one"),
        ({" ": _photos(0)}, "empty"),
        ({"\u00e9": _photos(0), "e\u0301": _photos(1)}, "twice"),
    ):
        with pytest.raises(UsageError, match=said):
            imprint_photos(*model, photos, _config())
