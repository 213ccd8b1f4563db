"""How well a class of one's own photos is learnt, over many draws of a few of them.

    python -m tests.benchmarks.new_class photos/base photos/hat --checkpoint runs/base.safetensors

Each draw teaches the class from some of its photos, with the bias that `imprint` would set, and
asks for all others. What it costs is measured on the test photos of the base classes.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.bias import can_calibrate, set_bias
from lowshot_cli.adaptation.methods import Supports, make_proxies
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.config.schema import Config
from lowshot_cli.data.image_folder import load as load_folder
from lowshot_cli.data.photos import find_photos, read_photos
from lowshot_cli.models.embedder import embed, fused

BUDGET = 2.0
NAME = "new class"


def teach(base: Checkpoint, support: Tensor) -> Checkpoint:
    """The model with one class more, from embeddings `(k, D)`, as `imprint` adds it by default."""
    supports = Supports(support, lambda: support, torch.zeros)
    config = Config()
    calibrated = can_calibrate(base)
    method = config.imprint.method if calibrated else "imprint"
    made = [make_proxies(method, supports, each, config) for each in base.backgrounds]
    record = SupportRecord(
        method=method, indices=(), files=None, pixel_hashes=tuple(map(str, range(len(support))))
    )
    taught = base.with_class(NAME, torch.stack(made), support, record)
    return set_bias(taught, BUDGET if calibrated else None)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("base", type=Path, help="folder that the base model was trained on")
    parser.add_argument("photos", type=Path, help="folder with photos of the new class")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/base.safetensors"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    base = load(options.checkpoint)
    network, side = fused(base.network()), base.meta.image_size
    dataset = load_folder(options.base, side)
    own = [dataset.label(name) for name in base.base_classes]
    test = [embed(network, dataset.test.pixels[dataset.test.of_class(label)]) for label in own]
    truth = torch.arange(len(own)).repeat_interleave(torch.tensor([len(part) for part in test]))
    queries = torch.cat(test)  # (N, D)
    right = 100 * (base.head.predict(queries) == truth).double().mean().item()
    files = find_photos([options.photos]).files
    photos = torch.cat([embed(network, part.pixels) for part in read_photos(files, side, 64)])
    print(f"base classes {len(own)}, test accuracy {right:.1f} % of {len(queries)}")
    for shots in options.shots:
        known, lost = [], []
        for draw in range(options.draws):
            order = torch.from_numpy(np.random.default_rng(draw).permutation(len(photos)))
            head = teach(base, photos[order[:shots]]).head
            found = head.predict(photos[order[shots:]]) == len(own)
            known.append(100 * found.double().mean().item())
            lost.append(right - 100 * (head.predict(queries) == truth).double().mean().item())
        print(
            f"{shots} shots, {options.draws} draws: known {np.mean(known):.1f} % of the other "
            f"{len(photos) - shots} (standard deviation {np.std(known, ddof=1):.1f}, "
            f"least {min(known):.1f}), test forgetting {np.mean(lost):.2f} points "
            f"({np.std(lost, ddof=1):.2f})"
        )


if __name__ == "__main__":
    main()
