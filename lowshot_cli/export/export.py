"""A checkpoint as files for use without lowshot, with labels and a model card."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.export.formats import (
    ALL_MODEL_FILES,
    CARD_FILE,
    LABELS_FILE,
    MODEL_FILES,
    ONNX_FILE,
    OPSET,
    STATE_FILE,
    TORCH_FILE,
    ensure_installed,
)
from lowshot_cli.export.model_card import model_card, preprocessing
from lowshot_cli.export.state_dict import state_dict
from lowshot_cli.models.embedder import folded
from lowshot_cli.progress import silenced
from lowshot_cli.storage.files import write_atomically

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Classifier(nn.Module):
    """From uint8 images to probabilities and embeddings, with preprocessing inside."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    biases: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        head, meta = checkpoint.head, checkpoint.meta
        self.network = folded(checkpoint.network())
        weights, biases = head.layer()
        for name, tensor in (
            ("mean", torch.tensor(meta.mean).view(1, 3, 1, 1)),
            ("std", torch.tensor(meta.std).view(1, 3, 1, 1)),
            ("weights", weights),
            ("biases", biases),
        ):
            self.register_buffer(name, tensor)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities `(B, C)` and embeddings `(B, D)` of images `(B, 3, S, S)` uint8."""
        embeddings = self.network((images.float() - self.mean) / self.std)  # (B, D)
        # As `Head.probabilities`, but without its additions in place, which cannot be exported.
        return (embeddings @ self.weights.T + self.biases).softmax(1), embeddings


def export(checkpoint: Checkpoint, form: ExportFormat) -> dict[str, bytes]:
    """The content of every file of an export, by name; it depends on checkpoint and versions alone.

    Raises:
        LowshotError: ONNX is asked for and its packages are not installed.
        UsageError: a state dict is asked for, which cannot hold the classifier.
    """
    ensure_installed(form, making=True, checking=False)
    models = MODEL_FILES[form]
    made: dict[str, bytes] = {}
    if STATE_FILE in models:
        made[STATE_FILE] = save(state_dict(checkpoint), {"format": "pt"})
    else:
        with silenced():
            program = _program(checkpoint)
            if ONNX_FILE in models:
                made[ONNX_FILE] = _onnx(program, preprocessing(checkpoint.meta))
            if TORCH_FILE in models:
                made[TORCH_FILE] = _torch(program)
    labels = json.dumps(checkpoint.meta.classes, ensure_ascii=False, indent=1)
    made[LABELS_FILE] = f"{labels}\n".encode()
    made[CARD_FILE] = model_card(checkpoint, form).encode()
    return made


def write(folder: Path, made: Mapping[str, bytes]) -> None:
    """Write the files of an export, and delete models that only an earlier export wrote.

    Raises:
        OSError: the folder cannot be written to.
    """
    for name in ALL_MODEL_FILES:
        if name not in made:
            (folder / name).unlink(missing_ok=True)
    for name, content in made.items():
        write_atomically(folder / name, content)


def _program(checkpoint: Checkpoint) -> ExportedProgram:
    side = checkpoint.meta.image_size
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        Classifier(checkpoint),
        (torch.zeros(2, 3, side, side, dtype=torch.uint8),),
        dynamic_shapes=({0: batch},),
        strict=False,
    )
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            # It names folders of this machine.
            node.meta.pop("stack_trace", None)
    return program


def _onnx(program: ExportedProgram, how: str) -> bytes:
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["probabilities", "embeddings"],
        verbose=False,
    )
    model = exported.model_proto
    graph = model.graph
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for part in (*graph.input, *graph.output):
        part.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.metadata_props.add(key="preprocessing", value=how)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _torch(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()
