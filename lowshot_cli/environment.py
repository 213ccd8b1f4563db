"""What results may depend on besides the config: versions and hardware."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.errors import UsageError
from lowshot_cli.version import __version__

if TYPE_CHECKING:
    import torch

# Options of `mallopt`, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name: `cpu`, `cuda`, `cuda:1`, `mps` (Apple's GPU), or `auto`.

    `auto` is `cuda` if there is one, otherwise the CPU.

    Raises:
        UsageError: an unknown name, or a GPU that PyTorch does not find.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda", "mps")
    except RuntimeError:
        known = False
    if not known:
        raise UsageError(f"unknown `device` {str(name)!r}", "give auto, cpu, cuda or mps")
    is_mps = device.type == "mps"
    count = int(torch.backends.mps.is_available()) if is_mps else torch.cuda.device_count()
    if device.type != "cpu" and (device.index or 0) >= count:
        what = "Apple GPU" if is_mps else "GPU"
        raise UsageError(f"PyTorch finds no {what} {device} here", "`device=cpu` works without one")
    _keep_memory()
    return device


@cache
def _keep_memory() -> None:
    """Keep glibc's allocator, where it is the allocator, from giving memory back to the system.

    Otherwise the memory of every layer's result is returned and fetched anew, which takes up to a
    third of the time of a network on images of 224 pixels.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    set_option = ctypes.CDLL(None).mallopt
    # Older versions refuse a threshold above 32 MiB.
    if not set_option(_M_MMAP_THRESHOLD, 2**30):
        set_option(_M_MMAP_THRESHOLD, 2**25)
    set_option(_M_TRIM_THRESHOLD, -1)  # never
    set_option(_M_TOP_PAD, 2**26)
    # The arenas of other threads hold no block of 64 MiB or more.
    set_option(_M_ARENA_MAX, 1)


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    import numpy as np
    import torch

    return {
        "lowshot": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def hardware(device: torch.device) -> str:
    """The CPU with its cores and threads, and the GPU if one is used; never the host's name.

    For example `AMD EPYC 9B14, 2 cores, 2 threads, x86_64 Linux`.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        _cpu_model() or platform.processor() or "unknown CPU",
        f"{cores} cores",
        f"{torch.get_num_threads()} threads",
        f"{platform.machine()} {platform.system()}",
    ]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    elif device.type == "mps":
        parts.insert(0, "Apple GPU")
    return ", ".join(parts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(next(names, "").split())
