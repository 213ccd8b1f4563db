"""What a model says of photos, how it rejects unknown ones, and how its classes are changed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.photos import find_photos
from lowshot_cli.evaluation.open_set import familiarity, open_set, unknown_threshold
from lowshot_cli.evaluation.predict import predict, readable
from lowshot_cli.models.embedder import Embedder, embed
from tests.conftest import RunCommand


def _save(glyphs: Dataset, name: str, folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    members = glyphs.test.of_class(glyphs.label(name))[first : first + count]
    for number, index in enumerate(members.tolist()):
        pixels = glyphs.test.pixels[index].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def known(base: Checkpoint, glyphs: Dataset, tmp_path: Path) -> Path:
    """Test images of two base classes, in folders of their names."""
    for name in base.base_classes[:2]:
        _save(glyphs, name, tmp_path / "known" / name, 8)
    return tmp_path / "known"


@pytest.fixture
def stranger(base: Checkpoint, glyphs: Dataset) -> str:
    return next(name for name in glyphs.class_names if name not in base.meta.classes)


def test_predictions_are_those_of_the_head(
    lowshot: RunCommand, workdir: Path, known: Path, base: Checkpoint, glyphs: Dataset
) -> None:
    result = lowshot("predict", known, "--json", "--top", 2)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [entry["image"] for entry in found] == [str(file) for file in find_photos([known]).files]
    for name in base.base_classes[:2]:
        pixels = glyphs.test.pixels[glyphs.test.of_class(glyphs.label(name))[:8]]
        chances = base.head.probabilities(embed(base.network(), pixels))
        own = [entry for entry in found if Path(entry["image"]).parent.name == name]
        expected = [base.meta.classes[i] for i in chances.argmax(1).tolist()]
        assert [entry["class"] for entry in own] == expected
        torch.testing.assert_close(
            torch.tensor([entry["probability"] for entry in own]), chances.amax(1)
        )
    for entry in found:
        assert entry["top"][0] == [entry["class"], entry["probability"]]
        assert len(entry["top"]) == 2
        assert entry["unknown"] is False


def test_batches_and_order_change_no_decision_that_is_not_a_tie(
    base: Checkpoint, glyphs: Dataset, known: Path
) -> None:
    files = find_photos([known]).files
    network = base.network()
    whole, _ = readable(predict(base, network, files))
    answers = {one.image: one.name for one in whole}
    changed = []
    for batch in (1, 3, 7):
        parts, _ = readable(predict(base, network, files[::-1], batch=batch))
        assert [one.image for one in parts] == [str(file) for file in files[::-1]]
        changed += [one.image for one in parts if one.name != answers[one.image]]
    pixels = torch.cat(
        [
            glyphs.test.pixels[glyphs.test.of_class(glyphs.label(n))[:8]]
            for n in sorted(base.base_classes[:2])
        ]
    )
    best = base.head.scores(embed(network, pixels)).topk(2).values
    ties = int((best[:, 0] - best[:, 1] < 1e-4).sum())
    assert len(changed) <= 3 * ties


def test_a_list_of_files_comes_from_standard_input(
    lowshot: RunCommand, workdir: Path, known: Path
) -> None:
    files = find_photos([known]).files[:3]
    result = lowshot("predict", "-", "--csv", input="".join(f"{file}\n" for file in files))
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["image"] for row in rows] == [str(file) for file in files]
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert list(rows[0])[4:] == ["class_2", "probability_2", "class_3", "probability_3"]
    found = json.loads(lowshot("predict", *files, "--json", "--top", 5).stdout)
    more = list(csv.reader(io.StringIO(lowshot("predict", *files, "--csv", "--top", 5).stdout)))
    for one, (_, *row) in zip(found, more[1:], strict=True):
        assert [row[0], *row[3::2]] == [name for name, _ in one["top"]]


def test_people_see_a_line_an_image_with_its_whole_path(
    lowshot: RunCommand, workdir: Path, known: Path
) -> None:
    result = lowshot("predict", known, "--quiet")
    lines = result.stdout.splitlines()
    files = find_photos([known]).files
    assert len(lines) == len(files)
    for line, file in zip(lines, files, strict=True):
        assert line.startswith(str(file))
        assert "%" in line


def test_unreadable_images_are_told_of_after_the_others(
    lowshot: RunCommand, workdir: Path, known: Path
) -> None:
    (known / "broken.png").write_bytes(b"no image")
    result = lowshot("predict", known, "--json")
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)) == 16
    assert "1 of 17 images cannot be read" in result.stderr
    assert "broken.png" in result.stderr
    result = lowshot("predict", known, "--json", "--skip-bad")
    assert result.exit_code == 0
    assert "broken.png" in result.stderr


def test_the_threshold_holds_the_false_alarm_rate_on_the_holdout(base: Checkpoint) -> None:
    held = base.holdout
    scores = familiarity(base.head, held.calibrating(held.embeddings).float())
    for rate in (0.0, 5.0, 30.0):
        alarms = 100 * (scores < unknown_threshold(base, rate)).double().mean().item()
        assert rate - 100 / len(scores) <= alarms <= rate


def test_strangers_are_rejected_more_often_than_known_classes(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder
) -> None:
    found = open_set(base, glyphs, embedder, 10.0)
    assert found.n_known == 50 * 12
    assert found.detected > found.false_alarm + 10
    assert 60 < found.auroc < 100


def test_open_set_is_reported_and_unknown_images_are_marked(
    lowshot: RunCommand, workdir: Path, known: Path
) -> None:
    result = lowshot("evaluate", "--open-set", "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)
    keys = {"auroc", "false_alarm", "detected", "n_known", "n_unknown"}
    assert set(one["open_set"]) == keys
    assert "AUROC" in lowshot("evaluate", "--open-set").stdout
    result = lowshot("predict", known, "--unknown", "--false-alarm", 100, "--json")
    marked = [entry["unknown"] for entry in json.loads(result.stdout)]
    assert sum(marked) > 8
    implied = lowshot("predict", known, "--false-alarm", 100, "--json")
    assert implied.stdout == result.stdout
    assert lowshot("predict", known, "--unknown", "--false-alarm", 101).exit_code == 2


def test_a_photo_taught_class_is_measured_on_other_photos(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, glyphs: Dataset, stranger: str
) -> None:
    taught = _save(glyphs, stranger, tmp_path / "taught", 5)
    others = _save(glyphs, stranger, tmp_path / "others", 20, first=5)
    assert lowshot("imprint", "--class", "my mug", "--images", taught).exit_code == 0
    result = lowshot("evaluate", "--images", f"my mug={others}", "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)
    assert one["checkpoint"].endswith("imprinted.safetensors")
    model = load(workdir / "imprinted.safetensors")
    members = glyphs.test.of_class(glyphs.label(stranger))[5:25]
    answers = model.head.predict(embed(model.network(), glyphs.test.pixels[members]))
    right = 100 * (answers == 12).double().mean().item()
    assert one["novel_accuracy"] == right > 0
    assert one["per_class"][12] == {"class": "my mug", "accuracy": right, "n": 20}
    assert one["base_accuracy"] is None
    assert one["forgetting"] is None
    assert one["repeated"] == 0
    result = lowshot("evaluate", "--images", f"my mug={taught}")
    assert "photos among the support images of their class: 5" in result.stderr
    assert "accuracy on your photos" in result.stdout
    result = lowshot("evaluate", "--images", f"my mgu={taught}")
    assert result.exit_code == 2
    assert "did you mean 'my mug'?" in result.stderr
    assert lowshot("evaluate", "--images", taught).exit_code == 2


def test_the_same_photo_twice_counts_once(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, glyphs: Dataset, stranger: str
) -> None:
    taught = _save(glyphs, stranger, tmp_path / "taught", 3)
    (taught / "copy.png").write_bytes((taught / "001.png").read_bytes())
    result = lowshot("imprint", "--class", "mug", "--images", taught)
    assert "photos left out, as they repeat another one: 1" in result.stderr
    assert len(load(workdir / "imprinted.safetensors").supports[0]) == 3


def test_classes_are_listed_renamed_and_removed(lowshot: RunCommand, workdir: Path) -> None:
    assert lowshot("imprint", "--class", "omega", "--class", "phi", "--shots", 3).exit_code == 0
    path = workdir / "imprinted.safetensors"
    rows = json.loads(lowshot("classes", "list", "--json").stdout)
    assert [row["kind"] for row in rows] == ["base"] * 12 + ["novel"] * 2
    assert rows[12] == {
        "class": "omega",
        "kind": "novel",
        "shots": 3,
        "method": "imprint --method whitened",
    }
    before = json.loads(lowshot("evaluate", path, "--json").stdout)[0]
    assert lowshot("classes", "rename", "omega", "the end").exit_code == 0
    after = json.loads(lowshot("evaluate", path, "--json").stdout)[0]
    assert after["novel_accuracy"] == before["novel_accuracy"]
    assert after["per_class"][12] == {**before["per_class"][12], "class": "the end"}
    result = lowshot("classes", "rename", "phi", "the end")
    assert result.exit_code == 2
    assert "already knows" in result.stderr

    both = load(path)
    assert lowshot("classes", "remove", "the end").exit_code == 0
    model = load(path)
    assert model.novel_classes == ("phi",)
    assert torch.equal(model.head.proxies[12], both.head.proxies[13])
    # Alone, the class may push further for the same budget.
    assert model.head.bias >= both.head.bias - 1e-6
    assert model.meta.history[-1]["command"] == "classes remove"
    result = lowshot("classes", "remove", "omego")
    assert result.exit_code == 2
    assert "knows no class" in result.stderr


def test_base_classes_are_changed_by_force_alone(
    lowshot: RunCommand, workdir: Path, base: Checkpoint
) -> None:
    path, name = workdir / "base.safetensors", base.base_classes[3]
    content = path.read_bytes()
    for arguments in (["remove", name], ["rename", name, "other"]):
        result = lowshot("classes", *arguments)
        assert result.exit_code == 2
        assert "--force" in result.stderr
        assert path.read_bytes() == content
    before = json.loads(lowshot("evaluate", "--json").stdout)[0]
    assert lowshot("classes", "rename", name, "[/red] mug", "--force").exit_code == 0
    after = json.loads(lowshot("evaluate", "--json").stdout)[0]
    assert after["base_accuracy"] == before["base_accuracy"]
    # Under another name it is a base class still, and no novel one to a sweep.
    result = lowshot("sweep", "--novel", name, "--trials", 1)
    assert result.exit_code == 2
    assert "is a base class" in result.stderr
    assert lowshot("classes", "remove", "[/red] mug", "--force").exit_code == 0
    model = load(path)
    assert len(model.meta.classes) == 11
    assert len(model.holdout) == len(base.holdout) - base.meta.holdout_per_class
    # What was a base class may be learnt again under its own name.
    assert lowshot("imprint", "--class", name).exit_code == 0
