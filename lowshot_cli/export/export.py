"""A checkpoint as files that run without lowshot: ONNX, a PyTorch program, labels, a model card."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import ExportFormat
from lowshot_cli.errors import LowshotError
from lowshot_cli.export.model_card import model_card
from lowshot_cli.models.embedder import fused
from lowshot_cli.storage.files import write_atomically

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# The version that PyTorch's exporter writes by itself, without converting.
OPSET = 18


ONNX_FILE, TORCH_FILE, LABELS_FILE, CARD_FILE = (
    "model.onnx",
    "model.pt2",
    "labels.json",
    "README.md",
)


MODEL_FILES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": (ONNX_FILE,),
    "torch": (TORCH_FILE,),
    "all": (ONNX_FILE, TORCH_FILE),
}


_Run = Callable[[Tensor], tuple[Tensor, Tensor]]


class Classifier(nn.Module):
    """All that a checkpoint does to an image, in one module without state beside its tensors."""

    mean: Tensor
    std: Tensor
    proxies: Tensor
    offsets: Tensor
    scale: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        head, meta = checkpoint.head, checkpoint.meta
        self.network = fused(checkpoint.network())
        offsets = torch.zeros(len(head.proxies))
        offsets[head.n_base :] = head.bias
        for name, tensor in (
            ("mean", torch.tensor(meta.mean).view(1, 3, 1, 1)),
            ("std", torch.tensor(meta.std).view(1, 3, 1, 1)),
            ("proxies", head.proxies.clone()),
            ("offsets", offsets),
            ("scale", torch.tensor(head.scale)),
        ):
            self.register_buffer(name, tensor)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities `(B, C)` and unit embeddings `(B, D)` of images `(B, 3, S, S)` uint8."""
        embeddings = self.network((images.float() - self.mean) / self.std)
        # As `Head.probabilities`, whose sums in place an exported program would not take.
        cosines = embeddings @ self.proxies.T + self.offsets
        return (self.scale * cosines).softmax(1), embeddings


def ensure_installed(form: ExportFormat, making: bool, checking: bool) -> None:
    """Ask for the packages that making or checking an export needs, before any work starts.

    Raises:
        LowshotError: ONNX is wanted and they are not installed.
    """
    if ONNX_FILE in MODEL_FILES[form]:
        _require(*(["onnx", "onnxscript"] * making), *(["onnxruntime"] * checking))


def export(checkpoint: Checkpoint, form: ExportFormat) -> dict[str, bytes]:
    """The content of every file of an export, by name; same checkpoint and versions, same bytes.

    Raises:
        LowshotError: ONNX is asked for and its packages are not installed.
    """
    ensure_installed(form, making=True, checking=False)
    models = MODEL_FILES[form]
    made: dict[str, bytes] = {}
    with _silence():
        program = _program(checkpoint)
        if ONNX_FILE in models:
            made[ONNX_FILE] = _onnx(program)
        if TORCH_FILE in models:
            made[TORCH_FILE] = _torch(program)
    labels = json.dumps(checkpoint.meta.classes, ensure_ascii=False, indent=1)
    made[LABELS_FILE] = f"{labels}\n".encode()
    made[CARD_FILE] = model_card(checkpoint, OPSET if ONNX_FILE in models else None).encode()
    return made


def write(folder: Path, made: Mapping[str, bytes]) -> None:
    """Write the files of an export, and remove a model that an earlier one left there.

    Raises:
        OSError: the folder cannot be written to.
    """
    for name in MODEL_FILES["all"]:
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
            # Where in whose folders each operation was written concerns nobody else.
            node.meta.pop("stack_trace", None)
    return program


def _onnx(program: ExportedProgram) -> bytes:
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
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _torch(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _require(*names: str) -> list[Any]:
    try:
        with warnings.catch_warnings(action="ignore"):
            return [importlib.import_module(name) for name in names]
    except ImportError:
        raise LowshotError(
            f"ONNX needs the packages {', '.join(names)}, and not all are installed",
            "`pip install 'lowshot-cli[onnx]'` brings them; --format torch does without",
        ) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the chatter of exporters from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
