"""Write the snapshots anew: `python -m tests.snapshots`."""

import tempfile
from pathlib import Path

import torch

from tests.snapshots import HERE, masked, take

torch.set_num_threads(1)  # as the tests have it; another number moves last digits, and so rows
with tempfile.TemporaryDirectory() as folder:
    for name, printed in take(Path(folder)):
        (HERE / f"{name}.txt").write_text(masked(printed), encoding="utf-8")
