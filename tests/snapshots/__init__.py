"""What commands print for people, at 80 columns and not on a terminal, on `glyphs`.

Digits are masked as `#`. `python -m tests.snapshots` writes the files beside this one anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from PIL import Image
from typer.testing import CliRunner

from lowshot_cli.cli.main import app
from lowshot_cli.data import glyphs

HERE = Path(__file__).parent
WIDTH = 80
_TRAINING = {
    **{"classes": ["A", "B", "E", "K", "P", "Q", "T", "X"], "width": 8, "embedding_size": 32},
    **{"epochs": 8, "batch_size": 32, "lr": 0.1, "mixup": 0.0, "precision": "fp32"},
}
_SESSIONS = {
    **{"novel": ["Z", "omega", "seven", "phi"], "ways": 2, "sessions": 2, "trials": 10},
    **{"shots": [5], "methods": ["imprint", "whitened"]},
}
# By the name of the snapshot, in the order in which they run.
COMMANDS = {
    "train-base": "train-base --config tiny.yaml",
    "exists": "train-base --config tiny.yaml",
    "imprint": "imprint --class omega --shots 20",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "evaluate-open-set": "evaluate runs/base.safetensors --open-set",
    "sweep": "sweep --novel Z,omega,seven,phi --trials 3 --shots 1,5 --save-models",
    "sweep-sessions": "sweep --config sessions.yaml",
    "imprint-images": "imprint --class mug --images photos --add",
    "stale": "predict photos",
    "finetune-photos": "finetune",
    "evaluate-images": "evaluate --images mug=photos --images X=photos",
    "predict": "predict photos",
    "classes-list": "classes list",
    "classes-rename": "classes rename mug cup",
    "classes-remove": "classes remove cup",
    "export": "export --format torch",
    "export-check": "export --format torch --check",
    "data-classes": "data classes --dataset glyphs",
    "data-cache": "data cache",
}


def take(folder: Path) -> Iterator[tuple[str, str]]:
    """Run the commands in an empty folder; yield each name with what was printed, as it was."""
    dataset = glyphs.make()
    (folder / "photos").mkdir()
    for place in dataset.train.of_class(dataset.label("Z"))[:6].tolist():
        pixels = dataset.train.pixels[place].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "photos" / f"{place}.png")
    for name, section in {
        "tiny": {"train_base": _TRAINING},
        "sessions": {"sweep": _SESSIONS},
    }.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"dataset": "glyphs", **section}))
    ours = {"COLUMNS": str(WIDTH), "XDG_CACHE_HOME": str(folder / "cache")}
    with mock.patch.dict(os.environ, ours), contextlib.chdir(folder):
        for variable in ("LOWSHOT_DATA", "LOWSHOT_WORKDIR"):
            os.environ.pop(variable, None)
        for name, command in COMMANDS.items():
            done = CliRunner().invoke(app, command.split(), catch_exceptions=False)
            printed = done.stdout + "--- stderr\n" + done.stderr
            yield name, f"$ lowshot {command}\n{printed}".replace(str(folder), "FOLDER")


def masked(text: str) -> str:
    """The text with `#` for digits and without spaces at the ends of lines."""
    return "".join(re.sub(r"\d", "#", line.rstrip()) + "\n" for line in text.splitlines())


# Sentences about classes, with the lines that they go on in; machines differ in which ones they
# name.
MISLED = re.compile(
    r"^(?:\w+ is (?:confused with|known less well)|all new classes share) .*\n(?:  .*\n)*",
    re.MULTILINE,
)


def compared(text: str) -> list[str]:
    """What of a masked text is the same on every machine: not widths, bars and misled classes.

    Of lines that are then the same one after the other, one stays.
    """
    names = (*glyphs.make().class_names, "mug")
    classes = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    named = rf"(?<=  )({classes})(?=  | #)|^ ({classes})(?=  )|(?<=, )({classes})(?= #)"
    lines = []
    for printed in re.sub(MISLED, "", text).splitlines():
        line = re.sub(r"[█·]+", "BAR", re.sub(r"─+", "─", printed))
        line = re.sub(r"[+-]?#[#,.]*(e[+-]##)?", "#", line)
        if line.startswith(" ") or "BAR" in line:
            line = re.sub(named, "CLASS", line)
        lines.append(re.sub(r" +", " ", line))
    return [line for line, _ in itertools.groupby(lines)]
