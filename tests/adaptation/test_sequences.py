"""Whatever is done to a model, in whatever order, leaves a model that keeps its promises."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from lowshot_cli.adaptation.bias import expected_accuracy, expected_forgetting
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.config.methods import IMPRINT_METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Images
from lowshot_cli.errors import DataError, LowshotError
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.export.export import export
from lowshot_cli.models.embedder import Embedder, Views, embed
from tests.tiny_world import ADOPTED, CLASSES, LINEAR, cost, tiny_world

AN_EXPORT_IN = 50
KINDS = ("plain", "sparse", "twins", "adopted", *LINEAR, *ADOPTED)
NAMES = ("mug", "Tasse", "コップ", "a=b", *CLASSES)
names = st.sampled_from(NAMES)
methods = st.sampled_from(IMPRINT_METHODS)
budgets = st.sampled_from([None, "none", 0, 1, 2.5, 20, 50, 100])
seeds = st.integers(0, 3)
pictures = st.lists(st.integers(0, 1000), min_size=1, max_size=4)
STATISTICS = ("centre", "means", "counts", "scatter")
Change = Callable[[Model], Model]


def _tensors(model: Checkpoint) -> dict[str, Tensor]:
    held = model.holdout
    of_folds = () if model.fold_proxies is None else model.fold_proxies
    return {
        "proxies": model.head.proxies,
        "bias": torch.tensor(model.head.bias),
        "embeddings": held.embeddings,
        "labels": held.labels,
        "right": held.right,
        "halves": held.calibrating(torch.arange(len(held))),
        **{f"fold {number}": proxies for number, proxies in enumerate(of_folds)},
        **{f"statistics {name}": tensor for name, tensor in _statistics(held).items()},
        **{f"support {number}": support for number, support in enumerate(model.supports)},
        **{f"backbone {name}": tensor for name, tensor in model.backbone.items()},
    }


def _statistics(held: Holdout) -> dict[str, Tensor]:
    found = {} if held.statistics is None else vars(held.statistics)
    return {name: tensor for name, tensor in found.items() if name in STATISTICS}


def _assert_equal(one: Checkpoint, other: Checkpoint, *, history: bool = True) -> None:
    """Bit for bit the same model; the steps that led to it may differ."""
    forgotten = {} if history else {"history": (), "config": {}}
    assert one.meta.model_copy(update=forgotten) == other.meta.model_copy(update=forgotten)
    left, right = _tensors(one), _tensors(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@dataclass(frozen=True)
class Seen(Embedder):
    """Has embedded the test images before, as no step here changes the network."""

    test: Tensor = field(kw_only=True)

    def each(
        self, images: Images, labels: Sequence[int], views: Views | None = None
    ) -> Iterator[Tensor]:
        return (self.test[images.of_class(label)] for label in labels)


class Sequences(RuleBasedStateMachine):
    """A model in use. `changes` are the steps so far, each from one model to the next."""

    sequences = count(1)

    @initialize(kind=st.sampled_from(KINDS))
    def start(self, kind: str) -> None:
        self.dataset, base, network = tiny_world(kind)
        self.base, self.changes = Model(base, network), list[Change]()
        self.model = self.base
        self.seen = embed(network, self.dataset.test.pixels)
        # Which class each hold-out image shows, and in which part it sets the bias, if in any.
        self.images = {tuple(row): i for i, row in enumerate(base.holdout.embeddings.tolist())}
        self.parts = [set(p.tolist()) for p in base.holdout.parts(torch.arange(len(base.holdout)))]
        self.scratch = TemporaryDirectory()

    # Steps

    def change(self, step: Change, allowed: type[LowshotError] | None = None) -> bool:
        """Make a step; whether it was done. An error that is allowed leaves the model as it was."""
        before, copy = self.model, _copied(self.model.checkpoint)
        try:
            self.model = step(before)
        except LowshotError as error:
            note(f"refused: {error.message}")
            if allowed is None or not isinstance(error, allowed):
                raise AssertionError(f"refused: {error.message}") from error
            assert self.model is before
        else:
            self.changes.append(step)
        _assert_equal(before.checkpoint, copy)
        return self.model is not before

    def pick(self, numbers: list[int]) -> Tensor:
        pixels = self.dataset.train.pixels
        return pixels[[number % len(pixels) for number in numbers]]

    def class_at(self, place: int) -> str:
        return self.model.classes[place % len(self.model.classes)]

    def possible(self, method: str) -> str:
        """The method, or another where the base classes have no images that it needs."""
        adopted = self.model.checkpoint.meta.adopted
        return "whitened" if adopted and method == "teen" else method

    @rule(name=names, numbers=pictures, method=methods, budget=budgets, seed=seeds)
    def imprint(
        self, name: str, numbers: list[int], method: str, budget: float | str | None, seed: int
    ) -> None:
        method, pixels = self.possible(method), self.pick(numbers)
        known = self.is_known(name)
        done = self.change(
            lambda model: model.imprint(
                pixels, name, method=method, max_forgetting=budget, seed=seed
            ),
            LowshotError if known else DataError,
        )
        assert not (done and known)

    @rule(name=st.sampled_from(CLASSES), shots=st.integers(1, 4), method=methods, budget=budgets)
    def imprint_from_dataset(
        self, name: str, shots: int, method: str, budget: float | str | None
    ) -> None:
        options = {"classes": [name], "shots": shots, "max_forgetting": budget}
        options["method"] = self.possible(method)
        config = Config.model_validate({"imprint": options})

        def step(model: Model) -> Model:
            taught, _ = imprint_classes(model.checkpoint, self.dataset, model.network, config)
            return Model(taught, model.network)

        known = self.is_known(name)
        done = self.change(step, LowshotError if known else DataError)
        assert not (done and known)

    @rule(place=st.integers(0, 99), numbers=pictures, method=methods, budget=budgets)
    def replace(
        self, place: int, numbers: list[int], method: str, budget: float | str | None
    ) -> None:
        name, pixels, before = self.class_at(place), self.pick(numbers), self.model
        method = self.possible(method)
        last = self.is_last_base_class(name)

        def learn(model: Model, *, replace: bool) -> Model:
            return model.imprint(
                pixels, name, method=method, max_forgetting=budget, replace=replace
            )

        if self.change(
            lambda model: learn(model, replace=True), LowshotError if last else DataError
        ):
            assert not last
            other = learn(before.remove(name), replace=False)
            _assert_equal(self.model.checkpoint, other.checkpoint, history=False)

    @rule(numbers=pictures, method=methods, seed=seeds)
    def add_and_remove(self, numbers: list[int], method: str, seed: int) -> None:
        before, pixels, method = self.model, self.pick(numbers), self.possible(method)
        in_force = before.checkpoint.meta.max_forgetting
        budget = "none" if in_force is None else in_force
        try:
            added = before.imprint(
                pixels, "for now", method=method, max_forgetting=budget, seed=seed
            )
        except DataError:
            return
        after = added.remove("for now")
        assert after.checkpoint.head.bias == before.checkpoint.head.bias
        was, now = (model.checkpoint.head.probabilities(self.seen) for model in (before, after))
        assert torch.equal(was, now)

    @rule(place=st.integers(0, 99), new=names)
    def rename(self, place: int, new: str) -> None:
        old, before = self.class_at(place), self.model
        taken = new in before.classes
        done = self.change(lambda model: model.rename(old, new), LowshotError if taken else None)
        assert done is not taken
        if done:
            was, now = self.predict(before), self.predict(self.model)
            assert now == [new if name == old else name for name in was]

    @rule(place=st.integers(0, 99))
    def remove(self, place: int) -> None:
        name = self.class_at(place)
        last = self.is_last_base_class(name)
        done = self.change(lambda model: model.remove(name), LowshotError if last else None)
        assert done is not last

    @rule(
        freeze=st.sampled_from(["always", "always", "alternate", "never"]),
        steps=st.integers(1, 5),
        prior=st.sampled_from([0.0, 40.0]),
        budget=budgets,
    )
    def finetune(self, freeze: str, steps: int, prior: float, budget: float | str | None) -> None:
        model = self.model.checkpoint
        possible = bool(model.novel_classes) and model.holdout.suffices
        possible &= freeze == "always" or not model.head.is_linear
        done = self.change(
            lambda model: model.finetune(
                freeze_base=freeze, steps=steps, prior_shots=prior, max_forgetting=budget
            ),
            DataError if possible else LowshotError,
        )
        assert possible or not done

    @rule()
    def save_and_load(self) -> None:
        paths = [Path(self.scratch.name) / name for name in ("one", "two")]
        save(self.model.checkpoint, paths[0])
        loaded = load(paths[0])
        _assert_equal(loaded, self.model.checkpoint)
        save(loaded, paths[1])
        assert paths[0].read_bytes() == paths[1].read_bytes()
        network = self.model.network
        self.change(lambda model: Model(_through_a_file(model.checkpoint, paths[0]), network))

    @rule(what=st.integers(0, 5))
    def ask_for_what_cannot_be(self, what: int) -> None:
        pixels = self.pick([0])
        impossible: list[Change] = [
            lambda model: model.remove("nobody"),
            lambda model: model.rename("nobody", "somebody"),
            lambda model: model.rename(model.classes[0], ""),
            lambda model: model.imprint(pixels, "new", max_forgetting=101),
            lambda model: model.imprint(pixels, "new", shots=9),
            lambda model: model.imprint(pixels[:0], "new"),
        ]
        assert not self.change(impossible[what], LowshotError)

    @rule(numbers=pictures)
    def predict_pictures(self, numbers: list[int]) -> None:
        found = self.model.predict(list(self.pick(numbers)), top=99)
        for one in found:
            assert one.name == one.top[0][0]
            assert {name for name, _ in one.top} == set(self.model.classes)

    # What is always true

    def predict(self, model: Model) -> list[str]:
        return [model.classes[place] for place in model.checkpoint.head.predict(self.seen)]

    def is_known(self, name: str) -> bool:
        """Whether a class has this name, or had it before it was renamed."""
        model = self.model.checkpoint
        return name in {*model.meta.classes, *map(model.dataset_name, model.meta.classes)}

    def is_last_base_class(self, name: str) -> bool:
        return self.model.checkpoint.base_classes == (name,)

    @invariant()
    def the_cost_lies_within_the_budget(self) -> None:
        model = self.model.checkpoint
        held = model.holdout
        expected = expected_forgetting(model)
        labels = held.calibrating(held.labels)
        if not len(labels):
            assert expected is None
            assert expected_accuracy(model) is None
            return
        assert expected is not None
        budget = model.meta.max_forgetting
        if model.meta.base_changed or budget is None:
            return
        assert 0 <= expected <= budget + 1e-9
        assert 0 <= cost(model, model.head.bias) <= budget + 1e-9

    @invariant()
    def nothing_contradicts_anything_else(self) -> None:
        model = self.model.checkpoint
        meta, head, held = model.meta, model.head, model.holdout
        assert Meta.model_validate(meta.model_dump()) == meta
        assert len(head.proxies) == len(meta.classes) == meta.n_base + len(model.supports)
        assert head.n_base == meta.n_base
        if not head.is_linear:
            lengths = head.proxies.norm(dim=1)
            assert torch.allclose(lengths, torch.ones(len(lengths)), atol=1e-4)
        assert len(held.embeddings) == len(held.labels) == len(held.right)
        for record, support in zip(meta.supports, model.supports, strict=True):
            assert len(record.pixel_hashes) == len(support)
        if not model.novel_classes:
            assert (head.bias, meta.max_forgetting) == (0, None)
        if meta.max_forgetting is None:
            assert head.bias == 0

    @invariant()
    def every_hold_out_image_keeps_its_class_and_its_part(self) -> None:
        held = self.model.checkpoint.holdout
        if len(self.images) < len(self.base.checkpoint.holdout):
            return  # of twins nobody knows which is which
        kept = [self.images[tuple(row)] for row in held.embeddings.tolist()]
        if held.unlabelled:
            assert kept == list(range(len(self.images)))
            assert torch.equal(
                held.labels, self.model.checkpoint.head.base.predict(held.embeddings.float())
            )
            return
        own = self.base.checkpoint.holdout.labels[kept].tolist()
        assert len(set(own)) == len(held.labels.unique())
        assert len(set(zip(own, held.labels.tolist(), strict=True))) == len(set(own))
        parts = [set(part.tolist()) for part in held.parts(torch.tensor(kept, dtype=torch.int64))]
        assert [part for part in parts if part] == [
            part & set(kept) for part in self.parts if part & set(kept)
        ]

    @invariant()
    def only_known_classes_are_predicted(self) -> None:
        assert set(self.predict(self.model)) <= set(self.model.classes)
        rows = self.model.checkpoint.head.probabilities(self.seen)
        assert rows.shape[1] == len(self.model.classes)
        assert torch.allclose(rows.sum(1), torch.ones(len(rows)), atol=1e-4)

    @rule()
    @precondition(lambda self: len(self.changes) > 0)
    def evaluate(self) -> None:
        model = self.model.checkpoint
        embedder = Seen(self.model.network, test=self.seen)
        found = evaluate(model, self.dataset, embedder)
        alone = evaluate(_base_alone(model), self.dataset, embedder)
        assert found.base_accuracy is not None
        assert alone.base_accuracy is not None
        if not model.meta.base_changed:
            assert found.forgetting == pytest.approx(alone.base_accuracy - found.base_accuracy)
            assert found.forgetting >= 0
        elif model.meta.base_counts is None:
            assert found.forgetting is None
        else:
            before = self.base.checkpoint.base_accuracy
            assert before is not None
            assert found.forgetting == pytest.approx(before - found.base_accuracy)

    def teardown(self) -> None:
        """The same steps give the same bytes; now and then the model is exported."""
        if not hasattr(self, "scratch"):
            return
        again = self.base
        for step in self.changes:
            again = step(again)
        paths = [Path(self.scratch.name) / name for name in ("first", "again")]
        for model, path in zip((self.model, again), paths, strict=True):
            save(model.checkpoint, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
        self.scratch.cleanup()
        if next(self.sequences) % AN_EXPORT_IN == 0:
            _assert_exported(self.model, self.dataset.test.pixels)


def _copied(model: Checkpoint) -> Checkpoint:
    """The same in memory of its own, to find out whether a step writes into the model."""
    held = model.holdout
    return replace(
        model,
        head=replace(model.head, proxies=model.head.proxies.clone()),
        backbone={name: tensor.clone() for name, tensor in model.backbone.items()},
        holdout=replace(
            held,
            embeddings=held.embeddings.clone(),
            labels=held.labels.clone(),
            right=held.right.clone(),
            statistics=held.statistics and replace(held.statistics, **_copies(held)),
        ),
        fold_proxies=None if model.fold_proxies is None else model.fold_proxies.clone(),
        supports=tuple(support.clone() for support in model.supports),
    )


def _copies(held: Holdout) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in _statistics(held).items()}


def _through_a_file(model: Checkpoint, path: Path) -> Checkpoint:
    save(model, path)
    return load(path)


def _base_alone(model: Checkpoint) -> Checkpoint:
    for name in model.novel_classes:
        model = model.without_class(name)
    return model


def _assert_exported(model: Model, images: Tensor) -> None:
    files = export(model.checkpoint, "torch")
    program = torch.export.load(io.BytesIO(files["model.pt2"])).module()
    with torch.inference_mode():
        probabilities, _ = program(images)
    assert torch.allclose(probabilities, model.predict_proba(images), atol=1e-4)
    assert json.loads(files["labels.json"]) == list(model.classes)


def _run(sequences: int, steps: int, *, derandomize: bool) -> None:
    Sequences.sequences = count(1)
    run_state_machine_as_test(
        Sequences,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # a sequence is short enough to read; shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_promises_are_kept_in_fifty_sequences() -> None:
    _run(50, 10, derandomize=True)


@pytest.mark.slow
def test_promises_are_kept_in_two_thousand_sequences() -> None:
    _run(2000, 20, derandomize=False)
