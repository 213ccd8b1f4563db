"""The `--json` record of each command has the keys that its README promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images
from tests.reference import REFERENCE, all_commands

EVALUATION = (
    "checkpoint n_base n_novel base_accuracy novel_accuracy global_accuracy harmonic_mean "
    "forgetting per_class"
)
SWEEP = (
    "ways left_out cells paired classes base_accuracy_before dropped_duplicates "
    "avoided_duplicates timing run_dir versions hardware"
)
PLAN = "counts stages seconds memory_bytes paths"
TRAINED = (
    "checkpoint base_accuracy holdout_accuracy epochs train_seconds images_per_second n_classes"
)
SHORT = "--classes 3 --epochs 1 --width 4 --dataset glyphs"
# Commands in an order in which they find each other's files, and the keys of their records.
RECORDS = [
    (f"train-base {SHORT} --out small.safetensors", TRAINED),
    (f"train-base {SHORT} --out other.safetensors --dry-run", PLAN),
    (
        "imprint --class omega",
        "checkpoint method bias expected_forgetting base_accuracy_before base_accuracy "
        "novel_accuracy classes",
    ),
    ("finetune", "checkpoint scope bias expected_forgetting before after"),
    ("evaluate", EVALUATION),
    ("evaluate --open-set", f"{EVALUATION} open_set"),
    ("imprint --class mug --images mug", "checkpoint method bias expected_forgetting classes"),
    ("evaluate --images mug=mug", f"{EVALUATION} repeated"),
    ("predict mug", "image class probability top unknown"),
    ("export --format torch --check --images mug", "folder files opset check"),
    ("classes list", "class kind shots method"),
    ("classes rename mug cup", "checkpoint classes"),
    ("classes remove cup", "checkpoint classes"),
    ("sweep --trials 2 --novel 2 --shots 1", SWEEP),
    ("sweep --trials 2 --novel 2 --shots 1 --dry-run", PLAN),
    ("data classes --dataset glyphs", "class train test"),
    (
        "data duplicates --dataset folder --data-dir photos --at-least 0",
        "at_least test_images found same_class pairs",
    ),
    ("data cache", "cache entries bytes limit_bytes folder"),
]


def _promised(command: str) -> set[str]:
    """Words in backticks of the paragraphs on a command."""
    page = REFERENCE.read_text(encoding="utf-8")
    section = page[page.index("\n## JSON records\n") : page.index("\n## Every command\n")]
    found = re.split(r"^(?=\*\*`)", section, flags=re.MULTILINE)
    (text,) = [part for part in found if f"**`{command}`**" in part]
    return set(re.findall(r"`(\w+)`", text))


def _keys(value: Any) -> Iterator[str]:
    """Keys at any depth; those of counts and versions are words for people."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str):
            yield key
        if isinstance(below, dict | list) and key not in ("counts", "versions"):
            yield from _keys(below)


def test_every_record_has_the_promised_keys(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, glyphs: Dataset
) -> None:
    for name, folder in (("Z", "mug"), ("A", "photos/A"), ("B", "photos/B")):
        members = glyphs.train.of_class(glyphs.label(name))[:5]
        save_images(glyphs.train.pixels[members], tmp_path / folder)
    for line, keys in RECORDS:
        result = lowshot(*line.split(), "--json", "--quiet")
        assert result.exit_code == 0, (line, result.stderr)
        record = json.loads(result.stdout)
        for one in record if isinstance(record, list) else [record]:
            assert set(one) == set(keys.split()), line
        command = next(name for name in all_commands() if line.startswith(name))
        promised = _promised("--dry-run" if "--dry-run" in line else command)
        shared = _promised("evaluate") if command == "finetune" else set()
        assert set(_keys(record)) <= promised | shared, line


@pytest.mark.parametrize("command", all_commands())
def test_every_command_has_a_record(command: str) -> None:
    assert _promised(command)
    assert any(line.startswith(command) for line, _ in RECORDS)
