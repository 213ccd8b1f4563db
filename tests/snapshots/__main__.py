"""Write the snapshots anew: `python -m tests.snapshots`."""

import tempfile
from pathlib import Path

from tests.snapshots import HERE, masked, take

with tempfile.TemporaryDirectory() as folder:
    for name, printed in take(Path(folder)):
        (HERE / f"{name}.txt").write_text(masked(printed), encoding="utf-8")
