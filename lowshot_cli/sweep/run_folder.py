"""The run folder of a sweep and the files in it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.difference import difference
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config, SweepConfig
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.environment import versions
from lowshot_cli.errors import DataError, UsageError
from lowshot_cli.storage.files import new_array, write_text
from lowshot_cli.storage.locks import locked
from lowshot_cli.sweep.plan import Plan
from lowshot_cli.sweep.summary import SweepSummary
from lowshot_cli.sweep.trials import BatchResult

ROWS, SUMMARY, MODELS = "results.csv", "results.json", "models.npy"
CONFIG, ABOUT = "config.yaml", "run.json"
Models = np.memmap[Any, np.dtype[np.float32]]


@contextmanager
def run_folder(workdir: Path, resumed: Path | None) -> Iterator[Path]:
    """Lock the run folder of a sweep for this process: a new one unless resumed.

    A new folder is removed if nothing was written to it, as when the sweep could not start.
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
        except FileExistsError:  # another sweep started in the same second
            continue
        return folder
    raise AssertionError


def ensure_saveable(options: SweepConfig) -> None:
    """Raise UsageError if the trials would not yield models to save."""
    if options.sessions:
        raise UsageError(
            "`save_models` cannot keep the models of sessions", "leave one of the two out"
        )
    for method in options.methods:
        if not METHODS[method].saves_models:
            raise UsageError(
                f"`save_models` keeps one proxy per class, which is not enough for {method}",
                f"leave {method} out of `methods`",
            )


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        base: digest of the base model.
        has_models: whether the models of trials are kept.
        threads: of each process; None if not recorded.
    """

    base: str
    has_models: bool
    threads: int | None


def write_run(
    run_dir: Path, config: Config, base: Checkpoint, *, save_models: bool, threads: int
) -> None:
    """Record what resuming the run and rebuilding its trials need."""
    write_text(run_dir / CONFIG, config.to_yaml())
    about = {"base": base.digest, "models": save_models, "threads": threads}
    write_text(run_dir / ABOUT, json.dumps({**about, "versions": versions()}))


def read_run(run_dir: Path, base: Checkpoint) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        DataError: it is not a run folder, or was run on another base model.
    """
    try:
        about = json.loads((run_dir / ABOUT).read_text(encoding="utf-8"))
        record = RunRecord(about["base"], bool(about.get("models")), about.get("threads"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{run_dir} is not a run folder", "name a folder that `lowshot sweep` wrote"
        ) from None
    if record.base != base.digest:
        raise DataError(
            f"{run_dir} was run on another base model", "name that base model with `checkpoint`"
        )
    return record


def read_summary(run_dir: Path) -> SweepSummary:
    """Read the summary of a finished sweep.

    Raises:
        DataError: the summary is damaged, or the sweep is not finished.
    """
    path = run_dir / SUMMARY
    try:
        return SweepSummary.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} cannot be read: {reason}", "resume the sweep") from None


def changes_since(run_dir: Path, config: Config) -> list[str]:
    """The differences between the config of a run folder and another config, one per line.

    Raises:
        ConfigError: the config of the folder cannot be read.
    """
    before, now = load_config(run_dir / CONFIG).portable(), config.portable()
    for values in (before, now):
        del values["sweep"]["train_base"]  # where the base model came from changes no trial
    return difference(before, now)


def open_models(run_dir: Path, plan: Plan, size: int, mode: Literal["r", "r+", "w+"]) -> Models:
    """Map `models.npy`, `(n, W·D + 1)` fp32: each trial's proxies, then its bias.

    Raises:
        DataError: the file to read is missing, damaged or of another run.
    """
    path, shape = run_dir / MODELS, (plan.n_rows, plan.ways * size + 1)
    models: Models
    if mode == "w+":
        return new_array(path, np.float32, shape)
    try:
        models = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{run_dir} has no {MODELS}", "run the sweep with `save_models=True`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", "run the sweep again") from None
    if models.shape != shape:
        raise DataError(f"{path} does not fit the run", "run the sweep again")
    return models


def keep_models(models: Models, first: int, result: BatchResult) -> None:
    """Write the models of a batch whose first trial is row `first` of the sweep."""
    assert result.proxies is not None
    place = slice(first, first + len(result.rows.trials))
    models[place, :-1] = result.proxies.flatten(1).numpy()  # (T, W·D)
    models[place, -1] = result.rows.bias
    models.flush()
