"""The folder of a sweep."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config, SweepConfig
from lowshot_cli.environment import versions
from lowshot_cli.errors import DataError, UsageError
from lowshot_cli.storage.files import new_array, write_text
from lowshot_cli.storage.locks import locked
from lowshot_cli.sweep.plan import Plan
from lowshot_cli.sweep.trials import BatchResult

ROWS, SUMMARY, MODELS = "results.csv", "results.json", "models.npy"


CONFIG, ABOUT = "config.yaml", "run.json"


Models = np.memmap[Any, np.dtype[np.float32]]


@contextmanager
def run_folder(workdir: Path, resumed: Path | None) -> Iterator[Path]:
    """The folder of a sweep, which is this process's alone meanwhile: a new one unless resumed.

    A new one in which nothing was written, as the sweep could not begin, is gone afterwards.
    """
    folder = resumed or _new_run_dir(workdir)
    try:
        with locked(folder):
            yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def _new_run_dir(workdir: Path) -> Path:
    stamp = time.strftime("sweep-%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = workdir / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # another sweep began in the same second
            continue
        return folder
    raise AssertionError


def ensure_saveable(options: SweepConfig) -> None:
    """Raise UsageError where `--save-models` could not make models of the trials."""
    if options.sessions:
        raise UsageError("--save-models keeps no sessions", "leave one of the two out")
    for method in options.methods:
        if not METHODS[method].saves_models:
            raise UsageError(
                f"--save-models keeps one row a class, which does not make a model of {method}",
                f"leave {method} out of --method",
            )


def _describe(
    run_dir: Path, config: Config, base: Checkpoint, save_models: bool, threads: int
) -> None:
    """Write down what makes a run what it is, for those who resume or rebuild it."""
    write_text(run_dir / CONFIG, config.to_yaml())
    about = {"base": base.digest, "models": save_models, "threads": threads}
    write_text(run_dir / ABOUT, json.dumps({**about, "versions": versions()}))


def read_run(run_dir: Path, base: Checkpoint) -> dict[str, Any]:
    """What a run folder says of itself.

    Raises:
        DataError: it is no run folder, or its base model was another one.
    """
    try:
        about: dict[str, Any] = json.loads((run_dir / ABOUT).read_text(encoding="utf-8"))
        same = about["base"] == base.digest
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{run_dir} holds no sweep", "name a run folder of `lowshot sweep`"
        ) from None
    if not same:
        raise DataError(
            f"{run_dir} was run on another base model", "name that one with --checkpoint"
        )
    return about


def open_models(run_dir: Path, plan: Plan, size: int, mode: Literal["r", "r+", "w+"]) -> Models:
    """Map `models.npy`, `(n, W·D + 1)` fp32: each trial's rows, then its bias.

    Raises:
        DataError: to be read, but absent, damaged or of another run.
    """
    path, shape = run_dir / MODELS, (plan.n_rows, plan.ways * size + 1)
    models: Models
    if mode == "w+":
        return new_array(path, np.float32, shape)
    try:
        models = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{run_dir} holds no {MODELS}", "run the sweep with --save-models"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", "run the sweep again") from None
    if models.shape != shape:
        raise DataError(f"{path} does not fit the run", "run the sweep again")
    return models


def _keep(models: Models, first: int, outcome: BatchResult) -> None:
    """Write a piece's models, before its rows say that it is done."""
    assert outcome.proxies is not None
    place = slice(first, first + len(outcome.rows.trials))
    models[place, :-1] = outcome.proxies.flatten(1).numpy()
    models[place, -1] = outcome.rows.bias
    models.flush()
