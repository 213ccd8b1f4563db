"""The command reference says what the commands say."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lowshot_cli.config.methods import METHODS
from tests.reference import BEGIN, END, REFERENCE, all_commands, reference, refreshed


def test_the_page_holds_the_reference_that_would_be_written() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    assert refreshed(page) == page, "`python -m tests.reference` writes it anew"


def test_the_reference_ends_its_page() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    assert page.startswith("# Command reference\n")
    assert page.endswith(f"{END}\n")


def test_every_option_of_every_command_has_a_row() -> None:
    text = reference()
    sections = dict(re.findall(r"<summary>(.+?)</summary>(.*?)</details>", text, re.DOTALL))
    common = sections.pop("Common options")
    assert all(f"| `{name}` | {method.summary} |" in text for name, method in METHODS.items())
    del sections["Methods"]
    assert list(sections) == [f"lowshot {name}" for name in all_commands()]
    for name, command in all_commands().items():
        section = sections[f"lowshot {name}"]
        for parameter in command.params:
            metavar = (parameter.metavar or "").replace("|", r"\|")
            option = parameter.param_type_name == "option"
            shown = f"{parameter.opts[0]} {metavar}".strip() if option else metavar
            assert f"| `{shown}` | " in section + common
            assert f"`{parameter.opts[0] if option else metavar}" in section
        assert section.count("\nlowshot ") >= 3


def test_a_stale_reference_is_noticed_and_the_rest_is_left_alone() -> None:
    old = f"before\n{BEGIN}\nlowshot forgotten-command\n{END}\nafter\n"
    new = refreshed(old)
    assert new.startswith(f"before\n{BEGIN}\n")
    assert new.endswith(f"{END}\nafter\n")
    assert "forgotten-command" not in new
    with pytest.raises(ValueError, match="reference"):
        refreshed("no markers")


def test_rows_have_three_cells_whatever_the_text() -> None:
    for line in reference().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line


def test_the_reference_does_not_depend_on_the_environment() -> None:
    odd = {"COLUMNS": "30", "LOWSHOT_WORKDIR": "/elsewhere", "LOWSHOT_DATA": "/data", "LC_ALL": "C"}
    command = "import sys; from tests.reference import reference as r; "
    command += "sys.stdout.buffer.write(r().encode())"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=REFERENCE.parents[2],
        env={**os.environ, **odd},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == reference()
