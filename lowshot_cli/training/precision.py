"""The arithmetic that trains fastest on this machine."""

from __future__ import annotations

import time
from functools import cache

import torch

from lowshot_cli.config.values import Precision
from lowshot_cli.training.distributed import ALONE, ProcessGroupView

_PROBE_SECONDS = 0.5


def pick_precision(
    precision: Precision, device: torch.device, ranks: ProcessGroupView = ALONE
) -> Precision:
    """What `auto` stands for: bf16 on a GPU, and on a CPU that multiplies bf16 faster.

    It is fp32 on Apple's GPUs, of which some emulate bf16. With several ranks it is bf16 only if it
    is so for all. Collective.
    """
    if precision != "auto":
        return precision
    fast = device.type == "cuda"
    if device.type == "cpu":
        fast = matrix_rate(torch.bfloat16) > matrix_rate(torch.float32)
    return "bf16" if ranks.total(fast) == ranks.count else "fp32"


def autocast_type(precision: Precision) -> torch.dtype:
    """The autocast type of a precision that `pick_precision` found."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@cache
def matrix_rate(dtype: torch.dtype, side: int = 768, repeats: int = 7) -> float:
    """Best rate of a square matrix product on the CPU, in floating-point operations a second.

    Whether bf16 pays cannot be read off the instruction set: with AVX-512 BF16, one maker's CPUs
    run it at half the rate of fp32 and another's at four times that rate.
    """
    left, right = torch.ones(2, side, side, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > _PROBE_SECONDS:  # an emulated type would take a minute
            break
    return 2 * side**3 / min(seconds)
