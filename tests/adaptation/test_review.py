"""After teaching: which classes the new one is confused with, and which supports are unlike it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.adaptation.methods import Supports, make_proxies
from lowshot_cli.adaptation.review import (
    Outlier,
    Review,
    _support_margins,
    find_outliers,
    leave_one_out,
    review_classes,
)
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.models.embedder import embed
from tests.tiny_world import tiny_world


def _reviewed(model: Checkpoint, name: str) -> Review:
    """The review of one class, which is the same beside those of the others."""
    alone, *_ = review_classes(model, [name])
    together = review_classes(model, model.meta.novel_classes)
    assert alone in together
    return alone


def _taught(
    model: Checkpoint, name: str, support: Tensor, method: str, budget: float | None
) -> Checkpoint:
    """The model with a class of these supports `(k, D)`."""
    supports = Supports(support, lambda: support, lambda size: F.normalize(torch.ones(size), dim=0))
    made = [make_proxies(method, supports, each, Config()) for each in model.backgrounds]
    hashes = tuple(map(str, range(len(support))))
    record = SupportRecord(method=method, indices=(), files=None, pixel_hashes=hashes)
    return set_bias(model.with_class(name, torch.stack(made), support, record), budget)


def _typical(kind: str, name: str, count: int) -> Tensor:
    """Embeddings `(count, D)` that hardly differ from the mean of a class."""
    dataset, _, network = tiny_world(kind)
    mean = embed(network, dataset.train.pixels[dataset.train.of_class(dataset.label(name))]).mean(0)
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0))
    return F.normalize(mean / mean.norm() + 0.02 * noise, dim=1)


@pytest.mark.parametrize("method", ["imprint", "augmented", "whitened", "teen"])
def test_a_support_of_another_class_is_found_and_called_what_it_is(method: str) -> None:
    kind = "linear"
    _, base, _ = tiny_world(kind)
    budget = None if method == "imprint" else 2.0
    clean = _typical(kind, "f", 5)
    assert _reviewed(_taught(base, "f", clean, method, budget), "f").outliers == ()
    mixed = torch.cat([clean[:2], _typical(kind, "d", 1), clean[2:4]])
    found = _reviewed(_taught(base, "f", mixed, method, budget), "f")
    assert found.outliers == (Outlier(2, "d"),)
    assert found.n_support == 5


def test_a_support_may_be_of_a_class_that_was_taught_before() -> None:
    kind = "linear"
    _, base, _ = tiny_world(kind)
    other, clean = _typical(kind, "g", 5), _typical(kind, "f", 4)
    model = _taught(base, "g", other[:4], "whitened", 2.0)
    found = _reviewed(_taught(model, "f", torch.cat([clean, other[4:]]), "whitened", 2.0), "f")
    assert found.outliers == (Outlier(4, "g"),)


@pytest.mark.parametrize("kind", ["plain", "linear"])
def test_a_class_is_confused_with_those_that_lose_images_to_it(kind: str) -> None:
    _, base, _ = tiny_world(kind)
    model = _taught(base, "g", _typical(kind, "f", 5)[1:], "whitened", 30.0)  # a rival
    model = _taught(model, "f", _typical(kind, "f", 4), "whitened", 30.0)
    held, lost = model.holdout, Counter[str]()
    for head, embeddings, labels in zip(
        model.calibration_heads, held.parts(held.embeddings), held.parts(held.labels), strict=True
    ):
        right = head.base.predict(embeddings.float()) == labels
        taken = right & (head.predict(embeddings.float()) == model.position("f"))
        lost.update(model.meta.classes[i] for i in labels[taken].tolist())
    assert max(lost.values()) > 1
    named = _reviewed(model, "f").confused
    assert {one.name for one in named if one.lost} <= set(lost)
    assert {name for name, count in lost.most_common(1)} <= {one.name for one in named}
    for one in named:
        assert one.lost == lost[one.name]
        counted = held.calibrating(held.labels) == model.position(one.name)
        assert one.n_holdout == int(counted.sum())


@pytest.mark.parametrize("kind", ["linear", "adopted"])
def test_a_class_is_confused_with_those_that_get_its_supports(kind: str) -> None:
    _, base, _ = tiny_world(kind)
    # Half are like one class and half like another, so that neither half tells of the other.
    halves = torch.cat([_typical(kind, "b", 3), _typical(kind, "e", 3)])
    model = _taught(base, "f", halves, "imprint", None)
    found = _reviewed(model, "f")
    assert found.outliers == ()
    assert {one.name: one.won for one in found.confused} == {"b": 3, "e": 3}


def test_outliers_do_not_count_as_supports_that_a_class_gets() -> None:
    _, base, _ = tiny_world("linear")
    mixed = torch.cat([_typical("linear", "f", 6), _typical("linear", "d", 2)])
    found = _reviewed(_taught(base, "f", mixed, "whitened", 2.0), "f")
    assert {one.position for one in found.outliers} == {6, 7}
    assert all(one.won == 0 for one in found.confused)


def test_the_class_itself_is_no_rival_for_its_supports() -> None:
    _, base, _ = tiny_world("linear")
    model = _taught(base, "f", _typical("linear", "f", 4), "whitened", 2.0)
    assert model.position("f") not in _support_margins(model, 0)[1].tolist()


@pytest.mark.parametrize(("count", "method"), [(1, "whitened"), (2, "whitened"), (5, "random")])
def test_supports_that_cannot_judge_each_other_are_not_judged(count: int, method: str) -> None:
    _, base, _ = tiny_world("linear")
    model = _taught(base, "f", _typical("linear", "a", count), method, 2.0)
    found = _reviewed(model, "f")
    assert found.outliers == ()
    assert all(one.won == 0 for one in found.confused)


def test_a_base_class_has_no_supports_to_review() -> None:
    _, base, _ = tiny_world("plain")
    with pytest.raises(UsageError, match="'a' is a base class"):
        review_classes(base, ["a"])


@pytest.mark.parametrize("kind", ["plain", "linear"])
@pytest.mark.parametrize("at_once", [1, 10**6])
def test_each_support_is_left_out_of_the_proxy_that_judges_it(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowshot_cli.adaptation.review._AT_ONCE", at_once)
    background, support = tiny_world(kind)[1].backgrounds[0], _typical(kind, "f", 4)
    found = leave_one_out(support, "whitened", background)
    for number, proxy in enumerate(found):
        others = torch.cat([support[:number], support[number + 1 :]])
        supports = Supports(others, lambda: others, lambda size: others)  # noqa: B023
        expected = make_proxies("whitened", supports, background, Config())
        assert torch.allclose(proxy, expected, atol=1e-6)


def test_outliers_are_as_unlike_their_class_as_base_images_are() -> None:
    base = torch.arange(100).float()
    assert find_outliers(torch.tensor([-5.0, 41, 50, 39, -1]), base) == [2, 1]
    # Fewer supports judge each other less surely.
    assert find_outliers(torch.tensor([50.0, 0, 0]), base) == []
    assert find_outliers(torch.tensor([54.0, 0, 0]), base) == [0]
    # Where most are like base images, the class is.
    assert find_outliers(torch.tensor([80.0, 90, 95, 0, 0]), base) == []
    assert find_outliers(torch.tensor([500.0, 0, 0]), base[:9]) == []
    assert find_outliers(torch.empty(0), base) == []
