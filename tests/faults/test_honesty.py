"""Numbers that mean what they say: no leaks, no luck, no dependence on how the work was cut up."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.cli.commands import sweep
from lowshot_cli.config.schema import Config, SweepConfig
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.data.duplicates import (
    SIMILAR,
    lookalikes,
    supports_seen_in_test,
    without_lookalikes,
)
from lowshot_cli.data.splits import split_holdout
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.sweep.plan import make_plan
from lowshot_cli.sweep.tiles import make_tile
from lowshot_cli.training.train import train_base
from tests.conftest import RunCommand, save_images
from tests.faults.conftest import Server


def test_no_image_is_support_and_query_in_any_trial(base: Checkpoint, glyphs: Dataset) -> None:
    """A test image is smuggled into the training images of every class; no draw may take it."""
    pixels = glyphs.train.pixels.clone()
    for label in range(len(glyphs.class_names)):
        place, query = glyphs.train.of_class(label)[0], glyphs.test.of_class(label)[0]
        pixels[place] = glyphs.test.pixels[query]
    leaky = replace(glyphs, train=Images(pixels, glyphs.train.labels))
    config = Config(dataset="glyphs", sweep=SweepConfig(trials=40, shots=(1, 20), novel=8))
    plan = make_plan(base, leaky, config)
    labels = {label for group in plan.groups for label in group}
    members = {label: leaky.train.of_class(label) for label in labels}
    avoided = {label: supports_seen_in_test(leaky, label) for label in labels}
    assert all(0 in found for found in avoided.values())
    available = {label: len(found) for label, found in members.items()}
    seen = 0
    for batch in plan.batches():
        tile = make_tile(batch, plan, available, avoided, 256)
        for trial in range(tile.count):
            label = int(tile.units[trial, 0])
            drawn = leaky.train.pixels[members[label][torch.from_numpy(tile.drawn[trial, 0])]]
            queries = leaky.test.pixels[leaky.test.of_class(label)]
            same = (_words(drawn)[:, None] == _words(queries)[None]).all(2)
            assert not same.any()
            seen += len(drawn)
    assert seen > 1_000


def _words(pixels: Tensor) -> Tensor:
    """Eight bytes of an image at a time, which compare faster, `(N, words)`."""
    return pixels.flatten(1).view(torch.int64)


def test_fit_holdout_and_test_share_no_image(base: Checkpoint, glyphs: Dataset) -> None:
    labels = base.base_labels(glyphs)
    fit, holdout = split_holdout(glyphs.train, labels, base.meta.holdout_per_class)
    assert not set(fit.tolist()) & set(holdout.tolist())
    hashed = {image.numpy().tobytes() for image in glyphs.train.pixels[torch.cat([fit, holdout])]}
    assert not any(image.numpy().tobytes() in hashed for image in glyphs.test.pixels)


def _changed(pixels: Tensor) -> dict[str, Tensor]:
    """The same picture, treated as people treat pictures."""
    moved = torch.roll(pixels, 2, 3)
    moved[..., :2] = pixels[..., :1]
    return {
        "copied": pixels,
        "mirrored": pixels.flip(3),
        "darkened": (pixels.float() * 0.7).to(torch.uint8),
        "moved": moved,
    }


@pytest.mark.parametrize("how", ["copied", "mirrored", "darkened", "moved"])
def test_lookalikes_finds_treated_pictures_and_no_others(glyphs: Dataset, how: str) -> None:
    train, test = glyphs.train.pixels[::7][:300], glyphs.test.pixels[::13][:60].clone()
    chosen = torch.arange(0, 300, 30)
    test[:10] = _changed(train[chosen])[how]
    found = lookalikes(test, train)
    hits = (found.nearest[:10] == chosen) & (found.similarity[:10] >= SIMILAR)
    # A thin letter that has moved may resemble itself too little to be looked at again.
    assert hits.sum() >= (8 if how == "moved" else 10)
    assert (found.similarity[10:] < SIMILAR).all()


def test_the_effect_of_duplicates_is_shown_on_request(
    lowshot: RunCommand, tiny_yaml: Path, tmp_path: Path, glyphs: Dataset
) -> None:
    """Five test images of each class are training images; left out, they do not count."""
    photos = _photos(tmp_path / "train", glyphs)
    (tmp_path / "all").mkdir()
    photos.rename(tmp_path / "all" / "train")
    for folder in (tmp_path / "all" / "train").iterdir():
        own = tmp_path / "all" / "test" / folder.name
        own.mkdir(parents=True)
        images = sorted(folder.iterdir())
        for image in images[-10:]:
            image.rename(own / image.name)
        for image in images[:5]:
            shutil.copy(image, own / f"copy-{image.name}")
    data = ["--dataset", "folder", "--data-dir", tmp_path / "all"]
    small = ["--image-size", "32", "--holdout", "8", "--width", "4", "--epochs", "1"]
    small += ["--backbone", "resnet9"]
    assert lowshot("train-base", *data, "--classes", "A,Z", *small).exit_code == 0
    typed = ["sweep", "--trials", "2", "--shots", "1", "--method", "whitened", "--json", *data]
    plain, dropped = (
        json.loads(lowshot(*typed, *more).stdout) for more in ([], ["--drop-duplicates"])
    )
    assert (plain["dropped_duplicates"], dropped["dropped_duplicates"]) == (0, 20)
    assert plain["cells"][0]["n_trials"] == dropped["cells"][0]["n_trials"]
    # Twenty test images of the two base classes are left.
    right = dropped["base_accuracy_before"] * 20 / 100
    assert abs(right - round(right)) < 1e-6


def test_only_lookalikes_are_dropped(glyphs: Dataset) -> None:
    few = Images(glyphs.train.pixels[::40], glyphs.train.labels[::40])
    test = glyphs.test.pixels[::40].clone()
    test[3:9] = few.pixels[:6]
    leaky = replace(glyphs, train=few, test=Images(test, glyphs.test.labels[::40]))
    kept = without_lookalikes(leaky).test
    assert torch.equal(kept.pixels, torch.cat([test[:3], test[9:]]))
    assert len(kept.labels) == len(kept.pixels)


@pytest.mark.cifar
@pytest.mark.skipif("LOWSHOT_DATA" not in os.environ, reason="needs LOWSHOT_DATA")
@pytest.mark.slow
def test_near_duplicates_of_cifar_100_are_found() -> None:
    """Barz and Denzler (2020) judged 891 test images to be in the training images, or nearly."""
    from lowshot_cli.data.loading import load_dataset

    dataset = load_dataset(Config(data_dir=Path(os.environ["LOWSHOT_DATA"])))
    found = lookalikes(dataset.test.pixels, dataset.train.pixels)
    similar = found.similarity >= SIMILAR
    same = dataset.test.labels == dataset.train.labels[found.nearest]
    print(f"{int(similar.sum())} test images, {int((similar & same).sum())} of the same class")
    assert 600 < int(similar.sum()) < 750
    assert int((similar & same).sum()) > 0.85 * int(similar.sum())


# The same bytes


def _photos(folder: Path, glyphs: Dataset) -> Path:
    for name in ("A", "Z", "omega", "phi"):
        places = glyphs.train.of_class(glyphs.label(name))[:60]
        save_images(glyphs.train.pixels[places], folder / name)
    return folder


def _whole_run(
    server: Server, photos: Path, folder: Path, cpus: int, seed: int = 0
) -> dict[str, bytes]:
    """Train, imprint, fine-tune and sweep on some processors; the bytes of what that leaves."""
    folder.mkdir()
    data = ["--dataset", "folder", "--data-dir", photos, "--seed", seed]
    small = ["--image-size", "32", "--holdout", "8", "--width", "4", "--epochs", "2"]
    small += ["--backbone", "resnet9"]
    for arguments in (
        ["train-base", "--classes", "A,Z", "--precision", "fp32", *small],
        ["imprint", "--class", "phi", "--shots", "3"],
        ["finetune"],
        ["sweep", "--trials", "3", "--shots", "1,2"],
    ):
        cache = {"XDG_CACHE_HOME": str(folder / "cache")}
        server.run(*arguments, *data, cwd=folder, cpus=cpus, env=cache)
    runs = folder / "runs"
    (rows,) = runs.glob("sweep-*/results.csv")
    return {path.name: path.read_bytes() for path in (*runs.glob("*.safetensors"), rows)}


def test_the_same_seed_gives_the_same_bytes_whatever_decodes_and_when(
    server: Server, glyphs: Dataset, tmp_path: Path
) -> None:
    photos = _photos(tmp_path / "photos", glyphs)
    one = _whole_run(server, photos, tmp_path / "one", 1)
    many = _whole_run(server, photos, tmp_path / "many", 8)
    stages = {f"{stage}.safetensors" for stage in ("base", "imprinted", "finetuned")}
    assert one.keys() == stages | {"results.csv"}
    assert one == many
    other = _whole_run(server, photos, tmp_path / "other", 8, seed=1)
    assert all(other[name] != one[name] for name in one)


@pytest.mark.parametrize("method", ["imprint", "whitened", "finetune-head"])
def test_rows_of_a_sweep_do_not_depend_on_how_it_was_cut_up(
    lowshot: RunCommand, workdir: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All classes at once, and each by itself; nobody looks at the reports."""
    monkeypatch.setattr(sweep, "report_sweep", lambda *_: [])
    typed = ["sweep", "--trials", "3", "--shots", "1,5", "--method", method, "--workdir", workdir]
    together = json.loads(lowshot(*typed, "--novel", "Z,omega,phi", "--json").stdout)["run_dir"]
    rows = set(Path(together, "results.csv").read_text().splitlines())
    apart = set()
    for name in ("Z", "omega", "phi"):
        run_dir = json.loads(lowshot(*typed, "--novel", name, "--json").stdout)["run_dir"]
        apart |= set(Path(run_dir, "results.csv").read_text().splitlines())
    assert apart == rows


# Embeddings


class _Watching(EmbeddingNetwork):
    """Refuses to embed in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        return super().forward(images)


def test_embeddings_are_made_in_evaluation_mode_and_the_mode_is_given_back(
    base: Checkpoint, glyphs: Dataset
) -> None:
    network = base.network()
    images = glyphs.test.pixels[:8]
    expected = embed(network, images)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    assert torch.allclose(embed(network, images), expected, atol=1e-6)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_training_leaves_a_backbone_that_embeds_as_its_checkpoint_says(
    glyphs: Dataset, tiny_config: Config, tmp_path: Path
) -> None:
    options = tiny_config.train_base.model_copy(update={"epochs": 1})
    config = tiny_config.model_copy(update={"train_base": options})
    made = train_base(config, glyphs, tmp_path / "state.safetensors").checkpoint
    labels = made.base_labels(glyphs)
    _, holdout = split_holdout(glyphs.train, labels, made.meta.holdout_per_class)
    again = embed(made.network(), glyphs.train.pixels[holdout])
    assert torch.allclose(again, made.holdout.embeddings.float(), atol=2e-3)


def test_the_company_an_image_is_in_does_not_change_its_embedding(
    base: Checkpoint, glyphs: Dataset
) -> None:
    network, images = base.network(), glyphs.test.pixels[:64]
    alone = torch.cat([embed(network, image[None]) for image in images])
    lots = np.random.default_rng(0)
    for size in (2, 7, 64):
        order = torch.from_numpy(lots.permutation(64))
        together = torch.empty_like(alone)
        for part in order.split(size):
            others = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
            together[part] = embed(network, torch.cat([images[part], others]))[: len(part)]
        assert (together - alone).abs().max() <= 1e-5
