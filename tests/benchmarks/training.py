"""The default base training of this checkout beside that of another one.

    python -m tests.benchmarks.training ../other --precision fp32

Needs CIFAR-100 in LOWSHOT_DATA. The two take turns, a few epochs each. What counts is the fastest
epoch of each, with its hold-out evaluation, times the number of epochs that each trains by default.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

from tests.benchmarks.ranks import ALONE, environment_of, epoch_rates

_FIT_IMAGES = 40 * 450
_ASK = "from lowshot_cli.config.schema import Config; print(Config().train_base.epochs)"


def default_epochs(checkout: str) -> int:
    """How many epochs the code of a checkout trains by default."""
    asked = subprocess.run(
        [sys.executable, "-c", _ASK],
        env=environment_of(checkout),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(asked.stdout)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    options = ["--classes", "40", "--epochs", asked.epochs, "--precision", asked.precision]
    sides = {"this checkout": str(Path().resolve()), "the other": str(asked.other.resolve())}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(asked.rounds):
        print(f"... round {number + 1}", file=sys.stderr)
        for name, checkout in sides.items():
            rates[name] += epoch_rates(ALONE, torch.get_num_threads(), options, checkout)
    seconds = {}
    for name, checkout in sides.items():
        epochs, best = default_epochs(checkout), max(rates[name])
        seconds[name] = epochs * _FIT_IMAGES / best
        print(f"{name}: {best:.0f} images/s, {epochs} epochs in {seconds[name]:.0f} s")
    print(f"ratio {seconds['this checkout'] / seconds['the other']:.2f}, {asked.precision}")


if __name__ == "__main__":
    main()
