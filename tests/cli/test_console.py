"""What people see, whatever their terminal says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.adaptation.imprint import SupportDraw
from lowshot_cli.adaptation.review import Confusion, Outlier, Review
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.tables import show_reviews
from tests.conftest import RunCommand


@pytest.mark.parametrize("columns", ["0", "1", "19"])
def test_a_terminal_of_no_width_gets_the_usual_one(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    usual = lowshot("classes", "list").stdout
    monkeypatch.setenv("COLUMNS", columns)
    assert lowshot("classes", "list").stdout == usual
    assert "learnt by" in usual


def test_equals_signs_may_stand_in_names_and_in_paths(
    lowshot: RunCommand, workdir: Path, base: Checkpoint
) -> None:
    first = base.base_classes[0]
    lowshot("classes", "rename", first, "t=q", "--force")
    for text, path in (("t=q=day=7/x", "day=7/x"), ("t=q=x", "x")):
        assert f"no image at {path}" in lowshot("evaluate", "--images", text).stderr
    # Where no part is a class, the name ends at the first sign.
    assert "no class 'u'" in lowshot("evaluate", "--images", "u=v=w").stderr


def test_what_may_mislead_a_class_is_said_in_lines_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    confused = (Confusion("running shoe", 1, 6, 2),)
    plain = Review("boot", 5, confused, (), supports_won=1)
    misled = Review("boot", 5, (), (Outlier(4, "jean"),), supports_won=1)
    draws = [SupportDraw("boot", (), tuple(f"{i}.jpg" for i in range(5)))] * 2
    show_reviews(Output(), [plain, misled], draws, "take others", "background photos")
    assert capsys.readouterr().out.splitlines() == [
        "boot is confused with running shoe, which loses 1 of its 6",
        "  background photos and gets 2 of the 5 supports",
        "boot gets 1 of its 5 supports if it is learnt from the",
        "  others, so few other photos of it will be known",
        "the background may show boot: take such photos out of it, or",
        "  allow more --max-forgetting",
        # Nothing about the background where a wrong support may be why.
        "boot: unlike the other supports: 4.jpg (like jean)",
        "look at them; take others",
    ]
