"""Runs commands in forks of a process that has imported everything, each in milliseconds.

Reads one JSON line a run from stdin: `argv`, `cwd`, `out` and `err` (files), and if need be `env`,
`cpus`, how many there seem to be, `fsize`, the most bytes a file may grow to, `ranks`, as how many
processes of torchrun to run it, and `call`, a `module:function` to call with `argv` instead of the
command line. Answers with the pids, and with the exit statuses once all have ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from importlib import import_module
from typing import Any

import torch
from torch.distributed import TCPStore

import lowshot_cli.cli.main
from lowshot_cli.data import glyphs
from lowshot_cli.report import plots
from lowshot_cli.training.precision import matrix_rate


def _run(job: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(job["cwd"])
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
    if job.get("fsize") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["fsize"], job["fsize"]))
    if job.get("cpus") is not None:
        # Pools of threads are made for this many.
        os.cpu_count = lambda: job["cpus"]  # type: ignore[assignment]
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["cpus"]])
    os.environ.update(job.get("env", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["lowshot", *job["argv"]]
    if "call" in job:
        module, _, function = job["call"].partition(":")
        getattr(import_module(module), function)(*job["argv"])
        return
    lowshot_cli.cli.main.main()


def _as_rank(job: dict[str, Any], number: int, port: int) -> dict[str, Any]:
    """The job of one of several processes, with what torchrun tells it."""
    count = job["ranks"]
    told = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    env = {**job.get("env", {}), **{name: str(value) for name, value in told.items()}}
    files = {name: f"{job[name]}.{number}" for name in ("out", "err")}
    return {**job, **files, "env": env}


def _jobs(job: dict[str, Any]) -> list[dict[str, Any]]:
    if "ranks" not in job:
        return [job]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_as_rank(job, number, port) for number in range(job["ranks"])]


def _fork(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _run(job)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# Loaded before the forks, so that each job begins at once.
_COMMANDS = ("train_base", "imprint", "finetune", "evaluate", "sweep", "predict", "classes", "data")
# The optimizers load the first one on their first use, figures the others.
_LATE = ("torch._dynamo", "jinja2", "matplotlib.backends.backend_svg", "matplotlib.dates")


def main() -> None:
    torch.set_num_threads(1)
    for name in _COMMANDS:
        import_module(f"lowshot_cli.cli.commands.{name}")
    for name in _LATE:
        import_module(name)
    glyphs.make(glyphs.IMAGE_SIZE)
    # Each process measures once which arithmetic is faster.
    for dtype in (torch.bfloat16, torch.float32):
        matrix_rate(dtype)
    # The first figure loads fonts and image formats.
    drawn = plots.figure(2, 2)
    drawn.subplots().set_title("a")
    plots.as_png(drawn), plots.as_svg(drawn)
    print("ready", flush=True)
    for line in sys.stdin:
        jobs = _jobs(json.loads(line))
        pids = [_fork(job) for job in jobs]
        # Where the ranks meet, as torchrun has it.
        port = jobs[0].get("env", {}).get("MASTER_PORT")
        store = TCPStore("127.0.0.1", int(port), is_master=True) if port else None
        print(*pids, flush=True)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        del store
        print(*map(os.waitstatus_to_exitcode, statuses), flush=True)


if __name__ == "__main__":
    main()
