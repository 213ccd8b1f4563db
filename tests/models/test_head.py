"""What an embedding holds, and what its classifier reads of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.models.embedder import centre_of_stages, embed
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation
from lowshot_cli.models.head import Head

WIDTH, SIZE = 4, 16
STAGES = 8 * WIDTH + 4 * WIDTH


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)


def _network(pixels: Tensor, mirror: bool) -> EmbeddingNetwork:
    torch.manual_seed(0)
    backbone = build_backbone("resnet9", WIDTH, SIZE, 32)
    normalisation = Normalisation.of(pixels.split(7))
    bare = EmbeddingNetwork(backbone, normalisation, mirror=mirror).eval()
    return EmbeddingNetwork(backbone, normalisation, centre_of_stages(bare, pixels), mirror).eval()


def test_an_embedding_is_its_trained_part_beside_two_stages(pixels: Tensor) -> None:
    embeddings = embed(_network(pixels, mirror=True), pixels)
    assert embeddings.shape == (40, SIZE + STAGES)
    assert embeddings.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    trained, late, early = (
        p.norm(dim=1) for p in embeddings.split([SIZE, 8 * WIDTH, 4 * WIDTH], 1)
    )
    assert (late / trained).numpy() == pytest.approx(2.0, abs=1e-4)
    assert (early / trained).numpy() == pytest.approx(1.0, abs=1e-4)


def test_stages_are_centred_on_the_images_that_gave_the_centre(pixels: Tensor) -> None:
    network = _network(pixels, mirror=False)
    with torch.inference_mode():
        inputs = network.normalisation.apply(pixels, torch.device("cpu"))
        assert torch.allclose(network.stages(inputs).mean(0), network.centre, atol=1e-4)


def test_an_image_and_its_mirror_image_are_one_where_mirrors_mean_nothing(pixels: Tensor) -> None:
    for mirror in (True, False):
        network = _network(pixels, mirror)
        same = torch.allclose(embed(network, pixels), embed(network, pixels.flip(3)), atol=1e-4)
        assert same == mirror


def test_base_classes_are_told_apart_as_in_training(pixels: Tensor) -> None:
    network = _network(pixels, mirror=False)
    rows = torch.nn.functional.normalize(torch.randn(5, SIZE), dim=1)
    head = Head.of_base(rows, 12.0, SIZE + STAGES, network.joint_length)
    with torch.inference_mode():
        trained = network.trained(network.normalisation.apply(pixels, torch.device("cpu")))
    logits = head.scale * embed(network, pixels) @ head.proxies.T
    assert torch.allclose(logits, 12.0 * trained @ rows.T, atol=1e-3)
