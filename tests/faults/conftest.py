"""Fixtures of the fault tests: commands in processes of their own, to be killed and starved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# A base model on glyphs that trains in a second.
SMALL = {
    "classes": 4,
    "width": 4,
    "embedding_size": 8,
    "epochs": 3,
    "batch_size": 32,
    "holdout": 20,
    "mixup": 0.0,
    "precision": "fp32",
}


def write_config(folder: Path, **sections: Any) -> Path:
    """Write a config for `SMALL` and whatever else is given."""
    path = folder / "small.yaml"
    path.write_text(json.dumps({"dataset": "glyphs", "train_base": SMALL, **sections}))
    return path


def memory(name: str) -> int:
    """Bytes of this process by a name of its status, such as `VmRSS`."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true, but not for ever."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.001)


@dataclass
class Running:
    """A command under way in a process of its own, or in several that train together."""

    pids: list[int]
    server: Server
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.pids[0]

    def wait(self) -> int:
        """Its exit status, negative for the signal that ended it."""
        return self.wait_all()[0]

    def wait_all(self) -> list[int]:
        """The exit statuses of all its processes."""
        return [int(status) for status in self.server.answer().split()]

    @property
    def stderr(self) -> str:
        return self.err.read_text(encoding="utf-8")

    @property
    def stdout(self) -> str:
        return self.out.read_text(encoding="utf-8")

    def said(self, rank: int) -> tuple[str, str]:
        """What one of several processes wrote on stdout and stderr."""
        files = (Path(f"{file}.{rank}") for file in (self.out, self.err))
        out, err = (file.read_text(encoding="utf-8") for file in files)
        return out, err


class Server:
    """Starts commands in forks of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("LOWSHOT_DATA", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, *arguments: object, cwd: Path, **settings: Any) -> Running:
        """Start a command in a folder."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        argv = [str(argument) for argument in arguments]
        job = {"argv": argv, "cwd": str(cwd), "out": str(out), "err": str(err), **settings}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Running([int(pid) for pid in self.answer().split()], self, out, err)

    def run(self, *arguments: object, cwd: Path, **settings: Any) -> Running:
        """Run a command to its end, which must be a good one."""
        running = self.start(*arguments, cwd=cwd, **settings)
        status = running.wait()
        assert status == 0, running.stderr
        return running

    def close(self) -> None:
        """End the process that commands are forked from."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
