"""Every command in a code block of any README runs, in the order in which it stands there.

They run on `glyphs`, with these changes and no others:

- `train-base` and `finetune --scope full` also get `--config` of a file that names `glyphs` and a
  small, short training. The other commands learn the dataset from the checkpoint.
- Classes of CIFAR-100 become classes of `glyphs`, as in `CLASSES`.
- `sweep --trials 20` also gets `--novel 3`, for all novel classes would take a minute.
- `configs/quickstart.yaml` is a copy with one epoch of a narrower network, and one trial of three
  novel classes.
- A line that stands in several places runs once.

Left to other tests are the command reference, whose lines are the examples of `--help`
(`tests/cli/test_help.py`), the first commands of the main page
(`tests/cli/test_adopted_classifier.py`), the photos of `lowshot_cli/data/README.md`
(`tests/cli/test_own_photos.py`), and the lines of `ELSEWHERE`. What needs CIFAR-100, a cluster or
several machines is parsed only, and so is what stands in the text.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.cli.test_adopted_classifier import first_commands
from tests.cli.test_own_photos import photo_commands
from tests.conftest import TINY, RunCommand, save_images
from tests.faults.conftest import Server
from tests.pages import PAGES, READMES, ROOT
from tests.reference import BEGIN, END, all_commands

CLASSES = {"apple": "omega", "clock": "Z", "whale": "T", "wolf": "phi"}
ELSEWHERE = {
    "lowshot train-base --dataset folder --data-dir photos --backbone torchvision:resnet50 "
    "--weights model.pth --epochs 0": "tests/training/test_adopt.py",
    "lowshot train-base --dataset none": "tests/training/test_adopt.py",
    "lowshot train-base --dataset none --backbone torchvision:resnet50 --weights DEFAULT": (
        "tests/models/test_evaluation.py"
    ),
    "lowshot train-base --dataset none --backbone timm:convnext_tiny --weights model.safetensors "
    "--class-names names.txt": "tests/training/test_adopt.py",
    "lowshot serve --open": "tests/serve/test_command.py",
    "lowshot sweep --executor ray": "tests/sweep/test_ray_executor.py",
    "lowshot sweep --executor ray --class-order-seeds 0,1,2": "tests/sweep/test_ray_executor.py",
}
# What needs CIFAR-100, or a cluster that is not there.
PARSED = r"configs/cifar100|--ray-address|^srun |^ray exec |--nnodes"
SHORTER = {
    **{"epochs: 8": "epochs: 1", "width: 16": "width: 4"},
    **{"trials: 10": "trials: 1", "novel: 30": "novel: 3"},
}


def _text(page: Path) -> str:
    """The page without the command reference."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    return before + rest.partition(END)[2]


def _blocks(text: str) -> list[list[str]]:
    """Commands that start lowshot, by code block, as far as a block has any."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language:
            continue
        joined = re.sub(r"\\\n\s*", "", block).splitlines()
        lines = [line.removeprefix("$ ") for line in joined if not line.startswith("#")]
        commands = [line.removeprefix("pip install -e . && ") for line in lines]
        found.append([c for c in commands if re.search(r"(^|\s)lowshot |-m lowshot_cli ", c)])
    return [commands for commands in found if commands]


def _section(page: Path, heading: str) -> list[list[str]]:
    """Commands by code block, from a heading on."""
    text = _text(page)
    return _blocks(text[text.index(f"\n## {heading}\n") :])


def _lines() -> list[str]:
    """Every command of every README once, in order."""
    blocks = [block for page in READMES for block in _blocks(_text(page))]
    return list(dict.fromkeys(line for block in blocks for line in block))


def _arguments(line: str) -> list[str]:
    """What lowshot is given in a line."""
    _, _, typed = re.split(r"(^lowshot |&& lowshot |-m lowshot_cli )", line, maxsplit=1)
    return shlex.split(typed.rstrip("'"))


def _on_glyphs(line: str, config: Path) -> list[str]:
    arguments = [CLASSES.get(word, word) for word in _arguments(line)]
    if arguments[0] == "train-base" or "full" in arguments:
        arguments += ["--config", str(config)]
    if arguments[:3] == ["sweep", "--trials", "20"]:
        arguments += ["--novel", "3"]
    return arguments


def _runs_here(line: str) -> bool:
    elsewhere = {*ELSEWHERE, *photo_commands(), *first_commands()}
    return line not in elsewhere and not re.search(PARSED, line)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A config of a small training on `glyphs`; beside it a shorter quickstart."""
    quickstart = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in quickstart
        quickstart = quickstart.replace(long, short)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(quickstart)
    config = tmp_path / "tiny.yaml"
    settings = {"dataset": "glyphs", "train_base": TINY | {"epochs": 1, "batch_size": 128}}
    config.write_text(json.dumps(settings | {"finetune": {"epochs": 1}}))
    return config


def test_commands_run_as_typed(lowshot: RunCommand, small: Path) -> None:
    lines = [line for line in _lines() if line.startswith("lowshot ") and _runs_here(line)]
    for line in lines:
        result = lowshot(*_on_glyphs(line, small))
        assert result.exit_code == 0, (line, result.stderr)
    typed = {_arguments(line)[0] for line in lines}
    assert typed == {"train-base", "imprint", "finetune", "evaluate", "sweep"}
    assert len(lines) == 11


def test_commands_of_several_processes_run_as_typed(
    lowshot: RunCommand, small: Path, tmp_path: Path, server: Server
) -> None:
    """In as many processes as torchrun would start; torchrun itself runs in a slow test."""
    lines = [line for line in _lines() if line.startswith("torchrun ") and _runs_here(line)]
    assert [_arguments(line)[0] for line in lines] == ["train-base", "finetune"]
    for line in lines:
        (ranks,) = re.findall(r"^torchrun --nproc-per-node (\d) -m lowshot_cli ", line)
        if "finetune" in line:
            assert lowshot("imprint", "--class", "Z").exit_code == 0
        running = server.start(*_on_glyphs(line, small), cwd=tmp_path, ranks=int(ranks))
        assert running.wait_all() == [0, 0], (line, running.said(0))
    made = {path.stem for path in (tmp_path / "runs").glob("*.safetensors")}
    assert made == {"base", "imprinted", "finetuned"}


def test_what_is_left_to_other_tests_is_in_a_readme() -> None:
    assert set(ELSEWHERE) <= set(_lines())
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())


def test_the_four_lines_on_photos_are_those_that_are_tested() -> None:
    four = _section(ROOT / "README.md", "Or teach one made from your photos")[0]
    assert len(four) == 4
    assert four == photo_commands()[:4]


def test_printed_runs_are_of_the_commands_as_typed() -> None:
    typed, printed = _section(ROOT / "README.md", "CIFAR-100 in five commands")[:2]
    assert printed == [line for line in typed if line in printed]
    _, typed_again, all_printed = _section(ROOT / "configs" / "README.md", "cifar100.yaml")[:3]
    assert all_printed == typed_again == typed


def test_the_python_of_the_readme_runs_as_typed(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glyphs: Dataset
) -> None:
    monkeypatch.chdir(tmp_path)
    mugs = glyphs.train.pixels[glyphs.train.of_class(glyphs.label("Z"))[:5]]
    save_images(mugs, tmp_path)
    for number in range(1, 5):
        (tmp_path / f"{number}.png").rename(tmp_path / f"mug{number}.jpg")
    (code,) = re.findall(r"^```python\n(.*?)^```", _text(ROOT / "README.md"), re.DOTALL | re.M)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["answer"].name in scope["model"].classes
    assert 0 < scope["answer"].probability <= 1
    assert load(tmp_path / "with-mug.safetensors").novel_classes == ("my mug",)


def _parsed() -> list[str]:
    """Commands of code blocks that run nowhere, and those that stand in sentences."""
    blocks = [line for line in _lines() if re.search(PARSED, line)]
    texts = [re.sub(r"^```.*?^```", "", _text(p), flags=re.DOTALL | re.MULTILINE) for p in PAGES]
    inline = {" ".join(c.split()) for text in texts for c in re.findall(r"`(lowshot [^`]*)`", text)}
    return sorted({*blocks, *inline} - {"lowshot --version", "lowshot --install-completion"})


@pytest.mark.parametrize("line", _parsed())
def test_other_commands_are_understood(lowshot: RunCommand, tmp_path: Path, line: str) -> None:
    """Placeholders in capitals are files and names, so they are parsed and not run."""
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "config.yaml").write_text("dataset: glyphs\n")
    arguments = [word.replace("configs/", f"{ROOT}/configs/") for word in _arguments(line)]
    name = " ".join(arguments[: 2 if arguments[0] in ("classes", "data") else 1])
    options = {name: p for p in all_commands()[name].params for name in p.opts}
    last = options.get(arguments[-1])
    if last is not None and not last.is_flag:  # the sentence speaks of the option
        arguments.append("1")
    if "--print-config" not in options:
        arguments.append("--help")
        assert lowshot(*arguments).exit_code == 0
        return
    result = lowshot(*arguments, "--print-config")
    assert result.exit_code == 0, result.stderr
    assert "dataset: " in result.stdout
