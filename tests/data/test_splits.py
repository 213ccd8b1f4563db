"""Every draw is a pure function of its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.splits import base_classes, class_order, split_holdout
from lowshot_cli.data.supports import draw_directions, draw_supports, sample_classes
from lowshot_cli.errors import UsageError


def test_the_seeded_order_is_the_class_incremental_fields(glyphs: Dataset) -> None:
    expected = np.random.RandomState(1993).permutation(len(glyphs.class_names))
    assert class_order(glyphs, "seeded", 1993) == [glyphs.class_names[i] for i in expected]
    assert class_order(glyphs, "alphabetical", 1993) == sorted(glyphs.class_names)


def test_fit_and_holdout_share_no_image_and_leave_none_out(glyphs: Dataset) -> None:
    labels = [3, 7, 11]
    fit, holdout = split_holdout(glyphs.train, labels, 50)
    assert len(holdout) == 150
    everything = torch.cat([glyphs.train.of_class(label) for label in labels])
    assert sorted(torch.cat([fit, holdout]).tolist()) == sorted(everything.tolist())
    for label in labels:
        assert int((glyphs.train.labels[holdout] == label).sum()) == 50


def test_a_draw_does_not_depend_on_the_other_trials() -> None:
    many = draw_supports(7, 3, range(100), 20, 500)
    assert (draw_supports(7, 3, [42], 20, 500)[0] == many[42]).all()


def test_fewer_shots_are_a_prefix_of_more() -> None:
    assert (
        draw_supports(0, 5, range(50), 5, 90) == draw_supports(0, 5, range(50), 20, 90)[:, :5]
    ).all()
    whole = draw_supports(0, 5, range(50), 90, 90)
    assert (whole[:, :20] == draw_supports(0, 5, range(50), 20, 90)).all()


def test_a_support_never_holds_an_image_twice_and_draws_are_even() -> None:
    drawn = draw_supports(1, 2, range(4000), 5, 20)
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=20)
    # 1000 expected for each image; the standard deviation is about 27.
    assert counts.min() > 850
    assert counts.max() < 1150


def test_seed_class_and_trial_each_change_the_draw() -> None:
    reference = draw_supports(0, 0, [0], 10, 500)
    for other in (draw_supports(1, 0, [0], 10, 500), draw_supports(0, 1, [0], 10, 500)):
        assert (other != reference).any()
    assert (draw_supports(0, 0, [1], 10, 500) != reference).any()


@pytest.mark.parametrize("shots", [0, 21])
def test_more_shots_than_images_are_refused(shots: int) -> None:
    with pytest.raises(UsageError, match="20 training images"):
        draw_supports(0, 0, [0], shots, 20)


def test_base_classes_are_counted_named_or_refused(glyphs: Dataset) -> None:
    assert len(base_classes(glyphs, None, "seeded", 1993)) == 40
    assert base_classes(glyphs, ("B", "A"), "seeded", 1993) == ("B", "A")
    with pytest.raises(UsageError, match="did you mean 'omega'"):
        base_classes(glyphs, ("omegaa", "A"), "seeded", 1993)
    with pytest.raises(UsageError, match="134 classes"):
        base_classes(glyphs, 135, "seeded", 1993)


def test_random_directions_are_unit_and_uniform() -> None:
    rows = draw_directions(0, 1, range(3000), 16)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3000), atol=1e-6)
    assert rows.mean(0).abs().max() < 0.03
    covariance = rows.T @ rows / 3000
    assert (covariance - torch.eye(16) / 16).abs().max() < 0.01


def test_sampled_classes_keep_their_order() -> None:
    names = [f"c{i}" for i in range(30)]
    chosen = sample_classes(4, names, 7)
    assert len(set(chosen)) == 7
    assert list(chosen) == sorted(chosen, key=names.index)
