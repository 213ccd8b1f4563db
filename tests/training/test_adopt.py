"""Base models without training, and the weights that a backbone starts from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lowshot_cli.checkpoint.format import load
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.framing import Framing
from lowshot_cli.errors import Interrupted
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.weights import load_weights, photo_side
from lowshot_cli.training.adopt import adopt_without_data
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.task import make_task
from lowshot_cli.training.train import train_base
from tests.conftest import TINY, RunCommand

NAME = "shufflenet_v2_x0_5"
BACKBONE = f"torchvision:{NAME}"
ADOPT = ("train-base", "--dataset", "glyphs", "--classes", 3, "--epochs", 0)
SMALL = (*ADOPT, "--backbone", BACKBONE, "--input-size", 32)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A state dict as the library would publish it, classifier included."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(NAME, weights=None)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 32, 32))
    return dict(model.state_dict())


@pytest.fixture
def pth(published: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(published, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.mark.parametrize("frozen", [{"epochs": 0}, {"freeze_backbone": True}])
def test_a_frozen_network_gets_a_head_of_all_its_training_images(
    tiny_config: Config, glyphs: Dataset, tmp_path: Path, frozen: dict[str, object]
) -> None:
    options = tiny_config.train_base.model_copy(update={"classes": 3, **frozen})
    config = tiny_config.model_copy(update={"train_base": options})
    stages = set()
    result = train_base(
        config,
        glyphs,
        tmp_path / "state",
        context=RunContext(on_progress=lambda r: stages.add(r.stage)),
    )
    made = result.checkpoint
    labels = [glyphs.label(name) for name in made.base_classes]
    members = torch.cat([glyphs.train.of_class(label) for label in labels])
    assert len(members) == 3 * 150
    embedded = embed(made.network(), glyphs.train.pixels[members]).half().float()
    truth = torch.arange(3).repeat_interleave(150)
    known = made.holdout.statistics
    assert known is not None
    expected = Statistics.of(embedded, truth, known.shrinkage).base_proxies
    unit = expected[:, :-1].norm(dim=1).mean()  # scores are about as large as cosines
    assert torch.allclose(made.head.proxies, expected / unit, atol=1e-2)
    assert made.head.is_linear
    assert torch.bincount(made.holdout.labels).tolist() == [100] * 3
    assert stages == {"embedding"}
    assert (result.epochs, result.weights) == (0, None)
    assert result.base_accuracy is not None
    assert result.holdout_accuracy is not None
    assert min(result.base_accuracy, result.holdout_accuracy) > 40
    if "epochs" in frozen:
        again = train_base(config, glyphs, tmp_path / "state").checkpoint
        assert torch.equal(again.head.proxies, made.head.proxies)


def test_stopping_writes_nothing(tiny_config: Config, glyphs: Dataset, tmp_path: Path) -> None:
    options = tiny_config.train_base.model_copy(update={"epochs": 0, "classes": 3})
    config = tiny_config.model_copy(update={"train_base": options})
    with pytest.raises(Interrupted):
        train_base(config, glyphs, tmp_path / "state", context=RunContext(should_stop=lambda: True))
    assert not list(tmp_path.iterdir())


def test_there_is_no_training_to_resume_without_epochs(lowshot: RunCommand) -> None:
    result = lowshot(*ADOPT, "--resume")
    assert result.exit_code == 2
    assert "no training to resume" in result.stderr


def test_another_base_model_lends_its_backbone(lowshot: RunCommand, base_path: Path) -> None:
    size = ("--width", TINY["width"], "--embedding-size", TINY["embedding_size"])
    result = lowshot(*ADOPT, *size, "--weights", base_path, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["weights"] == {"missing": [], "unexpected": []}
    assert told["base_accuracy"] > 70
    made, lender = load(Path("runs/base.safetensors")), load(base_path)
    for name, tensor in lender.backbone.items():
        assert torch.equal(made.backbone[name], tensor)
    assert made.meta.config["train_base"]["weights"] == "base.safetensors"


Write = Callable[[dict[str, Tensor], Path], object]
FORMS: dict[str, tuple[str, Write]] = {
    "plain": ("w.pth", torch.save),
    "state_dict": ("w.pt", lambda t, p: torch.save({"epoch": 3, "state_dict": t}, p)),
    "model": ("w.pth", lambda t, p: torch.save({"model": t}, p)),
    "parallel": ("w.pth", lambda t, p: torch.save({f"module.{n}": v for n, v in t.items()}, p)),
    "safetensors": ("w.safetensors", save_file),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_from_every_usual_form(
    published: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    from lowshot_cli.models.weights import read_weights

    name, write = FORMS[form]
    write(published, tmp_path / name)
    options = TrainBaseConfig(backbone=BACKBONE, weights=str(tmp_path / name))
    backbone = build_backbone(BACKBONE, 1, None, 32)
    loaded = load_weights(backbone, read_weights(options), name)
    assert (loaded.missing, loaded.unexpected) == ((), ())
    own = backbone.model.state_dict()
    assert own
    assert all(torch.equal(tensor, published[n]) for n, tensor in own.items())


def test_missing_and_unexpected_weights_are_told(
    lowshot: RunCommand, published: dict[str, Tensor], tmp_path: Path
) -> None:
    partial_weights = {n: t for n, t in published.items() if not n.startswith("conv5")}
    torch.save({**partial_weights, "extra.weight": torch.zeros(2)}, tmp_path / "part.pth")
    result = lowshot(*SMALL, "--weights", "part.pth", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)["weights"]
    assert told["unexpected"] == ["extra.weight"]
    assert "conv5.0.weight" in told["missing"]
    assert not [name for name in told["missing"] if not name.startswith("conv5")]
    assert "weights: 5 missing: conv5.0.weight" in result.stderr
    assert "1 not used: extra.weight" in result.stderr


def _spoil(published: dict[str, Tensor], how: str) -> object:
    first = next(iter(published))
    if how == "other":
        return {"a.weight": torch.zeros(3), "b.weight": torch.zeros(3)}
    if how == "shape":
        return {**published, first: torch.zeros(2, 2)}
    if how == "nan":
        return {**published, first: torch.full_like(published[first], float("nan"))}
    return torch.zeros(3)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("other", "holds no weight of this backbone: it has a.weight, b.weight, but lacks conv1"),
        ("shape", r"does not fit the backbone: conv1.0.weight is \[2, 2\], not \[24, 3, 3, 3\]"),
        ("nan", "conv1.0.weight holds numbers that are not finite"),
        ("tensor", "holds a Tensor, not a state dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    lowshot: RunCommand, published: dict[str, Tensor], tmp_path: Path, how: str, complaint: str
) -> None:
    torch.save(_spoil(published, how), tmp_path / "model.pth")
    result = lowshot(*SMALL, "--weights", "model.pth")
    assert result.exit_code == 3
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(result.stderr)
    assert "model.pth" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("absent.pth", None, "no weights at absent.pth"),
        ("damaged.pth", b"PK\x03\x04 nothing", "cannot read the weights damaged.pth"),
        ("damaged.safetensors", b"nothing", "cannot read the weights damaged.safetensors"),
        ("model.bin", b"nothing", "cannot read the weights model.bin: it is a text file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    lowshot: RunCommand, tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = lowshot(*SMALL, "--weights", name)
    assert result.exit_code == 3
    assert complaint in result.stderr


class _Program:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.marker}'",))


def test_a_pickle_that_holds_a_program_is_not_run(lowshot: RunCommand, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"conv1.0.weight": torch.zeros(1), "x": _Program(marker)}, tmp_path / "evil.pth")
    result = lowshot(*SMALL, "--weights", "evil.pth")
    assert result.exit_code == 3
    assert "cannot read the weights evil.pth" in result.stderr
    assert not marker.exists()


@pytest.fixture
def site(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """A site on this machine that the library takes for its own; the paths that were asked for."""
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    folder = tmp_path / "site"
    folder.mkdir()
    torch.save(published, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    (folder / "w.pth").rename(folder / f"weights-{digest}.pth")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/weights-{digest}.pth"
    monkeypatch.setattr(Weights.DEFAULT.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield asked
    server.shutdown()
    server.server_close()


def test_published_weights_are_downloaded_once(
    lowshot: RunCommand, site: list[str], published: dict[str, Tensor]
) -> None:
    result = lowshot(*SMALL, "--weights", "DEFAULT", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["weights"] == {"missing": [], "unexpected": []}
    assert "Downloading" in result.stderr
    made = load(Path("runs/base.safetensors"))
    assert torch.equal(made.backbone["backbone.model.conv1.0.weight"], published["conv1.0.weight"])
    assert made.meta.mean == (123.675, 116.28, 103.53)
    again = lowshot(*SMALL, "--weights", "DEFAULT", "--overwrite", "--quiet")
    assert again.exit_code == 0
    assert again.stderr == ""
    assert len(site) == 1


@pytest.mark.usefixtures("site")
def test_what_a_library_says_while_it_downloads_is_not_shown_when_quiet(
    lowshot: RunCommand, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    def talk(*_: object, **how: object) -> dict[str, Tensor]:
        warnings.warn("old weights", UserWarning, stacklevel=1)
        logging.getLogger("huggingface_hub").warning("no token")
        print("Downloading")
        print("100%", file=sys.stderr)
        return published

    monkeypatch.setattr(Weights, "get_state_dict", talk)
    handler = logging.StreamHandler(heard := io.StringIO())
    logging.getLogger("huggingface_hub").addHandler(handler)
    result = lowshot(*SMALL, "--weights", "DEFAULT", "--quiet")
    logging.getLogger("huggingface_hub").removeHandler(handler)
    assert result.exit_code == 0, result.stderr
    assert (result.stderr, heard.getvalue()) == ("", "")
    assert "100%" not in result.stdout


def test_a_failed_download_says_how_to_do_without(
    lowshot: RunCommand, site: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    url = Weights.DEFAULT.url.replace("weights-", "gone-")
    monkeypatch.setattr(Weights.DEFAULT.value, "url", url)
    result = lowshot(*SMALL, "--weights", "DEFAULT")
    assert result.exit_code == 3
    assert f"cannot download the weights of {BACKBONE}: HTTP Error 404" in result.stderr
    assert f"download {url} elsewhere and give the file to --weights" in result.stderr
    assert not Path("runs/base.safetensors").exists()


def test_a_backbone_of_the_package_has_no_published_weights(lowshot: RunCommand) -> None:
    result = lowshot(*ADOPT, "--weights", "DEFAULT")
    assert result.exit_code == 2
    assert "resnet9 has no published weights" in result.stderr


def test_images_are_prepared_as_the_weights_expect(glyphs: Dataset) -> None:
    def prepared(**options: object) -> tuple[float, int | None]:
        values = {"classes": 2, "backbone": BACKBONE, **options}
        task = make_task(TrainBaseConfig.model_validate(values), glyphs)
        return task.normalisation.mean[0], task.input_size

    measured, side = prepared()
    assert side is None
    assert prepared(weights="file.pth") == (123.675, 224)
    assert prepared(weights="DEFAULT", input_size=64) == (123.675, 64)
    assert prepared(weights="file.pth", backbone="resnet9") == (measured, None)


def test_photos_of_a_folder_are_read_at_the_size_that_the_network_asks_for() -> None:
    def side(**options: object) -> int | None:
        return photo_side(Config.model_validate({"dataset": "folder", **options}))

    start = {"backbone": BACKBONE, "weights": "file.pth"}
    assert side(train_base={"backbone": "resnet9"}) is None
    assert (side(), side(train_base={"backbone": "efficientnet-lite2"})) == (224, 260)
    assert side(train_base=start) == 224
    assert side(train_base={**start, "input_size": 96}) == 96
    assert side(train_base=start, image_size=128) is None
    assert side(train_base=start, dataset="glyphs") is None


def test_the_older_names_of_densenet_are_understood() -> None:
    backbone = build_backbone("torchvision:densenet121", 1, None, 32)
    own = backbone.model.state_dict()
    older = {}
    for name, tensor in own.items():
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")  # noqa: PLW2901
        older[name] = tensor
    assert older.keys() != own.keys()
    loaded = load_weights(backbone, older, "old.pth")
    assert (loaded.missing, loaded.unexpected) == ((), ())


def test_a_random_or_dead_backbone_tells_of_no_nonsense(
    lowshot: RunCommand, published: dict[str, Tensor], tmp_path: Path
) -> None:
    dead = {name: torch.zeros_like(tensor) for name, tensor in published.items()}
    torch.save(dead, tmp_path / "dead.pth")
    result = lowshot(*SMALL, "--weights", "dead.pth")
    assert result.exit_code == 3
    assert "zero or not finite" in result.stderr


def test_a_classifier_is_adopted_for_a_folder_of_photos_and_taught_more(
    lowshot: RunCommand, pth: Path, glyphs: Dataset, tmp_path: Path
) -> None:
    for name in ("A", "seven", "omega"):
        label = glyphs.label(name)
        for split, images, count in (("train", glyphs.train, 12), ("test", glyphs.test, 4)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in images.of_class(label)[:count].tolist():
                Image.fromarray(images.pixels[i].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    start = ("--dataset", "folder", "--data-dir", "photos")
    adopted = lowshot(
        *("train-base", *start, "--backbone", BACKBONE, "--weights", pth, "--epochs", 0),
        *("--classes", "A,seven", "--holdout", 4, "--image-size", 32, "--input-size", 48),
    )
    assert adopted.exit_code == 0, adopted.stderr
    made = load(Path("runs/base.safetensors"))
    assert (made.meta.image_size, made.meta.input_size) == (32, 48)
    assert str(tmp_path) not in json.dumps(made.meta.model_dump(mode="json"))
    taught = lowshot("imprint", "--class", "omega", "--shots", 3, *start)
    assert taught.exit_code == 0, taught.stderr
    found = lowshot("evaluate", *start, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)[-1]["n_novel"] == 1


def test_weights_in_a_config_survive_printing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"train_base: {{backbone: '{BACKBONE}', weights: /photos/model.pth, epochs: 0}}"
    )
    config = load_config(tmp_path / "c.yaml")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    assert config.train_base.embedding_size is None
    assert Config().train_base.embedding_size == 64


def test_a_classifier_is_adopted_without_data(
    lowshot: RunCommand, pth: Path, published: dict[str, Tensor], tmp_path: Path, glyphs: Dataset
) -> None:
    names = [f"class {number}" for number in range(1000)]
    alone = ("train-base", "--dataset", "none", "--backbone", BACKBONE, "--weights", pth)
    config = tmp_path / "names.yaml"
    config.write_text(json.dumps({"image_size": 32, "train_base": {"classes": names, "epochs": 0}}))
    result = lowshot(*alone, "--config", config, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["base_accuracy"] is None
    base = load(tmp_path / "runs" / "base.safetensors")
    assert base.meta.classes == tuple(names)
    rows = torch.cat([published["fc.weight"], published["fc.bias"][:, None]], 1)
    assert torch.equal(base.head.proxies, rows)

    folder = tmp_path / "mug"
    folder.mkdir()
    for number in range(3):
        pixels = glyphs.train.pixels[number].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    result = lowshot("imprint", "--class", "my mug", "--images", folder)
    assert result.exit_code == 0, result.stderr
    assert "not calibrated: the class wins only what is very like its photos" in result.stdout
    model = load(tmp_path / "runs" / "imprinted.safetensors")
    assert torch.equal(model.head.proxies[:-1], rows)
    assert model.head.bias == 0
    sets = ["predict", folder, "--confidence", 0.9]
    for refused in (["finetune"], ["predict", folder, "--unknown"], sets, ["evaluate"], ["sweep"]):
        result = lowshot(*refused)
        assert result.exit_code in (2, 3), refused
        assert "error:" in result.stderr
    result = lowshot("predict", folder, "--json")
    assert {entry["class"] for entry in json.loads(result.stdout)} == {"my mug"}
    assert lowshot("export", "--format", "torch").exit_code == 0


def test_without_any_other_setting_a_classifier_of_imagenet_is_adopted() -> None:
    meta = adopt_without_data(load_config(None, flags={"dataset": "none"})).checkpoint.meta
    assert meta.backbone == "efficientnet-lite0"
    assert (meta.n_base, meta.classes[0], meta.classes[999]) == (1000, "tench", "toilet tissue")
    assert (meta.image_size, meta.input_size) == (224, None)
    assert meta.framing == Framing("crop", 256, "bicubic")
    assert meta.mean == meta.std == (127.5, 127.5, 127.5)


def test_adopting_without_data_needs_all_it_says(
    lowshot: RunCommand, pth: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({n: t for n, t in published.items() if "fc." not in n}, tmp_path / "bare.pth")
    torch.save({n: t for n, t in published.items() if "branch1" not in n}, tmp_path / "cut.pth")
    torch.save({**published, "stage5.weight": torch.ones(2)}, tmp_path / "larger.pth")
    (tmp_path / "names.txt").write_text("cup\nplate\n")
    alone = ["train-base", "--dataset", "none", "--image-size", 32, "--backbone", BACKBONE]
    imagenet = [*alone, "--class-names", "imagenet", "--weights"]
    for refused, said in [
        (alone, f"but {BACKBONE} has no weights"),
        ([*alone, "--weights", pth], "--class-names imagenet"),
        ([*alone, "--weights", pth, "--epochs", 3], "but --epochs is 3"),
        (
            [*alone, "--weights", pth, "--classes", "cup,plate"],
            "2 classes are named, but the classifier has 1000 outputs",
        ),
        (
            [*alone, "--weights", pth, "--class-names", "names.txt"],
            "2 classes are named, but the classifier has 1000 outputs",
        ),
        ([*imagenet, "bare.pth"], "no classifier: fc.weight is not in them"),
        ([*imagenet, "cut.pth"], "another network: stage2.0.branch1.0.weight is missing"),
        ([*imagenet, "larger.pth"], "another network: stage5.weight is not in the network"),
        (
            [*ADOPT, "--mean", "0.5", "--class-names", "names.txt"],
            "--class-names is for a classifier that is adopted without images",
        ),
    ]:
        result = lowshot(*refused)
        assert result.exit_code in (2, 3), refused
        assert said in result.stderr
        assert not (tmp_path / "runs" / "base.safetensors").exists()


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_classifier_of_numbers_that_are_not_finite_is_refused(
    lowshot: RunCommand, published: dict[str, Tensor], tmp_path: Path, factor: float
) -> None:
    weight = published["fc.weight"].clone()
    weight[3] *= factor
    torch.save({**published, "fc.weight": weight}, tmp_path / "model.pth")
    alone = ("train-base", "--dataset", "none", "--backbone", BACKBONE, "--image-size", 32)
    result = lowshot(*alone, "--weights", "model.pth", "--class-names", "imagenet")
    assert result.exit_code == 3
    assert "fc.weight holds numbers that are not finite" in result.stderr
    assert not (tmp_path / "runs" / "base.safetensors").exists()
