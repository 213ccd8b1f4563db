"""Processes that torchrun starts: which one this is, and how it connects and ends.

Importing this module does not load PyTorch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lowshot_cli.errors import ExitCode, LowshotError, RankLost, UsageError

if TYPE_CHECKING:
    from lowshot_cli.config.schema import Config
    from lowshot_cli.training.distributed import ProcessGroupView

# How long ranks wait for each other in training, where all have the same amount of work.
TIMEOUT = timedelta(minutes=10)
# How long they wait for a rank that downloads or decodes images.
_LOADING_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class LaunchEnvironment:
    """What the environment says about this process.

    Attributes:
        number: of this process, from 0.
        count: of processes.
        local: number of this process among those of its machine.
        local_count: processes of its machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1


def launch_environment() -> LaunchEnvironment:
    """Read torchrun's variables; without them the process is alone."""
    number, count = _variable("RANK"), _variable("WORLD_SIZE")
    if number is None or count is None or count < 2:
        return LaunchEnvironment()
    # Processes started by hand are assumed to be on one machine.
    local, local_count = _variable("LOCAL_RANK"), _variable("LOCAL_WORLD_SIZE")
    return LaunchEnvironment(
        number, count, number if local is None else local, local_count or count
    )


def _variable(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None


def invocation() -> list[str]:
    """What to type instead of `lowshot` to start it in the same way."""
    here = launch_environment()
    if here.count == 1:
        return ["lowshot"]
    if here.local_count == here.count:
        return ["torchrun", "--nproc-per-node", str(here.count), "-m", "lowshot_cli"]
    return ["torchrun", "...", "-m", "lowshot_cli"]


def silence_other_ranks() -> None:
    """Silence stdout of all ranks but the first, and stderr of all but the first on each machine.

    Until the ranks are connected, all ranks of a machine would print the same errors.
    """
    here = launch_environment()
    if here.number > 0:
        sys.stdout = _nowhere()
    if here.local > 0:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def ensure_trains(section: str | None, config: Config, *, dry_run: bool) -> None:
    """Refuse several ranks for a command that one process does alone.

    Raises:
        UsageError: there are several ranks, and the command trains no network.
    """
    count = launch_environment().count
    trains = not dry_run and (
        (section == "train_base" and not config.train_base.is_frozen and config.dataset != "none")
        or (section == "finetune" and config.finetune.scope == "full")
    )
    if count > 1 and not trains:
        raise UsageError(
            f"{count} processes were started, but this command needs one",
            "run it without torchrun, which is for train-base and finetune --scope full",
        )


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroupView]:
    """Connect this process with the other ranks of torchrun; without torchrun it is alone.

    If several ranks fail, only the first prints its error: the others failed for the same reason,
    or because that one is gone.

    Args:
        device: as in the config; each rank takes the GPU of its local number.

    Raises:
        RankLost: another rank has ended or does not answer.
        UsageError: fewer GPUs than ranks, or an incomplete environment.
        SystemExit: this rank is not the leader and has nothing left to do or to print.
    """
    from lowshot_cli.training.distributed import ALONE, NotLeader, ProcessGroupView

    here = launch_environment()
    if here.count == 1:
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    sys.stderr = sys.__stderr__ or sys.stderr
    store: Any = None
    before = signal.signal(signal.SIGTERM, _end)
    try:
        backend = _take_device(device, here)
        with readable_errors():
            store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
            dist.init_process_group(
                backend, store=store, rank=number, world_size=count, timeout=TIMEOUT
            )
            patient: Any = dist.new_group(backend="gloo", timeout=_LOADING_TIMEOUT)
        yield ProcessGroupView(number, count, here.local, patient)
        dist.destroy_process_group()
    except NotLeader:
        dist.destroy_process_group()
        raise SystemExit(ExitCode.DONE) from None
    except (LowshotError, KeyboardInterrupt) as error:
        if not _fails_first(store):
            raise SystemExit(getattr(error, "exit_code", ExitCode.INTERRUPTED)) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn PyTorch's errors about unreachable ranks into readable ones.

    Raises:
        RankLost: another rank has ended or does not answer.
        UsageError: the environment does not say where to connect.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # Gloo's errors have no type of their own.
        if type(error).__name__.startswith("Dist") or "gloo" in str(error):
            minutes = TIMEOUT.seconds // 60
            lost = RankLost(f"another rank has ended, or has not answered for {minutes} minutes")
            raise lost from None
        if "env://" in str(error):
            raise UsageError(
                "RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT",
                "start it with torchrun",
            ) from None
        raise


def _end(*_: object) -> NoReturn:
    raise RankLost("ended by torchrun, which was stopped or has lost another rank")


def _take_device(device: str, here: LaunchEnvironment) -> str:
    """Make the rank's GPU the current one; returns the backend."""
    import torch

    from lowshot_cli.environment import pick_device

    kind = pick_device(device).type
    if kind == "mps":
        raise UsageError("ranks cannot share an Apple GPU", "give lowshot --device cpu")
    if kind != "cuda":
        return "gloo"
    gpus = torch.cuda.device_count()
    if here.local >= gpus:
        raise UsageError(
            f"{here.local_count} ranks on a machine with {gpus} GPUs",
            f"give torchrun --nproc-per-node {gpus}, or lowshot --device cpu",
        )
    torch.cuda.set_device(here.local)
    return "cpu:gloo,cuda:nccl"


def _fails_first(store: Any) -> bool:
    """Whether this rank is the first to fail; True if the store cannot be reached any more."""
    with suppress(Exception):
        return bool(store.add("failed", 1) == 1)
    return True
