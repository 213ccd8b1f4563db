"""The shell offers classes, methods and files at once, and strange files offer nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.errors import CheckpointError
from tests.cli.test_help import HEAVY

BASE, NOVEL = ("apple", "sweet_pepper"), ("my mug", "my plate")
Complete = Callable[[str], list[str]]


# Answers each line, a folder and environment, from a fork that has imported the command line alone.
_SHELL = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from lowshot_cli.cli.main import main
for line in sys.stdin:
    folder, environment = json.loads(line)
    if os.fork() == 0:
        os.chdir(folder)
        os.environ.update(environment)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit:
                pass
        print(json.dumps([out.getvalue(), err.getvalue(), list(sys.modules)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def shell() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _SHELL], stdin=pipe, stdout=pipe, text=True, encoding="utf-8"
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def complete(tmp_path: Path, shell: subprocess.Popen[str]) -> Complete:
    """What Bash is offered for a line in an empty folder; completing it must not load torch."""

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        typed = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        assert shell.stdin is not None
        assert shell.stdout is not None
        job = [str(tmp_path), {"_LOWSHOT_COMPLETE": "complete_bash", **typed}]
        shell.stdin.write(json.dumps(job) + "\n")
        shell.stdin.flush()
        out, err, modules = json.loads(shell.stdout.readline())
        assert "lowshot_cli" in modules
        assert not set(modules) & HEAVY
        assert "Traceback" not in err
        return str(out).strip("\n").splitlines()

    return offered


def _meta(**changes: Any) -> dict[str, Any]:
    record = {"method": "imprint", "indices": [0], "files": None, "pixel_hashes": ["0"]}
    values = {
        "classes": [*BASE, *NOVEL],
        "n_base": len(BASE),
        "backbone": "resnet9",
        "width": 12,
        "embedding_size": 32,
        "mirror": True,
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "dataset": "glyphs",
        "dataset_hash": "0",
        "class_order_seed": 0,
        "split": "seeded",
        "holdout_per_class": 1,
        "base_counts": [[1, 1]] * len(BASE),
        "config": {"train_base": {}},
        "version": "0",
        "history": [],
        "supports": [record] * len(NOVEL),
    }
    return values | changes


def _write(path: Path, text: str | bytes, length: int | None = None) -> Path:
    """A safetensors file without tensors, whose header is `text`."""
    content = text if isinstance(text, bytes) else text.encode()
    size = len(content) if length is None else length
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(size.to_bytes(8, "little") + content)
    return path


def _checkpoint(path: Path, **changes: Any) -> Path:
    header = {"__metadata__": {"lowshot": json.dumps(_meta(**changes))}}
    return _write(path, json.dumps(header))


def test_the_classes_of_a_checkpoint_are_read_from_its_header(
    workdir: Path, base: Checkpoint
) -> None:
    meta = read_metadata(workdir / "base.safetensors")
    assert meta is not None
    assert meta.classes == base.meta.classes


@pytest.mark.parametrize("command", ["remove", "rename"])
def test_classes_that_were_added_are_offered_and_base_classes_with_force(
    complete: Complete, tmp_path: Path, command: str
) -> None:
    _checkpoint(tmp_path / "runs" / "imprinted.safetensors")
    assert complete(f"lowshot classes {command} ") == [r"my\ mug", r"my\ plate"]
    assert complete(f"lowshot classes {command} --force a") == ["apple"]
    assert complete(f"lowshot classes {command} b") == []


def test_the_model_named_is_asked_then_the_furthest_whenever_it_was_written(
    complete: Complete, tmp_path: Path
) -> None:
    early, last = (tmp_path / "kept" / f"{name}.safetensors" for name in ("imprinted", "finetuned"))
    _checkpoint(early)
    os.utime(_checkpoint(last, classes=[*BASE, "cup", "jug"]), (0, 0))
    other = _checkpoint(tmp_path / "other.safetensors", classes=[*BASE, "fork", "knife"])
    assert complete("lowshot classes remove --workdir kept ") == ["cup", "jug"]
    assert complete(f"lowshot classes remove --checkpoint {other} ") == ["fork", "knife"]
    (tmp_path / "kept.yaml").write_text("workdir: kept\n")
    assert complete("lowshot classes remove --config kept.yaml ") == ["cup", "jug"]
    assert complete("lowshot classes remove --config absent.yaml ") == []


@pytest.mark.parametrize("layout", ["photos", "photos/train"])
def test_imprint_is_offered_class_folders_that_the_model_lacks(
    complete: Complete, tmp_path: Path, layout: str
) -> None:
    for name in ("apple", "kettle", "lamp", ".hidden"):
        (tmp_path / layout / name).mkdir(parents=True)
    (tmp_path / layout / "notes.txt").touch()
    _checkpoint(tmp_path / "runs" / "imprinted.safetensors")
    line = "lowshot imprint --dataset folder --data-dir photos --class"
    assert complete(f"{line} ") == ["kettle", "lamp", r"my\ mug", r"my\ plate"]
    assert complete(f"{line} kettle --class k") == []
    assert complete("lowshot imprint --data-dir photos --class ") == [r"my\ mug", r"my\ plate"]
    assert complete("lowshot imprint --dataset folder --data-dir absent --class l") == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("imprint --dataset g", ["glyphs"]),
        ("imprint --method wh", ["whitened"]),
        ("sweep --method finetune-", ["finetune-head", "finetune-full"]),
        ("sweep --method imprint,p", ["imprint,proxies"]),
        ("sweep --method imprint,i", []),
    ],
)
def test_datasets_and_methods_are_offered(
    complete: Complete, typed: str, offered: list[str]
) -> None:
    assert complete(f"lowshot {typed}") == offered


@pytest.mark.parametrize("typed", ["finetune --checkpoint", "predict --checkpoint", "evaluate"])
def test_checkpoints_of_the_work_folder_and_of_the_typed_one_are_offered(
    complete: Complete, tmp_path: Path, typed: str
) -> None:
    for place in ("runs/base", "mug", "mine/other"):
        _checkpoint(tmp_path / f"{place}.safetensors")
    (tmp_path / "runs" / "folder.safetensors").mkdir()
    assert complete(f"lowshot {typed} ") == ["mug.safetensors", "runs/base.safetensors"]
    assert complete(f"lowshot {typed} mine/o") == ["mine/other.safetensors"]
    assert complete(f"lowshot {typed} {tmp_path}/m") == [f"{tmp_path}/mug.safetensors"]
    assert complete(f"lowshot {typed} absent/") == []


def _header(metadata: object) -> str:
    return json.dumps({"__metadata__": metadata})


STRANGE: dict[str, tuple[str | bytes, int | None]] = {
    "empty": ("", None),
    "cut off": (_header({"lowshot": json.dumps(_meta())})[:-9], None),
    "longer than the file": (_header({"lowshot": json.dumps(_meta())}) + "x", 2**20),
    "endless": ("{}", 2**63),
    "no JSON": (b"\xff\x00\x80", None),
    "a list": ("[]", None),
    "nested without end": ("[" * 100_000, None),
    "no metadata": ("{}", None),
    "metadata of another kind": (_header([1]), None),
    "not lowshot's": (_header({"format": "pt"}), None),
    "no text": (_header({"lowshot": 1}), None),
    "broken": (_header({"lowshot": "{"}), None),
    "nested within": (_header({"lowshot": "[" * 100_000}), None),
    "names of another kind": (_header({"lowshot": json.dumps(_meta(classes=[1, 2, 3, 4]))}), None),
    "more base classes than classes": (_header({"lowshot": json.dumps(_meta(n_base=9))}), None),
    "half a character": (
        _header({"lowshot": json.dumps(_meta(classes=[*BASE, "\ud800", "x"]))}),
        None,
    ),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_a_damaged_or_hostile_checkpoint_offers_nothing(
    complete: Complete, tmp_path: Path, content: tuple[str | bytes, int | None]
) -> None:
    path = _write(tmp_path / "runs" / "base.safetensors", *content)
    assert complete("lowshot classes remove ") == []
    with pytest.raises(CheckpointError):
        read_metadata(path)


@pytest.mark.parametrize("typed", ["remove a", "remov a", "classes remov a", "sweep --trails a"])
def test_after_a_mistyped_word_nothing_fails(complete: Complete, typed: str) -> None:
    assert complete(f"lowshot {typed}") == []


def test_the_shell_hears_nothing_of_a_damaged_checkpoint(
    complete: Complete, tmp_path: Path
) -> None:
    path = _write(tmp_path / "runs" / "base.safetensors", "[" * 100_000)
    assert complete("lowshot classes remove ") == []
    path.unlink()
    path.mkdir()
    assert complete("lowshot classes remove ") == []
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert complete("lowshot classes remove --checkpoint pipe.safetensors ") == []


@pytest.mark.parametrize(
    "name", ["$(touch x)", "`touch x`", "a\\", "a'b", 'a"b', "a\nb", "\x1b[2J", "-rf", "a;b", "a*"]
)
def test_names_that_a_shell_would_act_on_are_not_offered(
    complete: Complete, tmp_path: Path, name: str
) -> None:
    _checkpoint(tmp_path / "runs" / "imprinted.safetensors", classes=[*BASE, name, "µ-Tasse"])
    assert complete("lowshot classes remove ") == ["µ-Tasse"]
