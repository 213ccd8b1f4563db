"""What results may depend on besides the config: versions, and the hardware at hand."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from lowshot_cli.errors import UsageError
from lowshot_cli.version import __version__

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UsageError: `cuda` on a machine without it.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no GPU here", "`device=cpu` computes without one")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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
    """The CPU with its cores and threads, and the GPU where one is used, but no host's name.

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
    return ", ".join(parts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(next(names, "").split())
