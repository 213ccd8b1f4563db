"""Many sweeps in one process: memory and open files stay flat.

`pytest -n0 -s -m slow tests/faults/test_soak.py` runs 200 and prints the curve.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.conftest import RunCommand
from tests.faults.conftest import memory

FEW, MANY = 4, 200
# Sweeps between two looks; the first of them warm up.
EACH = 2
MOST_GROWTH = 12 * 1024**2


def tensors() -> int:
    """Bytes of all tensors that this process holds; those of tracers, another type, have none."""
    real = (torch.Tensor, torch.nn.Parameter)
    held = (value for value in gc.get_objects() if type(value) in real)
    return sum({value.data_ptr(): value.nbytes for value in held}.values())


def soak(
    lowshot: RunCommand, workdir: Path, count: int, size: Callable[[], int]
) -> list[tuple[int, int, int]]:
    """Sweep number, bytes as `size` tells them and open files, along the way."""
    curve = []
    sweep = ["sweep", "--trials", "4", "--novel", "6", "--shots", "1,5", "--save-models"]
    for number in range(count + 1):
        result = lowshot(*sweep, "--workdir", workdir, "--seed", number)
        assert result.exit_code == 0, result.stderr
        for folder in workdir.glob("sweep-*"):
            shutil.rmtree(folder)
        if number % EACH == 0:
            gc.collect()
            curve.append((number, size(), len(list(Path("/proc/self/fd").iterdir()))))
    return curve


def _check_flat(curve: list[tuple[int, int, int]]) -> None:
    warm = [(size, files) for number, size, files in curve if number >= EACH]
    sizes, files = zip(*warm, strict=True)
    assert max(sizes) - sizes[0] <= MOST_GROWTH, curve
    assert len(set(files)) == 1, curve


def test_sweeps_leave_nothing_in_memory_and_no_file_open(
    lowshot: RunCommand, workdir: Path
) -> None:
    _check_flat(soak(lowshot, workdir, FEW, tensors))


@pytest.mark.slow
def test_two_hundred_sweeps_leave_nothing_behind(lowshot: RunCommand, workdir: Path) -> None:
    curve = soak(lowshot, workdir, MANY, partial(memory, "VmRSS"))
    for number, size, files in curve:
        print(f"{number:4} sweeps  {size / 1024**2:7.1f} MiB  {files} open files")
    _check_flat(curve)
