"""Training of the base model."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli import __version__
from lowshot_cli.augment import crop_and_flip, cut_out, mix_up, turn
from lowshot_cli.backbones import build_backbone, pick_device, pick_dtype
from lowshot_cli.checkpoint import SHAPING, Checkpoint
from lowshot_cli.config import Config, TrainBaseConfig
from lowshot_cli.data import Dataset
from lowshot_cli.data.splits import base_classes, hash_keys, split_holdout
from lowshot_cli.embed import centre_of_stages, embed
from lowshot_cli.errors import Interrupted, TrainingError
from lowshot_cli.meta import Meta
from lowshot_cli.model import CosineClassifier, EmbeddingNetwork, Head, Normalisation, relabel
from lowshot_cli.progress import OnProgress, Progress, ShouldStop, never, silent
from lowshot_cli.train_state import restore_state, save_state

_EPOCH_STREAM, _STEP_STREAM = 21, 22
_FINAL_LR_SHARE = 0.01


@dataclass(frozen=True)
class TrainResult:
    """What training made.

    Attributes:
        checkpoint: the base model.
        base_accuracy: test accuracy in percent.
        holdout_accuracy: hold-out accuracy in percent.
        epochs: passes over the fit images.
        train_seconds: the training loop with its hold-out evaluations, over all resumptions.
        images_per_second: fit images through the loop per second.
    """

    checkpoint: Checkpoint
    base_accuracy: float
    holdout_accuracy: float
    epochs: int
    train_seconds: float
    images_per_second: float


@dataclass(frozen=True)
class _Task:
    """The images of one training, as uint8 tensors with labels in head order."""

    names: tuple[str, ...]
    labels_in_dataset: list[int]
    fit: Tensor
    fit_labels: Tensor
    holdout: Tensor
    holdout_labels: Tensor
    normalisation: Normalisation
    flip: bool


def train_base(
    config: Config,
    dataset: Dataset,
    state_path: Path,
    resume: bool = False,
    on_progress: OnProgress = silent,
    should_stop: ShouldStop = never,
) -> TrainResult:
    """Train the base model; every epoch leaves a state from which training can go on.

    Order and augmentation of a step depend on the seed and the step's number alone, so a resumed
    run makes the same steps as an uninterrupted one.

    Args:
        config: common part and `train_base`.
        dataset: where images come from.
        state_path: training state; the caller deletes it once the checkpoint is safe.
        resume: go on from the state.
        on_progress: told after each step.
        should_stop: asked after each step.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
        TrainingError: the loss is no longer finite.
        CheckpointError: no state to resume from, or one of another config.
    """
    options, device = config.train_base, pick_device(config.device)
    task = _prepare(options, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        image_size = task.fit.shape[-1]
        backbone = build_backbone(
            options.backbone, options.width, options.embedding_size, image_size
        )
        network = EmbeddingNetwork(backbone, task.normalisation)
        n_rows = len(task.names) * (4 if options.rotation else 1)
        trainee = CosineClassifier(network, n_rows, options.embedding_size).to(device)
    run = _Run(config, dataset.content_hash, task, trainee, state_path)
    if resume:
        run.restore()
    run.fit(on_progress, should_stop)
    return run.result(dataset, on_progress)


def _prepare(options: TrainBaseConfig, dataset: Dataset) -> _Task:
    names = base_classes(dataset, options.classes, options.split, options.class_order_seed)
    labels = [dataset.class_names.index(name) for name in names]
    fit, holdout = split_holdout(dataset.train, labels, options.holdout)
    pixels = dataset.train.pixels
    return _Task(
        names=names,
        labels_in_dataset=labels,
        fit=pixels[fit],
        fit_labels=relabel(dataset.train.labels[fit], labels),
        holdout=pixels[holdout],
        holdout_labels=relabel(dataset.train.labels[holdout], labels),
        normalisation=Normalisation.of(pixels[fit]),
        flip=dataset.mirror if options.flip is None else options.flip,
    )


def one_cycle(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear from near 0 to 1, then linear down (Smith 2018)."""
    turn = max(1.0, warmup * total)
    if step < turn:
        return (step + 1) / (turn + 1)
    return max((total - step) / (total - turn), _FINAL_LR_SHARE)


class _Run:
    """A training under way: what changes from step to step."""

    def __init__(
        self,
        config: Config,
        data_hash: str,
        task: _Task,
        trainee: CosineClassifier,
        state_path: Path,
    ) -> None:
        self.config, self.options, self.data_hash = config, config.train_base, data_hash
        self.task, self.trainee, self.state_path = task, trainee, state_path
        self.batch_size = min(self.options.batch_size, len(task.fit))
        self.steps_per_epoch = len(task.fit) // self.batch_size
        self.total_steps = self.steps_per_epoch * self.options.epochs
        self.step, self.seconds, self.holdout_accuracy = 0, 0.0, 0.0
        self.device = trainee.network.device
        self.dtype = pick_dtype(self.options.precision, self.device)
        matrices = [p for p in trainee.network.parameters() if p.ndim > 1]
        others = [p for p in trainee.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.options.weight_decay},
            {"params": [*others, trainee.proxies, trainee.scale], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=self.options.lr, momentum=0.9, nesterov=True)

    def fit(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        """Make the steps that are left."""
        started, before, first_step = time.perf_counter(), self.seconds, self.step
        self.trainee.train()
        smooth_loss = math.nan
        while self.step < self.total_steps:
            epoch, index = divmod(self.step, self.steps_per_epoch)
            if index == 0 or self.step == first_step:
                order = self._order(epoch)
            start = index * self.batch_size
            loss = self._train_step(order[start : start + self.batch_size], epoch)
            smooth_loss = loss if math.isnan(smooth_loss) else 0.98 * smooth_loss + 0.02 * loss
            self.step += 1
            self.seconds = before + time.perf_counter() - started
            done = (self.step - first_step) * self.batch_size
            facts = {
                "epoch": epoch + 1,
                "loss": smooth_loss,
                "holdout_accuracy": self.holdout_accuracy,
                "images_per_second": done / (self.seconds - before),
            }
            epoch_ends = self.step % self.steps_per_epoch == 0
            if epoch_ends:
                self.holdout_accuracy = self._evaluate_holdout()
                facts["holdout_accuracy"] = self.holdout_accuracy
                self.seconds = before + time.perf_counter() - started
                self.save()
            self._report(on_progress, facts, epoch_ends)
            if should_stop() and self.step < self.total_steps:
                self.save()
                raise Interrupted(
                    f"stopped in epoch {epoch + 1} of {self.options.epochs}, nothing is lost",
                    "the same command with --resume goes on",
                )

    def _report(self, on_progress: OnProgress, facts: dict[str, float], milestone: bool) -> None:
        done, total = self.step * self.batch_size, self.total_steps * self.batch_size
        on_progress(Progress("training", done, total, "images", facts, milestone))

    def _order(self, epoch: int) -> Tensor:
        generator = _generator(self.config.seed, _EPOCH_STREAM, epoch)
        return torch.randperm(len(self.task.fit), generator=generator)

    def _train_step(self, batch: Tensor, epoch: int) -> float:
        options, task = self.options, self.task
        generator = _generator(self.config.seed, _STEP_STREAM, self.step)
        pixels = crop_and_flip(task.fit[batch], options.crop, task.flip, generator)
        images = cut_out(task.normalisation.apply(pixels, self.device), options.cutout, generator)
        labels = task.fit_labels[batch].to(self.device)
        images, labels = turn(images, labels, options.rotation, len(task.names))
        weight, partners = 1.0, labels
        if options.mixup:
            beta = np.random.default_rng((self.config.seed, self.step))
            weight = float(beta.beta(options.mixup, options.mixup))
            images, order = mix_up(images, weight, generator)
            partners = labels[order.to(self.device)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.trainee(images).float()
        smoothing = options.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if weight != 1:
            other = F.cross_entropy(logits, partners, label_smoothing=smoothing)
            loss = weight * loss + (1 - weight) * other
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is not finite in epoch {epoch + 1}",
                f"try a smaller --lr than {options.lr:g}; --resume goes on from the last epoch",
            )
        self.optimiser.zero_grad()
        loss.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = options.lr * one_cycle(self.step, self.total_steps, options.warmup)
        self.optimiser.step()
        return value

    @torch.no_grad()
    def _evaluate_holdout(self) -> float:
        embeddings = embed(self.trainee.network, self.task.holdout, self.dtype)
        proxies = self.trainee.rows(len(self.task.names))
        right = (embeddings @ proxies.T).argmax(1) == self.task.holdout_labels
        return 100 * right.double().mean().item()

    def save(self) -> None:
        """Write the training state."""
        about = {
            "step": self.step,
            "seconds": self.seconds,
            "holdout_accuracy": self.holdout_accuracy,
            "config": self._identity(),
        }
        save_state(self.state_path, self.trainee, self.optimiser, about)

    def restore(self) -> None:
        """Go back to the training state on disk."""
        about = restore_state(self.state_path, self.trainee, self.optimiser, self._identity())
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        self.holdout_accuracy = float(about["holdout_accuracy"])

    def _identity(self) -> dict[str, object]:
        return {
            "dataset": self.config.dataset,
            "data": self.data_hash,
            "seed": self.config.seed,
            "train_base": self.options.model_dump(mode="json"),
        }

    def result(self, dataset: Dataset, on_progress: OnProgress) -> TrainResult:
        """Turn the trained network into a checkpoint, measured on the test images."""
        task, trained = self.task, self.trainee.network
        centre = centre_of_stages(trained, task.holdout[SHAPING])
        network = EmbeddingNetwork(trained.backbone, task.normalisation, centre, task.flip)
        rows, scale = self.trainee.rows(len(task.names)), self.trainee.scale.item()
        head = Head.of_base(rows, scale, rows.shape[1] + len(centre))
        test = [dataset.test.of_class(label) for label in task.labels_in_dataset]
        parts = (task.holdout, dataset.test.pixels[torch.cat(test)])
        total, done, embedded = sum(len(part) for part in parts), 0, []
        for part in parts:
            embedded.append(embed(network, part))
            done += len(part)
            on_progress(Progress("embedding", done, total, milestone=done == total))
        holdout, queries = embedded
        right = head.predict(queries).split([len(index) for index in test])
        counts = tuple(
            (int((predicted == position).sum()), len(predicted))
            for position, predicted in enumerate(right)
        )
        meta = self._meta(dataset, counts)
        backbone = {n: t.detach().cpu() for n, t in network.backbone.state_dict().items()}
        found = head.predict(holdout) == task.holdout_labels
        checkpoint = Checkpoint(
            meta, head, backbone, holdout.half(), task.holdout_labels, found, centre
        )
        return TrainResult(
            checkpoint=checkpoint,
            base_accuracy=checkpoint.base_accuracy,
            holdout_accuracy=100 * found.double().mean().item(),
            epochs=self.options.epochs,
            train_seconds=self.seconds,
            images_per_second=self.total_steps * self.batch_size / max(self.seconds, 1e-9),
        )

    def _meta(self, dataset: Dataset, counts: tuple[tuple[int, int], ...]) -> Meta:
        options, portable = self.options, self.config.portable()
        step = {
            "command": "train_base",
            "seed": self.config.seed,
            "options": portable["train_base"],
        }
        return Meta(
            classes=self.task.names,
            n_base=len(self.task.names),
            backbone=options.backbone,
            width=options.width,
            embedding_size=options.embedding_size,
            image_size=self.task.fit.shape[-1],
            mirror=self.task.flip,
            mean=self.task.normalisation.mean,
            std=self.task.normalisation.std,
            dataset=dataset.name,
            dataset_hash=dataset.content_hash,
            class_order_seed=options.class_order_seed,
            split=options.split,
            holdout_per_class=options.holdout,
            base_counts=counts,
            config=portable,
            version=__version__,
            history=(step,),
        )


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(hash_keys(seed, stream, number)[0]) >> 1)
