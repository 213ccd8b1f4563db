"""The model card of an export: a README with a YAML header that model hubs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.framing import in_words
from lowshot_cli.export.example import example, library_call
from lowshot_cli.export.formats import MODEL_FILES, ONNX_FILE, OPSET


def model_card(checkpoint: Checkpoint, form: ExportFormat) -> str:
    """Markdown about a model, without time, host or path."""
    meta = checkpoint.meta
    opset = OPSET if ONNX_FILE in MODEL_FILES[form] else None
    header = yaml.safe_dump(_header(checkpoint, opset), sort_keys=False, allow_unicode=True)
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
    origin = (
        "of a classifier that was adopted as it was"
        if meta.adopted
        else "trained with all their images"
    )
    parts = [
        f"---\n{header}---",
        f"# {meta.backbone}, {len(meta.classes)} classes",
        f"An image classifier. Base classes: {meta.n_base}, {origin}. Novel "
        f"classes: {len(checkpoint.novel_classes)}, added from a few images each by weight "
        "imprinting ([Qi, Brown, Lowe, CVPR 2018](https://arxiv.org/abs/1712.07136)).",
        "## Input and output",
        *_interface(checkpoint, form),
        f"```python\n{example(checkpoint, form)}```",
        "## Accuracy",
        f"The base model, before any class was added: {accuracy}.",
        "## Classes",
        _table(["", "class", "kind", "shots"], classes),
        "## How it was made",
        _table(["step", "command", "seed"], steps),
        "The options of each step are in the header of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def _interface(checkpoint: Checkpoint, form: ExportFormat) -> list[str]:
    """What goes in and what comes out, in words."""
    meta, side = checkpoint.meta, checkpoint.meta.image_size
    if form == "state-dict":
        resized = meta.input_size or side
        then = f" and resized to {resized} x {resized} pixels" if meta.input_size else ""
        return [
            f"`model.safetensors` is the state dict of `{library_call(meta)}`. Its input is fp32, "
            f"`(B, 3, {resized}, {resized})`: {preprocessing(meta)}, then normalised{then}, as "
            "below.",
            f"It returns logits `(B, {len(meta.classes)})`, in the order of `labels.json`.",
        ]
    length = "" if meta.adopted else ", of length 1"
    return [
        f"`images`, uint8, `(B, 3, {side}, {side})`, no other size: {preprocessing(meta)}. Pixels "
        "are normalised inside the model.",
        f"`probabilities`, fp32, `(B, {len(meta.classes)})`, in the order of `labels.json`; "
        f"`embeddings`, fp32, `(B, {checkpoint.head.size})`{length}.",
    ]


def preprocessing(meta: Meta) -> str:
    """How a photo becomes the input of an exported model, in words."""
    return f"upright, RGB, {in_words(meta.image_size, meta.framing)}, uint8"


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
        "preprocessing": preprocessing(meta),
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
