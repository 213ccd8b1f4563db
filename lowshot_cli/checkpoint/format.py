"""The file format: a safetensors file that rebuilds the model and suffices to teach it more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import N_FOLDS, Holdout
from lowshot_cli.checkpoint.metadata import (
    METADATA_KEY,
    Meta,
    absent,
    how_to_make,
    parse_metadata,
    unreadable,
)
from lowshot_cli.data.framing import CROP
from lowshot_cli.errors import CheckpointError, LowshotError, one_line
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.operating_point import DEFAULT_MAX_FORGETTING
from lowshot_cli.models.backbones import Backbone
from lowshot_cli.models.head import Head
from lowshot_cli.storage.files import ensure_free, file_hash
from lowshot_cli.storage.tensors import checked_tensor, read_tensors, write_tensors

_UNIT_TOLERANCE = 1e-3
# What `statistics.scoring` holds, in this order.
_SCORING = ("shrinkage", "novel_shrinkage", "unit", "novel_unit", "round_unit")


def save(checkpoint: Checkpoint, path: Path) -> str:
    """Write a checkpoint atomically and return its hash.

    Raises:
        UsageError: `path` is a folder.
        CheckpointError: it cannot be written, or would not be readable; a file that was there is
            unchanged.
    """
    ensure_free(path, overwrite=True)
    head, holdout = checkpoint.head, checkpoint.holdout
    tensors = {f"backbone.{name}": tensor for name, tensor in checkpoint.backbone.items()}
    tensors |= {f"support.{i}": tensor for i, tensor in enumerate(checkpoint.supports)}
    tensors |= {
        "head.proxies": head.proxies,
        "head.scale": torch.tensor(head.scale),
        "head.bias": torch.tensor(head.bias),
        "holdout.embeddings": holdout.embeddings,
        "holdout.labels": holdout.labels,
        "holdout.right": holdout.right,
        "stages.centre": checkpoint.centre,
    }
    if holdout.calibrates is not None:
        tensors["holdout.calibrates"] = holdout.calibrates
    if holdout.nearest:
        tensors["holdout.best"], tensors["holdout.nearest"] = holdout.nearest
    if holdout.statistics is not None:
        tensors |= _stored(holdout.statistics)
    if holdout.folds is not None:
        tensors["holdout.folds"] = holdout.folds
    if holdout.fold_bases is not None:
        tensors["holdout.fold_bases"] = holdout.fold_bases
    if checkpoint.fold_proxies is not None:
        tensors["head.fold_proxies"] = checkpoint.fold_proxies
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path} is not written: {name} holds numbers that are not finite",
                "use a smaller learning rate",
            )
    # Earlier versions do not know these, and do as the defaults say.
    unsaid = {"framing"} if checkpoint.meta.framing == CROP else set()
    unsaid |= set() if checkpoint.meta.adopted else {"adopted"}
    text = json.dumps(checkpoint.meta.model_dump(mode="json", exclude=unsaid), sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {METADATA_KEY: text})
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {one_line(error)}", "a file that was there is unchanged"
        ) from None
    return file_hash(path)


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: the file is absent, damaged, not a lowshot checkpoint, or inconsistent.
    """
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        raise absent(path) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    meta = parse_metadata(path, metadata)
    try:
        return _assemble(meta, tensors)
    except LowshotError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from None
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is inconsistent: {one_line(error)}", how_to_make(path)
        ) from None


def _assemble(meta: Meta, tensors: dict[str, Tensor]) -> Checkpoint:
    take = partial(checked_tensor, tensors)
    centre = take("stages.centre", (None,))
    is_linear = meta.head == "linear"
    size = take("holdout.embeddings", (None, None), torch.float16).shape[1]
    proxies = take("head.proxies", (len(meta.classes), size + is_linear))
    if not is_linear and bool(((proxies.norm(dim=1) - 1).abs() > _UNIT_TOLERANCE).any()):
        raise ValueError("head.proxies has one that is not of length 1")
    scale = take("head.scale", ()).item()
    if scale <= 0:
        raise ValueError(f"head.scale is {scale}")
    labels = take("holdout.labels", (None,), torch.int64)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < meta.n_base):
        raise ValueError("holdout.labels name classes that are not base classes")
    holdout = Holdout(
        embeddings=take("holdout.embeddings", (len(labels), size), torch.float16),
        labels=labels,
        right=take("holdout.right", (len(labels),), torch.bool),
        unlabelled=meta.adopted,
    )
    if "holdout.calibrates" in tensors:
        halves = take("holdout.calibrates", (len(labels),), torch.bool)
        holdout = replace(holdout, calibrates=halves)
    if "holdout.best" in tensors:
        n = len(holdout.calibrating(labels))
        best, position = (
            take("holdout.best", (n,)),
            take("holdout.nearest", (n,), torch.int64),
        )
        holdout = replace(holdout, nearest=(best, position))
    fold_proxies = None
    if is_linear and (len(labels) or not meta.adopted):
        n_means = 1 if meta.adopted else meta.n_base
        holdout = replace(holdout, statistics=_read_statistics(take, n_means, size))
    if "holdout.folds" in tensors:
        folds = take("holdout.folds", (len(labels),), torch.int64)
        if bool(((folds < -1) | (folds >= N_FOLDS)).any()):
            raise ValueError("holdout.folds has a number that is not one of a fold")
        bases = None
        if "holdout.fold_bases" in tensors:
            bases = take("holdout.fold_bases", (N_FOLDS, meta.n_base, size + is_linear))
        holdout = replace(holdout, folds=folds, fold_bases=bases)
        shape = (holdout.n_folds, len(meta.novel_classes), size + is_linear)
        fold_proxies = take("head.fold_proxies", shape)
    head = Head(proxies, scale, meta.n_base, take("head.bias", ()).item(), is_linear)
    prefix = "backbone."
    checkpoint = Checkpoint(
        meta=_in_this_format(meta, head.bias),
        head=head,
        backbone={n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)},
        holdout=holdout,
        centre=centre,
        supports=tuple(
            take(f"support.{number}", (len(record.pixel_hashes), size))
            for number, record in enumerate(meta.supports)
        ),
        fold_proxies=fold_proxies,
    )
    _check_network(checkpoint)
    return checkpoint


def _stored(statistics: Statistics) -> dict[str, Tensor]:
    """The tensors of statistics, without the half of `scatter` that mirrors the other."""
    scatter = statistics.scatter
    return {
        "statistics.centre": statistics.centre,
        "statistics.n_centre": torch.tensor(statistics.n_centre),
        "statistics.means": statistics.means,
        "statistics.counts": statistics.counts,
        "statistics.scatter": torch.cat([row[place:] for place, row in enumerate(scatter)]),
        "statistics.total": torch.tensor(statistics.total),
        "statistics.scoring": torch.tensor(
            [getattr(statistics, name) for name in _SCORING], dtype=torch.float64
        ),
    }


def _read_statistics(take: Callable[..., Tensor], n_classes: int, size: int) -> Statistics:
    """The opposite of `_stored`, for that many classes.

    Raises:
        KeyError, ValueError: a tensor is missing or impossible.
    """
    half = take("statistics.scatter", (size * (size + 1) // 2,))
    scatter = torch.empty(size, size)
    for place, row in enumerate(half.split(list(range(size, 0, -1)))):
        scatter[place, place:] = row
        scatter[place:, place] = row
    scoring = take("statistics.scoring", (len(_SCORING),), torch.float64).tolist()
    total, n_centre = (
        int(take(f"statistics.{name}", (), torch.int64)) for name in ("total", "n_centre")
    )
    if (
        min(total, n_centre) < 1
        or min(scoring) < 0
        or min(scoring[2:]) == 0
        or bool((scatter.diagonal() < 0).any())
    ):
        raise ValueError("statistics are impossible")
    return Statistics(
        centre=take("statistics.centre", (size,)),
        n_centre=n_centre,
        means=take("statistics.means", (n_classes, size)),
        counts=take("statistics.counts", (n_classes,), torch.int64),
        scatter=scatter,
        total=total,
        **dict(zip(_SCORING, scoring, strict=True)),
    )


def _in_this_format(meta: Meta, bias: float) -> Meta:
    """Metadata in format 2 or 3; format 1 kept the budget of the bias only in the history.

    Raises:
        ValueError: what is recorded there is not a budget.
    """
    if meta.format > 1:
        return meta
    budget = None
    if bias != 0:
        asked = [
            step["options"]["max_forgetting"]
            for step in meta.history
            if "max_forgetting" in step["options"]
        ]
        last = asked[-1] if asked else None
        budget = DEFAULT_MAX_FORGETTING if last is None else None if last == "none" else last
    try:
        return Meta.model_validate({**meta.model_dump(), "format": 2, "max_forgetting": budget})
    except ValidationError:
        raise ValueError(f"its history has a budget of {budget!r} points") from None


def _check_network(checkpoint: Checkpoint) -> None:
    """Check that the tensors are those of the network that the file names.

    The network is built without memory for its weights, as a file may name any size. The few models
    that cannot be built in this way, mainly RegNet, are checked when they are used.

    Raises:
        LowshotError, KeyError, ValueError, RuntimeError: they are not.
    """
    meta, given = checkpoint.meta, checkpoint.backbone
    try:
        with torch.device("meta"):
            backbone = checkpoint.blank_network().backbone
    except NotImplementedError:
        return
    assert isinstance(backbone, Backbone)
    if len(checkpoint.centre) not in (0, sum(backbone.stage_sizes)):
        raise ValueError(
            f"stages.centre has {len(checkpoint.centre)} numbers, unlike the stages of the network"
        )
    if backbone.embedding_size + len(checkpoint.centre) != checkpoint.head.size:
        raise ValueError(f"embeddings have {checkpoint.head.size} numbers, unlike the network's")
    wanted = backbone.state_dict()
    if unknown := next((name for name in given if name not in wanted), None):
        raise ValueError(f"backbone.{unknown} is not a tensor of {meta.backbone}")
    for name, blank in wanted.items():
        tensor = checked_tensor(given, name, tuple(blank.shape), blank.dtype)
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"backbone.{name} has a negative variance")
