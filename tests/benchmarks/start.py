"""How much longer `imprint` and `predict` take than importing PyTorch does.

    python -m tests.benchmarks.start photos/base photos/hat

Makes a frozen efficientnet-lite0 model of the folder of class folders, then teaches it a class from
five photos of the other and predicts one, each as a command of its own, in turn with `import
torch`. Both the seconds that pass and those of processors are printed, as medians: while other work
runs, the latter alone tell much.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import median

LOWSHOT = ("-m", "lowshot_cli")
TORCH = "import torch"


def measured(arguments: Sequence[object]) -> tuple[float, float]:
    """Seconds that a Python process takes, and those of processors."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
    passed, after = time.perf_counter() - started, os.times()
    computed = after.children_user + after.children_system
    return passed, computed - before.children_user - before.children_system


def commands(model: Path, photos: list[Path], folder: Path) -> dict[str, Sequence[object]]:
    taught = folder / "taught.safetensors"
    images = [word for photo in photos[:5] for word in ("--images", photo)]
    target = ("--class", "new", "--checkpoint", model, "--out", taught, "--overwrite")
    return {
        TORCH: ("-c", TORCH),
        "imprint": (*LOWSHOT, "imprint", *target, *images),
        "predict": (*LOWSHOT, "predict", "--checkpoint", taught, photos[5]),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder of class folders, or a checkpoint")
    parser.add_argument("photos", type=Path, help="folder of photos of another class")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.iterdir() if path.suffix == ".jpg")
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), options.base
        if model.is_dir():
            train = ("train-base", "--dataset", "folder", "--data-dir", model, "--workdir", folder)
            measured((*LOWSHOT, *train))
            model = folder / "base.safetensors"
        sides = commands(model, photos, folder)
        times = [
            {side: measured(arguments) for side, arguments in sides.items()}
            for _ in range(options.rounds)
        ]
    print(f"{'':14}{'passed, s':>12}{'computed, s':>13}{'computed beyond PyTorch, s':>28}")
    for side in sides:
        passed, computed = (median(one[side][which] for one in times) for which in (0, 1))
        beyond = median(one[side][1] - one[TORCH][1] for one in times)
        print(f"{side:14}{passed:12.2f}{computed:13.2f}{beyond:28.2f}")


if __name__ == "__main__":
    main()
