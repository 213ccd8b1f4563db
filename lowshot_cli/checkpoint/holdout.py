"""The base images that set the bias and shape novel classes, kept as embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lowshot_cli.methods.background import Background
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.finetuning import BaseSamples
from lowshot_cli.methods.imprinting import shrinkage
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.head import Head, nearest_proxies, without_proxy
from lowshot_cli.threads import map_in_order

# Folds of cross-fitting.
N_FOLDS = 5
# Computing this many scores takes longer than all other work of adding a class.
_MANY_SCORES = 2**26
# Samples of each base class that fine-tuning reads, at most; the others would slow it down.
SAMPLES = 25


def fit_half(images: Tensor) -> Tensor:
    """The half that may shape proxies, of a tensor `(N, ...)` with a row for each hold-out image.

    This is how a base model's hold-out is halved. After classes were removed, `Holdout` alone knows
    the half of each image.
    """
    return images[0::2]


def calibration_half(images: Tensor) -> Tensor:
    """The other half, which sets the bias and must not shape any proxy."""
    return images[1::2]


def first_of_classes(labels: Tensor, count: int) -> Tensor:
    """Positions `(n,)` int64 of the first images of each class, at most `count`, class by class."""
    order = labels.sort(stable=True).indices  # (N,)
    sizes = torch.bincount(labels)  # (C,)
    starts = (sizes.cumsum(0) - sizes)[labels[order]]  # (N,)
    return order[torch.arange(len(order)) - starts < count]


@dataclass(frozen=True)
class Holdout:
    """Embeddings of base images, of which no image sets the bias by a proxy that it shaped.

    In one of four ways:

    - A cosine head was trained on other images. Of these, one half shapes novel proxies, and the
      other sets the bias.
    - The network was trained on other images, and a linear head made of their `statistics`. Of
      these, some are samples for fine-tuning, and the others set the bias.
    - The network was trained on none of the images, so all of them shape the linear head. In
      cross-fitting, the images of each of the `folds` set the bias by what all others say.
    - The head is a classifier that was adopted as it was, and the images are unlabelled photos, if
      there are any: ordinary ones of anything but the novel classes. Labels are then what the
      classifier decides, so none are wrong. Folds are used as before, for novel classes alone.

    Attributes:
        embeddings: `(N, D)` fp16.
        labels: `(N,)` int64 positions of the base classes in the head.
        right: `(N,)` bool, whether the pristine base model gets the image right. Once fine-tuning
            has changed base proxies or network, this can no longer be found anew.
        nearest: largest score `(n,)` fp32 of each image that sets the bias with the base proxies,
            and the proxy `(n,)` int64 that has it; kept if many classes make them slow to find, but
            never with folds. A change of base proxies or embeddings must drop them.
        calibrates: `(N,)` bool, which images set the bias; None if it is every second one, or all
            that have a fold. An image that has shaped a proxy must never set the bias, whatever
            classes are removed.
        statistics: those of a linear head; None for a cosine head.
        folds: `(N,)` int64 number of each image's fold, -1 for one that never sets the bias; None
            without cross-fitting.
        fold_bases: `(F, C, D + 1)` base proxies that are made without the images of each fold; None
            finds them when they are needed, which takes long.
        unlabelled: whether the labels are decisions of a classifier that was adopted.
    """

    embeddings: Tensor
    labels: Tensor
    right: Tensor
    nearest: tuple[Tensor, Tensor] | None = None
    calibrates: Tensor | None = None
    statistics: Statistics | None = None
    folds: Tensor | None = None
    fold_bases: Tensor | None = None
    unlabelled: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float | None:
        """Percent of unseen images that the base model gets right; None without any."""
        # Under a cosine head the half that shapes novel proxies is as unseen as the other.
        unseen = self.right if self.statistics is None else self.calibrating(self.right)
        return 100 * unseen.double().mean().item() if len(unseen) else None

    @property
    def n_folds(self) -> int:
        """Number of folds, some of them perhaps without images; 1 without cross-fitting."""
        return 1 if self.folds is None else N_FOLDS

    def fitting(self, images: Tensor) -> Tensor:
        """The rows of a tensor `(N, ...)` whose images may shape proxies."""
        if self.folds is not None:
            return images
        return fit_half(images) if self.calibrates is None else images[~self.calibrates]

    def calibrating(self, images: Tensor) -> Tensor:
        """The rows of a tensor `(N, ...)` whose images set the bias."""
        if self.folds is not None:
            return images[self.folds >= 0]
        return calibration_half(images) if self.calibrates is None else images[self.calibrates]

    def parts(self, images: Tensor) -> list[Tensor]:
        """The rows of a tensor `(N, ...)` whose images set the bias, fold by fold."""
        if self.folds is None:
            return [self.calibrating(images)]
        return [images[self.folds == number] for number in range(self.n_folds)]

    @property
    def suffices(self) -> bool:
        """Whether there are images to shape proxies and others to set the bias."""
        n_set, n_shape = len(self.calibrating(self.labels)), len(self.fitting(self.labels))
        return n_set > 0 and (n_shape > 0 or self.statistics is not None)

    def backgrounds(self, head: Head, trained: int) -> tuple[Background, ...]:
        """What novel classes are made from, beside their supports.

        Args:
            head: the present one.
            trained: size of the trained part of embeddings.

        Returns:
            That of the model. With cross-fitting also that of each fold, as the base classes are
            known without its images.
        """
        base, every = head.base, torch.arange(len(self))
        own, *apart = self._shaping
        known = [(self._samples(self.fitting(every), base), own)]
        for number, statistics in enumerate(apart):
            assert self.folds is not None
            without = base
            if not self.unlabelled:
                without = replace(base, proxies=statistics.base_proxies)
            known.append((self._samples(every[self.folds != number], without), statistics))
        return tuple(
            Background(samples, statistics, trained, base.is_linear, self.unlabelled)
            for samples, statistics in known
        )

    def queries(
        self, backgrounds: tuple[Background, ...], *, changed: bool = False
    ) -> tuple[BaseQueries, ...]:
        """The images that set the bias, fold by fold, under the base proxies of their background.

        Args:
            backgrounds: of the model and its folds.
            changed: whether fine-tuning changed base proxies or network. If not, what was right
                before is found together with what is right now, so that rounding cannot part them.
        """
        right = self.parts(self.right) if changed else [None] * self.n_folds
        each = zip(
            backgrounds[-self.n_folds :],
            self.parts(self.embeddings),
            self.parts(self.labels),
            right,
            strict=True,
        )
        return tuple(
            BaseQueries.of(background.proxies, embeddings.float(), labels, before, self.nearest)
            for background, embeddings, labels, before in each
        )

    def queries_under(self, proxies: Tensor, embeddings: Tensor) -> BaseQueries:
        """The images that set the bias under changed weights.

        Args:
            proxies: `(C, R)` base proxies.
            embeddings: `(n, D)` of these images, by the changed backbone.
        """
        labels, right = self.calibrating(self.labels), self.calibrating(self.right)
        return BaseQueries.of(proxies, embeddings, labels, right)

    def _samples(self, chosen: Tensor, base: Head) -> BaseSamples:
        """Samples for fine-tuning: all of the images `(n,)` int64, or a few of each class."""
        if self.statistics is not None:
            chosen = chosen[first_of_classes(self.labels[chosen], SAMPLES)]
        embeddings, labels = self.embeddings[chosen].float(), self.labels[chosen]
        return BaseSamples(embeddings, labels, base.proxies, base.scale)

    @cached_property
    def _shaping(self) -> list[Statistics]:
        """Those of the model, then for each fold those without its images.

        For a cosine head they are taken from the half that may shape proxies: images that the
        backbone was not fitted to, whose embeddings spread as those of new classes do.
        """
        if self.statistics is None:
            embeddings, labels = self.fitting(self.embeddings).float(), self.fitting(self.labels)
            return [Statistics.of(embeddings, labels, shrinkage(embeddings.shape[1]))]
        whole = self.statistics
        numbers = [] if self.folds is None else range(N_FOLDS)

        def prepare(number: int | None) -> Statistics:
            found = whole if number is None else self._without_fold(whole, number)
            found.novel_factor  # noqa: B018 - takes long, as base proxies do: several at once
            return found

        return list(map_in_order(prepare, [None, *numbers], torch.get_num_threads()))

    def _without_fold(self, whole: Statistics, number: int) -> Statistics:
        """Statistics without the images of a fold, with the base proxies that they make."""
        inside = self.folds == number
        labels = self.labels[inside]
        if self.unlabelled:  # statistics are over all photos as one class, and make no base proxies
            return whole.without(self.embeddings[inside].float(), torch.zeros_like(labels))
        found = whole.without(self.embeddings[inside].float(), labels)
        if self.fold_bases is None:
            found.base_proxies  # noqa: B018
        else:
            vars(found)["base_proxies"] = self.fold_bases[number]
        return found

    def with_nearest_cached(self, head: Head) -> Holdout:
        """The same, with `nearest` kept if it would be slow to find again for every class."""
        held = self.calibrating(self.embeddings)
        if self.nearest or self.folds is not None or len(held) * head.n_base < _MANY_SCORES:
            return self
        return replace(self, nearest=nearest_proxies(held.float(), head.base.proxies))

    def without_class(self, position: int, head: Head) -> Holdout:
        """The same without the images of a base class; positions after it move up by one.

        An image that is wrong now because it is taken for that class, and right without it, counts
        as right before. So the budget is counted against the base model without the class: exactly
        while base proxies and network are unchanged, else as far as the present ones tell.

        Args:
            position: of the class.
            head: the present one, which still has it.
        """
        proxies = head.base.proxies
        if self.unlabelled:  # the others decide about all photos
            labels = nearest_proxies(self.embeddings.float(), without_proxy(proxies, position))[1]
            return replace(self, labels=labels, nearest=None)
        kept = self.labels != position
        embeddings, labels = self.embeddings[kept], self.labels[kept]
        labels = labels - (labels > position).to(labels.dtype)
        taken_for_it = nearest_proxies(embeddings.float(), proxies)[1] == position  # (N,)
        others = without_proxy(proxies, position)
        right = self.right[kept]
        again = nearest_proxies(embeddings[taken_for_it].float(), others)[1]
        fold_bases = self.fold_bases
        if fold_bases is not None:  # the others do not depend on the mean of the one that goes
            fold_bases = without_proxy(fold_bases, position)
        right[taken_for_it] |= again == labels[taken_for_it]
        return Holdout(
            embeddings,
            labels,
            right,
            calibrates=None if self.folds is not None else self._halves_of(kept),
            statistics=self.statistics and self.statistics.without_class(position),
            folds=None if self.folds is None else self.folds[kept],
            fold_bases=fold_bases,
        )

    def _halves_of(self, kept: Tensor) -> Tensor | None:
        """`calibrates` of the images `(N,)` bool that are kept, each in the half that it was in."""
        every_second = torch.arange(len(kept), device=kept.device) % 2 == 1
        halves = (every_second if self.calibrates is None else self.calibrates)[kept]
        return None if torch.equal(halves, every_second[: len(halves)]) else halves
