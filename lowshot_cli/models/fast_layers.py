"""Convolutions of a traced network that also pad, add and apply an activation, on a CPU."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

# Activations that oneDNN applies as it writes a convolution's result: name and bounds.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class FastConv2d(nn.Module):
    """A convolution, an addition and an activation in one pass over memory.

    Attributes:
        convolution: the convolution.
        activation: a module of `_ACTIVATIONS`, or None.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        """The activation of the convolved images `(B, C, H, W)`, to which `other` is added."""
        conv = self.convolution
        if torch.is_autocast_enabled("cpu"):  # oneDNN's own operators take no part in it
            result: Tensor = conv(images) if other is None else conv(images) + other
            return self.activation(result) if self.activation else result
        name, bounds = _ACTIVATIONS[type(self.activation)] if self.activation else ("none", [])
        apply = torch.ops.mkldnn._convolution_pointwise
        layer = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        if other is None:
            result = apply(images, *layer, name, bounds, "")
        elif other.shape == self._shape(images):
            unary = name if self.activation else None
            result = apply.binary(images, other, *layer, "add", 1.0, unary, bounds, None)
        else:  # it is broadcast, which oneDNN does not do here
            result = apply(images, *layer, "none", [], "") + other
            result = self.activation(result) if self.activation else result
        return result

    def _shape(self, images: Tensor) -> tuple[int, ...]:
        """The shape of the convolved images."""
        conv = self.convolution
        assert isinstance(conv.padding, tuple)
        layout = (conv.padding, conv.dilation, conv.kernel_size, conv.stride)
        sides = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, padding, dilation, kernel, stride in zip(
                images.shape[2:], *layout, strict=True
            )
        )
        return len(images), conv.out_channels, *sides


def use_fast_layers(graph: GraphModule) -> None:
    """Replace convolutions, and what pads before them or follows them, in place.

    PyTorch writes the result of every layer to memory, where the next reads it. For the narrow
    layers of small networks this takes longer than the arithmetic.
    """
    for node in list(graph.graph.nodes):
        if isinstance(_module(graph, node), nn.Conv2d):
            _replace(graph, node)
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _replace(graph: GraphModule, node: Node) -> None:
    """Replace one convolution with its neighbours."""
    conv = _module(graph, node)
    assert isinstance(conv, nn.Conv2d)
    plain = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    if not plain or conv.weight.dtype != torch.float32 or len(node.args) != 1:
        return
    source, other = node.args[0], None
    assert isinstance(source, Node)
    replaced, pad = [node], _module(graph, source)
    if isinstance(pad, nn.ZeroPad2d) and (padded := with_padding(conv, pad.padding)):
        replaced.insert(0, source)
        conv, source = padded, source.args[0]
        assert isinstance(source, Node)
    place, user = node, _only_user(node)
    # The convolution moves to the addition; a layer in between may overwrite what it reads.
    if user is not None and len(source.users) == 1 and (other := _added_to(user, node)):
        replaced.append(user)
        place, user = user, _only_user(user)
    activation = _module(graph, user) if user is not None else None
    # After an addition PyTorch lets oneDNN apply no activation but ReLU.
    if user is not None and type(activation) in ([nn.ReLU] if other else _ACTIVATIONS):
        replaced.append(user)
    else:
        activation = None
    with graph.graph.inserting_before(place):
        name = f"fast_{node.name}"
        graph.add_module(name, FastConv2d(conv, activation))
        made = graph.graph.call_module(name, (source, other) if other else (source,))
    replaced[-1].replace_all_uses_with(made)
    for old in reversed(replaced):
        if not old.users:  # others may use the padded images
            graph.graph.erase_node(old)


def _module(graph: GraphModule, node: Node) -> nn.Module | None:
    """The module that a node calls."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: Node) -> Node | None:
    """The node that uses the result of another, if just one does."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(user: Node, node: Node) -> Node | None:
    """The tensor that an addition adds to the result of `node`; None if `user` is no addition."""
    if user.target not in _ADDITIONS or len(user.args) != 2 or user.kwargs:
        return None
    one, two = user.args
    if user.target is operator.iadd and one is not node:  # it overwrites the other
        return None
    other = two if one is node else one
    return other if isinstance(other, Node) and other is not node else None


def with_padding(conv: nn.Conv2d, pads: tuple[int, int, int, int]) -> nn.Conv2d | None:
    """A convolution that itself pads by one pixel more on the right and bottom, if `pads` say so.

    A first row and column of zeros in its kernel read the pixel too many on the left and top.
    """
    left, right, top, bottom = pads
    square = len({*conv.kernel_size}) == len({*conv.stride}) == 1
    alone = conv.padding == (0, 0) and conv.dilation == (1, 1)
    if not alone or not square or (left, right) != (top, bottom) or right - left != 1:
        return None
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size[0] + 1, conv.stride[0], right)
    wider = nn.Conv2d(*sizes, groups=conv.groups, bias=False)
    kernel = F.pad(conv.weight.detach(), (1, 0, 1, 0))
    wider.weight = nn.Parameter(kernel.to(memory_format=torch.channels_last), requires_grad=False)
    wider.bias = conv.bias
    return wider
