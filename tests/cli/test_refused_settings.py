"""Settings, configs and sweeps that cannot be are refused in one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from tests.cli.refusals import BAD_INPUT, USAGE, content_of, refused
from tests.conftest import RunCommand

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
    before = content_of(workdir)
    result = lowshot(*command)
    assert result.exit_code == USAGE
    assert flag in result.stderr
    assert len(re.findall(r"^error:", result.stderr.lower(), re.MULTILINE)) == 1
    assert content_of(workdir) == before


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
    before = content_of(workdir)
    refused(lowshot(*command), USAGE, "151", "150 training images")
    assert content_of(workdir) == before


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
    before = content_of(workdir)
    refused(lowshot(*command), USAGE, known)
    assert content_of(workdir) == before


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
    before = content_of(workdir)
    result = lowshot(*command)
    refused(result, (USAGE, BAD_INPUT), "'omegaa'", "did you mean 'omega'?")
    assert content_of(workdir) == before


def test_a_class_that_resembles_none_still_gets_a_next_step(
    lowshot: RunCommand, workdir: Path
) -> None:
    refused(lowshot("imprint", "--class", "zebra crossing"), (USAGE, BAD_INPUT), "zebra crossing")


def test_a_known_class_names_replace(lowshot: RunCommand, workdir: Path) -> None:
    name = load(workdir / "base.safetensors").base_classes[0]
    result = lowshot("imprint", "--class", name)
    refused(result, USAGE, repr(name), "--replace")
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    before = content_of(workdir)
    refused(lowshot("imprint", "--class", "omega", "--add"), USAGE, "'omega'", "--replace")
    assert content_of(workdir) == before


def test_imprint_without_a_class_names_the_flag(lowshot: RunCommand, workdir: Path) -> None:
    refused(lowshot("imprint"), USAGE, "--class")


def test_a_base_class_is_no_novel_class_of_a_sweep(lowshot: RunCommand, workdir: Path) -> None:
    name = load(workdir / "base.safetensors").base_classes[0]
    before = content_of(workdir)
    refused(lowshot("sweep", "--novel", name), USAGE, repr(name), "base class")
    assert content_of(workdir) == before


def test_user_text_is_printed_as_it_is(lowshot: RunCommand, workdir: Path) -> None:
    refused(lowshot("imprint", "--class", "[bold]x[/]"), (USAGE, BAD_INPUT), "'[bold]x[/]'")


# Sweeps and their folders


@pytest.mark.parametrize("flags", [["--trial=0"], ["--from-run=somewhere"]], ids=" ".join)
def test_from_run_and_trial_go_together(
    lowshot: RunCommand, workdir: Path, flags: list[str]
) -> None:
    refused(lowshot("imprint", *flags), USAGE, "--from-run", "--trial")


@pytest.mark.parametrize(
    "flags",
    [["--add"], ["--class=Z"], ["--shots=3"], ["--method=imprint"], ["--max-forgetting=0"]],
    ids=" ".join,
)
def test_a_trial_decides_what_is_learnt_and_how(
    lowshot: RunCommand, workdir: Path, flags: list[str]
) -> None:
    result = lowshot("imprint", "--from-run", "runs/sweep-1", "--trial", 0, *flags)
    refused(result, USAGE, "--from-run cannot be combined with", flags[0].split("=")[0])


def test_images_of_another_size_than_the_models_are_refused(
    lowshot: RunCommand, workdir: Path
) -> None:
    for command in (["imprint", "--class=omega"], ["evaluate"], ["sweep", "--trials=1"]):
        refused(lowshot(*command, "--image-size=48"), BAD_INPUT, "32 pixels, not 48")


def test_photos_are_measured_without_the_dataset(lowshot: RunCommand, workdir: Path) -> None:
    for flag in (["--open-set"], ["--report", "page.html"]):
        result = lowshot("evaluate", "--images", "A=photos", *flag)
        refused(result, USAGE, "--images cannot be combined with", flag[0])


@pytest.mark.parametrize("frozen", ["alternate", "never"])
def test_a_sweep_whose_heads_would_not_move_as_the_config_says_is_refused(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, frozen: str
) -> None:
    config = tmp_path / "loose.yaml"
    config.write_text(f"finetune: {{freeze_base: {frozen}}}\n")
    sweep = ("sweep", "--config", config, "--trials", 1, "--novel", 1, "--shots", 1)
    refused(lowshot(*sweep), USAGE, "freeze_base", frozen, "finetune-head")
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
    refused(result, BAD_INPUT, run_dir)
    assert not (workdir / "imprinted.safetensors").exists()


def test_a_trial_that_was_not_run_names_those_that_were(lowshot: RunCommand, workdir: Path) -> None:
    sweep = ["--trials=2", "--novel=2", "--shots=1", "--method=imprint", "--save-models"]
    assert lowshot("sweep", *sweep).exit_code == 0
    (run_dir,) = workdir.glob("sweep-*")
    for trial in (4, -1):
        result = lowshot("imprint", "--from-run", run_dir, "--trial", trial)
        refused(result, (USAGE, BAD_INPUT), run_dir, f"no trial {trial}", "0 to 3")


def test_a_folder_without_a_sweep_cannot_be_resumed(lowshot: RunCommand, workdir: Path) -> None:
    before = content_of(workdir)
    refused(lowshot("sweep", "--resume", workdir / "sweep-1"), BAD_INPUT, workdir / "sweep-1")
    assert content_of(workdir) == before


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
    before = content_of(workdir)
    for command in (["evaluate"], ["train-base", "--overwrite"]):
        result = lowshot(*command, "--config", path)
        refused(result, BAD_INPUT, path, f"{wrong}:", f"did you mean '{right}'?")
    assert content_of(workdir) == before


def test_every_problem_of_a_config_is_told_at_once(lowshot: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: many\ntrain_base: {epoch: 3, width: 0}\n")
    result = lowshot("train-base", "--config", path)
    refused(result, BAD_INPUT, "3 problems", "- seed:", "- train_base.width:", "'epochs'")


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
    refused(lowshot("train-base", "--config", path), BAD_INPUT, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("kind", ["absent", "a folder"])
def test_a_config_that_cannot_be_opened_is_named(
    lowshot: RunCommand, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "mine.yaml"
    if kind == "a folder":
        path.mkdir()
    refused(lowshot("train-base", "--config", path), BAD_INPUT, path)


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
    before = content_of(workdir)
    result = lowshot("sweep", "--config", path)
    refused(result, BAD_INPUT, "base.safetensors", "classes: 12 -> 9", "--workdir")
    assert content_of(workdir) == before
