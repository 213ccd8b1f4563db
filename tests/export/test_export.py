"""An export agrees with its checkpoint, says what it is, and runs without lowshot."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.cli.main import app
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.photos import load_photos
from lowshot_cli.errors import LowshotError
from lowshot_cli.export.check import compare_with_checkpoint
from lowshot_cli.export.export import Classifier, export, write
from lowshot_cli.export.model_card import model_card
from lowshot_cli.models.embedder import embed
from tests.conftest import RunCommand
from tests.tiny_world import tiny_world

HOSTILE = (
    "line\nbreak",
    "\n---\nlicense: mine",
    "| a | pipe |",
    "[link](https://example.org)",
    "'single' and \"double\"",
    "{{ braces }}: - #",
    "\\ back\\slash `tick`",
    "🍎 りんご",
    "  spaces  ",
    "<b>tag</b>",
    "null",
    "\u2028\x85\x07",
)
FILES = ["model.onnx", "model.pt2", "labels.json", "README.md"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base_path: Path) -> Path:
    """A work folder with a taught model and its export."""
    workdir = tmp_path_factory.mktemp("export") / "runs"
    workdir.mkdir()
    shutil.copy(base_path, workdir)
    for command in (["imprint", "--class", "omega", "--shots", "3"], ["export"]):
        arguments = [*command, "--workdir", str(workdir), "--json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    folder = workdir / "export"
    expected = {"folder": str(folder), "files": FILES, "opset": 18, "check": None, "n_skipped": 0}
    assert json.loads(result.stdout) == expected
    assert result.stderr.splitlines() == [
        f"using {workdir / 'imprinted.safetensors'}",
        f"exporting {workdir / 'imprinted.safetensors'}",
        *(f"wrote {folder / name}" for name in FILES),
        f"next: lowshot export --check --workdir {workdir}",
    ]
    return workdir


@pytest.fixture(scope="module")
def taught(made: Path) -> Checkpoint:
    return load(made / "imprinted.safetensors")


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    """The same in the work folder of the test's own."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs" / "export"


@pytest.fixture(params=["onnx", "torch"])
def model(request: pytest.FixtureRequest, made: Path) -> Callable[[Tensor], list[Tensor]]:
    """An exported model as people run it who have no lowshot."""
    if request.param == "torch":
        program = torch.export.load(made / "export" / "model.pt2").module()
        return lambda images: [found.detach() for found in program(images)]
    session = onnxruntime.InferenceSession(made / "export" / "model.onnx")
    assert [one.name for one in session.get_outputs()] == ["probabilities", "embeddings"]
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    return lambda images: [
        torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})
    ]


@pytest.mark.parametrize("size", [1, 7])
def test_a_batch_of_any_size_gets_the_checkpoints_probabilities(
    model: Callable[[Tensor], list[Tensor]], taught: Checkpoint, glyphs: Dataset, size: int
) -> None:
    images = glyphs.test.pixels[:: len(glyphs.test.pixels) // size][:size].contiguous()
    probabilities, embeddings = model(images)
    expected = embed(taught.network(), images)
    assert taught.head.bias != 0
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        probabilities, taught.head.probabilities(expected), atol=1e-5, rtol=0
    )


def test_a_linear_head_is_exported_with_its_offsets_and_bias() -> None:
    dataset, base, network = tiny_world("linear")
    shots = dataset.train.pixels[dataset.train.of_class(7)[:3]]
    model = Model(base, network).imprint(shots, "h", max_forgetting=20)
    assert model.checkpoint.head.bias != 0
    images, expected = dataset.test.pixels, model.predict_proba(dataset.test.pixels)
    with torch.inference_mode():  # what every format is exported from
        probabilities, _ = Classifier(model.checkpoint)(images)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    assert (expected.argmax(1) == base.meta.n_base).any()


def test_an_export_depends_on_the_checkpoint_alone(made: Path, taught: Checkpoint) -> None:
    written = {path.name: path.read_bytes() for path in (made / "export").iterdir()}
    assert export(taught, "all") == written
    here = (str(Path.cwd()), str(Path.home()), str(Path(sys.prefix)), str(made))
    for content in written.values():
        assert not any(path.encode() in content for path in here)


def test_the_card_says_what_the_model_is(made: Path, taught: Checkpoint) -> None:
    header, body = _card((made / "export" / "README.md").read_text())
    assert header["opset"] == 18
    assert header["classes"][-1] == {"name": "omega", "kind": "novel", "shots": 3}
    assert [one["name"] for one in header["classes"]] == list(taught.meta.classes)
    assert [one["command"] for one in header["history"]] == ["train_base", "imprint"]
    measured = header["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert measured == pytest.approx(taught.base_accuracy, abs=0.005)
    assert "license" not in header
    assert f"{taught.base_accuracy:.1f} % of" in body
    assert "| 12 | omega | novel | 3 |" in body


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_the_example_in_the_card_runs(
    exported: Path,
    taught: Checkpoint,
    glyphs: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: ExportFormat,
) -> None:
    image = glyphs.test.pixels[0].permute(1, 2, 0).numpy()
    Image.fromarray(image).resize((90, 60)).save(exported / "photo.jpg")
    pixels = load_photos([exported / "photo.jpg"], 32).pixels
    expected = int(taught.head.predict(embed(taught.network(), pixels)))
    monkeypatch.chdir(exported)
    card = model_card(taught, form)
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == f"{taught.meta.classes[expected]}\n"


def test_a_check_compares_on_test_images(lowshot: RunCommand, exported: Path) -> None:
    result = lowshot("export", "--check", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["files"] == ["model.onnx", "model.pt2"]
    assert found["opset"] == 18
    compared = found["check"]
    assert compared.pop("largest_difference") < 1e-5
    assert compared == {"images": "test images of glyphs", "n": 1000, "decisions_equal": True}


def test_a_check_compares_on_photos(lowshot: RunCommand, exported: Path, glyphs: Dataset) -> None:
    photos = exported.parent / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = glyphs.test.pixels[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(photos / f"{number}.png")
    result = lowshot("export", "--check", "--images", photos)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "3 images (photos): probabilities differ by" in text
    assert text.endswith("decisions are equal")
    result = lowshot("export", "--images", photos)
    assert result.exit_code == 2
    assert "add --check" in result.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [("folder", "the test images cannot be used"), ("cifar100", "there are no test images")],
)
def test_without_test_images_noise_is_checked_and_named(
    lowshot: RunCommand, exported: Path, taught: Checkpoint, name: str, why: str
) -> None:
    path = exported.parent / "elsewhere.safetensors"
    save(replace(taught, meta=taught.meta.model_copy(update={"dataset": name})), path)
    empty = exported.parent / "empty"
    empty.mkdir()
    result = lowshot("export", "--check", "--checkpoint", path, "--data-dir", empty)
    assert result.exit_code == 0, result.stderr
    assert f"64 images (noise, as {why})" in " ".join(result.stdout.split())
    assert not any(empty.iterdir())


@pytest.mark.parametrize("part", ["backbone", "bias", "classes"])
def test_a_check_notices_a_model_that_has_changed(
    lowshot: RunCommand, exported: Path, taught: Checkpoint, part: str
) -> None:
    changed = {
        "backbone": {"backbone": {n: t * 1.01 for n, t in taught.backbone.items()}},
        "bias": {"head": replace(taught.head, bias=taught.head.bias + 0.01)},
        "classes": {"meta": taught.meta.model_copy(update={"classes": taught.meta.classes[::-1]})},
    }
    changed["backbone"]["backbone"] |= {
        n: t for n, t in taught.backbone.items() if not t.is_floating_point()
    }
    save(replace(taught, **changed[part]), exported.parent / "imprinted.safetensors")
    result = lowshot("export", "--check")
    assert result.exit_code == 3
    assert "does not agree with the checkpoint" in result.stderr
    assert "export again with --overwrite" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "labels.json"])
def test_damaged_files_are_told_of_in_one_line(
    lowshot: RunCommand, exported: Path, name: str
) -> None:
    (exported / name).write_bytes(b"damaged")
    result = lowshot("export", "--check", "--quiet")
    assert result.exit_code == 3
    assert f"error: {Path('runs/export') / name} cannot be used: " in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_hostile_class_names_survive(taught: Checkpoint, tmp_path: Path) -> None:
    classes = (*HOSTILE, "novel\n🍏|")
    hostile = replace(taught, meta=taught.meta.model_copy(update={"classes": classes}))
    write(tmp_path, export(hostile, "torch"))
    assert json.loads((tmp_path / "labels.json").read_text("utf-8")) == list(classes)
    text = (tmp_path / "README.md").read_text("utf-8")
    header, body = _card(text)
    assert [one["name"] for one in header["classes"]] == list(classes)
    assert "license" not in header
    assert "opset" not in header
    rows = [line for line in body.splitlines() if line.startswith("| 1")]
    assert rows[-2] == "| 12 | novel\\\\n🍏\\| | novel | 3 |"
    table = body[body.index("## Classes") : body.index("## How")].strip().splitlines()
    assert len(table) == 2 + 2 + len(classes)
    assert all(line.replace("\\|", "").count("|") == 5 for line in table[2:])
    found = compare_with_checkpoint(
        hostile, tmp_path, ["model.pt2"], torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    )
    assert found.n == 1


def _card(text: str) -> tuple[dict[str, Any], str]:
    """Header and body, parted as model hubs do it: at the next line that starts with dashes."""
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    loaded: dict[str, Any] = yaml.safe_load(header)
    return loaded, body


def test_what_is_there_is_replaced_only_when_told(lowshot: RunCommand, exported: Path) -> None:
    result = lowshot("export")
    assert result.exit_code == 2
    assert "add --overwrite to replace it" in result.stderr
    result = lowshot("export", "--format", "torch", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert "model.pt2" in result.stdout
    assert {path.name for path in exported.iterdir()} == set(FILES[1:])
    result = lowshot("export", "--check", "--format", "onnx")
    assert result.exit_code == 3
    assert "has no model.onnx" in result.stderr
    result = lowshot("export", "--out", exported / "README.md")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_absent_packages_are_named(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = lowshot("export", "--check", "--quiet")
    assert result.exit_code == 3
    assert "pip install 'lowshot-cli[onnx]'" in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert not (workdir / "export").exists()


def test_the_absent_runtime_is_named(
    exported: Path, taught: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert compare_with_checkpoint(taught, exported, ["model.pt2"], pixels).decisions_equal
    with pytest.raises(LowshotError, match=r"lowshot-cli\[onnx\]"):
        compare_with_checkpoint(taught, exported, ["model.onnx"], pixels)
