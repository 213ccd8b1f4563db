"""Models of torchvision and timm, without their classifiers."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lowshot_cli.errors import UsageError, did_you_mean, one_line

# Heads that torchvision's models have for training alone.
AUXILIARY = ("aux1", "aux2", "AuxLogits")


class PretrainedBackbone(nn.Module):
    """A model of torchvision or timm that returns its pooled features.

    Attributes:
        name: `torchvision:NAME` or `timm:NAME`.
        side: side of its images in pixels.
        model: the model without its classifier.
        classifier: names, as in state dicts, of the layers that are left out.
        project: maps the features to another number of them, if one is asked for.
        embedding_size: E.
        stage_sizes: empty, as it returns no earlier stages.
        part_weights: 1, the weight of the features in an embedding.
    """

    def __init__(self, name: str, embedding_size: int | None, side: int) -> None:
        """Build it untrained.

        Args:
            name: `torchvision:NAME` or `timm:NAME`.
            embedding_size: E; None takes the model's own number of features.
            side: side of its images in pixels.

        Raises:
            UsageError: an unknown name, a library that is not installed, or a side that the model
                does not accept.
            NotImplementedError: on the meta device, a model whose construction reads tensors.
        """
        super().__init__()
        ensure_known(name)
        self.name, self.side = name, side
        try:
            with warnings.catch_warnings(action="ignore"):  # they are for programmers
                self.model, self.classifier = _without_classifier(name, side)
                size = _feature_size(self.model, side)
        except NotImplementedError:
            raise
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UsageError(
                f"{name} cannot take images of {side} pixels: {one_line(error, 120)}",
                "`input_size` resizes them; most models are made for 224",
            ) from None
        wanted = size if embedding_size is None else embedding_size
        self.project = nn.Identity() if wanted == size else nn.Linear(size, wanted, bias=False)
        self.embedding_size = wanted
        self.stage_sizes: tuple[int, ...] = ()
        self.part_weights: tuple[float, ...] = (1.0,)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features `(B, E)` of images `(B, 3, H, W)`; no stages."""
        return (self.project(self.model(images)),)

    def whole(self, n_classes: int) -> nn.Module:
        """The library's own model, untrained, with a classifier of so many outputs."""
        return library_model(self.name, self.side, n_classes)


def library_model(name: str, side: int, n_classes: int) -> nn.Module:
    """The model of a library, untrained, with a classifier of so many outputs.

    Args:
        name: `torchvision:NAME` or `timm:NAME`.
        side: side of its images in pixels.
        n_classes: C.
    """
    with warnings.catch_warnings(action="ignore"):
        return _build(name, side, n_classes)


def library_options(name: str, side: int) -> dict[str, object]:
    """What a library is told to build a model, besides its name and number of classes."""
    library, _, name = name.partition(":")
    if library == "timm":
        return {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect another normalisation, which this option adds.
        return {"aux_logits": False, "init_weights": True, "transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": side}
    return {"input_size": (side, side)} if name.startswith("maxvit") else {}


def ensure_known(backbone: str) -> None:
    """Check that a library has a model of this name.

    Raises:
        UsageError: it has none, or is not installed.
    """
    library, _, name = backbone.partition(":")
    if library == "torchvision":
        from torchvision import models

        known = models.list_models(module=models)
    elif library == "timm":
        # A name that is not in the list, such as `hf-hub:...`, would make timm use the network.
        known = import_timm().list_models()
        if "." in name:  # a tag says which of its published weights are meant
            known += import_timm().list_pretrained()
    else:
        raise UsageError(f"unknown backbone {backbone!r}", "give torchvision:NAME or timm:NAME")
    if name not in known:
        raise UsageError(
            f"{library} has no classification model {name!r}",
            did_you_mean(
                # Without the tag of published weights, as in `resnet50.a1_in1k`.
                name.rpartition("/")[2].partition(".")[0].lower(),
                known,
                f"it has {len(known)}, such as {known[0]}",
            ),
        )


def import_timm() -> ModuleType:
    """The timm library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            import timm
    except ImportError:
        raise UsageError("timm is not installed", "install it with pip install timm") from None
    module: ModuleType = timm
    return module


def _build(name: str, side: int, n_classes: int) -> nn.Module:
    """An untrained model of a library; one of timm with 0 classes has no classifier."""
    options = library_options(name, side)
    library, _, name = name.partition(":")
    if library == "timm":
        found: nn.Module = import_timm().create_model(name, pretrained=False, num_classes=n_classes)
        return found
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, num_classes=n_classes, **options)
    return model


def _without_classifier(name: str, side: int) -> tuple[nn.Module, tuple[str, ...]]:
    """An untrained model without its classifier, and the names of the layers it lacks."""
    if name.startswith("timm:"):
        model = _build(name, side, n_classes=0)
        return model, timm_classifier(model)
    model = _build(name, side, n_classes=1)
    # In all of torchvision's classifiers the last layer with weights is the one that classifies.
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    parent, _, child = layers[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, (layers[-1], *AUXILIARY)


def timm_classifier(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that a model of timm lacks when it is built without classes."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


@torch.no_grad()
def _feature_size(model: nn.Module, side: int) -> int:
    """Number of features, from one blank image of `side` pixels."""
    features = model.eval()(torch.zeros(1, 3, side, side))
    model.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError("its features are not pooled")
    return features.shape[1]
