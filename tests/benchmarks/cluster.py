"""Fine-tunings of the whole network by this process beside the same by one worker of Ray.

    python -m tests.benchmarks.cluster --trials 15

Needs the extra `ray`. Both have one thread, the cluster one processor. What counts is the time of
the trials, on Ray with the start of the worker in it; the start of the cluster is told apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

LOWSHOT = [sys.executable, "-m", "lowshot_cli"]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ALONE, ON_RAY = ("--executor", "local"), ("--executor", "ray", "--ray-address", "auto")
CONFIG = """
dataset: glyphs
train_base: {classes: 12, width: 12, epochs: 3, holdout: 50, mixup: 0.0}
sweep: {novel: 4, shots: [5], methods: [finetune-full]}
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=15, help="of each of four classes")
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        options = ["--config", str(config), "--workdir", str(Path(folder) / "runs"), "--quiet"]
        _run([*LOWSHOT, "train-base", *options])
        trials = ["sweep", *options, "--trials", str(asked.trials), "--threads", "1", "--json"]
        started = time.perf_counter()
        _run([*RAY, "start", "--head", "--num-cpus", "1", "--include-dashboard", "false"])
        print(f"cluster up after {time.perf_counter() - started:.1f} s")
        seconds: dict[tuple[str, ...], list[float]] = {ALONE: [], ON_RAY: []}
        try:
            for _ in range(asked.rounds):
                for executor, found in seconds.items():
                    result = json.loads(_run([*LOWSHOT, *trials, *executor]))
                    found.append(result["timing"]["trials_seconds"])
                    print(f"... {executor[1]}: {found[-1]:.1f} s", file=sys.stderr)
        finally:
            _run([*RAY, "stop"])
    for executor, found in seconds.items():
        print(f"{executor[1]:5} {min(found):7.1f} s for {4 * asked.trials} fine-tunings")
    print(f"overhead {100 * (min(seconds[ON_RAY]) / min(seconds[ALONE]) - 1):.1f} %")


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
