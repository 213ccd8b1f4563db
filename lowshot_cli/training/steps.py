"""The steps of base training: batches, augmentation, loss and optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.augment import (
    draw_holes,
    draw_shifts,
    mix_up,
    quarter_turns,
    shift_and_mirror,
    turn,
    with_partners,
)
from lowshot_cli.errors import UsageError
from lowshot_cli.models.head import CosineClassifier
from lowshot_cli.seeding import Stream, generator
from lowshot_cli.training.average import include, sample_number, use
from lowshot_cli.training.distributed import ALONE, ProcessGroupView
from lowshot_cli.training.precision import autocast_type, pick_precision
from lowshot_cli.training.task import BaseTask, largest_shift

# Share of the peak learning rate below which it does not fall.
_LEAST_RATE = 0.01


def one_cycle(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear from near 0 to 1, then linear down (Smith 2018).

    Args:
        step: number of the step, from 0.
        total: steps of the whole training.
        warmup: share of the steps in which it rises, above 0.
    """
    turn = max(1.0, warmup * total)
    if step < turn:
        return (step + 1) / (turn + 1)
    return max((total - step) / (total - turn), _LEAST_RATE)


def parameter_groups(trainee: CosineClassifier, options: TrainBaseConfig) -> list[dict[str, Any]]:
    """The optimiser's parameter groups; `peak` is a group's highest learning rate.

    Weight decay applies to the network's matrices, but not to its vectors, the proxies and the
    scale. `backbone_lr` applies to the backbone without its projection.
    """
    network = trainee.network
    projection = list(network.backbone.get_submodule("project").parameters())
    own = {id(parameter) for parameter in projection}
    body = [p for p in network.parameters() if id(p) not in own]
    parts = [(options.lr, [*body, *projection])]
    if options.backbone_lr is not None:
        parts = [(options.backbone_lr, body), (options.lr, projection)]
    groups: list[dict[str, Any]] = []
    for peak, parameters in parts:
        trained = [p for p in parameters if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups.append({"params": matrices, "peak": peak, "weight_decay": options.weight_decay})
        groups.append({"params": others, "peak": peak, "weight_decay": 0.0})
    groups[-1]["params"] += [trainee.proxies, trainee.scale]
    return groups


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step.

    Attributes:
        images: `(b, 3, S, S)` fp32, augmented and normalised.
        labels: `(b,)` int64.
        partner_labels: `(b,)` int64, of the images that were mixed in.
        weight: share of an image's own label in the loss; 1 if nothing was mixed in.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    weight: float


class TrainingSteps:
    """Takes the steps of base training, each of which depends only on the seed and its number.

    Args:
        config: `seed` and `train_base`.
        task: the images of the base classes.
        trainee: trained in place.
        ranks: the processes that share each step.

    Attributes:
        batch_size: images of a step, over all ranks.
        per_epoch: steps of an epoch.
        total: steps of the whole training.
        optimiser: over the trainee's parameters.
        means: running means of the trainee's weights by name; the last step puts them in place.
        coins: `(N,)` bool, which fit images the even epochs mirror.

    Raises:
        UsageError: a batch cannot be shared evenly between the ranks.
    """

    def __init__(
        self,
        config: Config,
        task: BaseTask,
        trainee: CosineClassifier,
        ranks: ProcessGroupView = ALONE,
    ) -> None:
        self.seed, self.options = config.seed, config.train_base
        self.task, self.trainee, self.ranks = task, trainee, ranks
        self.batch_size = min(self.options.batch_size, len(task.fit))
        if self.batch_size % ranks.count:
            raise UsageError(
                f"a step's {self.batch_size} images cannot be shared evenly by {ranks.count} ranks",
                f"give a `batch_size` that is a multiple of {ranks.count}",
            )
        self.per_epoch = len(task.fit) // self.batch_size
        self.total = self.per_epoch * self.options.epochs
        self.precision = pick_precision(self.options.precision, trainee.network.device, ranks)
        self.dtype = autocast_type(self.precision)
        self.images = task.fit.to_device_if_it_fits(trainee.network.device)
        coins = generator(self.seed, Stream.TRAIN_MIRROR)
        self.coins = torch.rand(len(task.fit), generator=coins) < 0.5
        groups = parameter_groups(trainee, self.options)
        self.optimiser = torch.optim.SGD(groups, lr=self.options.lr, momentum=0.9, nesterov=True)
        self.means: dict[str, Tensor] = {}
        self.model = ranks.parallel(trainee)

    def draw_order(self, epoch: int) -> Tensor:
        """Indices `(N,)` int64 of the fit images, in the order in which an epoch uses them."""
        shuffle = generator(self.seed, Stream.TRAIN_EPOCH, epoch)
        return torch.randperm(len(self.task.fit), generator=shuffle)

    def make_batch(self, step: int, chosen: Tensor) -> Batch:
        """Read and augment this rank's images of a step.

        Random numbers are drawn for the whole batch, so they are the same for any number of ranks.

        Args:
            step: its number in the training.
            chosen: `(B,)` int64, which fit images the whole batch holds.
        """
        options, task, size = self.options, self.task, len(chosen)
        draws = generator(self.seed, Stream.TRAIN_STEP, step)
        side = task.fit.side
        shifts = draw_shifts(size, largest_shift(options, side), draws)  # (B, 2)
        mirrored = self._mirrored(step, chosen)  # (B,)
        holes = draw_holes(size, side, options.cutout, draws)  # (B, 1, S, S)
        weight, partners = 1.0, torch.arange(size)  # (B,)
        if options.mixup:
            beta = np.random.default_rng((self.seed, step))
            weight = float(beta.beta(options.mixup, options.mixup))
            partners = torch.randperm(size, generator=draws)
        # A rank reads its own b images, and the partners of these that other ranks hold: n in all.
        own = torch.arange(size)[self.ranks.part]  # (b,)
        places, partners = with_partners(own, partners)  # (n,), (b,)
        device = self.trainee.network.device
        pixels = self.images[chosen[places]]  # (n, 3, S, S)
        pixels = shift_and_mirror(pixels, shifts[places], mirrored[places])
        images = task.normalisation.apply(pixels, device)  # (n, 3, S, S)
        # After normalisation 0 is the mean colour.
        images = images.masked_fill(holes[places].to(device), 0.0)
        labels = task.fit_labels[chosen[places]].to(device)  # (n,)
        turns = quarter_turns(size, options.rotation)[places]  # (n,)
        images, labels = turn(images, labels, turns, len(task.names))
        partners = partners.to(device)
        if options.mixup:
            images = mix_up(images, partners, weight)  # (b, 3, S, S)
        return Batch(images, labels[: len(own)], labels[partners], weight)

    def take(self, step: int, chosen: Tensor) -> float:
        """Take a step and return its loss; if that is not finite, nothing changes.

        Args:
            step: its number in the training.
            chosen: `(B,)` int64, which fit images the whole batch holds.
        """
        batch, options = self.make_batch(step, chosen), self.options
        device_type, is_bf16 = self.trainee.network.device.type, self.dtype == torch.bfloat16
        autocast = torch.autocast(device_type, torch.bfloat16, enabled=is_bf16)
        with self._seeded_dropout(step), autocast:
            logits = self.model(batch.images).float()  # (b, C)
        smoothing = options.label_smoothing
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        if batch.weight != 1:
            other = F.cross_entropy(logits, batch.partner_labels, label_smoothing=smoothing)
            loss = batch.weight * loss + (1 - batch.weight) * other
        self.optimiser.zero_grad()
        loss.backward()
        value = self.ranks.total(loss.item()) / self.ranks.count
        if not math.isfinite(value):
            return value
        for group in self.optimiser.param_groups:
            share = one_cycle(step, self.total, options.warmup)
            group["lr"] = group["peak"] * share
        self.optimiser.step()
        self._average_statistics()
        self._average_weights(step)
        return value

    def _mirrored(self, step: int, chosen: Tensor) -> Tensor:
        """Which of the chosen images `(B,)` a step mirrors, `(B,)` bool.

        An image is mirrored in every second epoch, so two epochs see both sides of each (Jordan,
        "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
        """
        if not self.task.flip:
            return torch.zeros(len(chosen), dtype=torch.bool)
        is_odd = bool(step // self.per_epoch % 2)
        return self.coins[chosen] ^ is_odd

    def _average_weights(self, step: int) -> None:
        """Include the weights in the means now and then; after the last step, use the means."""
        number = sample_number(step, self.total, self.options.average)
        if number:
            include(self.means, self.trainee, number)
            if step + 1 == self.total:
                use(self.means, self.trainee)

    def _average_statistics(self) -> None:
        """Average BatchNorm's running statistics, which each rank computes from its own images."""
        buffers = self.trainee.buffers()
        self.ranks.average([buffer for buffer in buffers if buffer.is_floating_point()])

    @contextmanager
    def _seeded_dropout(self, step: int) -> Iterator[None]:
        """Make dropout and the like in a library's network depend only on seed, step and rank."""
        device = self.trainee.network.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            drawn = generator(self.seed, Stream.DROPOUT, step, self.ranks.number)
            torch.manual_seed(drawn.initial_seed())
            yield
