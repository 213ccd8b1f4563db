"""What goes wrong for a new user ends in one clear line, and nothing of theirs is lost."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

from lowshot_cli.checkpoint.format import load
from lowshot_cli.cli.main import app
from tests.conftest import RunCommand

USAGE, BAD_INPUT = 2, 3
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
USERS_OF_A_MODEL = {
    "imprint": ["imprint", "--class=omega"],
    "finetune": ["finetune"],
    "evaluate": ["evaluate"],
    "sweep": ["sweep", "--trials=1", "--novel=2", "--shots=1", "--method=imprint"],
}


@pytest.fixture(autouse=True)
def _no_data_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unplugged(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", unplugged)
    monkeypatch.setenv("LOWSHOT_DATA", str(tmp_path / "no data here"))


def _refused(result: Result, code: int | Iterable[int], *words: object) -> None:
    """One error line that names the thing, a next step that exists, and no traceback."""
    assert result.exit_code in ([code] if isinstance(code, int) else list(code)), result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len([line for line in lines if line.lower().startswith("error:")]) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr
    assert "  -> " in result.stderr or "did you mean" in result.stderr, "no next step is named"
    for command in re.findall(r"`lowshot ([\w-]+)", result.stderr):
        assert command in COMMANDS, f"the next step is an unknown command: {result.stderr}"


def _tree(folder: Path) -> dict[str, bytes | None]:
    """Every folder and every file with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# Data


def test_absent_data_and_no_network_name_the_folder_and_two_ways_out(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    result = lowshot("train-base", "--data-dir", folder)
    _refused(
        result, BAD_INPUT, folder, "cannot download https://", "--data-dir", "--dataset glyphs"
    )
    assert list(folder.iterdir()) == []
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_data_folder_of_the_environment_is_the_one_looked_in(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "no data here"
    result = lowshot("train-base", env={"LOWSHOT_DATA": str(folder)})
    _refused(result, BAD_INPUT, folder, "LOWSHOT_DATA")


class _Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def _cifar(tmp_path: Path, train: bytes) -> Path:
    """A data folder that looks right and holds the given bytes as `train`."""
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    names = {"fine_label_names": [f"class {number}" for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    for name in ("train", "test"):
        (folder / name).write_bytes(train)
    return folder


def test_a_pickle_in_place_of_cifars_images_does_not_run(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    marker = tmp_path / "the payload ran"
    content = pickle.dumps({"data": _Payload(marker), "fine_labels": []}, protocol=2)
    pickle.loads(content)
    marker.rmdir()
    folder = _cifar(tmp_path, content)
    before = _tree(folder)
    result = lowshot("train-base", "--data-dir", folder.parent)
    _refused(result, BAD_INPUT, folder / "train", "mkdir", "delete")
    assert not marker.exists()
    assert _tree(folder) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((5, 3072), np.uint8), "fine_labels": [0] * 5}, protocol=2),
        pickle.dumps({"data": "a" * 1000, "fine_labels": []}, protocol=2)[:500],
    ],
    ids=["empty", "text", "a list", "five images", "truncated"],
)
def test_cifar_files_of_another_content_are_refused(
    lowshot: RunCommand, tmp_path: Path, content: bytes
) -> None:
    folder = _cifar(tmp_path, content)
    result = lowshot("train-base", "--data-dir", folder.parent)
    _refused(result, BAD_INPUT, folder / "train", "delete")


def test_a_folder_of_images_that_is_absent_is_named(lowshot: RunCommand, tmp_path: Path) -> None:
    result = lowshot("train-base", "--dataset", "folder", "--data-dir", tmp_path / "photos")
    _refused(result, BAD_INPUT, tmp_path / "photos", "--data-dir")


# Checkpoints


@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_without_a_model_the_command_that_makes_it_is_named(
    lowshot: RunCommand, tmp_path: Path, command: str
) -> None:
    maker = "imprint" if command == "finetune" else "train-base"
    result = lowshot(*USERS_OF_A_MODEL[command])
    _refused(result, BAD_INPUT, "runs", f"`lowshot {maker}`")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_a_truncated_checkpoint_is_named_and_left_alone(
    lowshot: RunCommand, workdir: Path, command: str, share: float
) -> None:
    path = workdir / f"{'imprinted' if command == 'finetune' else 'base'}.safetensors"
    content = (workdir / "base.safetensors").read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    before = _tree(workdir)
    _refused(lowshot(*USERS_OF_A_MODEL[command]), BAD_INPUT, Path("runs") / path.name)
    assert _tree(workdir) == before


@pytest.mark.parametrize("kind", ["another safetensors file", "text", "a folder"])
@pytest.mark.parametrize("command", USERS_OF_A_MODEL)
def test_what_is_no_checkpoint_is_refused_by_name(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "other.safetensors"
    if kind == "another safetensors file":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "text":
        path.write_text("dear diary")
    else:
        path.mkdir()
    before = _tree(tmp_path)
    flag = [] if command == "evaluate" else ["--checkpoint"]
    _refused(lowshot(*USERS_OF_A_MODEL[command], *flag, path), BAD_INPUT, path)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("command", ["imprint", "evaluate", "sweep"])
def test_a_checkpoint_of_another_dataset_is_refused(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str
) -> None:
    for name in ("omega", "A", "seven"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    before = _tree(workdir)
    flags = ["--dataset", "folder", "--data-dir", tmp_path / "photos"]
    result = lowshot(*USERS_OF_A_MODEL[command], *flags)
    _refused(result, BAD_INPUT, "trained on glyphs, not on folder", "--dataset glyphs")
    assert _tree(workdir) == before


def test_the_wrong_dataset_is_noticed_before_it_is_fetched(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = lowshot("imprint", "--class", "apple", "--dataset", "cifar100")
    _refused(result, BAD_INPUT, "trained on glyphs, not on cifar100")


def test_finetune_of_a_model_without_novel_classes_names_imprint(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = lowshot("finetune", "--checkpoint", workdir / "base.safetensors")
    _refused(result, USAGE, "no novel class", "`lowshot imprint`")


# Shots and classes


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["imprint", "--class=omega", "--shots=0"], "shots"),
        (["imprint", "--class=omega", "--shots=-1"], "shots"),
        (["sweep", "--shots=0"], "shots"),
        (["sweep", "--shots=1,five"], "shots"),
        (["sweep", "--trials=0"], "trials"),
        (["sweep", "--method=imprint,magic"], "method"),
        (["sweep", "--novel=0"], "novel"),
        (["train-base", "--overwrite", "--classes=0"], "classes"),
        (["train-base", "--overwrite", "--epochs=-1"], "epochs"),
        (["evaluate", "--seed=-1"], "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_number_that_cannot_be_is_a_mistake_of_usage(
    lowshot: RunCommand, workdir: Path, command: list[str], flag: str
) -> None:
    before = _tree(workdir)
    result = lowshot(*command)
    assert result.exit_code == USAGE
    assert flag in result.stderr
    assert len(re.findall(r"^error:", result.stderr.lower(), re.MULTILINE)) == 1
    assert _tree(workdir) == before


def test_a_wrong_flag_beside_a_right_config_is_not_the_configs_fault(
    lowshot: RunCommand, workdir: Path, tiny_yaml: Path
) -> None:
    result = lowshot("imprint", "--config", tiny_yaml, "--class", "omega", "--shots", 0)
    assert result.exit_code == USAGE
    assert "shots" in result.stderr
    assert tiny_yaml.name not in result.stderr


def test_a_flag_of_another_type_is_a_mistake_of_usage(lowshot: RunCommand) -> None:
    result = lowshot("imprint", "--class", "omega", "--shots", "few")
    assert result.exit_code == USAGE
    assert "--shots" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [["imprint", "--class=omega", "--shots=151"], ["sweep", "--shots=1,151", "--trials=1"]],
    ids=["imprint", "sweep"],
)
def test_more_shots_than_images_name_how_many_there_are(
    lowshot: RunCommand, workdir: Path, command: list[str]
) -> None:
    before = _tree(workdir)
    _refused(lowshot(*command), USAGE, "151", "150 training images")
    assert _tree(workdir) == before


@pytest.mark.parametrize(
    ("command", "known"),
    [
        (["train-base", "--dataset=glyphs", "--overwrite", "--classes=135"], "134 classes"),
        (["train-base", "--dataset=glyphs", "--overwrite", "--classes=1"], "2"),
        (["sweep", "--novel=200"], "122 novel classes"),
        (["sweep", "--novel=2", "--ways=3"], "2 novel classes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_more_classes_than_exist_name_how_many_there_are(
    lowshot: RunCommand, workdir: Path, command: list[str], known: str
) -> None:
    before = _tree(workdir)
    _refused(lowshot(*command), USAGE, known)
    assert _tree(workdir) == before


@pytest.mark.parametrize(
    "command",
    [
        ["imprint", "--class=omegaa"],
        ["imprint", "--class=A", "--class=omegaa"],
        ["train-base", "--dataset=glyphs", "--overwrite", "--classes=A,omegaa"],
        ["sweep", "--novel=A,omegaa"],
    ],
    ids=" ".join,
)
def test_an_unknown_class_names_the_nearest(
    lowshot: RunCommand, workdir: Path, command: list[str]
) -> None:
    before = _tree(workdir)
    result = lowshot(*command)
    _refused(result, (USAGE, BAD_INPUT), "'omegaa'", "did you mean 'omega'?")
    assert _tree(workdir) == before


def test_a_class_that_resembles_none_still_gets_a_next_step(
    lowshot: RunCommand, workdir: Path
) -> None:
    _refused(lowshot("imprint", "--class", "zebra crossing"), (USAGE, BAD_INPUT), "zebra crossing")


def test_a_known_class_names_replace(lowshot: RunCommand, workdir: Path) -> None:
    name = load(workdir / "base.safetensors").base_classes[0]
    result = lowshot("imprint", "--class", name)
    _refused(result, USAGE, repr(name), "--replace")
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    before = _tree(workdir)
    _refused(lowshot("imprint", "--class", "omega", "--add"), USAGE, "'omega'", "--replace")
    assert _tree(workdir) == before


def test_imprint_without_a_class_names_the_flag(lowshot: RunCommand, workdir: Path) -> None:
    _refused(lowshot("imprint"), USAGE, "--class")


def test_a_base_class_is_no_novel_class_of_a_sweep(lowshot: RunCommand, workdir: Path) -> None:
    name = load(workdir / "base.safetensors").base_classes[0]
    before = _tree(workdir)
    _refused(lowshot("sweep", "--novel", name), USAGE, repr(name), "base class")
    assert _tree(workdir) == before


def test_user_text_is_printed_as_it_is(lowshot: RunCommand, workdir: Path) -> None:
    _refused(lowshot("imprint", "--class", "[bold]x[/]"), (USAGE, BAD_INPUT), "'[bold]x[/]'")


# Sweeps and their folders


@pytest.mark.parametrize("flags", [["--trial=0"], ["--from-run=somewhere"]], ids=" ".join)
def test_from_run_and_trial_go_together(
    lowshot: RunCommand, workdir: Path, flags: list[str]
) -> None:
    _refused(lowshot("imprint", *flags), USAGE, "--from-run", "--trial")


@pytest.mark.parametrize(
    "flags",
    [["--add"], ["--class=Z"], ["--shots=3"], ["--method=imprint"], ["--max-forgetting=0"]],
    ids=" ".join,
)
def test_a_trial_decides_what_is_learnt_and_how(
    lowshot: RunCommand, workdir: Path, flags: list[str]
) -> None:
    result = lowshot("imprint", "--from-run", "runs/sweep-1", "--trial", 0, *flags)
    _refused(result, USAGE, "--from-run cannot be combined with", flags[0].split("=")[0])


def test_images_of_another_size_than_the_models_are_refused(
    lowshot: RunCommand, workdir: Path
) -> None:
    for command in (["imprint", "--class=omega"], ["evaluate"], ["sweep", "--trials=1"]):
        _refused(lowshot(*command, "--image-size=48"), BAD_INPUT, "32 pixels, not 48")


def test_photos_are_measured_without_the_dataset(lowshot: RunCommand, workdir: Path) -> None:
    for flag in (["--open-set"], ["--report", "page.html"]):
        result = lowshot("evaluate", "--images", "A=photos", *flag)
        _refused(result, USAGE, "--images cannot be combined with", flag[0])


@pytest.mark.parametrize("frozen", ["alternate", "never"])
def test_a_sweep_whose_heads_would_not_move_as_the_config_says_is_refused(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, frozen: str
) -> None:
    config = tmp_path / "loose.yaml"
    config.write_text(f"finetune: {{freeze_base: {frozen}}}\n")
    sweep = ("sweep", "--config", config, "--trials", 1, "--novel", 1, "--shots", 1)
    _refused(lowshot(*sweep), USAGE, "freeze_base", frozen, "finetune-head")
    assert lowshot(*sweep, "--method", "whitened").exit_code == 0


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all"], ids=["absent", "empty", "x"])
def test_a_run_without_readable_models_is_named(
    lowshot: RunCommand, workdir: Path, content: bytes | None
) -> None:
    run_dir = workdir / "sweep-1"
    run_dir.mkdir()
    if content is not None:
        (run_dir / "models.npy").write_bytes(content)
    result = lowshot("imprint", "--from-run", run_dir, "--trial", 0)
    _refused(result, BAD_INPUT, run_dir)
    assert not (workdir / "imprinted.safetensors").exists()


def test_a_trial_that_was_not_run_names_those_that_were(lowshot: RunCommand, workdir: Path) -> None:
    sweep = ["--trials=2", "--novel=2", "--shots=1", "--method=imprint", "--save-models"]
    assert lowshot("sweep", *sweep).exit_code == 0
    (run_dir,) = workdir.glob("sweep-*")
    for trial in (4, -1):
        result = lowshot("imprint", "--from-run", run_dir, "--trial", trial)
        _refused(result, (USAGE, BAD_INPUT), run_dir, f"no trial {trial}", "0 to 3")


def test_a_folder_without_a_sweep_cannot_be_resumed(lowshot: RunCommand, workdir: Path) -> None:
    before = _tree(workdir)
    _refused(lowshot("sweep", "--resume", workdir / "sweep-1"), BAD_INPUT, workdir / "sweep-1")
    assert _tree(workdir) == before


# Configs


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("train_bse: {epochs: 3}", "train_bse", "train_base"),
        ("train_base: {epoch: 3}", "train_base.epoch", "epochs"),
        ("datset: glyphs", "datset", "dataset"),
        ("sweep: {shot: [1, 5]}", "sweep.shot", "shots"),
    ],
)
def test_a_typo_in_the_yaml_names_the_nearest_key(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, text: str, wrong: str, right: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    before = _tree(workdir)
    for command in (["evaluate"], ["train-base", "--overwrite"]):
        result = lowshot(*command, "--config", path)
        _refused(result, BAD_INPUT, path, f"{wrong}:", f"did you mean '{right}'?")
    assert _tree(workdir) == before


def test_every_problem_of_a_config_is_told_at_once(lowshot: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: many\ntrain_base: {epoch: 3, width: 0}\n")
    result = lowshot("train-base", "--config", path)
    _refused(result, BAD_INPUT, "3 problems", "- seed:", "- train_base.width:", "'epochs'")


@pytest.mark.parametrize(
    "content",
    [
        b"train_base: [1,",
        b"a: b: c",
        b"\xff\xfe\x00nonsense",
        b"- just\n- a list",
        b"just text",
        b"sweep: !!python/object/apply:os.mkdir [payload]",
    ],
)
def test_invalid_yaml_is_named(lowshot: RunCommand, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    _refused(lowshot("train-base", "--config", path), BAD_INPUT, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("kind", ["absent", "a folder"])
def test_a_config_that_cannot_be_opened_is_named(
    lowshot: RunCommand, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "mine.yaml"
    if kind == "a folder":
        path.mkdir()
    _refused(lowshot("train-base", "--config", path), BAD_INPUT, path)


@pytest.mark.parametrize("text", ["sweep: 3", "train_base: [1, 2]", "finetune: full"])
def test_a_section_that_is_no_section_is_named(
    lowshot: RunCommand, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = lowshot("evaluate", "--config", path)
    assert result.exit_code == BAD_INPUT
    assert f"{path}: {text.split(':', maxsplit=1)[0]}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_trained_otherwise_than_the_config_says_is_refused(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: glyphs\ntrain_base: {classes: 9}\nsweep: {train_base: true}\n")
    before = _tree(workdir)
    result = lowshot("sweep", "--config", path)
    _refused(result, BAD_INPUT, "base.safetensors", "classes: 12 -> 9", "--workdir")
    assert _tree(workdir) == before


# Writing


def test_a_base_model_is_not_overwritten_unasked(lowshot: RunCommand, workdir: Path) -> None:
    before = _tree(workdir)
    result = lowshot("train-base", "--dataset", "glyphs")
    _refused(result, USAGE, Path("runs") / "base.safetensors", "--overwrite", "--workdir")
    assert _tree(workdir) == before


@pytest.mark.parametrize("command", ["train-base", "imprint", "finetune", "sweep"])
@pytest.mark.parametrize("place", ["notes.txt", "notes.txt/runs"])
def test_a_file_where_the_work_folder_should_be_is_named(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: str, place: str
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    model = ["--checkpoint", workdir / "base.safetensors"]
    flags = ["--dataset", "glyphs"] if command == "train-base" else model
    before = _tree(tmp_path)
    arguments = USERS_OF_A_MODEL.get(command, [command])
    _refused(lowshot(*arguments, *flags, "--workdir", tmp_path / place), BAD_INPUT, notes)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("command", ["train-base", "imprint", "sweep"])
def test_a_read_only_folder_is_noticed_before_any_work(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # Permissions do not bind every user, so the system calls themselves refuse here.
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    before = _tree(workdir)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "NamedTemporaryFile", refuse)
        patch.setattr(tempfile, "mkstemp", refuse)
        patch.setattr(os, "mkdir", refuse)
        arguments = USERS_OF_A_MODEL.get(command, ["train-base", "--dataset=cifar100"])
        flags = ["--overwrite"] if command == "train-base" else []
        result = lowshot(*arguments, *flags)
    _refused(result, BAD_INPUT, "runs", "Permission denied", "--workdir")
    assert _tree(workdir) == before


def test_a_folder_where_a_file_is_to_be_written_is_named(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    before = _tree(tmp_path)
    result = lowshot("imprint", "--class", "omega", "--out", workdir, "--overwrite")
    _refused(result, USAGE, workdir, "is a folder")
    assert _tree(tmp_path) == before


def test_a_disk_that_fills_up_leaves_the_old_model_whole(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    (workdir / "log.jsonl").unlink()
    before = _tree(workdir)

    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = lowshot("imprint", "--class", "A")
    _refused(
        result, BAD_INPUT, Path("runs") / "imprinted.safetensors", "No space left", "unchanged"
    )
    assert _tree(workdir) | {"log.jsonl": None} == before | {"log.jsonl": None}
