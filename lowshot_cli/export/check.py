"""Whether an export agrees with its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.values import ExportFormat
from lowshot_cli.data.dataset import BATCH
from lowshot_cli.errors import CheckpointError, LowshotError, one_line
from lowshot_cli.export.formats import (
    LABELS_FILE,
    MODEL_FILES,
    TORCH_FILE,
    import_packages,
)
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.progress import OnProgress, Progress, silenced, silent

# Largest difference of probabilities, embeddings and cosines that counts as agreement.
TOLERANCE = 1e-4
# Images `(B, 3, S, S)` uint8 to probabilities `(B, C)` and embeddings `(B, D)`.
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
    found = [name for name in MODEL_FILES[form] if (folder / name).is_file()]
    if not found:
        wanted = " or ".join(MODEL_FILES[form])
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
        scores, probabilities = head.scores(embeddings), head.probabilities(embeddings)
        for name, run in runs.items():
            with _readable(folder / name):
                found, found_embeddings = run(batch)  # (B, C), (B, D)
            if found.shape != probabilities.shape or found_embeddings.shape != embeddings.shape:
                raise _disagreement(folder / name, "its outputs have other shapes")
            apart = _distance(found, probabilities)
            same = found.argmax(1) == scores.argmax(1)
            # Written so that NaN does not pass.
            if not max(apart, _distance(found_embeddings, embeddings)) <= TOLERANCE:
                raise _disagreement(
                    folder / name,
                    f"probabilities differ by up to {apart:.1e}, "
                    f"embeddings by up to {_distance(found_embeddings, embeddings):.1e}",
                )
            if bool((~same & (_lead(scores) > TOLERANCE)).any()):
                raise _disagreement(folder / name, "some decisions differ")
            largest, equal = max(largest, apart), equal and bool(same.all())
        done = start + len(batch)
        on_progress(Progress("checking", done, len(pixels)))
    return Check(len(pixels), largest, equal)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite where a number is NaN."""
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
        f"{path} does not agree with the checkpoint: {how}",
        "export again with `overwrite=True`, or name the model it was made from with `checkpoint`",
    )


def _check_labels(checkpoint: Checkpoint, path: Path) -> None:
    with _readable(path):
        labels = json.loads(path.read_text(encoding="utf-8"))
    if labels != list(checkpoint.meta.classes):
        raise _disagreement(path, "its classes differ")


def _load(path: Path) -> ExportedModel:
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
