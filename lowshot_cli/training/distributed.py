"""The processes that train one model together, each on its part of every batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NotLeader(Exception):
    """Ends the work of a rank that does not lead, once only the leader has work left."""


@dataclass(frozen=True)
class ProcessGroupView:
    """One of the processes that train together; by default the only one.

    All ranks have to call a collective method, in the same order.

    Attributes:
        number: the rank of this process, from 0. Rank 0 leads: it alone writes.
        count: number of processes.
        local: number of this process among those of its machine.
        patient_group: group of all ranks in which one may wait long for another; None for a
            single process.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    patient_group: ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes."""
        return self.number == 0

    @property
    def part(self) -> slice:
        """The share of any sequence that this rank takes: every `count`-th element."""
        return slice(self.number, None, self.count)

    def total(self, value: float) -> float:
        """The sum of every rank's value. Collective."""
        if self.count == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(values)
        return values.item()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set floating-point tensors to their means over all ranks, in place. Collective."""
        if self.count == 1 or not tensors:
            return
        means = torch.cat([tensor.flatten() for tensor in tensors]) / self.count
        dist.all_reduce(means)
        for tensor, mean in zip(tensors, means.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over all ranks. Collective, and so is each use of it.

        It starts from rank 0's parameters and buffers. Buffers are not synchronised after that.
        """
        if self.count == 1:
            return module
        # The option's name depends on the version of PyTorch.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        new, old = "forward_sync_buffers", "broadcast_buffers"
        options: dict[str, Any] = {new if new in known else old: False}
        return nn.parallel.DistributedDataParallel(module, **options)

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """Let the first rank of each machine do something before the others of it. Collective."""
        if self.local > 0:
            dist.barrier(self.patient_group)
        yield
        if self.local == 0 and self.count > 1:
            dist.barrier(self.patient_group)

    def require_leader(self) -> None:
        """Continue as the leader alone.

        The other ranks end by an exception, so that no caller has to check a result: it leaves the
        command through its contexts, as Ctrl-C does, and `cli/torchrun.py` turns it into exit 0.

        Raises:
            NotLeader: this is another rank.
        """
        if not self.leads:
            raise NotLeader


ALONE = ProcessGroupView()
