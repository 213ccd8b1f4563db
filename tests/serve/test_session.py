"""The served model: every change is on disk before it is in use, and can be taken back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lowshot_cli
from lowshot_cli.adaptation.bias import expected_forgetting, set_bias
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.workdir import furthest
from lowshot_cli.errors import CheckpointError, DataError, UsageError
from lowshot_cli.serve import session as module
from lowshot_cli.serve.changes import changes_since
from lowshot_cli.serve.errors import Conflict, NotSaved, Unknown
from lowshot_cli.serve.session import Session
from lowshot_cli.serve.versions import MOST
from tests.cli.answers import as_json, done
from tests.conftest import RunCommand, save_images
from tests.serve.conftest import photos, teach
from tests.tiny_world import tiny_world


def contents(folder: Path) -> dict[str, bytes]:
    """The models of a work folder, without their versions."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def restarted(folder: Path) -> Session:
    """What a server finds that is started anew."""
    return Session(furthest(folder)[0])


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.meta == other.meta and torch.equal(one.head.proxies, other.head.proxies)


def test_a_taught_class_is_written_beside_the_base_model_which_stays(
    session: Session, folder: Path
) -> None:
    before = contents(folder)
    teach(session, "f")
    after = contents(folder)
    assert after["base.safetensors"] == before["base.safetensors"]
    assert set(after) == {"base.safetensors", "imprinted.safetensors"}
    path, meta = furthest(folder)
    assert (path.name, meta.novel_classes) == ("imprinted.safetensors", ("f",))
    assert same(load(path), session.now.checkpoint)


def test_records_are_those_of_the_commands(
    session: Session, folder: Path, tmp_path: Path, lowshot: RunCommand
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    ours: list[Any] = []
    theirs: list[Any] = []
    for name in "fg":
        save_images(torch.from_numpy(photos(name)), tmp_path / name)
        files = [str(path) for path in sorted((tmp_path / name).iterdir())]
        ours.append(session.teach(name, photos(name), files))
        typed = ["imprint", "--class", name, "--images", tmp_path / name]
        add = ["--add"] if name == "g" else []
        theirs.append(as_json(lowshot(*typed, *add, "--workdir", other, "--json")))
    ours.append(session.rename("f", "h"))
    theirs.append(as_json(lowshot("classes", "rename", "f", "h", "--workdir", other, "--json")))
    ours.append(session.remove("g"))
    theirs.append(as_json(lowshot("classes", "remove", "g", "--workdir", other, "--json")))
    for record in (*ours, *theirs):
        assert Path(record.pop("checkpoint")).name == "imprinted.safetensors"
    assert ours == theirs
    made, expected = (load(place / "imprinted.safetensors") for place in (folder, other))
    assert same(made, expected)
    listed = session.classes()
    assert [one.pop("thumbnails") for one in listed[-1:]]
    assert [one.pop("first_name") for one in listed[-1:]] == ["f"]
    assert listed == as_json(lowshot("classes", "list", "--workdir", other, "--json"))


def test_each_change_is_undone_in_turn_until_the_base_model_is_back(
    session: Session, folder: Path
) -> None:
    before, states = contents(folder), [session.now.checkpoint]
    changes = [
        (lambda: teach(session, "f"), "taught f"),
        (lambda: teach(session, "g"), "taught g"),
        (lambda: session.rename("f", "mug"), "renamed f to mug"),
        (lambda: session.set_budget(7.0), "set the budget to 7 points"),
        (lambda: session.remove("mug"), "removed mug"),
        (lambda: session.remove("a", force=True), "removed a"),
    ]
    for change, said in changes:
        change()
        assert session.about()["undoes"] == said
        states.append(session.now.checkpoint)
    for state in states[-2::-1]:
        assert same(session.before().checkpoint, state)
        session.undo()
        assert same(session.now.checkpoint, state)
        assert same(load(furthest(folder)[0]), state)
    assert contents(folder) == before
    assert not session.about()["can_undo"]
    with pytest.raises(Conflict, match="no change to undo"):
        session.undo()


def test_a_budget_is_named_with_its_unit() -> None:
    meta = tiny_world("linear")[1].meta
    for adopted, budget, said in (
        (False, 1.0, "1 point"),
        (False, 2.5, "2.5 points"),
        (True, 1, "1 %"),
    ):
        step = {"command": "serve", "options": {"max_forgetting": budget}}
        now = meta.model_copy(update={"history": (*meta.history, step), "adopted": adopted})
        assert changes_since(meta, now) == f"set the budget to {said}"


def test_undo_works_after_a_restart(session: Session, folder: Path) -> None:
    teach(session, "f")
    once = session.now.checkpoint
    teach(session, "g")
    again = restarted(folder)
    assert again.about()["undoes"] == "taught g"
    assert same(again.before().checkpoint, once)
    again.undo()
    assert same(again.now.checkpoint, once)
    last = restarted(folder)
    assert last.about()["undoes"] == "taught f"
    last.undo()
    assert last.now.path.name == "base.safetensors"
    assert not (folder / "imprinted.safetensors").exists()


def test_it_also_works_where_files_cannot_be_linked(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    teach(session, "f")
    teach(session, "g")
    again = restarted(folder)
    again.undo()
    again.undo()
    assert again.now.path.name == "base.safetensors"


def test_what_is_killed_before_the_swap_leaves_the_old_model_and_its_undo(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(session, "f")
    before = contents(folder)

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(module, "put", killed)
        with pytest.raises(SystemExit):
            teach(session, "g")
    assert contents(folder) == before
    again = restarted(folder)
    assert again.about()["undoes"] == "taught f"
    teach(again, "h")
    assert again.about()["undoes"] == "taught h"
    again.undo()
    assert contents(folder) == before
    again.undo()
    assert again.now.path.name == "base.safetensors"


@pytest.mark.parametrize("step", ["save", "put"])
def test_a_full_disk_changes_nothing(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    teach(session, "f")
    before, now = contents(folder), session.now

    def full(*_: object) -> None:
        raise CheckpointError("full") if step == "save" else OSError(28, "No space left")

    monkeypatch.setattr(module, step, full)
    with pytest.raises(NotSaved, match="nothing is changed"):
        teach(session, "g")
    with pytest.raises(NotSaved, match="nothing is changed"):
        session.remove("f")
    assert session.now is now
    assert contents(folder) == before
    assert len(list((folder / "versions").iterdir())) == 2


def test_whoever_holds_a_model_keeps_it_while_another_comes(session: Session) -> None:
    teach(session, "f")
    held = session.now
    session.remove("f")
    assert held.checkpoint.novel_classes == ("f",)
    assert session.now.checkpoint.novel_classes == ()


def test_the_newest_versions_are_kept_and_undo_stops_at_the_oldest(session: Session) -> None:
    teach(session, "f")
    names = [f"f{number}" for number in range(MOST + 4)]
    for old, new in zip(["f", *names], names, strict=False):
        session.rename(old, new)
    assert len(session.versions.paths()) == MOST
    for name in names[-2:-MOST:-1]:
        session.undo()
        assert session.now.checkpoint.novel_classes == (name,)
    session.undo()
    assert not session.about()["can_undo"]


def test_a_model_in_a_place_of_its_own_is_replaced_there(session: Session, folder: Path) -> None:
    teach(session, "f")
    place = folder.parent / "elsewhere" / "mug.safetensors"
    place.parent.mkdir()
    save(session.now.checkpoint, place)
    before = place.read_bytes()
    other = Session(place)
    teach(other, "g")
    assert load(place).novel_classes == ("f", "g")
    assert {path.name for path in place.parent.iterdir()} == {
        "mug.safetensors",
        "thumbnails",
        "versions",
    }
    other.undo()
    assert place.read_bytes() == before
    assert not other.about()["can_undo"]


def test_a_base_model_is_not_served_beside_a_model_that_was_made_of_it(
    session: Session, folder: Path
) -> None:
    teach(session, "f")
    with pytest.raises(UsageError, match="is there already") as found:
        Session(folder / "base.safetensors")
    assert "move it away" in (found.value.hint or "")


def test_what_is_undone_stays_on_disk(session: Session, folder: Path) -> None:
    teach(session, "f")
    taught = (folder / "imprinted.safetensors").read_bytes()
    session.undo()
    assert taught in [path.read_bytes() for path in session.versions.paths()]
    assert not restarted(folder).about()["can_undo"]


def test_a_model_behind_a_symbolic_link_is_undone_too(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "models"
    elsewhere.mkdir()
    (folder / "base.safetensors").rename(elsewhere / "b.safetensors")
    (folder / "base.safetensors").symlink_to("../models/b.safetensors")
    session = Session(folder / "base.safetensors")
    teach(session, "f")
    again = restarted(folder)
    again.undo()
    assert again.now.path.name == "base.safetensors"


def test_nothing_is_undone_that_another_command_did(
    session: Session, folder: Path, tmp_path: Path, lowshot: RunCommand
) -> None:
    teach(session, "f")
    save_images(torch.from_numpy(photos("g")), tmp_path / "g")
    done(lowshot("imprint", "--class", "g", "--images", tmp_path / "g", "--workdir", folder))
    again = restarted(folder)
    assert not again.about()["can_undo"]
    with pytest.raises(Conflict):
        again.before()
    teach(again, "h")
    again.undo()
    assert again.now.checkpoint.novel_classes == ("g",)


def test_of_two_models_made_from_one_base_neither_was_made_from_the_other(
    session: Session,
) -> None:
    base = session.now.checkpoint.meta
    teach(session, "f")
    taught = session.now.checkpoint.meta
    session.undo()
    teach(session, "g")
    session.rename("g", "h")
    other = session.now.checkpoint.meta
    assert changes_since(base, other) == "taught g, renamed g to h"
    assert changes_since(taught, other) == changes_since(other, taught) == ""
    assert changes_since(other, other) == ""


def test_a_finetuned_model_is_taught_in_its_own_file(session: Session, folder: Path) -> None:
    teach(session, "f")
    taught = lowshot_cli.load(folder / "imprinted.safetensors")
    taught.finetune(steps=2).save(folder / "finetuned.safetensors")
    again = restarted(folder)
    assert again.target.name == "finetuned.safetensors"
    assert not again.about()["can_undo"]
    teach(again, "g")
    assert furthest(folder)[0].name == "finetuned.safetensors"
    again.undo()
    assert not again.about()["can_undo"]
    assert again.now.checkpoint.novel_classes == ("f",)


def test_a_budget_gives_the_bias_that_it_gives_elsewhere_and_stays_in_use(
    session: Session,
) -> None:
    teach(session, "f")
    for budget in (0.0, 10.0):
        said = session.set_budget(budget)
        expected = set_bias(session.now.checkpoint, budget)
        assert (said["max_forgetting"], said["bias"]) == (budget, expected.head.bias)
        assert said["expected_forgetting"] == expected_forgetting(expected)
    teach(session, "g")
    assert session.now.checkpoint.meta.max_forgetting == 10
    with pytest.raises(UsageError):
        session.set_budget(101)


def test_the_trade_off_goes_through_the_present_point(session: Session) -> None:
    assert session.now.trade_off == []
    teach(session, "f")
    session.set_budget(3.3)
    points, about = session.now.trade_off, session.about()
    (present,) = [one for one in points if one["max_forgetting"] == 3.3]
    assert present["bias"] == about["bias"]
    assert present["expected_forgetting"] == pytest.approx(about["expected_forgetting"])
    budgets, biases, costs, known = zip(*(one.values() for one in points), strict=True)
    assert len(budgets) > 15
    for rising in (budgets, biases, costs, known):
        assert list(rising) == sorted(rising)
    assert all(0 <= cost <= budget for cost, budget in zip(costs, budgets, strict=True))


def test_one_support_does_not_say_how_well_it_is_known(session: Session) -> None:
    teach(session, "f", 1)
    assert {one["supports_known"] for one in session.now.trade_off} == {None}


@pytest.mark.parametrize("kind", ["bare", "adopted"])
def test_without_images_that_set_a_bias_there_is_no_budget(kind: str, tmp_path: Path) -> None:
    save(tiny_world(kind)[1], tmp_path / "base.safetensors")
    session = Session(tmp_path / "base.safetensors")
    with pytest.raises(Conflict, match="no novel class"):
        session.set_budget(1)
    teach(session, "f")
    with pytest.raises(Conflict, match="no images"):
        session.set_budget(1)
    assert session.now.trade_off == []
    assert session.about()["expected_forgetting"] is None


def test_what_cannot_be_done_is_refused_and_changes_nothing(session: Session) -> None:
    teach(session, "f")
    now = session.now
    with pytest.raises(Conflict, match="already knows 'f'"):
        teach(session, "f")
    with pytest.raises(Conflict, match="is a base class"):
        session.remove("a")
    with pytest.raises(Conflict, match="already knows"):
        session.rename("f", "a")
    with pytest.raises(Unknown, match="no class 'nothing'"):
        session.remove("nothing")
    for odd in ("", " ", "a\0b"):
        with pytest.raises(UsageError):
            session.rename("f", odd)
        with pytest.raises(UsageError):
            session.teach(odd, photos("g"), ["1"] * 4)
    for name in "bcde":
        session.remove(name, force=True)
    with pytest.raises(Conflict, match="last base class"):
        session.remove("a", force=True)
    for _ in range(4):
        session.undo()
    assert same(session.now.checkpoint, now.checkpoint)


def test_a_known_class_is_taught_anew_only_if_asked(session: Session) -> None:
    teach(session, "f", 2)
    session.teach("f", photos("f", 4), list("1234"), replace_known=True)
    assert [one["shots"] for one in session.classes()[-1:]] == [4]
    session.rename("f", "mug")
    for name, said in (("mug", "'mug'"), ("f", "'f', as 'mug'")):
        with pytest.raises(Conflict, match=f"already knows {said}"):
            session.ensure_new(name)


def test_photos_that_repeat_are_taught_once_and_have_one_thumbnail(session: Session) -> None:
    twice = photos("f", 3)[[0, 1, 2, 0, 1]]
    record = session.teach("f", twice, list("12345"))
    assert record["classes"][0]["support"] == ["1", "2", "3"]
    (known,) = session.classes()[-1:]
    assert len(known["thumbnails"]) == 3
    assert {path.stem for path in (session.thumbnails.folder).iterdir()} == set(known["thumbnails"])
    for digest in known["thumbnails"]:
        content = session.thumbnails.read(digest)
        assert content
        assert content.startswith(b"\xff\xd8\xff")
    (session.thumbnails.folder.parent / "secret.jpg").write_bytes(b"secret")
    for odd in ("../secret", "0" * 16, "", "..", known["thumbnails"][0].upper()):
        assert session.thumbnails.read(odd) is None


def test_classes_taught_elsewhere_have_no_thumbnails(session: Session) -> None:
    teach(session, "f")
    shutil.rmtree(session.thumbnails.folder)
    assert session.classes()[-1]["thumbnails"] == []
    assert "thumbnails" not in session.classes()[0]


def test_photos_without_a_direction_are_refused_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(folder / "base.safetensors")

    def none(*_: object, **__: object) -> None:
        raise DataError("no direction of their own")

    monkeypatch.setattr(module, "imprint_photos", none)
    with pytest.raises(DataError):
        teach(session, "f")
    assert {path.name for path in folder.iterdir()} == {"base.safetensors"}
