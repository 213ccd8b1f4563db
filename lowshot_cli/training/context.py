"""What long work needs besides its data and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lowshot_cli.progress import OnProgress, ShouldStop, never, silent
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.training.distributed import ALONE, ProcessGroupView


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where long work reports, when it stops, and where it computes.

    Attributes:
        on_progress: gets a report now and then.
        should_stop: called wherever the work can stop without losing anything.
        ranks: the processes that share the work.
        device: where networks run.
        cache: keeps embeddings of images; None makes them anew.
    """

    on_progress: OnProgress = silent
    should_stop: ShouldStop = never
    ranks: ProcessGroupView = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: DiskCache | None = None


DEFAULT_CONTEXT = RunContext()
"""One process on the CPU that reports nothing and never stops early."""
