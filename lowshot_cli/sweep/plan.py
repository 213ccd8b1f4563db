"""The plan of a sweep: novel classes, trials and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config, SweepConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.splits import base_classes, class_order
from lowshot_cli.data.supports import sample_classes
from lowshot_cli.errors import UsageError
from lowshot_cli.seeding import IntArray, Stream, hash_keys
from lowshot_cli.sweep.results import CLASS_SEPARATOR

TILE = 256


@dataclass(frozen=True)
class TrialBatch:
    """Trials `start` to `stop` of the plan with one method and number of shots."""

    method: str
    shots: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep will do, decided before it starts.

    Attributes:
        groups: labels of the novel classes that a trial adds together; one class each by default.
            In a sequence of sessions each group includes the previous one.
        names: a name for each group.
        sequence: whether the groups are sessions of a sequence.
        trials: trials per group.
        shots: numbers of support images.
        methods: as in `--method`.
        seed: decides every draw.
        left_out: labels of novel classes left over, too few for another group.
    """

    groups: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    trials: int
    shots: tuple[int, ...]
    methods: tuple[str, ...]
    seed: int
    left_out: tuple[int, ...] = ()
    sequence: bool = False

    @property
    def n_rows(self) -> int:
        """Rows that the sweep will write."""
        return len(self.groups) * self.trials * len(self.shots) * len(self.methods)

    @property
    def ways(self) -> int:
        """Novel classes that a trial adds, or each session of a sequence."""
        return len(self.groups[0])

    def batches(self) -> Iterator[TrialBatch]:
        """All trials in batches, in the order of their rows in `results.csv`."""
        total = len(self.groups) * self.trials
        # Sessions have different numbers of classes, so no tile holds two of them.
        span = self.trials if self.sequence else total
        tiles = [
            (start, min(start + TILE, first + span))
            for first in range(0, total, span)
            for start in range(first, first + span, TILE)
        ]
        for shots in self.shots:
            for start, stop in tiles:
                for method in self.methods:
                    if METHODS[method].alone:
                        yield from (TrialBatch(method, shots, i, i + 1) for i in range(start, stop))
                    else:
                        yield TrialBatch(method, shots, start, stop)

    def locate(self, batch: TrialBatch) -> tuple[IntArray, IntArray]:
        """Group `(T,)` and number within the group `(T,)` of each trial of a batch."""
        return np.divmod(np.arange(batch.start, batch.stop), self.trials)


def make_plan(checkpoint: Checkpoint, dataset: Dataset, config: Config) -> Plan:
    """Decide on the novel classes and the trials.

    Raises:
        CheckpointError: the base model was trained on another dataset.
        UsageError: a novel class is a base class or does not exist, there are too many shots or
            ways, or a method changes what the model's head was made of.
    """
    check_dataset(checkpoint, dataset)
    options, meta = config.sweep, checkpoint.meta
    _refuse_methods(checkpoint, config)
    order = class_order(dataset, meta.split, meta.class_order_seed)
    known = {checkpoint.dataset_name(name) for name in meta.classes}
    # The network has seen these, so they stay base classes even if they were removed.
    trained = base_classes(
        dataset, meta.config["train_base"].get("classes"), meta.split, meta.class_order_seed
    )
    known.update(trained)
    names = _novel_names([name for name in order if name not in known], options, config.seed)
    for name in names:
        if name in known:
            raise UsageError(f"{name!r} is a base class", "name novel classes in `novel`")
    labels = [dataset.label(name) for name in names]
    fewest = min(len(dataset.train.of_class(label)) for label in labels)
    if max(options.shots) > fewest:
        raise UsageError(
            f"`shots` is {max(options.shots)}, a novel class has {fewest} training images",
            f"give numbers up to {fewest}",
        )
    ensure_tested(dataset, labels)
    left_out: tuple[int, ...] = ()
    if options.sessions:
        groups = _sequence(labels, options.ways, options.sessions)
        group_names = tuple(f"session {number}" for number in range(1, len(groups) + 1))
    else:
        groups, left_out = _group(labels, options.ways, config.seed)
        group_names = tuple(
            CLASS_SEPARATOR.join(dataset.class_names[label] for label in group) for group in groups
        )
    return Plan(
        groups=groups,
        names=group_names,
        sequence=options.sessions is not None,
        trials=options.trials,
        shots=options.shots,
        methods=options.methods,
        seed=config.seed,
        left_out=left_out,
    )


def _refuse_methods(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse methods that the settings or the model contradict.

    Raises:
        UsageError: there are some.
    """
    freezing = config.finetune.freeze_base
    held = [method for method in config.sweep.methods if METHODS[method].holds_base]
    if held and freezing not in (None, "always"):
        raise UsageError(
            f"freeze_base: {freezing} moves base proxies, but {held[0]} in a sweep never does",
            f"leave {held[0]} out of `methods`, or freeze_base out of the config",
        )
    alone = [method for method in config.sweep.methods if METHODS[method].alone]
    if alone and checkpoint.head.is_linear:
        raise UsageError(
            f"{alone[0]} needs a network that was trained with its head, not a pretrained one",
            f"leave {alone[0]} out of `methods`",
        )


def ensure_tested(dataset: Dataset, labels: Iterable[int]) -> None:
    """Raise UsageError for a novel class without test images."""
    for label in labels:
        if not len(dataset.test.of_class(label)):
            name = dataset.class_names[label]
            raise UsageError(f"{name!r} has no test images", "leave it out of `novel`")


def _novel_names(available: list[str], options: SweepConfig, seed: int) -> list[str]:
    if not available:
        raise UsageError("every class is a base class", "train the base model on fewer classes")
    if isinstance(options.novel, tuple):
        return list(options.novel)
    if options.novel == "all":
        return available
    if options.novel > len(available):
        raise UsageError(
            f"`novel` is {options.novel}, there are {len(available)} novel classes",
            f"give a number up to {len(available)}",
        )
    return list(sample_classes(seed, available, options.novel))


def _sequence(labels: list[int], ways: int, sessions: int) -> tuple[tuple[int, ...], ...]:
    if ways * sessions > len(labels):
        raise UsageError(
            f"{sessions} sessions of {ways} classes: there are {len(labels)} novel classes",
            f"give up to {len(labels) // ways} sessions",
        )
    return tuple(tuple(labels[: ways * number]) for number in range(1, sessions + 1))


def _group(
    labels: list[int], ways: int, seed: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Groups of classes to add together, and classes left over, too few for another group."""
    if ways > len(labels):
        raise UsageError(
            f"`ways` is {ways}, there are {len(labels)} novel classes",
            f"give a number up to {len(labels)}",
        )
    if ways > 1:
        keys = hash_keys(seed, Stream.GROUP, np.array(labels))
        labels = [labels[i] for i in np.argsort(keys, kind="stable")]
    full = len(labels) - len(labels) % ways
    groups = tuple(tuple(labels[i : i + ways]) for i in range(0, full, ways))
    return groups, tuple(labels[full:])
