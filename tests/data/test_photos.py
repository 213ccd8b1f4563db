"""Classes learnt from photos outside any dataset, with the checkpoint alone."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from lowshot_cli.adaptation.methods import make_whitened
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.photos import find_photos, load_photos
from lowshot_cli.errors import DataError
from lowshot_cli.models.embedder import embed
from tests.conftest import RunCommand, save_images


@pytest.fixture
def mugs(base: Checkpoint, glyphs: Dataset, tmp_path: Path) -> Path:
    """Six images of a class that the base model does not know, as files of the size they have."""
    name = next(name for name in glyphs.class_names if name not in base.meta.classes)
    folder = tmp_path / "mug [photos]"
    save_images(glyphs.train.pixels[glyphs.train.of_class(glyphs.label(name))[:6]], folder)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_photos_are_named_by_file_folder_or_glob(
    mugs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [mugs / f"{number}.png" for number in range(6)]
    assert find_photos([mugs]).files == everything
    assert find_photos([mugs / "3.png", mugs]).files == [
        everything[3],
        *everything[:3],
        *everything[4:],
    ]
    monkeypatch.chdir(mugs)
    assert find_photos([Path("[0-2].png")]).files == [Path(f"{number}.png") for number in range(3)]
    with pytest.raises(DataError, match="is not a pattern"):
        find_photos([Path("photos**/*.jpg")])
    for absent in ("absent", "*.jpg"):
        with pytest.raises(DataError, match="no image at"):
            find_photos([Path(absent)])
    (mugs / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        find_photos([Path("empty")])


def test_unreadable_photos_are_refused_or_left_out(mugs: Path) -> None:
    (mugs / "6.png").write_bytes(b"no image")
    files = find_photos([mugs]).files
    with pytest.raises(DataError, match=r"1 of 7 images .*6\.png"):
        load_photos(files, 32)
    photos = load_photos(files, 32, skip_bad=True)
    assert photos.pixels.shape == (6, 3, 32, 32)
    assert len(photos.skipped) == 1
    with pytest.raises(DataError, match="1 of 1 images"):
        load_photos(files[6:], 32, skip_bad=True)


def test_an_archive_among_photos_is_called_one(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "mugs.zip", "w") as archive:
        archive.writestr("mug.png", b"no image")
    with pytest.raises(DataError, match=r"mugs\.zip \(an archive, unpack it\)"):
        load_photos(find_photos([tmp_path / "mugs.zip"]).files, 32)


def test_a_class_learnt_from_photos_is_the_one_learnt_from_the_dataset(
    lowshot: RunCommand, workdir: Path, mugs: Path, base: Checkpoint, glyphs: Dataset
) -> None:
    result = lowshot("imprint", "--class", "my mug", "--images", mugs, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = load(workdir / "imprinted.safetensors")
    assert model.novel_classes == ("my mug",)
    assert model.meta.supports[0].files == tuple(f"{number}.png" for number in range(6))
    assert str(mugs) not in (workdir / "imprinted.safetensors").read_bytes().decode("latin1")
    assert 1 < found["expected_forgetting"] <= 2

    name = next(name for name in glyphs.class_names if name not in base.meta.classes)
    pixels = glyphs.train.pixels[glyphs.train.of_class(glyphs.label(name))[:6]]
    support = embed(base.network(), pixels)
    torch.testing.assert_close(model.supports[0], support)
    expected = make_whitened(support, base.backgrounds[0])
    torch.testing.assert_close(model.head.proxies[12], expected)


def test_shots_draw_among_the_photos(lowshot: RunCommand, workdir: Path, mugs: Path) -> None:
    drawn = []
    for seed in (0, 1, 0):
        arguments = ["imprint", "--class", "mug", "--images", mugs, "--shots", 2, "--seed", seed]
        assert lowshot(*arguments).exit_code == 0
        drawn.append(load(workdir / "imprinted.safetensors").meta.supports[0].files)
    assert drawn[0] == drawn[2] != drawn[1]
    assert all(files is not None and len(files) == 2 for files in drawn)
    result = lowshot("imprint", "--class", "mug", "--images", mugs, "--shots", 9)
    assert result.exit_code == 2
    assert "there are 6 images" in result.stderr


def test_photos_are_of_one_class(lowshot: RunCommand, workdir: Path, mugs: Path) -> None:
    result = lowshot("imprint", "--class", "a", "--class", "b", "--images", mugs)
    assert result.exit_code == 2
    assert "--images must be of one class" in result.stderr
    assert not (workdir / "imprinted.safetensors").exists()


def test_a_photo_taught_class_lives_beside_the_others(
    lowshot: RunCommand, workdir: Path, mugs: Path
) -> None:
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    result = lowshot("imprint", "--class", "my mug", "--images", mugs, "--add")
    assert result.exit_code == 0, result.stderr
    assert "estimated on the hold-out" in result.stdout
    assert lowshot("finetune").exit_code == 0
    one = json.loads(lowshot("evaluate", workdir / "finetuned.safetensors", "--json").stdout)[0]
    rows = {row["class"]: row for row in one["per_class"]}
    assert rows["my mug"] == {"class": "my mug", "accuracy": None, "n": 0}
    assert one["novel_accuracy"] == rows["omega"]["accuracy"]
    result = lowshot("finetune", "--scope", "full")
    assert result.exit_code == 3
    assert "learnt from photos outside the dataset" in result.stderr
    known = load(workdir / "finetuned.safetensors").head.proxies
    assert torch.isfinite(known).all()
