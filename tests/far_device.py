"""A second device for machines without one: it computes on the processor and is strict like a GPU.

Tensors on it say `cuda:0`, refuse operations with tensors of the processor and conversion to NumPy,
and only explicit copies lead there and back. What runs here puts each tensor where it belongs; how
fast a real GPU is, and how it rounds, does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

FAR, NEAR = torch.device("cuda", 0), torch.device("cpu")
_COPIES = ("aten::_to_copy", "aten::copy_")
# A GPU takes indices from the processor as well.
_INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class FarTensor(Tensor):
    """A tensor on the second device.

    Attributes:
        near: the tensor on the processor that holds its numbers.
    """

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        """Wrap a tensor; the numbers are not copied."""
        made: FarTensor = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # outside `far_device` there is no such device
        raise AssertionError(f"{func} after the second device was gone")


class _Strict(TorchDispatchMode):
    def __init__(self, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        with self:  # in inference mode operations come as they were called
            if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
                return parts
        tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
        near_too = args[1] if name in _INDEXED and isinstance(args[0], FarTensor) else ()
        free = {id(part) for part in tree_iter(near_too)}
        checked = [part for part in tensors if part.dim() and id(part) not in free]
        on = {isinstance(part, FarTensor) for part in checked}
        if len(on) == 2 and name not in _COPIES:
            raise RuntimeError(f"{func}: tensors on both devices")
        is_far = bool(far)
        if kwargs.get("device") is not None:
            is_far = torch.device(kwargs["device"]).type == FAR.type
            kwargs["device"] = NEAR
        args, kwargs = tree_map(
            lambda part: part.near if isinstance(part, FarTensor) else part, (args, kwargs)
        )
        result = func(*args, **kwargs)
        if is_far and not self.doubles:
            made = [part for part in tree_iter(result) if isinstance(part, Tensor)]
            if any(part.dtype == torch.float64 for part in made):
                raise TypeError(f"{func}: float64 on a device without it")
        if name in _COPIES:
            return _copied(name, result, tensors[0], is_far)
        if not is_far:
            return result
        known = {id(tensor.near): tensor for tensor in far}
        return tree_map(
            lambda part: known.get(id(part), _far(part)) if isinstance(part, Tensor) else part,
            result,
        )


def _far(near: Tensor) -> Tensor:
    # Views of tensors from outside inference mode are made in it, and must not become part of it.
    with torch.inference_mode(mode=False):
        return FarTensor(near)


def _copied(name: str, result: Tensor, target: Tensor, is_far: bool) -> Tensor:
    if name == "aten::copy_":  # in place
        return target
    return _far(result) if is_far else result


@contextmanager
def far_device(*, doubles: bool = True) -> Iterator[torch.device]:
    """A second device, as long as the block lasts; without `doubles` it refuses float64."""
    torch._C._ensureCUDADeviceGuardSet()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    # Otherwise `Module.to` gives a parameter another device without another class.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch.object(torch.cuda, "_lazy_init"),
            patch.object(torch, "tensor", partial(_tensor, torch.tensor)),
            torch.backends.cudnn.flags(enabled=False),
            _Strict(doubles),
        ):
            yield FAR
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def _tensor(
    make: Callable[..., Tensor], *args: Any, device: torch.device | None = None, **kwargs: Any
) -> Tensor:
    # PyTorch's own goes to a device past all that could catch it.
    made = make(*args, **kwargs)
    return made if device is None else made.to(device)
