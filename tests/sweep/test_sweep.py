"""Sweeps: rows that depend on seed, model and data alone, and equal the one-trial path."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.data.supports import draw_supports
from lowshot_cli.errors import DataError, Interrupted, UsageError
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.models import embedder as embedder_module
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.report.plots import caption
from lowshot_cli.sweep import trials as trials_module
from lowshot_cli.sweep.plan import TILE, make_plan
from lowshot_cli.sweep.replay import rebuild
from lowshot_cli.sweep.results import COLUMNS, ClassNames, Rows
from lowshot_cli.sweep.run import RunOptions, sweep
from lowshot_cli.sweep.run_folder import ABOUT, MODELS, ROWS, SUMMARY, read_summary, run_folder
from lowshot_cli.sweep.totals import RunningTotals
from lowshot_cli.threads import threads_per_operation
from lowshot_cli.training.context import RunContext
from tests.far_device import far_device

METHODS = ("imprint", "random", "augmented", "whitened", "teen", "finetune-head")

KEEP = RunOptions(save_models=True)
AT_ONCE = RunContext(should_stop=lambda: True)


@pytest.fixture(scope="session")
def novel(base: Checkpoint, glyphs: Dataset) -> tuple[str, ...]:
    return tuple(name for name in glyphs.class_names if name not in base.meta.classes)[:6]


@pytest.fixture
def config(tiny_config: Config, novel: tuple[str, ...]) -> Config:
    return _sweeping(
        tiny_config,
        trials=3,
        shots=(1, 5),
        novel=novel,
        methods=METHODS,
    )


def _sweeping(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"sweep": config.sweep.model_copy(update=changes)})


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_equals_the_one_trial_path(
    base: Checkpoint,
    glyphs: Dataset,
    embedder: Embedder,
    config: Config,
    novel: tuple[str, ...],
    tmp_path: Path,
    method: str,
) -> None:
    sweep(base, glyphs, config, embedder, tmp_path)
    rows = [row for row in _read(tmp_path / ROWS) if row["method"] == method]
    for name in novel[:3]:
        (row,) = (r for r in rows if (r["classes"], r["trial"], r["shots"]) == (name, "0", "5"))
        imprinting = {"classes": (name,), "shots": 5}
        if method != "finetune-head":
            imprinting["method"] = method
        single = config.model_copy(update={"imprint": config.imprint.model_copy(update=imprinting)})
        taught, _ = imprint_classes(base, glyphs, embedder.network, single)
        if method == "finetune-head":
            taught = finetune(taught, single)
        found = evaluate(taught, glyphs, embedder)
        assert found.base_accuracy == pytest.approx(float(row["base_accuracy"]), abs=1e-3)
        assert found.novel_accuracy == pytest.approx(float(row["novel_accuracy"]), abs=1e-3)
        assert found.global_accuracy == pytest.approx(float(row["global_accuracy"]), abs=1e-3)
        assert found.harmonic_mean == pytest.approx(float(row["harmonic_mean"]), abs=1e-3)
        assert found.forgetting == pytest.approx(float(row["forgetting"]), abs=1e-3)
        assert taught.head.bias == pytest.approx(float(row["bias"]), abs=1e-4)


def test_rows_do_not_depend_on_which_other_trials_run(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("few", "many")]
    for folder, trials in zip(folders, (2, 60), strict=True):
        folder.mkdir()
        sweep(base, glyphs, _sweeping(config, trials=trials), embedder, folder)
    few, many = (_read(folder / ROWS) for folder in folders)
    assert TILE < 60 * 6
    keyed = {tuple(row[key] for key in COLUMNS[:4]): row for row in many}
    for row in few:
        assert keyed[tuple(row[key] for key in COLUMNS[:4])] == row


def test_rows_and_models_do_not_depend_on_the_number_of_threads(
    base: Checkpoint,
    glyphs: Dataset,
    config: Config,
    novel: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Bits rarely differ on images as small as these, so watch how each part is computed, too.
    seen = []
    for module, name in ((trials_module, "run_batch"), (embedder_module, "_forward")):
        inner = getattr(module, name)

        def watched(*arguments: Any, _inner: Any = inner, **settings: Any) -> object:
            seen.append(torch.get_num_threads())
            return _inner(*arguments, **settings)

        monkeypatch.setattr(module, name, watched)
    config = _sweeping(
        config, methods=("imprint", "whitened"), novel=novel[:2], trials=300, shots=(5,)
    )
    contents = []
    for threads in (1, 2, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        with threads_per_operation(threads):  # embeds everything anew
            sweep(base, glyphs, config, Embedder(base.network()), folder, options=KEEP)
        contents.append([(folder / name).read_bytes() for name in (ROWS, MODELS)])
    assert contents[0] == contents[1] == contents[2]
    assert set(seen) == {1}


@pytest.mark.slow
def test_rows_and_models_do_not_depend_on_the_number_of_threads_on_cifar100(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        json.dumps(
            {
                "data_dir": os.environ["LOWSHOT_DATA"],
                "train_base": {"classes": 20, "width": 16, "epochs": 1},
                "sweep": {
                    "trials": 20,
                    "shots": [1, 5],
                    "novel": 5,
                    "methods": ["imprint", "whitened", "finetune-head"],
                },
            }
        )
    )
    config = ("--config", tmp_path / "small.yaml", "--workdir", tmp_path)

    def run(threads: int, *command: object) -> None:
        own = {"OMP_NUM_THREADS": str(threads), "XDG_CACHE_HOME": str(tmp_path / str(threads))}
        words = [sys.executable, "-m", "lowshot_cli", *map(str, command), "--quiet"]
        subprocess.run(words, env={**os.environ, **own}, check=True)

    run(2, "train-base", *config)
    for threads in (1, 2):
        run(threads, "sweep", *config, "--save-models")
    for name in (ROWS, MODELS):  # the models hold all digits
        one, two = (path.read_bytes() for path in tmp_path.glob(f"sweep-*/{name}"))
        assert one == two


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        sweep(base, glyphs, config.model_copy(update={"seed": seed}), embedder, tmp_path / name)
        contents.append((tmp_path / name / ROWS).read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_methods_run_on_the_same_draws_and_the_tables_follow_the_rows(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    result = sweep(base, glyphs, config, embedder, tmp_path)
    rows = _read(tmp_path / ROWS)
    assert len(rows) == result.n_rows == 6 * 3 * 2 * len(METHODS)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    for cell in summary["cells"]:
        chosen = [
            row
            for row in rows
            if (row["method"], int(row["shots"])) == (cell["method"], cell["shots"])
        ]
        assert cell["n_trials"] == len(chosen) == 18
        means = {
            name: np.mean([float(row["ncr_at_2"]) for row in chosen if row["classes"] == name])
            for name in {row["classes"] for row in chosen}
        }
        assert cell["ncr_at_2"]["mean"] == pytest.approx(np.mean(list(means.values())))
        assert cell["n_classes"] == len(means) == 6
    pair = next(p for p in summary["paired"] if p["methods"] == ["finetune-head", "imprint"])
    cells = {(c["method"], c["shots"]): c for c in summary["cells"]}
    expected = (
        cells["finetune-head", pair["shots"]]["ncr_at_2"]["mean"]
        - cells["imprint", pair["shots"]]["ncr_at_2"]["mean"]
    )
    assert pair["ncr_at_2"]["mean"] == pytest.approx(expected)


def test_a_class_row_names_its_best_and_worst_draw(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    summary = sweep(base, glyphs, config, embedder, tmp_path).summary.to_json()
    rows = _read(tmp_path / ROWS)
    for entry in summary["classes"]:
        chosen = {
            int(row["trial"]): float(row["ncr_at_2"])
            for row in rows
            if (row["method"], int(row["shots"]), row["classes"])
            == (entry["method"], entry["shots"], entry["class"])
        }
        assert chosen[entry["best_trial"]] == max(chosen.values())
        assert chosen[entry["worst_trial"]] == min(chosen.values())
        assert entry["confused_with"] in base.base_classes
        label = glyphs.label(entry["class"])
        trials = [entry["best_trial"], entry["worst_trial"]]
        drawn = draw_supports(config.seed, label, trials, entry["shots"], 150)
        indices = glyphs.train.of_class(label)[torch.from_numpy(drawn)].tolist()
        assert entry["best_support"] + entry["worst_support"] == indices


@pytest.mark.parametrize("cut", [0, 1, 40, 900, 2500, 100_000])
def test_a_resumed_sweep_ends_with_the_same_rows_and_table(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path, cut: int
) -> None:
    config = _sweeping(config, methods=("imprint", "finetune-head"), trials=50)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir(), torn.mkdir()
    expected = sweep(base, glyphs, config, embedder, whole).summary
    content = (whole / ROWS).read_bytes()
    header = content.index(b"\n") + 1
    (torn / ROWS).write_bytes(content[: header + cut])
    (torn / ABOUT).write_bytes((whole / ABOUT).read_bytes())
    found = sweep(base, glyphs, config, embedder, torn, options=RunOptions(resume=True)).summary
    assert (torn / ROWS).read_bytes() == content
    for key in ("cells", "paired", "classes"):
        assert getattr(found, key) == getattr(expected, key)


def _as_version_010(text: str) -> str:
    """What version 0.1.0 called the class that takes most, and its share."""
    return text.replace("confused_with", "swallowed_by").replace("confused_percent", "swallowed")


def test_a_run_of_version_010_is_resumed_below_its_own_header(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, methods=("imprint", "teen"), trials=2)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    expected = sweep(base, glyphs, config, embedder, whole).summary
    old = _as_version_010((whole / ROWS).read_text()).replace("teen,", "calibrated,")
    lines = old.splitlines(keepends=True)
    torn.mkdir()
    (torn / ROWS).write_text("".join(lines[:30]))
    (torn / ABOUT).write_bytes((whole / ABOUT).read_bytes())
    found = sweep(base, glyphs, config, embedder, torn, options=RunOptions(resume=True)).summary
    header, *rows = (torn / ROWS).read_text().replace("calibrated,", "teen,").splitlines()
    assert header == lines[0].strip()
    assert rows == (whole / ROWS).read_text().splitlines()[1:]
    assert (found.cells, found.classes) == (expected.cells, expected.classes)


@pytest.mark.parametrize("sessions", [None, 3])
def test_a_summary_is_read_back_as_it_was(
    base: Checkpoint,
    glyphs: Dataset,
    embedder: Embedder,
    config: Config,
    tmp_path: Path,
    sessions: int | None,
) -> None:
    changes = {"methods": ("imprint", "teen"), "ways": 2, "sessions": sessions, "shots": (2,)}
    summary = sweep(base, glyphs, _sweeping(config, **changes), embedder, tmp_path).summary
    assert read_summary(tmp_path) == summary
    old = _as_version_010((tmp_path / SUMMARY).read_text()).replace('"teen"', '"calibrated"')
    (tmp_path / SUMMARY).write_text(old)
    assert read_summary(tmp_path) == summary
    (tmp_path / SUMMARY).write_text(old[: len(old) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_summary(tmp_path)


def test_a_stopped_sweep_keeps_its_rows_and_models(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sweep(base, glyphs, config, embedder, whole, options=KEEP)
    with pytest.raises(Interrupted, match="18 of 216 trials") as caught:
        sweep(base, glyphs, config, embedder, stopped, options=KEEP, context=AT_ONCE)
    assert "`resume=True` continues" in str(caught.value.hint)
    assert len(_read(stopped / ROWS)) == 18
    sweep(base, glyphs, config, embedder, stopped, options=RunOptions(resume=True))
    for name in (ROWS, MODELS):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_nearest_neighbour_is_one_shot_imprinting_and_a_bound_beyond(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, methods=("imprint", "nearest"), max_forgetting=2.0, ways=2)
    sweep(base, glyphs, config, embedder, tmp_path)
    rows = {tuple(row[key] for key in COLUMNS[:4]): row for row in _read(tmp_path / ROWS)}
    for (method, shots, *draw), row in rows.items():
        mean = rows["imprint", shots, *draw]
        if method == "nearest" and shots == "1":
            for key in ("novel_accuracy", "base_accuracy", "ncr_at_2", "ncr_at_5"):
                assert float(row[key]) == pytest.approx(float(mean[key]), abs=0.2)
        elif method == "nearest":
            assert row["ncr_at_2"] != mean["ncr_at_2"] or row["bias"] != mean["bias"]
    with pytest.raises(UsageError, match="not enough for nearest"):
        sweep(base, glyphs, config, embedder, tmp_path / "models", options=KEEP)


def test_proxies_of_one_shot_are_its_whitened_row(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, methods=("whitened", "proxies"), ways=2)
    sweep(base, glyphs, config, embedder, tmp_path)
    rows = {tuple(row[key] for key in COLUMNS[:4]): row for row in _read(tmp_path / ROWS)}
    for (method, shots, *draw), row in rows.items():
        one = rows["whitened", shots, *draw]
        if method == "proxies":
            same = all(row[key] == one[key] for key in COLUMNS[4:])
            assert same == (shots == "1")


def test_sessions_add_classes_to_those_before(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, methods=("whitened", "finetune-head"), ways=2, sessions=3)
    result = sweep(base, glyphs, config, embedder, tmp_path)
    rows = _read(tmp_path / ROWS)
    assert result.n_rows == len(rows) == 3 * 3 * 2 * 2
    order = list(config.sweep.novel)
    for session in (1, 2, 3):
        known = tuple(order[: 2 * session])
        options = config.imprint.model_copy(update={"classes": known, "shots": 5})
        taught, _ = imprint_classes(
            base, glyphs, base.network(), config.model_copy(update={"imprint": options})
        )
        for method, model in (("whitened", taught), ("finetune-head", finetune(taught, config))):
            found = evaluate(model, glyphs, embedder)
            (row,) = (
                row
                for row in rows
                if (row["method"], row["shots"], row["classes"], row["trial"])
                == (method, "5", f"session {session}", "0")
            )
            for name in ("novel_accuracy", "base_accuracy", "global_accuracy"):
                assert float(row[name]) == pytest.approx(getattr(found, name), abs=0.4)
    cells = result.summary.sessions
    assert [cell.n_classes for cell in cells[:3]] == [2, 4, 6]
    assert result.summary.cells == tuple(cell for cell in cells if cell.session == 3)
    drawn = [float(row["novel_accuracy"]) for row in rows if row["classes"] == "session 3"][:3]
    assert cells[2].metrics["novel_accuracy"].mean == pytest.approx(np.mean(drawn))
    assert cells[2].metrics["novel_accuracy"].std_within == pytest.approx(np.std(drawn, ddof=1))
    with pytest.raises(UsageError, match="cannot keep the models of sessions"):
        sweep(base, glyphs, config, embedder, tmp_path / "models", options=KEEP)


def test_a_killed_sweep_offers_the_models_it_finished(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        sweep(base, glyphs, config, embedder, tmp_path, options=KEEP, context=AT_ONCE)
    assert rebuild(base, glyphs, tmp_path, 17).novel_classes
    with pytest.raises(DataError, match="no trial 18"):
        rebuild(base, glyphs, tmp_path, 18)


def test_a_sweep_whose_models_are_gone_is_not_resumed_over_blanks(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        sweep(base, glyphs, config, embedder, tmp_path, options=KEEP, context=AT_ONCE)
    (tmp_path / MODELS).unlink()
    with pytest.raises(DataError, match=MODELS):
        sweep(base, glyphs, config, embedder, tmp_path, options=RunOptions(resume=True))
    assert len(_read(tmp_path / ROWS)) == 18


def test_several_classes_are_added_at_once(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, ways=3, methods=("imprint", "finetune-head"))
    plan = make_plan(base, glyphs, config)
    assert len(plan.groups) == 2
    assert len({label for group in plan.groups for label in group}) == 6
    sweep(base, glyphs, config, embedder, tmp_path, options=KEEP)
    rows = _read(tmp_path / ROWS)
    for trial in (0, 7, len(rows) - 1):
        rebuilt = rebuild(base, glyphs, tmp_path, trial)
        assert len(rebuilt.novel_classes) == 3
        found = evaluate(rebuilt, glyphs, embedder)
        assert found.novel_accuracy == pytest.approx(float(rows[trial]["novel_accuracy"]), abs=1e-3)
        assert found.base_accuracy == pytest.approx(float(rows[trial]["base_accuracy"]), abs=1e-3)


def test_classes_too_few_for_another_group_are_named(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, ways=4, methods=("imprint",), shots=(1,))
    summary = sweep(base, glyphs, config, embedder, tmp_path).summary
    assert set(summary.left_out) < set(config.sweep.novel)
    assert len(summary.left_out) == 2
    (cell,) = summary.cells
    assert (cell.n_trials, cell.n_classes) == (3, 4)
    assert "3 trials a point over 1 groups of 4 classes" in caption(summary)
    assert "intervals over groups" in caption(summary)


def test_a_rebuilt_model_holds_the_supports_that_its_row_is_made_of(
    base: Checkpoint,
    glyphs: Dataset,
    embedder: Embedder,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where look-alikes are dropped, their twins among the training images may be supports."""
    test = glyphs.test
    twins = torch.cat([test.of_class(glyphs.label(name))[:20] for name in config.sweep.novel])
    kept = torch.ones(len(test.labels), dtype=torch.bool)
    kept[twins] = False
    pixels = glyphs.train.pixels.clone()
    for name in config.sweep.novel:
        label = glyphs.label(name)
        pixels[glyphs.train.of_class(label)[:20]] = test.pixels[test.of_class(label)[:20]]
    leaky = replace(glyphs, train=Images(pixels, glyphs.train.labels))
    fewer = replace(leaky, test=Images(test.pixels[kept], test.labels[kept]))
    for module in ("run", "replay"):
        monkeypatch.setattr(f"lowshot_cli.sweep.{module}.without_lookalikes", lambda *_: fewer)
    base = replace(base, meta=base.meta.model_copy(update={"dataset_hash": leaky.content_hash}))
    config = _sweeping(config, methods=("imprint",), shots=(5,), drop_duplicates=True)
    sweep(base, leaky, config, embedder, tmp_path, options=KEEP)
    for trial in range(18):
        rebuilt = rebuild(base, leaky, tmp_path, trial)
        trained = slice(config.train_base.embedding_size)
        row = F.normalize(rebuilt.supports[0].float().mean(0)[trained], dim=0)
        assert torch.allclose(rebuilt.head.proxies[-1, trained], row, atol=1e-3)


def test_whole_network_fine_tuning_is_a_method_like_the_others(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder, config: Config, tmp_path: Path
) -> None:
    config = _sweeping(config, methods=("imprint", "finetune-full"), shots=(5,), trials=1, novel=2)
    config = config.model_copy(
        update={"finetune": config.finetune.model_copy(update={"epochs": 1})}
    )
    sweep(base, glyphs, config, embedder, tmp_path)
    rows = [row for row in _read(tmp_path / ROWS) if row["method"] == "finetune-full"]
    assert len(rows) == 2
    assert len({row["base_accuracy"] for row in rows} | {row["bias"] for row in rows}) > 2


def test_supports_never_meet_queries(base: Checkpoint, glyphs: Dataset) -> None:
    train = {image.numpy().tobytes() for image in glyphs.train.pixels}
    test = {image.numpy().tobytes() for image in glyphs.test.pixels}
    assert len(train) == len(glyphs.train.pixels)
    assert not train & test


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shots": (1, 151)}, "150 training images"),
        ({"novel": 200}, "122 novel classes"),
        ({"ways": 7}, "6 novel classes"),
        ({"ways": 2, "sessions": 4}, "up to 3 sessions"),
    ],
)
def test_an_impossible_plan_is_refused(
    base: Checkpoint,
    glyphs: Dataset,
    config: Config,
    changes: dict[str, object],
    complaint: str,
) -> None:
    with pytest.raises(UsageError, match=complaint):
        make_plan(base, glyphs, _sweeping(config, **changes))


def test_a_base_class_is_no_novel_class(base: Checkpoint, glyphs: Dataset, config: Config) -> None:
    with pytest.raises(UsageError, match="is a base class"):
        make_plan(base, glyphs, _sweeping(config, novel=(base.base_classes[0],)))


def test_a_class_that_the_network_was_trained_on_is_no_novel_class_once_it_is_removed(
    base: Checkpoint, glyphs: Dataset, config: Config
) -> None:
    before = make_plan(base, glyphs, _sweeping(config, novel="all")).groups
    removed = base.base_classes[0]
    without = base.without_class(removed)
    assert make_plan(without, glyphs, _sweeping(config, novel="all")).groups == before
    with pytest.raises(UsageError, match="is a base class"):
        make_plan(without, glyphs, _sweeping(config, novel=(removed,)))


def test_run_folders_never_collide(tmp_path: Path) -> None:
    with ExitStack() as stack:
        folders = {stack.enter_context(run_folder(tmp_path, None)) for _ in range(5)}
        assert len(folders) == len(list(tmp_path.iterdir())) == 5


def test_a_sweep_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError), run_folder(tmp_path, None):
        raise UsageError("no such class")
    assert not list(tmp_path.iterdir())


def test_memory_of_the_tally_does_not_grow_with_the_trials() -> None:
    import pickle

    def tally_of(batches: int) -> int:
        totals = RunningTotals(ClassNames(("a", "b"), ("x",)))
        ones = np.ones(TILE)
        for number in range(batches):
            metrics = dict.fromkeys(COLUMNS[4:11], ones)
            zeros = np.zeros(TILE, dtype=np.int64)
            totals.add(Rows("imprint", 1, zeros, zeros + number, metrics, ones, zeros, ones))
        return len(pickle.dumps(totals))

    assert tally_of(200) <= tally_of(2) + 16


@pytest.mark.parametrize(
    ("ways", "methods"),
    [(1, (*METHODS, "nearest")), (2, ("whitened", "finetune-head", "proxies", "finetune-full"))],
)
def test_trials_on_another_device_give_the_same_rows(
    base: Checkpoint,
    glyphs: Dataset,
    embedder: Embedder,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ways: int,
    methods: tuple[str, ...],
) -> None:
    some = (config.sweep.novel or ())[:2]
    config = _sweeping(config, trials=1, shots=(3,), methods=methods, ways=ways, novel=some)
    steps = config.finetune.model_copy(update={"steps": 2, "epochs": 1})
    config = config.model_copy(update={"finetune": steps})
    sweep(base, glyphs, config, embedder, tmp_path / "near")
    # The second device trains no network, whose embeddings come back to the CPU in any case.
    network = Checkpoint.network
    monkeypatch.setattr(Checkpoint, "network", lambda self, device=None: network(self))
    with far_device() as device:
        context = RunContext(device=device)
        sweep(base, glyphs, config, embedder, tmp_path / "far", context=context)
    near, far = ((tmp_path / name / ROWS).read_bytes() for name in ("near", "far"))
    assert far == near
