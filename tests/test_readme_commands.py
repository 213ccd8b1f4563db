"""Every command of the README's code blocks runs, in the order in which they stand there.

They run on `glyphs`, with these changes and no others:

- `train-base` also gets `--config` of a file that names `glyphs` and a small, short training. The
  other commands learn the dataset from the checkpoint.
- Classes of CIFAR-100 become classes of `glyphs`, as in `CLASSES`.
- `sweep --trials 20` also gets `--novel 3`, for all novel classes would take a minute.
- `configs/quickstart.yaml` is a copy with one epoch, and one trial of three novel classes.
- What is no command of `lowshot` is left out.

Lines that other tests run are left to them: those of the command reference, which are the examples
of `--help`, to `tests/test_help.py`; those of "Your own images" to `tests/test_own_photos.py`; and
those of `ELSEWHERE`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import TINY, RunCommand
from tests.reference import BEGIN, END

README = Path(__file__).parent.parent / "README.md"
CLASSES = {"apple": "omega", "clock": "Z", "whale": "T", "wolf": "phi"}
ELSEWHERE = {
    "lowshot train-base --dataset folder --data-dir photos --backbone torchvision:resnet50 "
    "--weights model.pth --epochs 0": "tests/test_adopt.py",
    "lowshot sweep --executor ray": "tests/test_cluster.py",
    "lowshot sweep --executor ray --ray-address 10.0.0.1:6379 --gpus-per-worker 0.5": (
        "tests/test_cluster.py"
    ),
    "lowshot sweep --executor ray --class-order-seeds 0,1,2": "tests/test_cluster.py",
}
SHORTER = {"epochs: 8": "epochs: 1", "trials: 10": "trials: 1", "novel: 30": "novel: 3"}


def _readme() -> str:
    """The README without its command reference."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    return before + rest.partition(END)[2]


def _blocks(text: str) -> list[list[str]]:
    """Commands of `lowshot` by code block, as far as a block has any."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language:
            continue
        parts = [part for line in block.splitlines() for part in line.split(" && ")]
        found.append([p.removeprefix("$ ") for p in parts if re.match(r"(\$ )?lowshot ", p)])
    return [lines for lines in found if lines]


def _section(heading: str) -> list[str]:
    """Commands of the first code block under a heading."""
    text = _readme()
    return _blocks(text[text.index(f"\n{heading}\n") :])[0]


def _on_glyphs(line: str, config: Path) -> list[str]:
    arguments = [CLASSES.get(word, word) for word in shlex.split(line)[1:]]
    if arguments[0] == "train-base":
        arguments += ["--config", str(config)]
    if arguments[:3] == ["sweep", "--trials", "20"]:
        arguments += ["--novel", "3"]
    return arguments


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config of a small training on `glyphs`; beside it a shorter quickstart."""
    quickstart = (README.parent / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in quickstart
        quickstart = quickstart.replace(long, short)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(quickstart)
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({"dataset": "glyphs", "train_base": TINY | {"epochs": 1}}))
    return config


def test_commands_run_as_typed(lowshot: RunCommand, small: Path) -> None:
    photos = _section("### Your own images")
    ran: list[str] = []
    for line in (line for block in _blocks(_readme()) for line in block):
        if line in ELSEWHERE or line in photos or line in ran:
            continue
        result = lowshot(*_on_glyphs(line, small))
        assert result.exit_code == 0, (line, result.stderr)
        ran.append(line)
    typed = {shlex.split(line)[1] for line in ran}
    assert typed == {"train-base", "imprint", "finetune", "evaluate", "sweep"}
    assert len(ran) == 11


def test_what_is_left_to_other_tests_is_in_the_readme() -> None:
    assert set(ELSEWHERE) <= {line for block in _blocks(_readme()) for line in block}


def test_the_four_lines_are_those_of_the_section_on_photos() -> None:
    four = _section("## Your own photos in four lines")
    assert len(four) == 4
    assert four == _section("### Your own images")[:4]


def test_the_printed_run_is_of_the_commands_as_typed() -> None:
    text = _readme()
    typed, printed = _blocks(text[text.index("\n## CIFAR-100, as typed\n") :])[:2]
    assert typed == printed


def _inline() -> list[str]:
    text = re.sub(r"^```.*?^```", "", _readme(), flags=re.DOTALL | re.MULTILINE)
    found = {" ".join(command.split()) for command in re.findall(r"`(lowshot \S[^`]*)`", text)}
    # Those that end in an option speak of the option; --install-completion would change a shell.
    return sorted(line for line in found if not line.split()[-1].startswith("--"))


@pytest.mark.parametrize("line", _inline())
def test_commands_in_the_text_are_understood(
    lowshot: RunCommand, tmp_path: Path, line: str
) -> None:
    """Placeholders in capitals are files and names, so they are parsed and not run."""
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "config.yaml").write_text("dataset: glyphs\n")
    configs = README.parent / "configs"
    arguments = [word.replace("configs/", f"{configs}/") for word in shlex.split(line)[1:]]
    result = lowshot(*arguments, "--print-config")
    assert result.exit_code == 0, result.stderr
    assert "dataset: " in result.stdout
