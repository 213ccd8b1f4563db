"""What long work is run with, besides its data and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lowshot_cli.progress import OnProgress, ShouldStop, never, silent
from lowshot_cli.training.distributed import ALONE, ProcessGroupView


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Whom to tell, whom to ask, and where to compute.

    Attributes:
        on_progress: gets a report now and then.
        should_stop: asked at every point at which the work can stop without losing anything.
        ranks: the processes that share the work.
        device: where networks run.
    """

    on_progress: OnProgress = silent
    should_stop: ShouldStop = never
    ranks: ProcessGroupView = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


DEFAULT_CONTEXT = RunContext()
"""In one process on the CPU, silently and to the end."""
