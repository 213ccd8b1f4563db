"""Where the trials of a sweep run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lowshot_cli import cluster, trials
from lowshot_cli.choices import Executor as ExecutorName
from lowshot_cli.errors import UsageError
from lowshot_cli.output import Output


@dataclass(frozen=True)
class Workers:
    """What `--executor` and the options beside it say.

    Raises:
        UsageError: they contradict each other, or Ray is not installed.
    """

    executor: ExecutorName = "local"
    address: str | None = None
    gpus: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: should be 1 or more")
        if not 0 <= self.gpus < float("inf"):
            raise UsageError(f"--gpus-per-worker {self.gpus:g}: should be 0 or more")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(
                f"--gpus-per-worker {self.gpus:g}: Ray splits a single GPU only",
                "give a number below 1, or a whole one",
            )
        if self.on_ray:
            cluster.check_installed()
        elif self.address or self.gpus:
            raise UsageError(
                "--ray-address and --gpus-per-worker are for Ray", "add --executor ray"
            )

    @property
    def on_ray(self) -> bool:
        """Whether trials run on a Ray cluster."""
        return self.executor == "ray"

    @property
    def threads_each(self) -> int | None:
        """PyTorch's threads in each worker; None for its own number."""
        return self.threads or (1 if self.on_ray else None)

    def open(self, output: Output) -> AbstractContextManager[trials.Executor]:
        """What works off trials, as long as the block lasts."""
        if not self.on_ray:
            return nullcontext(trials.run)
        output.note(f"joining Ray at {self.address}" if self.address else "starting Ray")
        return cluster.on_ray(self.address, self.gpus)
