"""How near `predict` comes to the rate of its parts, and how long a class of five photos takes.

    python -m tests.benchmarks.photos --checkpoint runs/base.safetensors

Makes JPEG files of 500x375 pixels of CIFAR-100's test images, then times decoding alone, embedding
alone and both together, in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import lowshot_cli
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.config.schema import Config
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.data.photos import read_photos
from lowshot_cli.evaluation.predict import BATCH, predict
from lowshot_cli.models.embedder import embed, fused

DISTINCT = 200


def make_photos(folder: Path, count: int) -> list[Path]:
    """Distinct pictures, each linked under many names: a name costs a whole decoding."""
    pixels = load_dataset(Config(data_dir=Path(os.environ["LOWSHOT_DATA"]))).test.pixels[:DISTINCT]
    files = []
    for number in range(count):
        files.append(folder / f"{number:05}.jpg")
        if number < DISTINCT:
            small = Image.fromarray(pixels[number].permute(1, 2, 0).numpy())
            small.resize((500, 375), Image.Resampling.BICUBIC).save(files[-1], quality=90)
        else:
            os.link(files[number % DISTINCT], files[-1])
    return files


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def parts_and_whole(checkpoint: Checkpoint, files: list[Path]) -> None:
    size, network = checkpoint.meta.image_size, fused(checkpoint.network())
    batches: list[torch.Tensor] = []

    def decode() -> None:
        batches.extend(part.pixels for part in read_photos(files, size, BATCH))

    def embed_all() -> None:
        for pixels in batches:
            embed(network, pixels)

    decoding, embedding = seconds(decode), seconds(embed_all)
    whole = seconds(lambda: list(predict(checkpoint, network, files)))
    count, expected = len(files), decoding + embedding
    print(f"decoding and resizing {count / decoding:8,.0f} images/s")
    print(f"embedding             {count / embedding:8,.0f} images/s")
    print(f"predicted             {count / expected:8,.0f} images/s")
    print(f"predict               {count / whole:8,.0f} images/s, {100 * expected / whole:.0f} %")


def five_photos(path: Path, files: list[Path]) -> None:
    model = lowshot_cli.load(path)
    pictures = [Image.open(file).convert("RGB") for file in files[:5]]
    times = [seconds(lambda: model.imprint(pictures, name="mug")) for _ in range(20)]
    print(f"model.imprint of 5 photos: {1000 * sorted(times)[10]:.0f} ms, median of 20")


def command(path: Path, files: list[Path], workdir: Path) -> None:
    images = [part for file in files[:5] for part in ("--images", str(file))]
    typed = ["imprint", "--class", "mug", *images, "--checkpoint", str(path)]
    whole = [sys.executable, "-m", "lowshot_cli", *typed, "--workdir", str(workdir), "--quiet"]
    alone = [sys.executable, "-c", "import torch"]
    runs = [
        [seconds(lambda line=line: subprocess.run(line, check=True, capture_output=True))]  # type: ignore[misc]
        for _ in range(5)
        for line in (whole, alone)
    ]
    imprint, torch_alone = (min(run[0] for run in runs[side::2]) for side in (0, 1))
    print(f"lowshot imprint: {imprint:.2f} s; import torch: {torch_alone:.2f} s, best of 5 each")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/base.safetensors"))
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    checkpoint = load(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), options.count)
        parts_and_whole(checkpoint, files)
        five_photos(options.checkpoint, files)
        command(options.checkpoint, files, Path(folder))


if __name__ == "__main__":
    main()
