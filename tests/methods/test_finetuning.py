"""Fine-tuning: its gradients, what stays frozen, and how classes are weighted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.adaptation.finetune import finetune, full_data
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, FinetuneConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.methods.finetuning import (
    BaseSamples,
    class_weights,
    finetune_all_proxies,
    finetune_proxies,
    shrink_towards_start,
)
from lowshot_cli.methods.operating_point import operating_bias
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.training.finetune_network import finetune_network

SIZE, N_BASE = 16, 5


def _unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def samples() -> BaseSamples:
    proxies = _unit(N_BASE, SIZE, seed=1)
    labels = torch.arange(N_BASE).repeat_interleave(20)
    noise = torch.randn(100, SIZE, generator=torch.Generator().manual_seed(2))
    embeddings = F.normalize(proxies[labels] + 0.2 * noise, dim=1)
    return BaseSamples(embeddings, labels, proxies, scale=9.0)


def _loss(
    rows: Tensor, support: Tensor, targets: Tensor, base: BaseSamples, bias: float = 0.0
) -> Tensor:
    """The adaptive loss written out over the logits of all classes."""
    logits = torch.cat([base.embeddings, support]) @ torch.cat([base.proxies, rows]).T
    logits[:, N_BASE:] += bias
    labels = torch.cat([base.labels, targets + N_BASE])
    weights = 1 / torch.bincount(labels).float()[labels]
    losses = F.cross_entropy(base.scale * logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("ways", [1, 3])
def test_the_batched_step_equals_autograd_on_all_logits(samples: BaseSamples, ways: int) -> None:
    shots, config = 4, FinetuneConfig(steps=1, head_lr=1e-3, prior_shots=0)
    support = _unit(6, ways * shots, SIZE, seed=3)
    targets = torch.arange(ways).repeat_interleave(shots)
    start = _unit(6, ways, SIZE, seed=4)
    moved = finetune_proxies(start, support, targets, samples, config)
    for trial in range(6):
        rows = start[trial].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(rows, support[trial], targets, samples), [rows])
        gradient = gradient - (gradient * start[trial]).sum(1, keepdim=True) * start[trial]
        # Adam's first step is the sign of the gradient times the learning rate.
        expected = F.normalize(start[trial] - 1e-3 * gradient.sign(), dim=1)
        clear = gradient.abs() > 1e-5
        assert clear.float().mean() > 0.9
        assert torch.allclose(moved[trial][clear], expected[clear], atol=1e-5)


def test_fine_tuning_lowers_the_loss_and_keeps_unit_rows(samples: BaseSamples) -> None:
    support, targets = _unit(2, 5, SIZE, seed=5), torch.zeros(5, dtype=torch.int64)
    start = F.normalize(support.mean(1, keepdim=True), dim=-1)
    tuned = finetune_proxies(start, support, targets, samples, FinetuneConfig())
    assert torch.allclose(tuned.norm(dim=-1), torch.ones(2, 1), atol=1e-5)

    def best_loss(rows: Tensor, trial: int) -> Tensor:
        # The bias is set after fine-tuning, so a row is worth what it reaches at its best one.
        losses = [
            _loss(rows[trial], support[trial], targets, samples, bias / 50)
            for bias in range(-50, 51)
        ]
        return torch.stack(losses).min()

    for trial in range(2):
        assert best_loss(tuned, trial) < best_loss(start, trial)


def test_few_shots_move_a_row_less_than_many() -> None:
    start, tuned = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    rows = shrink_towards_start(tuned, start, torch.tensor([10, 40]), prior_shots=40)
    expected = F.normalize(torch.tensor([[0.8, 0.2], [0.5, 0.5]]), dim=1)
    assert torch.allclose(rows, expected)
    assert torch.equal(
        shrink_towards_start(tuned, start, torch.tensor([1, 1]), prior_shots=0), tuned
    )


def test_a_trial_is_the_same_alone_and_in_a_batch(samples: BaseSamples) -> None:
    support, targets = _unit(8, 5, SIZE, seed=6), torch.zeros(5, dtype=torch.int64)
    start = F.normalize(support.mean(1, keepdim=True), dim=-1)
    together = finetune_proxies(start, support, targets, samples, FinetuneConfig())
    alone = finetune_proxies(start[3:4], support[3:4], targets, samples, FinetuneConfig())
    assert torch.allclose(together[3], alone[0], atol=1e-4)


@pytest.mark.parametrize("loss", ["adaptive", "plain"])
def test_repetition_and_weighting_do_not_stack(loss: str) -> None:
    once = class_weights(torch.tensor([100, 100, 5]), loss, 2, None)
    repeated = class_weights(torch.tensor([100, 100, 100]), loss, 2, None)
    assert torch.allclose(repeated, torch.ones(3))
    if loss == "adaptive":
        # Every class has the same say however often its samples are repeated.
        assert torch.allclose(once * torch.tensor([100.0, 100.0, 5.0]), torch.full((3,), 205 / 3))
    else:
        assert torch.allclose(once, torch.ones(3))


def test_a_fixed_ratio_is_the_references_and_averages_one() -> None:
    counts = torch.tensor([10, 10, 2])
    weights = class_weights(counts, "adaptive", 2, 1600.0)
    assert (weights[2] / weights[0]).item() == pytest.approx(1600)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1)


@pytest.mark.parametrize(("freeze", "steps"), [("always", 4), ("alternate", 1)])
def test_frozen_base_rows_stay_bit_identical(samples: BaseSamples, freeze: str, steps: int) -> None:
    config = FinetuneConfig(freeze_base=freeze, steps=steps)  # type: ignore[arg-type]
    support, targets = _unit(5, SIZE, seed=7), torch.zeros(5, dtype=torch.int64)
    base_rows, rows = finetune_all_proxies(
        _unit(1, SIZE, seed=8), support, targets, samples, config
    )
    assert torch.equal(base_rows, samples.proxies)
    assert not torch.equal(rows, _unit(1, SIZE, seed=8))


def test_released_base_rows_move_on_odd_steps_only(samples: BaseSamples) -> None:
    support, targets = _unit(5, SIZE, seed=7), torch.zeros(5, dtype=torch.int64)
    rows = _unit(1, SIZE, seed=8)

    def after(steps: int) -> Tensor:
        config = FinetuneConfig(freeze_base="alternate", steps=steps)
        return finetune_all_proxies(rows, support, targets, samples, config)[0]

    assert not torch.equal(after(2), after(1))
    # Step 2 is frozen again: neither momentum nor normalisation may touch the rows.
    assert torch.equal(after(3), after(2))
    assert not torch.equal(after(4), after(3))


@pytest.fixture(scope="session")
def taught(base: Checkpoint, glyphs: Dataset, tiny_config: Config) -> Checkpoint:
    imprinting = tiny_config.imprint.model_copy(update={"classes": (_novel(base, glyphs),)})
    config = tiny_config.model_copy(update={"imprint": imprinting})
    return imprint_classes(base, glyphs, base.network(), config)[0]


def _novel(base: Checkpoint, glyphs: Dataset) -> str:
    return next(name for name in glyphs.class_names if name not in base.meta.classes)


def test_alternate_freezing_holds_in_the_whole_network(taught: Checkpoint, glyphs: Dataset) -> None:
    data = full_data(taught, glyphs, [taught.meta.supports[0].indices])
    n_base, head = taught.meta.n_base, taught.head

    def run(freeze: str) -> tuple[Tensor, Tensor]:
        config = FinetuneConfig(scope="full", freeze_base=freeze, epochs=1, batch_size=4096)  # type: ignore[arg-type]
        network = taught.network()
        *_, last = network.parameters()
        before = last.detach().clone()
        rows = finetune_network(network, head, data, config, seed=0)
        assert not torch.equal(before, last)
        return rows[:n_base], rows[n_base:]

    # One batch holds everything, so the only step is step 0, on which `alternate` freezes.
    for freeze in ("always", "alternate"):
        base_rows, novel_rows = run(freeze)
        assert torch.equal(base_rows, head.proxies[:n_base])
        assert not torch.equal(novel_rows, head.proxies[n_base:])
    assert not torch.equal(run("never")[0], head.proxies[:n_base])


def test_distilling_keeps_what_was_said_of_base_classes(
    taught: Checkpoint, glyphs: Dataset
) -> None:
    data = full_data(taught, glyphs, [record.indices for record in taught.meta.supports])
    head, images = taught.head, glyphs.test.pixels[glyphs.test.labels < 12]
    n_base = taught.meta.n_base

    def said(network: EmbeddingNetwork) -> Tensor:
        cosines = embed(network, images) @ head.proxies[:n_base].T
        return (head.scale * cosines).log_softmax(1)

    before, drifts = said(taught.network()), []
    for distil in (0.0, 3.0):
        network, config = taught.network(), FinetuneConfig(epochs=1, lr=0.003, distil=distil)
        finetune_network(network, head, data, config, seed=0)
        now = said(network)
        drifts.append(F.kl_div(now, before, log_target=True, reduction="batchmean").item())
    assert 0 < drifts[1] < drifts[0]


def test_full_fine_tuning_sees_the_shots_and_nothing_else_of_the_novel_class(
    taught: Checkpoint, glyphs: Dataset
) -> None:
    indices = taught.meta.supports[0].indices
    data = full_data(taught, glyphs, [indices])
    assert torch.equal(data.support_pixels, glyphs.train.pixels[list(indices)])
    labels = {glyphs.label(name) for name in taught.base_classes}
    fit = glyphs.train.pixels[torch.tensor([int(label) in labels for label in glyphs.train.labels])]
    assert len(data.base_pixels) == len(fit) - 50 * len(labels)


def test_both_scopes_keep_the_pristine_models_verdicts(
    taught: Checkpoint, glyphs: Dataset, tiny_config: Config
) -> None:
    for scope in ("head", "full"):
        options = FinetuneConfig(scope=scope, epochs=1)  # type: ignore[arg-type]
        config = tiny_config.model_copy(update={"finetune": options})
        tuned = finetune(taught, config, glyphs)
        assert torch.equal(tuned.holdout.right, taught.holdout.right)
        assert torch.equal(tuned.holdout.embeddings, taught.holdout.embeddings) == (scope == "head")
        assert tuned.supports[0].shape == taught.supports[0].shape


def test_adding_a_class_by_the_plain_mean_keeps_the_others_calibrated(
    base: Checkpoint, glyphs: Dataset, tiny_config: Config
) -> None:
    names = [name for name in glyphs.class_names if name not in base.meta.classes]

    def add(checkpoint: Checkpoint, name: str, method: str) -> Checkpoint:
        options = {"classes": (name,), "method": method}
        imprinting = tiny_config.imprint.model_copy(update=options)
        config = tiny_config.model_copy(update={"imprint": imprinting})
        return imprint_classes(checkpoint, glyphs, base.network(), config)[0]

    assert add(base, names[0], "imprint").head.bias == 0
    whitened = add(base, names[0], "whitened")
    both = add(whitened, names[1], "imprint")
    (queries,) = both.calibration
    expected = operating_bias(queries.margins(both.head.proxies[-2:][None]), queries, 2.0).item()
    assert whitened.head.bias != 0
    assert both.head.bias == pytest.approx(expected) != 0
