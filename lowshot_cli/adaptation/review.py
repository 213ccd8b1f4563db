"""What may mislead a class that was taught: classes like it, and supports unlike the others.

One wrong photo among five ruins a proxy, and the others can tell which one it is. So each support
is scored by the proxy that the others make without it.

Sizes in shapes: k supports of the class, C base classes, n base images that set the bias, W novel
classes, D the size of an embedding, R that of a proxy, which is D or, with an offset, D + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowshot_cli.adaptation.methods import Supports, make_proxies
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.methods.background import Background
from lowshot_cli.models.head import as_read

# Fewer than this leave too little to judge the one that is left out.
LEAST_SHOTS = 3
# Confused classes that are worth naming: the budget of 2 points, spread evenly, costs each class
# 2 % of its images, and one image, or one support, may be chance.
MOST_NAMED, _WORTH_NAMING, _LEAST_COUNT = 3, 0.05, 2
_WORTH_NAMING_SUPPORTS = 0.2
# A support is an outlier if it looks less like its class than this share of base images do, and 1/k
# more, as fewer supports judge each other less surely. Chosen for a false alarm in a tenth
# of draws; a wrong photo of a base class looks as base images do, so most such photos are found.
_LIKE_BASE = 0.2
# Base images without which nothing is said about that.
_LEAST_IMAGES = 10
# How a proxy is made without one support, for the methods whose proxies follow their supports.
_LEFT_OUT = {"imprint": "imprint", "augmented": "imprint", "whitened": "whitened", "teen": "teen"}
# Numbers in the supports that are left in, at once: 128 MiB of fp32.
_AT_ONCE = 2**25


@dataclass(frozen=True)
class Confusion:
    """A class that the taught one is confused with.

    Attributes:
        name: the class.
        lost: its hold-out images that were right and now go to the taught class.
        n_holdout: its hold-out images; 0 for a novel class.
        won: supports that it gets if the taught class is learnt from the others.
    """

    name: str
    lost: int
    n_holdout: int
    won: int


@dataclass(frozen=True)
class Outlier:
    """A support that looks unlike the others.

    Attributes:
        position: among the supports of the class, from 0.
        resembles: the class that it looks like instead.
    """

    position: int
    resembles: str


@dataclass(frozen=True)
class Review:
    """What may mislead a class that was taught.

    Attributes:
        name: the class.
        n_support: number of its supports.
        confused: at most three classes that it is confused with, worst first.
        outliers: supports that look unlike the others, worst first.
        supports_won: how many supports no base class gets if the class is learnt from the others,
            beside a classifier that was adopted with a background; None beside other base classes,
            or with too few supports.
    """

    name: str
    n_support: int
    confused: tuple[Confusion, ...]
    outliers: tuple[Outlier, ...]
    supports_won: int | None = None


def review_classes(checkpoint: Checkpoint, names: Sequence[str]) -> list[Review]:
    """Find what novel classes are confused with, and which supports of each are unlike the others.

    Fewer than three supports do not judge each other, nor do random directions. Without hold-out
    images nothing tells how unlike is too unlike, so no outliers are found.

    Args:
        checkpoint: the model that knows the classes.
        names: the classes.

    Raises:
        UsageError: there is no such class, or it is a base class.
    """
    places = [checkpoint.position(name) - checkpoint.meta.n_base for name in names]
    for name, place in zip(names, places, strict=True):
        if place < 0:
            raise UsageError(f"{name!r} is a base class", "name one that was taught")
    margins, lost = _base_margins(checkpoint)
    return [_review(checkpoint, place, margins[:, place], lost[:, place]) for place in places]


@dataclass(frozen=True)
class Weakened:
    """A class taught earlier that is known less well, as all novel classes share one bias.

    Attributes:
        name: the class.
        before: its supports that it got, each judged by the others.
        after: those that it gets now.
        n_support: number of its supports.
    """

    name: str
    before: int
    after: int
    n_support: int


def weakened_classes(before: Checkpoint, after: Checkpoint) -> list[Weakened]:
    """The novel classes of a model that get fewer of their supports once it was taught more."""
    names = [name for name in before.novel_classes if name in after.novel_classes]
    counts = [(name, _kept_supports(before, name), _kept_supports(after, name)) for name in names]
    return [
        Weakened(name, was, now, len(before.supports[before.novel_classes.index(name)]))
        for name, was, now in counts
        if now < was
    ]


def _kept_supports(checkpoint: Checkpoint, name: str) -> int:
    """How many supports a class gets, each judged by the others; 0 if they cannot."""
    excess, _ = _support_margins(checkpoint, checkpoint.novel_classes.index(name))
    return int((excess <= checkpoint.head.bias).sum())


def _review(checkpoint: Checkpoint, place: int, margins: Tensor, lost: Tensor) -> Review:
    """The review of a novel class, given its columns of `_base_margins`."""
    excess, rivals = _support_margins(checkpoint, place)  # (k,), (k,)
    positions = find_outliers(excess, margins)
    lost_to = excess > checkpoint.head.bias  # a tie goes to the novel class
    to_base = lost_to & (rivals < checkpoint.meta.n_base)
    counted = lost_to.clone()
    counted[positions] = False  # each is named by itself
    n_classes = len(checkpoint.meta.classes)
    won = torch.bincount(rivals[counted], minlength=n_classes)
    held = checkpoint.holdout.calibrating(checkpoint.holdout.labels)
    totals = torch.bincount(held, minlength=n_classes)
    names, shots = checkpoint.meta.classes, len(checkpoint.supports[place])
    return Review(
        name=names[place + checkpoint.meta.n_base],
        n_support=shots,
        confused=_worst(names, lost, totals, won, shots),
        outliers=tuple(Outlier(i, names[int(rivals[i])]) for i in positions),
        supports_won=len(excess) - int(to_base.sum())
        if checkpoint.n_background and len(excess)
        else None,
    )


def find_outliers(supports: Tensor, base: Tensor) -> list[int]:
    """Positions, worst first, of supports that look less like their class than some base images do.

    Args:
        supports: `(k,)` margins of the supports, each against the proxy of the others; empty if
            there are too few.
        base: `(n,)` margins of base images against the proxy of all supports.
    """
    if not len(supports) or len(base) < _LEAST_IMAGES:
        return []
    beyond = supports > base.quantile(_LIKE_BASE + 1 / len(supports))
    if 2 * int(beyond.sum()) > len(supports):  # then the class itself is like base classes
        return []
    order = supports.argsort(descending=True)
    found: list[int] = order[beyond[order]].tolist()
    return found


def leave_one_out(support: Tensor, method: str, background: Background) -> Tensor:
    """Proxies `(k, R)`, each made of all supports `(k, D)` but one, by a method of `_LEFT_OUT`."""
    shots, size = support.shape
    numbers = torch.arange(shots - 1)
    made = []
    for left_out in torch.arange(shots).split(max(1, _AT_ONCE // (shots * size))):
        # The numbers from 0, without the one that is left out.
        others = numbers + (numbers >= left_out[:, None])  # (m, k - 1)
        kept = support[others]  # (m, k - 1, D)
        supports = Supports(kept, _not_needed, _not_needed)
        made.append(make_proxies(method, supports, background, Config()))
    return torch.cat(made)


def _not_needed(*_: object) -> Tensor:
    raise AssertionError("neither views nor random directions are left out")


def supports_known(checkpoint: Checkpoint, biases: Sequence[float]) -> tuple[list[int], int]:
    """How many supports their own classes get at each bias, each support judged by the others.

    Returns:
        The number at each bias, and how many supports can be judged.
    """
    counts, total, head = [0] * len(biases), 0, replace(checkpoint.head, bias=0.0)
    for place, support in enumerate(checkpoint.supports):
        own = _own_scores(checkpoint, place)  # (k,)
        if not len(own):
            continue
        total += len(own)
        scores = head.scores(support)  # (k, C + W)
        scores[:, head.n_base + place] = -torch.inf
        base, novel = (part.amax(1) for part in scores.tensor_split([head.n_base], 1))  # (k,)
        for number, bias in enumerate(biases):
            excess = torch.maximum(base, novel + bias) - own  # (k,)
            counts[number] += int((excess <= bias).sum())
    return counts, total


def _own_scores(checkpoint: Checkpoint, place: int) -> Tensor:
    """Scores `(k,)` of supports by a class learnt from the others; empty if they cannot judge."""
    support = checkpoint.supports[place]
    method = _LEFT_OUT.get(checkpoint.meta.supports[place].method)
    if method is None or len(support) < LEAST_SHOTS:
        return torch.empty(0)
    proxies = leave_one_out(support, method, checkpoint.backgrounds[0])  # (k, R)
    return (as_read(support, proxies) * proxies).sum(1)


def _support_margins(checkpoint: Checkpoint, place: int) -> tuple[Tensor, Tensor]:
    """How far each support is from its class, learnt from the others, and the class it is nearest.

    Returns:
        Margins `(k,)`, the bias below which another class gets the support; and the position `(k,)`
        of that class in the head. Both are empty if the supports cannot judge each other.
    """
    own, head = _own_scores(checkpoint, place), checkpoint.head
    if not len(own):
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    scores = head.scores(checkpoint.supports[place])  # (k, C + W)
    scores[:, head.n_base + place] = -torch.inf
    best, rivals = scores.max(1)
    return best - own, rivals


def _base_margins(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """How far base images that are right without novel classes are from these, and what they cost.

    Each image is scored by what was made without it.

    Returns:
        Margins `(n, W)` against each novel class, and how many images of each class go to each
        novel class `(C + W, W)`.
    """
    found = []
    n_novel = len(checkpoint.supports)
    counts = torch.zeros(len(checkpoint.meta.classes), n_novel, dtype=torch.int64)
    for queries, head in zip(checkpoint.calibration, checkpoint.calibration_heads, strict=True):
        right = queries.right_now
        scores = queries.embeddings[right] @ head.novel_proxies.T  # (n, W)
        margins = queries.best[right, None] - scores  # a tie goes to the novel class
        least, nearest = margins.min(1)  # (n,), (n,)
        lost = least <= head.bias
        pairs = queries.labels[right][lost], nearest[lost]
        counts.index_put_(pairs, torch.tensor(1), accumulate=True)
        found.append(margins)
    return torch.cat(found), counts


def _worst(
    names: tuple[str, ...], lost: Tensor, totals: Tensor, won: Tensor, shots: int
) -> tuple[Confusion, ...]:
    """The classes that are worth naming, given the counts `(C + W,)` of all and the shots."""
    shares = torch.stack([lost / totals.clamp(min=1), won / shots])  # (2, C + W)
    counts = torch.stack([lost, won])
    limits = torch.tensor([_WORTH_NAMING, _WORTH_NAMING_SUPPORTS])[:, None]
    worth = ((shares >= limits) & (counts >= _LEAST_COUNT)).any(0)
    order = shares.amax(0).argsort(descending=True, stable=True)
    return tuple(
        Confusion(names[i], int(lost[i]), int(totals[i]), int(won[i]))
        for i in order[worth[order]][:MOST_NAMED].tolist()
    )
