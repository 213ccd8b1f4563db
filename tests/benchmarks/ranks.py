"""Base training by one process with N threads beside N ranks with one thread each.

    python -m tests.benchmarks.ranks --ranks 2

Needs CIFAR-100 in LOWSHOT_DATA. The two take turns. What counts is the fastest epoch of each, the
one that other work disturbed least, with its hold-out evaluation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from datetime import datetime
from itertools import pairwise
from pathlib import Path

ALONE = [sys.executable, "-m", "lowshot_cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment_of(checkout: str) -> dict[str, str]:
    """An environment in which Python imports the code of a checkout, wherever it is started."""
    return {**os.environ, "PYTHONPATH": checkout, "PYTHONSAFEPATH": "1"}


def epoch_rates(
    program: list[str], threads: int, options: list[str], checkout: str = "."
) -> list[float]:
    """Fit images a second in each epoch after the first, by the code of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        typed = ["train-base", *options, "--quiet", "--workdir", folder]
        environment = {**environment_of(checkout), "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*program, *typed], env=environment, stdout=subprocess.DEVNULL, check=True)
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    training = [event for event in events if event.get("stage") == "training"]
    ends = {event["epoch"]: event for event in training}
    rates = []
    for before, after in pairwise(ends.values()):
        times = [datetime.fromisoformat(event["time"]) for event in (before, after)]
        rates.append((after["done"] - before["done"]) / (times[1] - times[0]).total_seconds())
    return rates


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", default="40")
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    options = ["--classes", asked.classes, "--epochs", asked.epochs, "--precision", asked.precision]
    shared = [*TORCHRUN, str(asked.ranks), "-m", "lowshot_cli"]
    one, many = [], []
    for number in range(asked.rounds):
        print(f"... round {number + 1}", file=sys.stderr)
        one += epoch_rates(ALONE, asked.ranks, options)
        many += epoch_rates(shared, 1, options)
    for name, rates in (
        (f"one process, {asked.ranks} threads", one),
        ("ranks of one thread", many),
    ):
        each = ", ".join(f"{rate:.0f}" for rate in rates)
        print(f"{name:12} {max(rates):6.0f} images/s, of {each}")
    print(f"ratio {100 * max(many) / max(one):.0f} %")


if __name__ == "__main__":
    main()
