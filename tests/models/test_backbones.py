"""Backbones of libraries: pooled features, sizes, rebuilding, and training them or their head."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.models.backbones import build_backbone, load_state
from lowshot_cli.models.embedder import centre_of_stages, embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation
from lowshot_cli.models.head import Head
from lowshot_cli.storage.tensors import read_tensors
from lowshot_cli.training.train import train_base
from tests.conftest import RunCommand

GREY = Normalisation((127.0, 127.0, 127.0), (60.0, 60.0, 60.0))
SHUFFLENET = "torchvision:shufflenet_v2_x0_5"


def _network(name: str, side: int = 32, size: int | None = None) -> EmbeddingNetwork:
    torch.manual_seed(0)
    backbone = build_backbone(name, 8, size, side)
    with torch.no_grad():
        for _ in range(3):
            backbone(torch.randn(4, 3, side, side))
    return EmbeddingNetwork(backbone, GREY, torch.zeros(0)).eval()


@pytest.mark.parametrize(
    ("name", "side", "size"),
    [
        (SHUFFLENET, 32, 1024),
        ("torchvision:squeezenet1_1", 48, 512),
        ("torchvision:mobilenet_v3_small", 32, 1024),
        ("torchvision:vit_b_16", 32, 768),
        ("torchvision:mnasnet0_5", 32, 1280),
    ],
)
def test_models_of_torchvision_give_their_pooled_features_alone(
    name: str, side: int, size: int
) -> None:
    network = _network(name, side)
    pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    inputs = GREY.apply(pixels, torch.device("cpu"))
    with torch.no_grad():
        (features,) = network.backbone(inputs)
        plain = network(inputs)
    assert features.shape == (3, size)
    assert torch.allclose(embed(network, pixels), plain, atol=1e-5)
    assert torch.allclose(plain.norm(dim=1), torch.ones(3), atol=1e-5)


def test_heads_that_only_serve_training_are_off() -> None:
    backbone = build_backbone("torchvision:googlenet", 1, None, 32)
    assert not [name for name in backbone.state_dict() if "aux" in name or ".fc." in name]


def test_another_embedding_size_adds_a_projection() -> None:
    own, same, other = (build_backbone(SHUFFLENET, 1, size, 32) for size in (None, 1024, 16))
    assert own.embedding_size == same.embedding_size == 1024
    assert not [*own.project.parameters(), *same.project.parameters()]
    assert other.embedding_size == 16
    assert other.project.weight.shape == (16, 1024)


def test_without_stages_an_embedding_is_its_trained_part() -> None:
    network = _network(SHUFFLENET)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert centre_of_stages(network, pixels).shape == (0,)
    with torch.no_grad():
        trained = network.trained(GREY.apply(pixels, torch.device("cpu")))
    assert torch.allclose(embed(network, pixels), trained, atol=1e-5)
    head = Head.of_base(trained[:2], 12.0, 1024)
    assert (head.size, head.scale) == (1024, 12.0)


def test_the_network_resizes_its_images() -> None:
    torch.manual_seed(0)
    plain = build_backbone(SHUFFLENET, 1, None, 64).eval()
    resized = build_backbone(SHUFFLENET, 1, None, 32, input_size=64).eval()
    load_state(resized.get_submodule("backbone"), plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    larger = nn.functional.interpolate(images, (64, 64), mode="bilinear")
    with torch.no_grad():
        assert torch.equal(resized(images)[0], plain(larger)[0])


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.embedding_size, self.stage_sizes, self.part_weights = 4, (), (1.0,)
        self.stage_sizes: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        means = images.mean((2, 3))
        return (self.layer(means if means.sum() > 0 else -means),)


def test_a_backbone_that_cannot_be_traced_is_used_unfused() -> None:
    network = EmbeddingNetwork(_Untraceable(), GREY).eval()
    as_it_can_be = fused(network)
    assert isinstance(as_it_can_be.backbone, _Untraceable)
    assert fused(as_it_can_be) is as_it_can_be
    assert embed(network, torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet19", "did you mean 'resnet9'"),
        ("torchvision:resnt50", "did you mean 'resnet50'"),
        ("torchvison:resnet50", "did you mean 'torchvision:resnet50'"),
        ("torchvision:", "torchvision:NAME"),
        ("torchvision:maxvit_t", "--input-size"),
    ],
)
def test_an_unknown_or_unfit_backbone_is_one_clear_line(
    lowshot: RunCommand, name: str, hint: str
) -> None:
    result = lowshot("train-base", "--dataset", "glyphs", "--classes", 2, "--backbone", name)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_timm_is_asked_for_by_name_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm"):
        build_backbone("timm:resnet18", 1, None, 32)


def test_models_of_timm_give_their_pooled_features() -> None:
    pytest.importorskip("timm")
    network = _network("timm:test_vit", 160)
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.no_grad():
        plain = network(GREY.apply(pixels, torch.device("cpu")))
    assert plain.shape == (2, 64)
    assert torch.allclose(embed(network, pixels), plain, atol=1e-5)


def test_constants_of_five_dimensions_in_a_traced_network_are_left_alone() -> None:
    """Tracing makes buffers of them, as of those in timm's Swin transformers."""
    backbone = build_backbone(SHUFFLENET, 1, None, 32)
    backbone.register_buffer("constant", torch.zeros(1, 2, 3, 4, 5))
    network = EmbeddingNetwork(backbone, GREY).eval()
    first = next(each for each in network.backbone.parameters() if each.ndim == 4)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert network.backbone.get_buffer("constant").is_contiguous()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:a/b", "resnet18.no_tag", "../x"])
def test_no_name_makes_timm_reach_for_the_network(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="timm has no classification model"):
        build_backbone(f"timm:{name}", 1, None, 32)


def test_the_tag_of_published_weights_may_follow_the_name_of_a_model_of_timm() -> None:
    tagged = build_backbone("timm:resnet10t.c3_in1k", 1, None, 32)
    assert (
        tagged.state_dict().keys()
        == build_backbone("timm:resnet10t", 1, None, 32).state_dict().keys()
    )


def _config(tiny_yaml: Path, **options: object) -> Config:
    given = {"classes": 3, "epochs": 1, "backbone": SHUFFLENET, "lr": 0.02, **options}
    given = {"embedding_size": 24, **given}
    return load_config(tiny_yaml, "train_base", given)


@pytest.fixture(scope="module")
def shuffled(tiny_yaml: Path, glyphs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint over a model of torchvision, with a projection."""
    folder = tmp_path_factory.mktemp("shuffled")
    made = train_base(_config(tiny_yaml, input_size=40), glyphs, folder / "state").checkpoint
    save(made, folder / "base.safetensors")
    return folder / "base.safetensors"


def test_a_checkpoint_rebuilds_a_library_s_model_alone(shuffled: Path, glyphs: Dataset) -> None:
    back = load(shuffled)
    meta = back.meta
    assert (meta.backbone, meta.embedding_size, meta.input_size) == (SHUFFLENET, 24, 40)
    assert back.centre.shape == (0,)
    assert back.backgrounds[0].statistics.precision.shape == (24, 24)
    labels = [glyphs.label(name) for name in meta.classes]
    pixels = glyphs.train.pixels[glyphs.train.of_class(labels[0])]
    again = embed(back.network(), pixels)
    stored = back.holdout.embeddings[back.holdout.labels == 0].float()
    assert float((again @ stored.T).amax(0).min()) > 0.999


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "torchvision:nothing"},
        {"backbone": "torchvision:resnet18"},
        {"backbone": "elsewhere:resnet18"},
        {"backbone": "timm:hf-hub:a/b"},
        {"backbone": "resnet8"},
        {"backbone": "torchvision:maxvit_t"},
        {"embedding_size": 1024},
        {"input_size": 4},
        {"input_size": None},
        {"input_size": "x"},
    ],
)
def test_a_checkpoint_with_a_wrong_name_or_size_is_refused(
    shuffled: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    meta = json.loads(read_tensors(shuffled)[1]["lowshot"])
    target = tmp_path / "broken.safetensors"
    save_file(load_file(shuffled), target, {"lowshot": json.dumps({**meta, **changes})})
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        load(target)


def test_a_frozen_backbone_stays_as_it_is_with_its_projection(
    tiny_yaml: Path, glyphs: Dataset, tmp_path: Path
) -> None:
    config = _config(tiny_yaml, freeze_backbone=True)
    made = train_base(config, glyphs, tmp_path / "state").checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start = build_backbone(SHUFFLENET, 12, 24, 32).state_dict()
    assert made.backbone.keys() == start.keys()
    assert [name for name in start if not torch.equal(made.backbone[name], start[name])] == []
    assert made.head.is_linear


def test_the_backbone_has_a_learning_rate_of_its_own(
    tiny_yaml: Path, glyphs: Dataset, tmp_path: Path
) -> None:
    config = _config(tiny_yaml, backbone_lr=1e-9)
    made = train_base(config, glyphs, tmp_path / "state").checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start = build_backbone(SHUFFLENET, 12, 24, 32).state_dict()
    weights = [n for n in start if n.endswith("weight")]
    change = {n: float((made.backbone[n] - start[n]).abs().max()) for n in weights}
    assert change.pop("project.weight") > 1e-3
    assert max(change.values()) < 1e-5


def test_a_model_that_asks_for_its_layout_s_version_is_rebuilt() -> None:
    """MNASNet takes a state dict without its version for one of an earlier layout."""
    first, rebuilt = (build_backbone("torchvision:mnasnet0_5", 1, None, 32) for _ in range(2))
    load_state(rebuilt, dict(first.state_dict()))
    images = torch.rand(2, 3, 32, 32)
    features, again = (network.eval()(images)[0] for network in (first, rebuilt))
    assert torch.equal(features, again)
    assert features.any()
