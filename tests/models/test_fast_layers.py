"""Convolutions that pad, add and activate in one pass give what the separate layers give."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from lowshot_cli.models.fast_layers import FastConv2d, use_fast_layers


class Block(nn.Module):
    """A residual block of two convolutions, with layers to choose."""

    def __init__(self, activation: nn.Module, pad: nn.Module, *, shortcut: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2), activation)
        self.pad, self.second = pad, nn.Conv2d(8, 8, 3, groups=8)
        self.activation, self.shortcut = activation, shortcut
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        y = self.second(self.pad(x))
        if self.shortcut == "broadcast":
            return self.activation(y + self.scale)
        if self.shortcut == "overwritten":
            return self.activation(operator.iadd(y, torch.relu_(x)))
        return self.activation(y + x if self.shortcut == "same" else y)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU()])
@pytest.mark.parametrize("shortcut", ["none", "same", "broadcast", "overwritten"])
@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 2, 1, 2), (1, 1, 1, 1), (2, 0, 2, 0)])
def test_fast_layers_change_no_result(
    activation: nn.Module, shortcut: str, pads: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    if shortcut in ("same", "overwritten") and sum(pads[:2]) != 2:
        pads = (1, 1, 1, 1)  # the sizes must match
    block = Block(activation, nn.ZeroPad2d(pads), shortcut=shortcut).eval()
    images = 4 * torch.randn(2, 3, 11, 11)
    graph = symbolic_trace(block)
    with torch.inference_mode():
        expected = block(images)
        use_fast_layers(graph)
        assert (graph(images) - expected).abs().max() < 1e-5
    assert sum(isinstance(module, FastConv2d) for module in graph.modules()) == 2
    assert not any(isinstance(module, nn.Conv2d) for module in graph.children())


def test_what_tensorflow_pads_needs_no_copy_of_the_images() -> None:
    graph = symbolic_trace(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2)))
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        expected = graph(images)
        use_fast_layers(graph)
        assert (graph(images) - expected).abs().max() < 1e-5
    assert not any(isinstance(module, nn.ZeroPad2d) for module in graph.modules())


@pytest.mark.parametrize("conv", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_convolutions_that_pad_otherwise_stay_as_they_are(conv: dict[str, object]) -> None:
    graph = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3, **conv), nn.ReLU()))  # type: ignore[arg-type]
    images = torch.randn(2, 3, 8, 8)
    expected = graph(images)
    use_fast_layers(graph)
    assert torch.equal(graph(images), expected)


def test_in_bf16_fast_layers_compute_in_bf16_too() -> None:
    graph = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    use_fast_layers(graph)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert graph(torch.randn(2, 3, 8, 8)).dtype == torch.bfloat16
