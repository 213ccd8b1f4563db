"""The base hold-out: images that no weight was fitted to, kept as embeddings in two halves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lowshot_cli.methods.finetuning import BaseSamples
from lowshot_cli.methods.imprinting import class_statistics, shrunk_precision
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.head import Head, nearest_proxies

# Computing this many cosines takes longer than all other work of adding a class.
_MANY_COSINES = 2**26


def fit_half(images: Tensor) -> Tensor:
    """The half that may shape proxies, of a tensor `(N, ...)` with a row for each hold-out image.

    This is how a base model's hold-out is halved. After classes were removed, `Holdout` alone knows
    the half of each image.
    """
    return images[0::2]


def calibration_half(images: Tensor) -> Tensor:
    """The other half, which sets the bias and must not shape any proxy."""
    return images[1::2]


@dataclass(frozen=True)
class Holdout:
    """Embeddings of the base hold-out images, halved image by image.

    Attributes:
        embeddings: `(N, D)` fp16.
        labels: `(N,)` int64 positions of the base classes in the head.
        right: `(N,)` bool, whether the pristine base model gets the image right. Once fine-tuning
            has changed base proxies or network, this can no longer be found anew.
        nearest: largest cosine `(n,)` fp32 of each image of the calibration half with the base
            proxies, and the proxy `(n,)` int64 that has it; kept if many classes make them slow
            to find. A change of base proxies or embeddings must drop them.
        calibrates: `(N,)` bool, which images set the bias; None if it is every second one. An image
            that has shaped a proxy must never set the bias, whatever classes are removed.
    """

    embeddings: Tensor
    labels: Tensor
    right: Tensor
    nearest: tuple[Tensor, Tensor] | None = None
    calibrates: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fitting(self, images: Tensor) -> Tensor:
        """The rows of a tensor `(N, ...)` whose images may shape proxies."""
        return fit_half(images) if self.calibrates is None else images[~self.calibrates]

    def calibrating(self, images: Tensor) -> Tensor:
        """The rows of a tensor `(N, ...)` whose images set the bias."""
        return calibration_half(images) if self.calibrates is None else images[self.calibrates]

    @property
    def suffices(self) -> bool:
        """Whether there are images to shape proxies and others to set the bias."""
        return 0 < len(self.calibrating(self.labels)) < len(self)

    def fit_half(self, head: Head) -> BaseSamples:
        """Samples `(n, D)` fp32 for methods whose proxies depend on base embeddings."""
        embeddings, labels = self.fitting(self.embeddings).float(), self.fitting(self.labels)
        return BaseSamples(embeddings, labels, head.base.proxies, head.scale)

    def calibration_half(self, head: Head, *, changed: bool = False) -> BaseQueries:
        """Queries that set the bias, under the base proxies of a head.

        Args:
            head: the present one.
            changed: whether fine-tuning changed base proxies or network. If not, what was right
                before is found together with what is right now, so that rounding cannot part them.
        """
        return BaseQueries.of(
            head.base.proxies,
            self.calibration_embeddings,
            self.calibrating(self.labels),
            self.calibrating(self.right) if changed else None,
            self.nearest,
        )

    def calibration_half_under(self, proxies: Tensor, embeddings: Tensor) -> BaseQueries:
        """The same queries under changed weights.

        Args:
            proxies: `(C, D)` base proxies.
            embeddings: `(n, D)` of the calibration half, by the changed backbone.
        """
        return BaseQueries.of(
            proxies, embeddings, self.calibrating(self.labels), self.calibrating(self.right)
        )

    @property
    def calibration_embeddings(self) -> Tensor:
        """`(n, D)` fp32 embeddings of the calibration half."""
        return self.calibrating(self.embeddings).float()

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean `(D,)` over base classes and inverse `(D, D)` of the shrunk covariance within them.

        They are taken from the fit half: images that the backbone was not fitted to, whose
        embeddings spread as those of new classes do.
        """
        embeddings, labels = self.fitting(self.embeddings).float(), self.fitting(self.labels)
        # On the CPU, as a GPU may add up in another order each time.
        mean, within = class_statistics(embeddings.cpu(), labels.cpu())
        device = self.labels.device
        return mean.to(device), shrunk_precision(within).to(device)

    def with_nearest_cached(self, head: Head) -> Holdout:
        """The same, with `nearest` kept if it would be slow to find again for every class."""
        held = self.calibrating(self.embeddings)
        if self.nearest or len(held) * head.n_base < _MANY_COSINES:
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
        kept = self.labels != position
        embeddings, labels = self.embeddings[kept], self.labels[kept]
        labels = labels - (labels > position).to(labels.dtype)
        proxies = head.base.proxies
        taken_for_it = nearest_proxies(embeddings.float(), proxies)[1] == position  # (N,)
        others = torch.cat([proxies[:position], proxies[position + 1 :]])
        right = self.right[kept]
        again = nearest_proxies(embeddings[taken_for_it].float(), others)[1]
        right[taken_for_it] |= again == labels[taken_for_it]
        return Holdout(embeddings, labels, right, calibrates=self._halves_of(kept))

    def _halves_of(self, kept: Tensor) -> Tensor | None:
        """`calibrates` of the images `(N,)` bool that are kept, each in the half that it was in."""
        every_second = torch.arange(len(kept), device=kept.device) % 2 == 1
        halves = (every_second if self.calibrates is None else self.calibrates)[kept]
        return None if torch.equal(halves, every_second[: len(halves)]) else halves

    def to(self, device: torch.device) -> Holdout:
        """The same on a device."""
        return Holdout(
            self.embeddings.to(device),
            self.labels.to(device),
            self.right.to(device),
            self.nearest and (self.nearest[0].to(device), self.nearest[1].to(device)),
            None if self.calibrates is None else self.calibrates.to(device),
        )
