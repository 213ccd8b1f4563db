"""Images a second of the embedder beside onnxruntime's on the exported model.

    python -m tests.benchmarks.rate --threads 2 --rounds 5

Random weights; the same uint8 images and number of threads on both sides, in turns. On a machine
that others use, compare the CPU time.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lowshot_cli.data.dataset import Images
from lowshot_cli.environment import pick_device
from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.models.embedder import Embedder, folded
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation

# Backbone, side of the images, how many of them, images that onnxruntime takes at once.
NETWORKS = {
    "efficientnet-lite0": (224, 96, 4),
    "torchvision:resnet18": (224, 96, 4),
    "resnet9": (32, 1024, 16),
}
PIXELS = Normalisation((127.0,) * 3, (64.0,) * 3)


class Exported(nn.Module):
    """What `lowshot export` exports, without the head."""

    def __init__(self, network: EmbeddingNetwork) -> None:
        super().__init__()
        self.network = folded(network).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(PIXELS.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXELS.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.network((images.float() - self.mean) / self.std)
        return embeddings


def session(network: EmbeddingNetwork, side: int, threads: int) -> onnxruntime.InferenceSession:
    program = torch.export.export(
        Exported(network).eval(),
        (torch.zeros(2, 3, side, side, dtype=torch.uint8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        strict=False,
    )
    model = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False).model_proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads wait in a loop while ours compute.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """The result, seconds, and seconds of CPU time."""
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - started, time.process_time() - cpu


def compare(name: str, threads: int, rounds: int) -> None:
    side, count, at_once = NETWORKS[name]
    torch.manual_seed(0)
    backbone = build_backbone(name, 32, None, side)
    centre, mirror = torch.zeros(sum(backbone.stage_sizes)), name == "resnet9"
    network = EmbeddingNetwork(backbone, PIXELS, centre, mirror).eval()
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    images, embedder = Images(pixels, torch.zeros(count).long()), Embedder(network)
    theirs = session(network, side, threads)
    (given,) = (value.name for value in theirs.get_inputs())
    batches = [batch.numpy() for batch in pixels.split(at_once)]

    def run_ours() -> Tensor:
        return embedder.classes(images, [0])[0]

    def run_theirs() -> Tensor:
        rows = [theirs.run(None, {given: batch})[0] for batch in batches]
        return torch.from_numpy(np.concatenate(rows))

    difference = (run_ours() - run_theirs()).abs().max().item()
    walls: tuple[list[float], list[float]] = ([], [])
    cpus: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for number, run in enumerate((run_ours, run_theirs)):
            _, wall, cpu = timed(run)
            walls[number].append(wall)
            cpus[number].append(cpu)
    ours, other = (count / statistics.median(found) for found in walls)
    ours_cpu, other_cpu = (1000 * min(found) / count for found in cpus)
    cpu_ratio = other_cpu / ours_cpu
    print(
        f"{name:22} ours {ours:7.1f} images/s, onnxruntime {other:7.1f}, ratio {ours / other:.2f}; "
        f"CPU time {ours_cpu:.2f} and {other_cpu:.2f} ms an image, ratio {cpu_ratio:.2f}, "
        f"largest difference {difference:.1e}",
        flush=True,
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pick_device("cpu")
    for name in chosen.only:
        compare(name, chosen.threads, chosen.rounds)


if __name__ == "__main__":
    main()
