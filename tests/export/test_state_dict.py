"""A classifier that was adopted goes back into the model of its library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowshot_cli.adaptation.background import give_photos
from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import save
from lowshot_cli.config.schema import Config
from lowshot_cli.data.photos import Photos, load_photos
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.export.check import compare_with_checkpoint
from lowshot_cli.export.export import export, write
from lowshot_cli.export.state_dict import state_dict
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.training.adopt import adopt_without_data
from tests.conftest import RunCommand
from tests.tiny_world import tiny_world

NAMES = ("cup", "plate", "spoon")
SIDE = 32
SHUFFLENET = "torchvision:shufflenet_v2_x0_5"
Build = Callable[[int], nn.Module]


def _resnet18(n_classes: int) -> nn.Module:
    return torchvision.models.resnet18(num_classes=n_classes)


def _shufflenet(n_classes: int) -> nn.Module:
    return torchvision.models.shufflenet_v2_x0_5(num_classes=n_classes)


def _lite0(n_classes: int) -> nn.Module:
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=n_classes)
    return model


def _dla(n_classes: int) -> nn.Module:
    """Its classifier is a 1x1 convolution."""
    model: nn.Module = timm.create_model("dla46_c", num_classes=n_classes)
    return model


def _pictures(count: int, side: int, seed: int) -> Photos:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Photos(pixels, tuple(Path(f"{number}.png") for number in range(count)))


def _adopt(
    folder: Path, backbone: str, build: Build, **settings: object
) -> tuple[Checkpoint, nn.Module]:
    """A classifier of random weights as it is adopted, and the library's own model of it."""
    torch.manual_seed(0)
    theirs = build(len(NAMES))
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if name.endswith("bias"):
                tensor.add_(torch.rand(tensor.shape))
        for _ in range(5):  # statistics of BatchNorm
            theirs(torch.randn(8, 3, SIDE, SIDE))
    save_file(theirs.state_dict(), folder / "own.safetensors")
    options = {"backbone": backbone, "weights": str(folder / "own.safetensors"), "classes": NAMES}
    config = {"dataset": "none", "image_size": SIDE, "train_base": {**options, **settings}}
    return adopt_without_data(Config.model_validate(config)).checkpoint, theirs.eval()


def _teach(base: Checkpoint) -> Checkpoint:
    """The model with a fourth class, and a bias that ordinary photos set."""
    network = fused(base.network())
    ready = give_photos(base, network, _pictures(12, SIDE, seed=1))
    config = Config.model_validate({"imprint": {"max_forgetting": 50}})
    return imprint_photos(ready, network, {"mug": _pictures(3, SIDE, seed=2)}, config)[0]


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A classifier of torchvision that was taught a fourth class."""
    return _teach(_adopt(tmp_path_factory.mktemp("own"), SHUFFLENET, _shufflenet)[0])


@pytest.fixture(scope="module")
def exported(adopted: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write(folder, export(adopted, "state-dict"))
    return folder


@pytest.mark.parametrize(
    ("backbone", "build"),
    [
        ("torchvision:resnet18", _resnet18),
        ("efficientnet-lite0", _lite0),
        pytest.param("timm:tf_efficientnet_lite0", _lite0, marks=pytest.mark.slow),
        pytest.param("timm:dla46_c", _dla, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_the_librarys_own_model_loads_it_with_one_more_output(
    tmp_path: Path, backbone: str, build: Build
) -> None:
    with torch.inference_mode(mode=False):
        base, theirs = _adopt(tmp_path, backbone, build)
        taught = _teach(base)
        write(tmp_path, export(taught, "state-dict"))
        model = build(len(NAMES) + 1).eval()
        model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    pixels = _pictures(4, SIDE, seed=3).pixels
    images = base.network().normalisation.apply(pixels, torch.device("cpu"))
    logits, before = model(images), theirs(images)
    torch.testing.assert_close(logits[:, :3], before, atol=1e-5, rtol=1e-5)
    ours = taught.head.scores(embed(taught.network(), pixels))
    assert taught.head.bias != 0
    # Ours are of a network whose layers are fused.
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=1e-4)


def test_it_can_be_adopted_again(adopted: Checkpoint, exported: Path) -> None:
    again = {
        "backbone": SHUFFLENET,
        "weights": str(exported / "model.safetensors"),
        "class_names": str(exported / "labels.json"),
    }
    config = {"dataset": "none", "image_size": SIDE, "train_base": again}
    base = adopt_without_data(Config.model_validate(config)).checkpoint
    assert base.meta.classes == (*NAMES, "mug")
    weights, biases = adopted.head.layer()
    assert torch.equal(base.head.proxies, torch.cat([weights, biases[:, None]], 1))


@pytest.mark.parametrize("input_size", [None, 40])
def test_the_example_in_the_card_classifies_as_the_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    input_size: int | None,
) -> None:
    base, _ = _adopt(tmp_path, SHUFFLENET, _shufflenet, input_size=input_size)
    write(tmp_path, export(base, "state-dict"))
    pixels = _pictures(1, 90, seed=4).pixels[0].permute(1, 2, 0)
    Image.fromarray(pixels[:60].numpy()).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")  # as it is, without a loss
    side, framing = base.meta.image_size, base.meta.framing
    photos = load_photos([tmp_path / "photo.jpg"], side, framing=framing).pixels
    expected = base.head.probabilities(embed(base.network(), photos))
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert 'torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=3)' in card
    found: dict[str, Tensor] = {}
    exec(card.split("```python\n")[1].split("```")[0], found)  # type: ignore[arg-type]
    torch.testing.assert_close(found["probabilities"], expected, atol=1e-5, rtol=1e-5)
    assert capsys.readouterr().out == f"{NAMES[int(expected.argmax())]}\n"


def test_a_check_compares_logits(adopted: Checkpoint, exported: Path, tmp_path: Path) -> None:
    pixels, models = _pictures(3, SIDE, seed=5).pixels, ["model.safetensors"]
    found = compare_with_checkpoint(adopted, exported, models, pixels)
    assert (found.n, found.decisions_equal) == (3, True)
    tensors = load_file(exported / "model.safetensors")
    tensors["fc.bias"] += 0.01  # probabilities stay the same
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "labels.json").write_bytes((exported / "labels.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"logits by up to .*e-0"):
        compare_with_checkpoint(adopted, tmp_path, models, pixels)


def test_a_last_layer_without_biases_holds_no_taught_class(
    adopted: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bias(_: str, side: int, n_classes: int) -> nn.Module:
        model = _shufflenet(n_classes)
        model.fc = nn.Conv2d(1024, n_classes, 1, bias=False)
        return model

    monkeypatch.setattr("lowshot_cli.export.state_dict.library_model", without_bias)
    with pytest.raises(UsageError, match="has no biases, which the taught classes need"):
        state_dict(adopted)
    proxies = adopted.head.proxies[:3].clone()
    proxies[:, -1] = 0
    meta = adopted.meta.model_copy(update={"classes": NAMES, "supports": ()})
    bare = replace(adopted, meta=meta, head=replace(adopted.head, proxies=proxies), supports=())
    assert torch.equal(state_dict(bare)["fc.weight"], proxies[:, :-1, None, None])


def test_only_an_adopted_classifier_fits(adopted: Checkpoint) -> None:
    _, trained, _ = tiny_world("linear")
    with pytest.raises(UsageError, match="no model of torchvision or timm") as refused:
        export(trained, "state-dict")
    assert "`format=onnx`" in str(refused.value.hint)
    meta = trained.meta.model_copy(update={"backbone": adopted.meta.backbone})
    with pytest.raises(UsageError, match="reads embeddings of length 1"):
        export(replace(trained, meta=meta), "state-dict")


def test_the_command_writes_checks_and_replaces_it(
    lowshot: RunCommand, adopted: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    save(adopted, tmp_path / "runs" / "imprinted.safetensors")
    folder = tmp_path / "runs" / "export"
    folder.mkdir()
    (folder / "model.pt2").write_bytes(b"older")
    result = lowshot("export", "--format", "state-dict", "--check", "--overwrite", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    files = ["model.safetensors", "labels.json", "README.md"]
    assert (told["files"], told["opset"], told["check"]["n"]) == (files, None, 64)
    assert {path.name for path in folder.iterdir()} == set(files)
    again = lowshot("export", "--check", "--json")
    assert json.loads(again.stdout)["files"] == ["model.safetensors"], again.stderr


def test_the_command_offers_onnx_where_it_cannot(lowshot: RunCommand, workdir: Path) -> None:
    result = lowshot("export", "--format", "state-dict", "--quiet")
    assert result.exit_code == 2
    assert "--format onnx exports the whole model" in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert not (workdir / "export").exists()
