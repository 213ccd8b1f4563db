"""Whether an export agrees with its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.dataset import BATCH
from lowshot_cli.errors import CheckpointError, LowshotError, one_line
from lowshot_cli.export.formats import (
    ALL_MODEL_FILES,
    LABELS_FILE,
    MODEL_FILES,
    STATE_FILE,
    TORCH_FILE,
    import_packages,
)
from lowshot_cli.export.state_dict import ensure_possible, own_model
from lowshot_cli.models.backbones import Resized
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.progress import OnProgress, Progress, silenced, silent

# Largest difference of probabilities, embeddings and scores that counts as agreement, as a share of
# the largest number if that is above 1.
TOLERANCE = 1e-4
# Images `(B, 3, S, S)` uint8 to probabilities `(B, C)` and embeddings `(B, D)`, or logits `(B, C)`.
ExportedModel = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """How exported models compare with the checkpoint.

    Attributes:
        n: number of images.
        largest_difference: largest difference between probabilities.
        decisions_equal: whether each image gets the same class from all.
    """

    n: int
    largest_difference: float
    decisions_equal: bool


def exported_models(folder: Path, form: ExportFormat) -> list[str]:
    """Names of the model files that are in an export's folder.

    Raises:
        LowshotError: there are none of that format.
    """
    names = ALL_MODEL_FILES if form == "all" else MODEL_FILES[form]
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        wanted = " or ".join(names)
        raise LowshotError(f"{folder} has no {wanted}", "export again with `overwrite=True`")
    return found


@torch.inference_mode()
def compare_with_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    models: Sequence[str],
    pixels: Tensor,
    on_progress: OnProgress = silent,
) -> Check:
    """Run exported models beside the checkpoint, all in fp32 on the CPU.

    Args:
        checkpoint: the model that they must agree with.
        folder: holds them and their labels.
        models: names of the model files.
        pixels: `(N, 3, S, S)` uint8, N > 0.
        on_progress: gets a report after each batch.

    Raises:
        LowshotError: an unreadable file, other classes, or a model that does not agree:
            probabilities, embeddings or logits further than 1e-4 away, or another decision where
            the two best scores are further than 1e-4 apart. Of numbers above 1 it is a share.
        UsageError: a state dict, in a folder of a checkpoint that none can hold.
    """
    _check_labels(checkpoint, folder / LABELS_FILE)
    runs = {name: _load(folder / name, checkpoint) for name in models}
    network, head = fused(checkpoint.network()), checkpoint.head
    largest, equal = 0.0, True
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH].contiguous()
        embeddings = embed(network, batch)
        scores, probabilities = head.scores(embeddings), head.probabilities(embeddings)
        for name, run in runs.items():
            # What a model returns beside probabilities.
            what, expected = "embeddings", embeddings
            if name == STATE_FILE:
                what, expected = "logits", head.scale * scores  # (B, C)
            with _readable(folder / name):
                found, others = run(batch)
            if found.shape != probabilities.shape or others.shape != expected.shape:
                raise _disagreement(folder / name, "its outputs have other shapes")
            apart, others_apart = _distance(found, probabilities), _distance(others, expected)
            same = found.argmax(1) == scores.argmax(1)
            # Written so that NaN does not pass.
            if not max(apart, others_apart) <= TOLERANCE:
                raise _disagreement(
                    folder / name,
                    f"probabilities differ by up to {apart:.1e}, {what} by up to "
                    f"{others_apart:.1e}",
                )
            if bool((~same & (_lead(scores) > TOLERANCE * _size(scores))).any()):
                raise _disagreement(folder / name, "some decisions differ")
            largest, equal = max(largest, apart), equal and bool(same.all())
        done = start + len(batch)
        on_progress(Progress("checking", done, len(pixels)))
    return Check(len(pixels), largest, equal)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of numbers above 1; infinite where a number is NaN."""
    distance = (found - expected).abs().max().item() / _size(expected)
    return math.inf if math.isnan(distance) else distance


def _size(expected: Tensor) -> float:
    """The largest number, or 1."""
    return max(1.0, expected.abs().max().item())


def _lead(scores: Tensor) -> Tensor:
    """By how much `(B,)` the best of the scores `(B, C)` leads; infinite for a single class."""
    if scores.shape[1] == 1:
        return torch.full((len(scores),), math.inf)
    best, second = scores.topk(2, 1).values.unbind(1)
    return best - second


def _disagreement(path: Path, how: str) -> LowshotError:
    return CheckpointError(
        f"{path} does not agree with the checkpoint: {how}",
        "export again with `overwrite=True`, or name the model it was made from with `checkpoint`",
    )


def _check_labels(checkpoint: Checkpoint, path: Path) -> None:
    with _readable(path):
        labels = json.loads(path.read_text(encoding="utf-8"))
    if labels != list(checkpoint.meta.classes):
        raise _disagreement(path, "its classes differ")


def _load(path: Path, checkpoint: Checkpoint) -> ExportedModel:
    if path.name == STATE_FILE:
        return _load_state_dict(path, checkpoint)
    if path.name == TORCH_FILE:
        with _readable(path), silenced():
            program = torch.export.load(path)
        module: ExportedModel = program.module()
        return module
    (runtime,) = import_packages("onnxruntime")
    options = runtime.SessionOptions()
    # By default it takes every core of the machine, and warns if it may not use them.
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


def _load_state_dict(path: Path, checkpoint: Checkpoint) -> ExportedModel:
    """The library's own model, with the preprocessing of the checkpoint before it."""
    ensure_possible(checkpoint.meta)
    network, model = checkpoint.blank_network(), own_model(checkpoint.meta).eval()
    with _readable(path):
        model.load_state_dict(load_file(path))

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        inputs = network.normalisation.apply(images, torch.device("cpu"))
        if isinstance(network.backbone, Resized):
            inputs = network.backbone.resize(inputs)
        logits = model(inputs)
        return logits.softmax(1), logits

    return run


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into one error."""
    try:
        yield
    except LowshotError:
        raise
    except Exception as error:
        raise LowshotError(
            f"{path} cannot be used: {one_line(error, 200)}", "export again with `overwrite=True`"
        ) from None
