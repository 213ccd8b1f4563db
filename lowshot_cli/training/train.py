"""Training of the base model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.config.schema import Config, TrainBaseConfig
from lowshot_cli.data.augment import (
    draw_crops,
    draw_holes,
    mix_up,
    quarter_turns,
    shift_and_mirror,
    turn,
    with_partners,
)
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import Interrupted, TrainingError, UsageError
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import are_finite
from lowshot_cli.models.head import CosineClassifier, nearest_rows
from lowshot_cli.models.weights import LoadedWeights
from lowshot_cli.progress import OnProgress, Progress, ShouldStop, never, silent
from lowshot_cli.seeding import CHANCE_STREAM, EPOCH_STREAM, STEP_STREAM, hash_keys
from lowshot_cli.training.adopt import adopt
from lowshot_cli.training.distributed import ALONE, ProcessGroupView
from lowshot_cli.training.precision import pick_dtype
from lowshot_cli.training.result import TrainResult, make_checkpoint
from lowshot_cli.training.state import restore_state, save_state
from lowshot_cli.training.task import BaseTask, build_network, prepare

_FINAL_LR_SHARE = 0.01


def train_base(
    config: Config,
    dataset: Dataset,
    state_path: Path,
    resume: bool = False,
    on_progress: OnProgress = silent,
    should_stop: ShouldStop = never,
    ranks: ProcessGroupView = ALONE,
) -> TrainResult:
    """Train the base model; every epoch leaves a state from which training can go on.

    With no epochs the base classes are imprinted instead (`adopt`).

    Order and augmentation of a step depend on the seed and the step's number alone, so a resumed
    run makes the same steps as an uninterrupted one.

    Args:
        config: common part and `train_base`.
        dataset: where images come from.
        state_path: training state; the caller deletes it once the checkpoint is safe.
        resume: go on from the state.
        on_progress: told after each step.
        should_stop: asked after each step.
        ranks: the processes that share this training.

    Raises:
        Interrupted: `should_stop` said so, to any rank; the state is saved.
        UsageError: a batch cannot be shared evenly between the ranks.
        Dismissed: training is over, and this is not the rank that makes the checkpoint.
        TrainingError: the loss is no longer finite.
        CheckpointError: no state to resume from, or one of another config.
    """
    options, device = config.train_base, pick_device(config.device)
    if options.epochs == 0 and resume:
        raise UsageError("--epochs 0 leaves no training to resume", "leave out --resume")
    task = prepare(options, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network, size, loaded = build_network(options, task, with_weights=not resume)
        if options.epochs == 0:
            network = network.to(device)
            return adopt(config, dataset, task, network, loaded, on_progress, should_stop)
        n_rows = len(task.names) * (4 if options.rotation else 1)
        trainee = CosineClassifier(network, n_rows, size).to(device)
    run = _Run(config, dataset.content_hash, task, trainee, state_path, ranks)
    if resume:
        run.restore(on_progress)
    run.fit(on_progress, should_stop)
    ranks.dismiss()
    return run.result(dataset, loaded, on_progress)


def one_cycle(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: linear from near 0 to 1, then linear down (Smith 2018)."""
    turn = max(1.0, warmup * total)
    if step < turn:
        return (step + 1) / (turn + 1)
    return max((total - step) / (total - turn), _FINAL_LR_SHARE)


def parameter_groups(trainee: CosineClassifier, options: TrainBaseConfig) -> list[dict[str, Any]]:
    """What is trained, for the optimiser: `peak` is a group's learning rate at its peak.

    Matrices decay and vectors do not. `backbone_lr` sets the backbone apart from its projection,
    the rows and the scale.
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


class _Run:
    """A training under way: what changes from step to step."""

    def __init__(
        self,
        config: Config,
        data_hash: str,
        task: BaseTask,
        trainee: CosineClassifier,
        state_path: Path,
        ranks: ProcessGroupView,
    ) -> None:
        self.config, self.options, self.data_hash = config, config.train_base, data_hash
        self.task, self.trainee, self.state_path, self.ranks = task, trainee, state_path, ranks
        self.batch_size = min(self.options.batch_size, len(task.fit))
        if self.batch_size % ranks.count:
            raise UsageError(
                f"a step's {self.batch_size} images cannot be shared evenly by {ranks.count} ranks",
                f"give a --batch-size that is a multiple of {ranks.count}",
            )
        self.steps_per_epoch = len(task.fit) // self.batch_size
        self.total_steps = self.steps_per_epoch * self.options.epochs
        self.step, self.seconds, self.holdout_accuracy = 0, 0.0, 0.0
        self.device = trainee.network.device
        self.dtype = pick_dtype(self.options.precision, self.device, ranks)
        self.images = task.fit.to_device_if_it_fits(self.device)
        groups = parameter_groups(trainee, self.options)
        self.optimiser = torch.optim.SGD(groups, lr=self.options.lr, momentum=0.9, nesterov=True)
        self.model = ranks.parallel(trainee)
        # BatchNorm's, which each rank takes from its own part; those of a frozen network stay.
        self.statistics = [
            buffer
            for buffer in trainee.buffers()
            if buffer.is_floating_point() and not self.options.freeze_backbone
        ]

    def fit(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        """Make the steps that are left."""
        started, before, first_step = time.perf_counter(), self.seconds, self.step
        self.trainee.train()
        if self.options.freeze_backbone:
            self.trainee.network.backbone.eval()
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
                "epochs": self.options.epochs,
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
            if self.ranks.total(should_stop()) and self.step < self.total_steps:
                self.save()
                raise Interrupted(
                    f"stopped in epoch {epoch + 1} of {self.options.epochs}, nothing is lost"
                )

    def _report(
        self, on_progress: OnProgress, facts: dict[str, float], milestone: bool, note: str = ""
    ) -> None:
        done, total = self.step * self.batch_size, self.total_steps * self.batch_size
        on_progress(Progress("training", done, total, "images", facts, milestone, note))

    def _order(self, epoch: int) -> Tensor:
        generator = _generator(self.config.seed, EPOCH_STREAM, epoch)
        return torch.randperm(len(self.task.fit), generator=generator)

    def _make_batch(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Make this rank's images of a step, with labels, and labels and weight of the mixing.

        What chance decides is drawn for the whole batch, so it is the same for any number of ranks.
        """
        options, task, size = self.options, self.task, len(batch)
        generator = _generator(self.config.seed, STEP_STREAM, self.step)
        shifts, mirrored = draw_crops(size, options.crop, task.flip, generator)
        holes = draw_holes(size, task.fit.side, options.cutout, generator)
        weight, partners = 1.0, torch.arange(size)
        if options.mixup:
            beta = np.random.default_rng((self.config.seed, self.step))
            weight = float(beta.beta(options.mixup, options.mixup))
            partners = torch.randperm(size, generator=generator)
        own = torch.arange(size)[self.ranks.part]
        rows, others = with_partners(own, partners)
        pixels = shift_and_mirror(self.images[batch[rows]], shifts[rows], mirrored[rows])
        images = task.normalisation.apply(pixels, self.device)
        images = images.masked_fill(holes[rows].to(self.device), 0.0)
        labels = task.fit_labels[batch[rows]].to(self.device)
        turns = quarter_turns(size, options.rotation)[rows]
        images, labels = turn(images, labels, turns, len(task.names))
        others = others.to(self.device)
        if options.mixup:
            images = mix_up(images, others, weight)
        return images, labels[: len(own)], labels[others], weight

    def _train_step(self, batch: Tensor, epoch: int) -> float:
        options = self.options
        images, labels, partners, weight = self._make_batch(batch)
        bf16 = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )
        with self._own_chance(), bf16:
            logits = self.model(images).float()
        smoothing = options.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if weight != 1:
            other = F.cross_entropy(logits, partners, label_smoothing=smoothing)
            loss = weight * loss + (1 - weight) * other
        self.optimiser.zero_grad()
        loss.backward()
        value = self.ranks.total(loss.item()) / self.ranks.count
        if not math.isfinite(value):
            raise self._diverged("loss is", epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * one_cycle(self.step, self.total_steps, options.warmup)
        self.optimiser.step()
        self.ranks.average(self.statistics)
        return value

    @contextmanager
    def _own_chance(self) -> Iterator[None]:
        """Let what a library's network leaves to chance, such as dropout, hang on seed and step."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            drawn = _generator(self.config.seed, CHANCE_STREAM, self.step, self.ranks.number)
            torch.manual_seed(drawn.initial_seed())
            yield

    @torch.no_grad()
    def _evaluate_holdout(self) -> float:
        task, part = self.task, self.ranks.part
        embeddings = embed(self.trainee.network, task.holdout.part(part), self.dtype)
        proxies = self.trainee.rows(len(task.names))
        right = nearest_rows(embeddings, proxies)[1] == task.holdout_labels[part]
        return 100 * self.ranks.total(right.sum().item()) / len(task.holdout)

    def _diverged(self, what: str, epoch: int) -> TrainingError:
        kept = f", {self.state_path} is of an epoch before" if self.state_path.exists() else ""
        return TrainingError(
            f"the {what} not finite in epoch {epoch + 1}{kept}",
            f"start again with a smaller --lr than {self.options.lr:g}",
        )

    def save(self) -> None:
        """Write the training state, if this is the rank that writes.

        Raises:
            TrainingError: its numbers are not finite; the state on disk is as it was.
        """
        if not self.ranks.leads:
            return
        if not are_finite(self.trainee.state_dict().values()):
            raise self._diverged("weights are", (self.step - 1) // self.steps_per_epoch)
        about = {
            "step": self.step,
            "seconds": self.seconds,
            "holdout_accuracy": self.holdout_accuracy,
            "config": self._identity(),
        }
        save_state(self.state_path, self.trainee, self.optimiser, about)

    def restore(self, on_progress: OnProgress) -> None:
        """Go back to the newest training state on disk that is whole."""
        state, identity = self.state_path, self._identity()
        about, problem = restore_state(state, self.trainee, self.optimiser, identity)
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        self.holdout_accuracy = float(about["holdout_accuracy"])
        if problem:
            epoch = self.step / self.steps_per_epoch
            note = f"warning: {problem}; going on from the state before it, epoch {epoch:.1f}"
            self._report(on_progress, {}, milestone=False, note=note)

    def _identity(self) -> dict[str, object]:
        return {
            "dataset": self.config.dataset,
            "data": self.data_hash,
            "seed": self.config.seed,
            "train_base": self.config.portable()["train_base"],
        }

    def result(
        self, dataset: Dataset, loaded: LoadedWeights | None, on_progress: OnProgress
    ) -> TrainResult:
        """Turn the trained network into a checkpoint, measured on the test images."""
        rows, scale = self.trainee.rows(len(self.task.names)), self.trainee.scale.item()
        checkpoint, holdout_accuracy = make_checkpoint(
            self.config, dataset, self.task, self.trainee.network, rows, scale, on_progress
        )
        return TrainResult(
            checkpoint=checkpoint,
            base_accuracy=checkpoint.base_accuracy,
            holdout_accuracy=holdout_accuracy,
            epochs=self.options.epochs,
            train_seconds=self.seconds,
            images_per_second=self.total_steps * self.batch_size / max(self.seconds, 1e-9),
            weights=loaded,
        )


def _generator(seed: int, stream: int, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(hash_keys(seed, stream, *numbers)[0]) >> 1)
