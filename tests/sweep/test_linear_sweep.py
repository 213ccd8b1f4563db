"""Sweeps of a frozen network's model, whose head is linear and cross-fitted."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowshot_cli.adaptation.bias import expected_forgetting, set_bias
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import N_FOLDS
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.sweep.replay import rebuild
from lowshot_cli.sweep.run import RunOptions, sweep
from lowshot_cli.sweep.run_folder import MODELS, ROWS
from lowshot_cli.threads import threads_per_operation
from tests.tiny_world import cost, tiny_world

SAVED = ("imprint", "random", "augmented", "whitened", "teen", "finetune-head")
METHODS = (*SAVED, "nearest", "proxies")
BUDGET = 5


def _config(**changes: object) -> Config:
    options = {"trials": 2, "shots": [3], "novel": ["f", "g", "h"], "max_forgetting": BUDGET}
    return Config.model_validate({"finetune": {"steps": 10}, "sweep": {**options, **changes}})


def _swept(config: Config, folder: Path, *, keep: bool = False) -> list[dict[str, str]]:
    dataset, base, network = tiny_world("linear")
    options = RunOptions(save_models=keep)
    sweep(base, dataset, config, Embedder(network), folder, options=options)
    with (folder / ROWS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _imprinted(method: str, name: str) -> Checkpoint:
    """The model that `imprint`, and `finetune` if need be, make with the settings of the sweep."""
    dataset, base, network = tiny_world("linear")
    options = {"classes": [name], "shots": 3, "max_forgetting": BUDGET}
    if method != "finetune-head":
        options["method"] = method
    tuning = {"steps": 10, "max_forgetting": BUDGET}
    config = Config.model_validate({"imprint": options, "finetune": tuning})
    taught, _ = imprint_classes(base, dataset, network, config)
    return finetune(taught, config) if method == "finetune-head" else taught


def test_rows_equal_the_models_that_imprint_makes(tmp_path: Path) -> None:
    dataset, _, network = tiny_world("linear")
    rows = _swept(_config(methods=METHODS), tmp_path)
    assert {row["method"] for row in rows} == set(METHODS)
    for method in SAVED:
        first = (row for row in rows if (row["method"], row["trial"]) == (method, "0"))
        for row in first:
            taught = _imprinted(method, row["classes"])
            assert taught.head.bias == pytest.approx(float(row["bias"]), abs=1e-4)
            found = evaluate(taught, dataset, Embedder(network))
            for metric in ("base_accuracy", "novel_accuracy", "global_accuracy", "forgetting"):
                assert getattr(found, metric) == pytest.approx(float(row[metric]), abs=1e-3)


@pytest.mark.slow
def test_one_proxy_an_image_is_what_imprinting_does_with_one_shot(tmp_path: Path) -> None:
    rows = _swept(
        _config(shots=[1], methods=["imprint", "nearest", "whitened", "proxies"]), tmp_path
    )
    own = [{**row, "method": ""} for row in rows]
    each = len(own) // 4
    assert own[:each] == own[each : 2 * each]
    assert own[2 * each : 3 * each] == own[3 * each :]


def test_rows_and_models_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bits rarely differ with embeddings as short as these, so watch how heads are made, too.
    seen: list[int] = []
    factorise = torch.linalg.cholesky

    def watched(covariance: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return factorise(covariance)

    _, base, _ = tiny_world("linear")
    contents = []
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        with threads_per_operation(threads), monkeypatch.context() as patch:
            assert len(base.backgrounds) == 1 + N_FOLDS  # known before, from that many threads
            patch.setattr(torch.linalg, "cholesky", watched)
            _swept(_config(methods=["whitened", "finetune-head"]), folder, keep=True)
        contents.append([(folder / name).read_bytes() for name in (ROWS, MODELS)])
    assert contents[0] == contents[1]
    assert set(seen) == {1}


@pytest.mark.parametrize("ways", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rebuilt_trial_is_a_model_that_can_be_taught_more(ways: int, tmp_path: Path) -> None:
    dataset, base, network = tiny_world("linear")
    novel = ["f", "g"][:ways]
    rows = _swept(_config(ways=ways, novel=novel, methods=SAVED), tmp_path, keep=True)
    for number, row in enumerate(rows):
        if row["trial"] != "0":
            continue
        made = rebuild(base, dataset, tmp_path, number)
        assert made.novel_classes == tuple(novel)
        assert made.fold_proxies is not None
        if ways == 1:
            own = _imprinted(row["method"], novel[0])
            assert own.fold_proxies is not None
            assert torch.allclose(made.head.proxies, own.head.proxies, atol=1e-2)
            assert torch.allclose(made.fold_proxies, own.fold_proxies, atol=1e-3)
        # The bias that is kept is the one that its folds ask for.
        assert set_bias(made, BUDGET).head.bias == pytest.approx(made.head.bias, abs=1e-2)
        pixels = dataset.train.pixels[dataset.train.of_class(7)[:4]]
        more = Model(made, network).imprint(pixels, "more", max_forgetting=BUDGET).checkpoint
        found = expected_forgetting(more)
        assert found is not None
        assert found == pytest.approx(cost(more, more.head.bias))
        assert 0 <= found <= BUDGET
        assert Model(made, network).remove(made.novel_classes[0]).checkpoint.head.n_base == 5


def test_several_proxies_a_class_are_calibrated_on_all_of_them(tmp_path: Path) -> None:
    rows = _swept(_config(methods=["nearest", "proxies"], max_forgetting=0), tmp_path)
    assert all(float(row["bias"]) != 0 for row in rows)


def test_no_trial_fine_tunes_the_whole_network_of_a_linear_head(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="finetune-full needs a network that was trained with"):
        _swept(_config(methods=["whitened", "finetune-full"]), tmp_path)
