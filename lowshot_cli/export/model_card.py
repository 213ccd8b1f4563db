"""The model card of an export: a README with a YAML header that model hubs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lowshot_cli.checkpoint.checkpoint import Checkpoint

PREPROCESSING = "upright, RGB, shorter side to {side}, centre crop to {side} x {side}, uint8"
_ONNX_EXAMPLE = """\
session = onnxruntime.InferenceSession("model.onnx")
probabilities, embeddings = session.run(None, {"images": images})
"""
_TORCH_EXAMPLE = """\
model = torch.export.load("model.pt2").module()
probabilities, embeddings = (found.numpy() for found in model(torch.from_numpy(images)))
"""
_EXAMPLE = """\
import json
from pathlib import Path

import numpy as np
import {library}
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
square = ImageOps.fit(photo, ({side}, {side}), Image.Resampling.BILINEAR)
images = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])

{run}
labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))
print(labels[probabilities[0].argmax()])
"""


def model_card(checkpoint: Checkpoint, opset: int | None) -> str:
    """Markdown about a model, without time, host or path.

    Args:
        checkpoint: the model.
        opset: opset of its ONNX file; None if it has only a PyTorch program.
    """
    meta, side = checkpoint.meta, checkpoint.meta.image_size
    header = yaml.safe_dump(_header(checkpoint, opset), sort_keys=False, allow_unicode=True)
    library, run = ("torch", _TORCH_EXAMPLE) if opset is None else ("onnxruntime", _ONNX_EXAMPLE)
    example = _EXAMPLE.format(side=side, library=library, run=run)
    n_images = sum(total for _, total in meta.base_counts or ())
    accuracy = "not measured, as there were no test images"
    if meta.base_counts is None:
        accuracy = "not known, as base classes have been removed since it was measured"
    elif n_images:
        accuracy = f"{checkpoint.base_accuracy:.1f} % of {n_images:,} test images of {meta.dataset}"
    classes = [
        [number, one["name"], one["kind"], one.get("shots", "")]
        for number, one in enumerate(_classes(checkpoint))
    ]
    steps = [
        [number, str(step.get("command", "")).replace("_", "-"), step.get("seed", "")]
        for number, step in enumerate(meta.history, 1)
    ]
    parts = [
        f"---\n{header}---",
        f"# {meta.backbone}, {len(meta.classes)} classes",
        f"An image classifier. Base classes: {meta.n_base}, trained with all their images. Novel "
        f"classes: {len(checkpoint.novel_classes)}, added from a few images each by weight "
        "imprinting ([Qi, Brown, Lowe, CVPR 2018](https://arxiv.org/abs/1712.07136)).",
        "## Input and output",
        f"`images`, uint8, `(B, 3, {side}, {side})`: {PREPROCESSING.format(side=side)}. Pixels are "
        "normalised inside the model.",
        f"`probabilities`, fp32, `(B, {len(meta.classes)})`, in the order of `labels.json`; "
        f"`embeddings`, fp32, `(B, {checkpoint.head.size})`, of length 1.",
        f"```python\n{example}```",
        "## Accuracy",
        f"The base model, before any class was added: {accuracy}.",
        "## Classes",
        _table(["", "class", "kind", "shots"], classes),
        "## How it was made",
        _table(["step", "command", "seed"], steps),
        "The options of each step are in the header of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(checkpoint: Checkpoint, opset: int | None) -> dict[str, Any]:
    meta = checkpoint.meta
    header: dict[str, Any] = {
        "tags": ["image-classification", "few-shot-learning", "weight-imprinting"],
        "library_name": "pytorch" if opset is None else "onnx",
        "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
    }
    if checkpoint.base_accuracy is not None:
        header["model-index"] = [_measured(checkpoint, checkpoint.base_accuracy)]
    if opset is not None:
        header["opset"] = opset
    return header | {
        "classes": _classes(checkpoint),
        "preprocessing": PREPROCESSING.format(side=meta.image_size),
        "history": list(meta.history),
        "lowshot_version": meta.version,
    }


def _measured(checkpoint: Checkpoint, base_accuracy: float) -> dict[str, Any]:
    """The base accuracy in the form that model hubs read."""
    dataset = checkpoint.meta.dataset
    accuracy = {
        "type": "accuracy",
        "value": round(base_accuracy, 2),
        "name": "base accuracy of the base model, percent",
    }
    task = {"type": "image-classification"}
    found = {"task": task, "dataset": {"name": dataset, "type": dataset}, "metrics": [accuracy]}
    return {"name": checkpoint.meta.backbone, "results": [found]}


def _classes(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Each class in head order, novel ones with their number of support images."""
    base = [{"name": name, "kind": "base"} for name in checkpoint.base_classes]
    novel = [
        {"name": name, "kind": "novel", "shots": len(support)}
        for name, support in zip(checkpoint.novel_classes, checkpoint.supports, strict=True)
    ]
    return base + novel


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """Any text within one cell of a table: on one line, and nothing in it is markup."""
    visible = (c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|~&!#$" else c for c in "".join(visible))
