"""Runs commands in forks of a process that has imported everything, each in milliseconds.

Reads one JSON line a run from stdin: `argv`, `cwd`, `out` and `err` (files), and if need be `env`,
`cpus`, how many there seem to be, and `fsize`, the most bytes a file may grow to. Answers with
the pid, and with the exit status once it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

import torch

import lowshot_cli.cli
import lowshot_cli.commands.data
import lowshot_cli.commands.measuring
import lowshot_cli.commands.teaching
import lowshot_cli.commands.using
from lowshot_cli.data import glyphs


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
    lowshot_cli.cli.main()


def main() -> None:
    torch.set_num_threads(1)
    glyphs.make(glyphs.IMAGE_SIZE)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _run(json.loads(line))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
