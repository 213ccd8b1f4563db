"""Training of the base model."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import Interrupted, TrainingError, UsageError
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import are_finite
from lowshot_cli.models.head import CosineClassifier, nearest_proxies
from lowshot_cli.progress import Progress, never
from lowshot_cli.training.adopt import adopt
from lowshot_cli.training.blend import blend, prototypes
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.linear_head import embed_training_images, held_out
from lowshot_cli.training.result import TrainResult, make_checkpoint, make_cosine_checkpoint
from lowshot_cli.training.state import TrainingState, restore_state, save_state
from lowshot_cli.training.steps import TrainingSteps
from lowshot_cli.training.task import BaseTask, build_network, make_task
from lowshot_cli.version import __version__

# Weight of the latest loss in the running average that is shown.
_NEW_LOSS_SHARE = 0.02


def train_base(
    config: Config,
    dataset: Dataset,
    state_path: Path,
    *,
    resume: bool = False,
    context: RunContext = DEFAULT_CONTEXT,
) -> TrainResult:
    """Train the base model; every epoch saves a state from which training can resume.

    With no epochs, or a frozen backbone, the head is made from embeddings instead (`adopt`).

    Order and augmentation of a step depend on the seed and the step's number alone, so a resumed
    run makes the same steps as an uninterrupted one.

    Args:
        config: the common settings and `train_base`.
        dataset: where images come from.
        state_path: the training state; the caller deletes it once the checkpoint is safe.
        resume: continue from that state.
        context: gets a report after each step, and is asked whether to stop.

    Raises:
        Interrupted: `should_stop` returned true on some rank; the state is saved.
        UsageError: a batch cannot be shared evenly between the ranks.
        NotLeader: training is over, and another rank makes the checkpoint.
        TrainingError: the loss is no longer finite.
        CheckpointError: there is no state to resume from, or one of another config.
    """
    options = config.train_base
    if options.is_frozen and resume:
        raise UsageError("a frozen backbone leaves no training to resume", "omit `resume=True`")
    task = make_task(options, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # A resumed run has its own weights, but may blend them with those it started from.
        with_weights = not resume or options.share < 1
        network, size, loaded = build_network(
            options, task, with_weights=with_weights, strict=config.strict
        )
        if options.is_frozen:
            result = adopt(config, dataset, task, network.to(context.device), context=context)
            return replace(result, weights=loaded)
        n_proxies = len(task.names) * (4 if options.rotation else 1)
        trainee = CosineClassifier(network, n_proxies, size).to(context.device)
    start = {}
    if loaded:
        own = detached_state(network.backbone)
        start = {name: own[name].clone() for name in loaded.names}
        if not resume and not options.rotation:
            trainee.proxies.data.copy_(prototypes(network, task))
    training = BaseTraining(
        config, dataset.content_hash, task, trainee, state_path, context=context
    )
    if resume:
        training.restore()
    training.run()
    context.ranks.require_leader()
    blend(network.backbone, start, options.share)
    return replace(training.make_result(dataset), weights=loaded)


class BaseTraining:
    """The training loop: steps, hold-out accuracy after each epoch, and a state on disk.

    Args:
        config: the common settings and `train_base`.
        data_hash: hash of the dataset's content.
        task: the images of the base classes.
        trainee: trained in place.
        state_path: where the state is kept.
        context: as in `train_base`.

    Attributes:
        steps: takes each step.
        state: how far training has come.
    """

    def __init__(
        self,
        config: Config,
        data_hash: str,
        task: BaseTask,
        trainee: CosineClassifier,
        state_path: Path,
        *,
        context: RunContext,
    ) -> None:
        self.config, self.data_hash, self.task = config, data_hash, task
        self.trainee, self.state_path, self.context = trainee, state_path, context
        self.steps = TrainingSteps(config, task, trainee, context.ranks)
        self.state = TrainingState()

    def run(self) -> None:
        """Take the remaining steps.

        Raises:
            Interrupted: `should_stop` returned true on some rank; the state is saved.
            TrainingError: the loss or a weight is no longer finite.
        """
        steps, first, epochs = self.steps, self.state.step, self.config.train_base.epochs
        started, before = time.perf_counter(), self.state.seconds
        self.trainee.train()
        smooth_loss = math.nan
        while self.state.step < steps.total:
            step = self.state.step
            epoch, index = divmod(step, steps.per_epoch)
            if index == 0 or step == first:
                order = steps.draw_order(epoch)
            start = index * steps.batch_size
            loss = steps.take(step, order[start : start + steps.batch_size])
            if not math.isfinite(loss):
                raise self._diverged("loss is", epoch)
            smooth_loss = (
                loss
                if math.isnan(smooth_loss)
                else (1 - _NEW_LOSS_SHARE) * smooth_loss + _NEW_LOSS_SHARE * loss
            )
            seconds = before + time.perf_counter() - started
            self.state = replace(self.state, step=step + 1, seconds=seconds)
            facts = {
                "epoch": epoch + 1,
                "epochs": epochs,
                "loss": smooth_loss,
                "holdout_accuracy": self.state.holdout_accuracy,
                "images_per_second": (step + 1 - first) * steps.batch_size / (seconds - before),
            }
            epoch_ends = (step + 1) % steps.per_epoch == 0
            if epoch_ends:
                facts["holdout_accuracy"] = accuracy = self._measure_holdout()
                seconds = before + time.perf_counter() - started
                self.state = replace(self.state, seconds=seconds, holdout_accuracy=accuracy)
                self.save()
            self._report(facts, important=epoch_ends)
            if self.context.ranks.total(self.context.should_stop()) and step + 1 < steps.total:
                self.save()
                raise Interrupted(f"stopped in epoch {epoch + 1} of {epochs}, nothing is lost")

    def make_result(self, dataset: Dataset) -> TrainResult:
        """Turn the trained network into a checkpoint, measured on the test images."""
        make = self._make_linear if self.config.train_base.start else self._make_cosine
        checkpoint = make(dataset)
        images, seconds = self.steps.total * self.steps.batch_size, self.state.seconds
        return TrainResult(
            checkpoint=checkpoint,
            base_accuracy=checkpoint.base_accuracy,
            holdout_accuracy=checkpoint.holdout.accuracy,
            epochs=self.config.train_base.epochs,
            train_seconds=seconds,
            images_per_second=images / max(seconds, 1e-9),
        )

    def _make_cosine(self, dataset: Dataset) -> Checkpoint:
        """A checkpoint with the proxies that were trained."""
        return make_cosine_checkpoint(
            self.config,
            dataset,
            self.task,
            self.trainee.network,
            self.trainee.unit_proxies(len(self.task.names)),
            scale=self.trainee.scale.item(),
            precision=self.steps.precision,
            context=self.context,
        )

    def _make_linear(self, dataset: Dataset) -> Checkpoint:
        """A checkpoint whose head is made anew on the network."""
        # Nothing would be won by stopping now.
        task, context = self.task, replace(self.context, should_stop=never)
        embedded = embed_training_images(dataset, task, self.trainee.network, context=context)
        head, holdout = held_out(
            embedded.fit, task.fit_labels, embedded.holdout, task.holdout_labels
        )
        return make_checkpoint(
            self.config,
            dataset,
            task,
            embedded.network,
            head=head,
            holdout=holdout,
            precision=self.steps.precision,
            context=context,
        )

    def _report(self, facts: dict[str, float], *, important: bool = False, note: str = "") -> None:
        size = self.steps.batch_size
        done, total = self.state.step * size, self.steps.total * size
        self.context.on_progress(
            Progress("training", done, total, "images", facts, important, note)
        )

    @torch.no_grad()
    def _measure_holdout(self) -> float:
        """Hold-out accuracy in percent; each rank classifies its share of the images."""
        task, ranks = self.task, self.context.ranks
        embeddings = embed(self.trainee.network, task.holdout.part(ranks.part), self.steps.dtype)
        _, predicted = nearest_proxies(embeddings, self.trainee.unit_proxies(len(task.names)))
        right = predicted == task.holdout_labels[ranks.part]
        return 100 * ranks.total(right.sum().item()) / len(task.holdout)

    def _diverged(self, what: str, epoch: int) -> TrainingError:
        kept = f"; {self.state_path} holds an earlier epoch" if self.state_path.exists() else ""
        return TrainingError(
            f"the {what} not finite in epoch {epoch + 1}{kept}",
            f"start again with a smaller `lr` than {self.config.train_base.lr:g}",
        )

    def save(self) -> None:
        """Write the training state, if this is the rank that writes.

        Raises:
            TrainingError: its numbers are not finite; the state on disk is unchanged.
        """
        if not self.context.ranks.leads:
            return
        if not are_finite(self.trainee.state_dict().values()):
            raise self._diverged("weights are", (self.state.step - 1) // self.steps.per_epoch)
        steps, identity = self.steps, self._identity()
        save_state(
            self.state_path,
            self.trainee,
            steps.optimiser,
            self.state,
            identity,
            means=steps.means,
        )

    def restore(self) -> None:
        """Load the newest undamaged training state.

        Raises:
            CheckpointError: there is no state, only damaged ones, or one of another config.
        """
        steps, identity = self.steps, self._identity()
        self.state, problem = restore_state(
            self.state_path, self.trainee, steps.optimiser, identity, means=steps.means
        )
        if problem:
            epoch = self.state.step / self.steps.per_epoch
            note = f"warning: {problem}; continuing from the state before it, epoch {epoch:.1f}"
            self._report({}, note=note)

    def _identity(self) -> dict[str, object]:
        """What a state must have been made with to resume from it."""
        return {
            "dataset": self.config.dataset,
            "data": self.data_hash,
            "seed": self.config.seed,
            "train_base": self.config.portable()["train_base"],
            "version": __version__,
        }
