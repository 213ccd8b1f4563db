"""The table of methods: their names and properties, without torch.

`adaptation/methods.py` binds a function to each name; code that treats methods differently asks
this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lowshot_cli.errors import did_you_mean


@dataclass(frozen=True)
class Method:
    """A way to make the proxies of novel classes.

    Attributes:
        name: as in `--method`.
        summary: how it makes the proxy, for the command reference.
        biased: whether novel classes get a bias from the hold-out if no budget is given.
        in_imprint: whether `imprint` offers it; a sweep offers every method.
        saves_models: whether a trial yields one proxy per class beside the base model, so that its
            model can be kept.
        alone: whether each trial trains its own network, so that trials share no tile.
        curve: whether a report draws its trade-off curve.
        views: whether it reads embeddings averaged over augmented views.
        holds_base: whether it always keeps the proxies of base classes fixed.
    """

    name: str
    summary: str
    biased: bool = True
    in_imprint: bool = True
    saves_models: bool = True
    alone: bool = False
    curve: bool = True
    views: bool = False
    holds_base: bool = False


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("imprint", "the paper's normalised mean", biased=False),
        Method("random", "a random direction, as a baseline", biased=False, curve=False),
        Method("augmented", "the mean over augmented views of each image", views=True),
        Method("whitened", "the linear discriminant of the class"),
        Method("teen", "the mean, pulled towards the base classes it resembles"),
        Method(
            "nearest",
            "each support image as a proxy",
            in_imprint=False,
            saves_models=False,
            curve=False,
        ),
        Method(
            "proxies",
            "one proxy for each cluster of support images",
            in_imprint=False,
            saves_models=False,
            curve=False,
        ),
        Method(
            "finetune-head",
            "`whitened`, then `finetune --scope head`",
            in_imprint=False,
            holds_base=True,
        ),
        Method(
            "finetune-full",
            "`whitened`, then `finetune --scope full`",
            in_imprint=False,
            saves_models=False,
            alone=True,
            curve=False,
        ),
    )
}
# Names from earlier versions, which old configs and checkpoints still hold.
_FORMER = {"calibrated": "teen"}
IMPRINT_METHODS = tuple(name for name, method in METHODS.items() if method.in_imprint)
SWEEP_METHODS = tuple(METHODS)
# Those that `sweep` alone offers, and those without a bias unless one is asked for.
SWEEP_ONLY = tuple(name for name in METHODS if name not in IMPRINT_METHODS)
UNBIASED = tuple(name for name, method in METHODS.items() if not method.biased)


def find_method(name: str) -> Method | None:
    """The method of that name, present or former, or None."""
    return METHODS.get(_FORMER.get(name, name))


def imprint_method(name: str) -> str:
    """The current name of a method that `imprint` offers.

    Raises:
        ValueError: the name is unknown, or only `sweep` offers the method.
    """
    return _offered(name, IMPRINT_METHODS)


def sweep_method(name: str) -> str:
    """The current name of a method.

    Raises:
        ValueError: the name is unknown.
    """
    return _offered(name, SWEEP_METHODS)


def _offered(name: str, names: tuple[str, ...]) -> str:
    method = find_method(name)
    if method is None or method.name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"should be one of {', '.join(names)}" + (f" ({hint})" if hint else ""))
    return method.name
