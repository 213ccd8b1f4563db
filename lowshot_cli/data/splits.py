"""Base classes and the hold-out: pure functions of the data and, for the class order, a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.errors import UsageError
from lowshot_cli.seeding import Stream, smallest_keys


def class_order(dataset: Dataset, split: str, seed: int) -> list[str]:
    """Class names in the order in which they become base classes; the rest are novel.

    `seeded` is `numpy.random.RandomState(seed).permutation(n_classes)`, with seed 1993 the usual
    class-incremental order of CIFAR-100 (Rebuffi et al., iCaRL, CVPR 2017); `alphabetical` sorts.
    """
    if split == "alphabetical":
        return sorted(dataset.class_names)
    order = np.random.RandomState(seed).permutation(len(dataset.class_names))
    return [dataset.class_names[label] for label in order]


def base_classes(
    dataset: Dataset, wanted: int | Sequence[str] | None, split: str, seed: int
) -> tuple[str, ...]:
    """The base classes in head order.

    Raises:
        UsageError: more classes than exist, fewer than two, or an unknown name.
    """
    total = len(dataset.class_names)
    if total < 2:
        raise UsageError(
            f"a base model needs at least two classes, the {dataset.name} dataset has one: "
            f"{', '.join(dataset.class_names)}",
            "add a folder for each other class",
        )
    if wanted is None:
        wanted = dataset.default_classes or total
    if isinstance(wanted, int):
        if not 2 <= wanted <= total:
            raise UsageError(
                f"`classes` is {wanted}, the {dataset.name} dataset has {total} classes",
                f"give a number from 2 to {total}",
            )
        return tuple(class_order(dataset, split, seed)[:wanted])
    for name in wanted:
        dataset.label(name)  # which refuses an unknown name
    if len(wanted) < 2:
        raise UsageError("a base model needs at least two classes", "name more in `classes`")
    return tuple(wanted)


def split_holdout(images: Images, labels: Sequence[int], per_class: int) -> tuple[Tensor, Tensor]:
    """Split the training images of the base classes into fit and hold-out.

    The hold-out depends on the data alone, not on the seed, so that models trained with different
    seeds are compared and calibrated on the same images.

    Returns:
        Indices of the fit and of the hold-out images, both int64, grouped by class in the order of
        `labels`.

    Raises:
        UsageError: a class has no image left to fit.
    """
    fit, holdout = [], []
    for label in labels:
        indices = images.of_class(label)
        if len(indices) <= per_class:
            raise UsageError(
                f"a base class has {len(indices)} training images, the hold-out takes {per_class}",
                f"give a `holdout` below {len(indices)}, or leave that class out of `classes`",
            )
        drawn = torch.from_numpy(smallest_keys(len(indices), len(indices), Stream.HOLDOUT, label))
        holdout.append(indices[drawn[:per_class].sort().values])
        fit.append(indices[drawn[per_class:].sort().values])
    return torch.cat(fit), torch.cat(holdout)


def relabel(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Map dataset labels to their positions in `classes`; -1 for a label that is not among them."""
    size = int(max(labels.max().item() if len(labels) else 0, *classes)) + 1
    table = torch.full((size,), -1, dtype=torch.int64)
    table[torch.tensor(classes)] = torch.arange(len(classes))
    return table[labels]
