"""Finds a model among the names of a state dict, whatever wraps it or lies around it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from lowshot_cli.models.weights_file import SEPARATOR

# What wrappers put before the names of the modules that they wrap, anywhere in a model.
_WRAPPERS = re.compile(
    r"(?:(?<=^)|(?<=[./]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# The end of a part of a name, after which a model's own names may begin.
_PART = re.compile(r"[./]")
# Names of torchvision's DenseNet before its modules were renamed, as in its published files.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def fitting(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The part of the tensors that fits a model best, under its names, and what else there is.

    What else there is are names beside that part in its mapping, and keys of other mappings that
    fit the model as well.
    """
    plain = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", n)): t for n, t in tensors.items()}
    names: Counter[str] = Counter()  # by what stands before them: how many names are the model's
    shapes: Counter[str] = Counter()  # and of these how many have its shape
    for name, tensor in plain.items():
        for start in (0, *(part.end() for part in _PART.finditer(name))):
            if (counterpart := own.get(name[start:])) is not None:
                names[name[:start]] += 1
                shapes[name[:start]] += tensor.shape == counterpart.shape
    # Of equals the first one, but no average over the training.
    best = max(names, key=lambda p: (shapes[p], names[p], "ema" not in p), default="")
    mapping = _mapping(best)
    same = {n: tensor for n, tensor in plain.items() if _mapping(n) == mapping}
    inside = {n.removeprefix(best): t for n, t in same.items() if n.startswith(best)}
    beside = [n.removeprefix(mapping) for n in same if not n.startswith(best)]
    copies = {_mapping(p) for p in names if 2 * shapes[p] >= len(own)} - {mapping}
    return inside, [*beside, *sorted(copy.strip(SEPARATOR) for copy in copies)]


def _mapping(name: str) -> str:
    """The keys of the mapping that holds a name, with the last separator."""
    return name[: name.rfind(SEPARATOR) + 1]


def belongs(name: str, layers: tuple[str, ...]) -> bool:
    """Whether a name of a state dict lies in one of these layers."""
    return any(name.startswith(f"{layer}.") for layer in layers)
