"""What images and classes by the many cost: seconds, and anonymous memory (RssAnon) at its peak.

    python -m tests.benchmarks.scale images --counts 1000,10000,100000
    python -m tests.benchmarks.scale classes --counts 10,100,1000,10000,100000

`images` makes folders of BMP files of 32x32 pixels, up to 1,000 classes, and runs commands on them,
each in a process of its own that is watched. All images are decoded; up to 200 classes are trained
for an epoch of a network of width 2. `classes` makes heads of random unit rows of 512
numbers and times, in a process for each, what a class more, a prediction, an evaluation and a file
cost. With several counts each measure is followed by its slope, log against log, from the first
count to the last.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.adaptation.methods import make_whitened
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.checkpoint.metadata import Meta, SupportRecord
from lowshot_cli.config.schema import Config
from lowshot_cli.evaluation.evaluate import evaluate_embeddings
from lowshot_cli.evaluation.predict import describe
from lowshot_cli.models.backbones import build_backbone
from lowshot_cli.models.head import Head
from lowshot_cli.version import __version__

SIDE, MOST_CLASSES, MOST_BASE = 32, 1000, 200
SIZE, QUERIES, MOST_HELD = 512, 10_000, 10_000
Facts = dict[str, float]
Made = TypeVar("Made")


def draw_folder(root: Path, count: int) -> int:
    """Make `count` BMP files of smooth colour patterns, a fifth of them for testing.

    Each class has waves of its own; each image has them shifted, under noise.

    Returns:
        The number of classes, each with about 20 images or more.
    """
    n_classes = max(4, min(MOST_CLASSES, count // 20))
    rng = np.random.default_rng(0)
    header = _bmp_header(root)
    grid = np.arange(SIDE)
    for label in range(n_classes):
        n = count // n_classes
        waves = rng.uniform(0.05, 0.6, (2, 3))
        phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 3))
        down, across = (
            np.sin(grid[None, :, None] * wave + shift)
            for wave, shift in zip(waves, phase, strict=True)
        )
        smooth = 128 + 60 * down[:, :, None] * across[:, None]
        pixels = (smooth + rng.integers(-40, 40, smooth.shape)).clip(0, 255).astype(np.uint8)
        n_test = max(1, n // 5)
        for number, image in enumerate(pixels):
            folder = root / ("test" if number < n_test else "train") / f"class{label:04}"
            if number in (0, n_test):
                folder.mkdir(parents=True)
            (folder / f"{number:05}.bmp").write_bytes(header + image.tobytes())
    return n_classes


def _bmp_header(root: Path) -> bytes:
    """What stands before the pixels, which 32 columns leave without padding."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "header.bmp"
    Image.new("RGB", (SIDE, SIDE)).save(path)
    content = path.read_bytes()
    path.unlink()
    return content[: -3 * SIDE**2]


def rss_anon(process: int | str = "self") -> float:
    """Anonymous memory in MiB, which cannot be had again by dropping pages of a file."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"RssAnon:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


def watched(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command: seconds, and its peak of RssAnon in MiB, sampled every 20 ms."""
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while child.poll() is None:
            peak = max(peak, rss_anon(child.pid))
            time.sleep(0.02)
        if child.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return time.perf_counter() - started, peak


def of_images(count: int, place: Path) -> Facts:
    """Seconds and peak memory of each command on a folder of so many images."""
    with tempfile.TemporaryDirectory(dir=place) as text:
        folder = Path(text)
        started = time.perf_counter()
        n_classes = draw_folder(folder / "data", count)
        print(f"drawn in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        common = ["--dataset", "folder", "--data-dir", str(folder / "data")]
        common += ["--image-size", str(SIDE), "--workdir", str(folder / "runs")]
        n_base = min(n_classes - 1, MOST_BASE)
        training = ["--classes", str(n_base), "--epochs", "1", "--width", "2", "--batch-size"]
        training += [str(min(512, max(16, count // 20))), "--holdout", "8", "--quiet"]
        order = np.random.RandomState(1993).permutation(n_classes)
        novel = ["--class", f"class{order[-1]:04}", "--shots", "5", "--quiet"]
        facts: Facts = {}
        for name, typed in {
            "decode": ["data", "classes", "--quiet"],
            "start again": ["data", "classes", "--quiet"],
            "train-base": ["train-base", *training],
            "imprint": ["imprint", *novel],
            "evaluate": ["evaluate", "--quiet"],
        }.items():
            few = common if typed[0] != "data" else common[:-2]
            command = [sys.executable, "-m", "lowshot_cli", *typed, *few]
            facts[f"{name}, s"], facts[f"{name}, MiB"] = watched(command, environment)
            print(f"{count:,} images: {name} {facts[f'{name}, s']:.1f} s", file=sys.stderr)
        return facts


def random_head(n_classes: int, holdout: int = 4, size: int = SIZE) -> Checkpoint:
    """A model whose base classes are random directions, with a few hold-out images about them.

    There are none of classes after the first 10,000, as comparing them all with all rows once, when
    the model is made, is the one thing that costs with the square of the classes.
    """
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(n_classes, size, generator=generator), dim=1)
    labels = torch.arange(min(n_classes, MOST_HELD)).repeat_interleave(holdout)
    config, backbone = Config(dataset="none"), build_backbone("resnet9", 4, size, SIDE, None)
    return Checkpoint(
        Meta(
            classes=tuple(f"class {number}" for number in range(n_classes)),
            n_base=n_classes,
            backbone="resnet9",
            width=4,
            embedding_size=size,
            image_size=SIDE,
            mirror=False,
            mean=(128.0, 128.0, 128.0),
            std=(64.0, 64.0, 64.0),
            dataset="none",
            dataset_hash="",
            class_order_seed=0,
            split="seeded",
            holdout_per_class=holdout,
            base_counts=((1, 1),) * n_classes,
            config=config.portable(),
            version=__version__,
            history=(),
        ),
        Head.of_base(rows, 20.0, size),
        dict(backbone.state_dict()),
        Holdout(
            near(rows[labels], generator).half(),
            labels,
            torch.ones(len(labels), dtype=torch.bool),
        ),
        centre=torch.empty(0),
    )


def with_nearest_cached(model: Checkpoint) -> Checkpoint:
    """The model as training makes it, which compares hold-out and base classes once."""
    return replace(model, holdout=model.holdout.with_nearest_cached(model.head))


def near(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Unit embeddings about unit rows `(n, D)`, at a cosine of about 0.7."""
    noise = torch.randn(rows.shape, generator=generator) / rows.shape[1] ** 0.5
    return F.normalize(rows + noise, dim=1)


def append(model: Checkpoint, support: Tensor, name: str) -> Checkpoint:
    """Imprint one class from its embeddings `(k, D)` and set the bias anew."""
    row = make_whitened(support, model.backgrounds[0])
    hashes = tuple(map(str, range(len(support))))
    record = SupportRecord(method="whitened", indices=(), files=None, pixel_hashes=hashes)
    return set_bias(model.with_class(name, row[None], support, record), 2.0)


def of_classes(n_classes: int) -> Facts:
    """What a head of so many classes costs."""
    generator = torch.Generator().manual_seed(1)
    facts: Facts = {}
    model = _timed(facts, "make and settle", lambda: with_nearest_cached(random_head(n_classes)))
    support = near(F.normalize(torch.randn(1, SIZE, generator=generator), dim=1), generator)
    support = near(support.repeat(5, 1), generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        _timed(facts, "save", lambda: save(model, path))
        facts["file, MiB"] = path.stat().st_size / 1024**2
        model = _timed(facts, "load", lambda: load(path))
    taught = _timed(facts, "first class more", lambda: append(model, support, "new"))
    taught = _timed(facts, "class more", lambda: append(taught, support.flip(1), "another"))
    queries = near(taught.head.proxies[:1], generator)
    times: list[float] = []
    for _ in range(21):
        started = time.perf_counter()
        describe(taught, queries, ["x"], 3)
        times.append(time.perf_counter() - started)
    facts["predict, ms"] = 1000 * sorted(times)[10]
    truth = torch.randint(n_classes, (QUERIES,), generator=generator).sort().values
    embeddings = near(taught.head.proxies[truth], generator)
    classes, counts = truth.unique_consecutive(return_counts=True)
    parts = zip(classes.tolist(), embeddings.split(counts.tolist()), strict=True)
    found = [(taught.meta.classes[label], part) for label, part in parts]
    gc.collect()
    before = rss_anon()
    with Peak() as peak:
        result = _timed(facts, "evaluate", lambda: evaluate_embeddings(taught, found))
    facts["evaluate, MiB more"] = peak.value - before
    facts["accuracy, %"] = result.global_accuracy
    facts["calibrating images"] = len(taught.holdout.calibrating(taught.holdout.labels))
    return facts


def _timed(facts: Facts, name: str, work: Callable[[], Made]) -> Made:
    started = time.perf_counter()
    made = work()
    facts[f"{name}, s"] = time.perf_counter() - started
    return made


class Peak:
    """The largest RssAnon of this process within a block, in MiB, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self.value, self._ended = rss_anon(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.value = max(self.value, rss_anon())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("images", "classes"))
    parser.add_argument("--counts", default=None, help="comma-separated")
    parser.add_argument("--place", type=Path, default=None, help="folder for the images")
    parser.add_argument("--child", action="store_true", help="one count, as JSON")
    options = parser.parse_args()
    usual = {"images": "1000,10000,100000", "classes": "10,100,1000,10000,100000"}[options.what]
    counts = [int(text) for text in (options.counts or usual).split(",")]
    if options.child:
        print(json.dumps(of_classes(counts[0])))
        return
    measured = []
    for count in counts:
        if options.what == "images":
            measured.append(of_images(count, options.place))
        else:
            again = [sys.executable, "-m", "tests.benchmarks.scale", "classes", "--child"]
            done = subprocess.run([*again, "--counts", str(count)], capture_output=True, check=True)
            measured.append(json.loads(done.stdout))
    print("\t".join(["measure", *(f"{count:,}" for count in counts), "slope"]))
    for name in measured[0]:
        values = [facts[name] for facts in measured]
        slope = ""
        if len(counts) > 1 and min(values) > 0:
            slope = f"{math.log(values[-1] / values[0]) / math.log(counts[-1] / counts[0]):.2f}"
        print("\t".join([name, *(f"{value:,.3g}" for value in values), slope]))


if __name__ == "__main__":
    main()
