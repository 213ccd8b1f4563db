"""The one file format: a safetensors file that rebuilds the model and suffices to teach it more."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import CALIBRATION
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.errors import CheckpointError, LowshotError
from lowshot_cli.models.backbones import Backbone
from lowshot_cli.models.head import Head
from lowshot_cli.storage.files import ensure_free, file_hash
from lowshot_cli.storage.tensors import checked_tensor, read_tensors, write_tensors

_MAKERS = {"base": "train-base", "imprinted": "imprint", "finetuned": "finetune"}


_UNIT_TOLERANCE = 1e-3


def save(checkpoint: Checkpoint, path: Path) -> str:
    """Write a checkpoint atomically and return its hash.

    Raises:
        UsageError: `path` is a folder.
        CheckpointError: it cannot be written, or would not be readable; the file that was there is
            untouched.
    """
    ensure_free(path, overwrite=True)
    head = checkpoint.head
    tensors = {f"backbone.{name}": tensor for name, tensor in checkpoint.backbone.items()}
    tensors |= {f"support.{i}": tensor for i, tensor in enumerate(checkpoint.supports)}
    tensors |= {
        "head.proxies": head.proxies,
        "head.scale": torch.tensor(head.scale),
        "head.bias": torch.tensor(head.bias),
        "holdout.embeddings": checkpoint.holdout,
        "holdout.labels": checkpoint.holdout_labels,
        "holdout.right": checkpoint.holdout_right,
        "stages.centre": checkpoint.centre,
    }
    if checkpoint.nearest:
        tensors["holdout.best"], tensors["holdout.nearest"] = checkpoint.nearest
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path} is not written: {name} holds numbers that are not finite",
                "give a smaller learning rate",
            )
    # Versions that did not know of these read files without them as well.
    left_out = {name for name in ("input_size", "renamed") if not getattr(checkpoint.meta, name)}
    text = json.dumps(checkpoint.meta.model_dump(mode="json", exclude=left_out), sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"lowshot": text})
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot write {path}: {reason}", "what was there is intact"
        ) from None
    return file_hash(path)


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: absent, damaged, not lowshot's, or inconsistent.
    """
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}", how_to_make(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {reason}", how_to_make(path)
        ) from None
    if "lowshot" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of lowshot's", how_to_make(path)
        )
    try:
        meta = Meta.model_validate_json(metadata["lowshot"])
        return _assemble(meta, tensors)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(
            f"{path} has broken metadata: {where}: {first['msg']}", how_to_make(path)
        ) from None
    except LowshotError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from None
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is inconsistent: {reason}", how_to_make(path)) from None


def _assemble(meta: Meta, tensors: dict[str, Tensor]) -> Checkpoint:
    take = partial(checked_tensor, tensors)
    centre = take("stages.centre", (None,))
    size = meta.embedding_size + len(centre)
    proxies = take("head.proxies", (len(meta.classes), size))
    if bool(((proxies.norm(dim=1) - 1).abs() > _UNIT_TOLERANCE).any()):
        raise ValueError("head.proxies has rows that are not of length 1")
    scale = take("head.scale", ()).item()
    if scale <= 0:
        raise ValueError(f"head.scale is {scale}")
    labels = take("holdout.labels", (None,), torch.int64)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < meta.n_base):
        raise ValueError("holdout.labels name classes that are not base classes")
    nearest = None
    if "holdout.best" in tensors:
        calibrating = len(labels[CALIBRATION])
        nearest = (
            take("holdout.best", (calibrating,)),
            take("holdout.nearest", (calibrating,), torch.int64),
        )
    prefix = "backbone."
    checkpoint = Checkpoint(
        meta=meta,
        head=Head(proxies, scale, meta.n_base, take("head.bias", ()).item()),
        backbone={n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)},
        holdout=take("holdout.embeddings", (len(labels), size), torch.float16),
        holdout_labels=labels,
        holdout_right=take("holdout.right", (len(labels),), torch.bool),
        centre=centre,
        supports=tuple(
            take(f"support.{number}", (len(record.pixel_hashes), size))
            for number, record in enumerate(meta.supports)
        ),
        nearest=nearest,
    )
    _check_network(checkpoint)
    return checkpoint


def _check_network(checkpoint: Checkpoint) -> None:
    """See that the tensors are those of the network that the file names.

    It is built without memory for its weights, as a file may name any size. The few models that
    cannot be built so, RegNet above all, are checked when they are used.

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
    wanted = backbone.state_dict()
    if unknown := next((name for name in given if name not in wanted), None):
        raise ValueError(f"backbone.{unknown} is no tensor of {meta.backbone}")
    for name, blank in wanted.items():
        tensor = checked_tensor(given, name, tuple(blank.shape), blank.dtype)
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"backbone.{name} has a negative variance")


def how_to_make(path: Path) -> str:
    """The command that makes a checkpoint of this name, as a hint."""
    maker = _MAKERS.get(path.stem)
    return f"`lowshot {maker}` makes it" if maker else "check the path after --checkpoint"
