"""A checkpoint as files that run without lowshot: ONNX, a PyTorch program, labels, a model card."""

from __future__ import annotations

import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowshot_cli.card import model_card
from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.choices import ExportFormat
from lowshot_cli.embed import BATCH, embed, fused
from lowshot_cli.errors import CheckpointError, LowshotError
from lowshot_cli.files import write_atomically
from lowshot_cli.progress import OnProgress, Progress, silent

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# The version that PyTorch's exporter writes by itself, without converting.
OPSET = 18
TOLERANCE = 1e-4
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


@dataclass(frozen=True)
class Check:
    """How exported models compare with the checkpoint.

    Attributes:
        n: number of images.
        largest_difference: between probabilities.
        decisions_equal: whether each image gets the same class from all.
    """

    n: int
    largest_difference: float
    decisions_equal: bool


def exported_models(folder: Path, form: ExportFormat) -> list[str]:
    """Names of the models of an export that are there.

    Raises:
        LowshotError: none of the asked kind.
    """
    found = [name for name in MODEL_FILES[form] if (folder / name).is_file()]
    if not found:
        wanted = " or ".join(MODEL_FILES[form])
        raise LowshotError(f"{folder} has no {wanted}", "export again with --overwrite")
    return found


@torch.inference_mode()
def check(
    checkpoint: Checkpoint,
    folder: Path,
    models: Sequence[str],
    pixels: Tensor,
    on_progress: OnProgress = silent,
) -> Check:
    """Run exported models beside the checkpoint, all in fp32 on the processor.

    Args:
        checkpoint: what they are to agree with.
        folder: holds them and their labels.
        models: names of the model files.
        pixels: `(N, 3, S, S)` uint8, N > 0.
        on_progress: told after each batch.

    Raises:
        LowshotError: an unreadable file, other classes, or a model that does not agree:
            probabilities or embeddings further than 1e-4 away, or another decision where the two
            best cosines are further than 1e-4 apart.
    """
    _check_labels(checkpoint, folder / LABELS_FILE)
    runs = {name: _load(folder / name) for name in models}
    network, head = fused(checkpoint.network()), checkpoint.head
    largest, equal = 0.0, True
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH].contiguous()
        embeddings = embed(network, batch)
        cosines, probabilities = head.cosines(embeddings), head.probabilities(embeddings)
        for name, run in runs.items():
            with _readable(folder / name):
                found, found_embeddings = run(batch)
            if found.shape != probabilities.shape or found_embeddings.shape != embeddings.shape:
                raise _disagreement(folder / name, "its outputs have other shapes")
            apart = _distance(found, probabilities)
            same = found.argmax(1) == cosines.argmax(1)
            # Written so that a number that is none does not pass either.
            if not max(apart, _distance(found_embeddings, embeddings)) <= TOLERANCE:
                raise _disagreement(
                    folder / name,
                    f"probabilities by up to {apart:.1e}, "
                    f"embeddings by up to {_distance(found_embeddings, embeddings):.1e}",
                )
            if bool((~same & (_lead(cosines) > TOLERANCE)).any()):
                raise _disagreement(folder / name, "some decisions")
            largest, equal = max(largest, apart), equal and bool(same.all())
        done = start + len(batch)
        on_progress(Progress("checking", done, len(pixels), milestone=done == len(pixels)))
    return Check(len(pixels), largest, equal)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, infinite where a number is none."""
    distance = (found - expected).abs().max().item()
    return math.inf if math.isnan(distance) else distance


def _lead(cosines: Tensor) -> Tensor:
    """By how much `(B,)` the best of the cosines `(B, C)` leads; infinite for a single class."""
    if cosines.shape[1] == 1:
        return torch.full((len(cosines),), math.inf)
    best, second = cosines.topk(2, 1).values.unbind(1)
    return best - second


def _disagreement(path: Path, how: str) -> LowshotError:
    return CheckpointError(
        f"{path} does not agree with the checkpoint: {how}", "export again with --overwrite"
    )


def _check_labels(checkpoint: Checkpoint, path: Path) -> None:
    with _readable(path):
        labels = json.loads(path.read_text(encoding="utf-8"))
    if labels != list(checkpoint.meta.classes):
        raise _disagreement(path, "the classes are others")


def _load(path: Path) -> _Run:
    """An exported model as a function of images `(B, 3, S, S)` uint8."""
    if path.name == TORCH_FILE:
        with _readable(path), _silence():
            program = torch.export.load(path)
        module: _Run = program.module()
        return module
    (runtime,) = _require("onnxruntime")
    options = runtime.SessionOptions()
    # Left alone it takes every core of the machine, and complains where it may not have them.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    with _readable(path):
        session = runtime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = session.run(["probabilities", "embeddings"], {"images": images.numpy()})
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])

    return run


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its reader raise means the same to the user."""
    try:
        yield
    except LowshotError:
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error)
        reason = " ".join(text.split())[:200] or type(error).__name__
        raise LowshotError(
            f"{path} cannot be used: {reason}", "export again with --overwrite"
        ) from None


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
