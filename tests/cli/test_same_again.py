"""The same seed gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.evaluation.statistics import METRICS
from tests.cli.answers import MINI, SMALL_SWEEP, as_json, done, only_run
from tests.conftest import RunCommand


def _whole_chain(lowshot: RunCommand, workdir: Path, seed: int) -> dict[str, bytes]:
    common = ["--workdir", workdir, "--seed", seed]
    done(lowshot("train-base", *MINI, *common))
    done(lowshot("imprint", "--class", "omega", "--shots", 3, *common))
    done(lowshot("finetune", *common))
    done(lowshot("sweep", *SMALL_SWEEP, "--save-models", *common))
    names = ("results.csv", "models.npy")
    return {
        **{path.name: path.read_bytes() for path in workdir.glob("*.safetensors")},
        **{name: (only_run(workdir) / name).read_bytes() for name in names},
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    first, again, other = (
        _whole_chain(lowshot, tmp_path / name, seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert set(first) == {
        "base.safetensors",
        "imprinted.safetensors",
        "finetuned.safetensors",
        "results.csv",
        "models.npy",
    }
    for name, content in first.items():
        assert again[name] == content, f"{name} differs between two runs of one seed"
        assert other[name] != content, f"{name} does not depend on the seed"


def test_a_cold_and_a_warm_cache_give_the_same_rows(
    lowshot: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(lowshot("train-base", *MINI))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [as_json(lowshot("sweep", *SMALL_SWEEP, "--json"))["run_dir"] for _ in range(2)]
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    cold, warm = ((Path(run) / "results.csv").read_bytes() for run in runs)
    assert cold == warm


def test_results_on_disk_name_no_folder_and_no_time(lowshot: RunCommand, workdir: Path) -> None:
    found = as_json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    header = (Path(found["run_dir"]) / "results.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= {"method", "shots", "classes", "trial", "bias"} | set(METRICS)
    assert not [name for name in header if "time" in name or "second" in name or "path" in name]
