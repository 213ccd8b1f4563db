"""What people see is what `tests/snapshots/` shows; `python -m tests.snapshots` writes it anew."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from tests.snapshots import COMMANDS, HERE, WIDTH, compared, masked, take

_WRITING = {
    *("train-base", "imprint", "finetune", "sweep", "sweep-sessions", "imprint-images"),
    *("finetune-photos", "classes-rename", "classes-remove", "export"),
}
_NEXT = {"train-base", "imprint", "finetune", "sweep", "imprint-images", "export"} | {
    "finetune-photos"
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return dict(take(tmp_path_factory.mktemp("snapshots")))


def test_every_command_prints_what_its_snapshot_shows(printed: dict[str, str]) -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == set(COMMANDS)
    for name, text in printed.items():
        shown = (HERE / f"{name}.txt").read_text(encoding="utf-8")
        assert compared(masked(text)) == compared(shown), name


def test_nothing_is_wider_than_a_terminal_but_paths(printed: dict[str, str]) -> None:
    for name, text in printed.items():
        for line in text.splitlines()[1:]:
            path = re.search(r"\S/\S", re.sub(r"images/s|[\d,]+/[\d,]+", "", line))
            assert path or cell_len(line.rstrip()) <= WIDTH, f"{name}: {line}"


def test_numbers_end_below_the_ends_of_their_headings(printed: dict[str, str]) -> None:
    """Of the last column, in every row of every table."""
    checked = 0
    for name, text in printed.items():
        lines = text.splitlines()
        for start in (n for n, line in enumerate(lines) if line.startswith(" ─")):
            heading = lines[start - 1].rstrip()
            for row in lines[start + 1 : lines.index("--- stderr")]:
                if not row.strip():
                    break
                if re.search(r"\d$", row.rstrip()):
                    assert len(row.rstrip()) == len(heading), f"{name}:\n{heading}\n{row}"
                    checked += 1
    assert checked > 100


def test_who_writes_says_what_and_what_comes_next(printed: dict[str, str]) -> None:
    for name, text in printed.items():
        *before, last = text.splitlines()
        if name not in _WRITING:
            assert "\nwrote " not in text, name
        elif name in _NEXT:
            assert last.startswith("next: lowshot "), name
            assert before[-1].startswith("wrote "), name
        else:
            assert last.startswith("wrote "), name
