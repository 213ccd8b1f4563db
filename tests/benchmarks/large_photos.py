"""How much memory six photos of 81 megapixels take while they are decoded.

python -m tests.benchmarks.large_photos
python -m tests.benchmarks.large_photos --mode RGBA --format WEBP
"""

from __future__ import annotations

import os
import resource
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from PIL import Image

from lowshot_cli.data.photos import read_photos

SIDE, COUNT = 9000, 6


def make(folder: Path, mode: str, form: str) -> list[Path]:
    """One picture under several names."""
    files = [folder / f"{number}.{form.lower()}" for number in range(COUNT)]
    ramp = Image.linear_gradient("L").resize((SIDE, SIDE))
    picture = Image.merge("RGB", [ramp, ramp.rotate(90), ramp.rotate(180)]).convert(mode)
    if picture.mode.endswith("A"):
        picture.putalpha(ramp)
    picture.save(files[0], form)
    for file in files[1:]:
        os.link(files[0], file)
    return files


def peak() -> int:
    """Most memory that this process has held, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--mode", default="RGB")
    parser.add_argument("--format", default="PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that only decoding counts.
        if (child := os.fork()) == 0:
            make(Path(folder), options.mode, options.format)
            os._exit(0)
        os.waitpid(child, 0)
        before, files = peak(), sorted(Path(folder).iterdir())
        for part in read_photos(files, 224):
            assert len(part.files) == COUNT, part.unreadable
    print(f"{COUNT} x {SIDE}x{SIDE} {options.mode} {options.format}: {peak()} MiB, {before} before")


if __name__ == "__main__":
    main()
