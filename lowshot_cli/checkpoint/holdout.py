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
    """The half that may shape proxies, of any tensor `(N, ...)` in the order of the hold-out."""
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
        right: `(N,)` bool, whether the pristine base model gets the image right.
        nearest: largest cosine `(n,)` fp32 of each image of the calibration half with the base
            proxies, and the proxy `(n,)` int64 that has it; kept if many classes make them slow
            to find. A change of base proxies or embeddings must drop them.
    """

    embeddings: Tensor
    labels: Tensor
    right: Tensor
    nearest: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fit_half(self, head: Head) -> BaseSamples:
        """Samples `(n, D)` fp32 for methods whose proxies depend on base embeddings."""
        return BaseSamples(
            fit_half(self.embeddings).float(), fit_half(self.labels), head.base.proxies, head.scale
        )

    def calibration_half(self, head: Head) -> BaseQueries:
        """Queries that set the bias, under the base proxies of a head."""
        return BaseQueries.of(
            head.base.proxies,
            self.calibration_embeddings,
            calibration_half(self.labels),
            calibration_half(self.right),
            self.nearest,
        )

    def calibration_half_under(self, proxies: Tensor, embeddings: Tensor) -> BaseQueries:
        """The same queries under changed weights.

        Args:
            proxies: `(C, D)` base proxies.
            embeddings: `(n, D)` of the calibration half, by the changed backbone.
        """
        return BaseQueries.of(
            proxies, embeddings, calibration_half(self.labels), calibration_half(self.right)
        )

    @property
    def calibration_embeddings(self) -> Tensor:
        """`(n, D)` fp32 embeddings of the calibration half."""
        return calibration_half(self.embeddings).float()

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean `(D,)` over base classes and inverse `(D, D)` of the shrunk covariance within them.

        They are taken from the fit half: images that the backbone was not fitted to, whose
        embeddings spread as those of new classes do.
        """
        embeddings, labels = fit_half(self.embeddings).float(), fit_half(self.labels)
        # On the CPU, as a GPU may add up in another order each time.
        mean, within = class_statistics(embeddings.cpu(), labels.cpu())
        device = self.labels.device
        return mean.to(device), shrunk_precision(within).to(device)

    def with_nearest_cached(self, head: Head) -> Holdout:
        """The same, with `nearest` kept if it would be slow to find again for every class."""
        held = calibration_half(self.embeddings)
        if self.nearest or len(held) * head.n_base < _MANY_COSINES:
            return self
        return replace(self, nearest=nearest_proxies(held.float(), head.base.proxies))

    def without_class(self, position: int) -> Holdout:
        """The same without the images of a base class; positions after it move up by one."""
        kept = self.labels != position
        labels = self.labels[kept]
        return Holdout(
            self.embeddings[kept], labels - (labels > position).to(labels.dtype), self.right[kept]
        )

    def to(self, device: torch.device) -> Holdout:
        """The same on a device."""
        return Holdout(
            self.embeddings.to(device),
            self.labels.to(device),
            self.right.to(device),
            self.nearest and (self.nearest[0].to(device), self.nearest[1].to(device)),
        )
