"""Names of a classifier's outputs are read from the files that people have."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from lowshot_cli.data.class_names import read_class_names
from lowshot_cli.errors import DataError

NAMES = ("cup", "mug, large", "#1 tea pot")


def _read(content: str | bytes, folder: Path) -> tuple[str, ...]:
    path = folder / "names.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_class_names(path)


@pytest.mark.parametrize(
    "content",
    [
        "cup\nmug, large\n#1 tea pot",
        "cup\nmug, large\n#1 tea pot\n\n \n",
        "cup\r\nmug, large\r\n#1 tea pot\r\n",
        "\ufeffcup\n  mug, large\t\n#1 tea pot\n",
        "cup\r\nmug, large\r\n#1 tea pot\r\n".encode("utf-16"),
        json.dumps(NAMES),
        json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]}),
        json.dumps({NAMES[2]: 2, NAMES[0]: 0, NAMES[1]: 1}),
        json.dumps({"0": ["n1", NAMES[0]], "1": ["n2", NAMES[1]], "2": ["n3", NAMES[2]]}),
        json.dumps({"model_type": "vit", "id2label": dict(enumerate(NAMES))}),
        json.dumps({"architecture": "resnet18", "label_names": NAMES}),
        "{0: 'cup',\n 1: 'mug, large',\n 2: '#1 tea pot'}",
    ],
)
def test_every_form_gives_the_names_in_order(content: str | bytes, tmp_path: Path) -> None:
    assert _read(content, tmp_path) == NAMES


def test_names_are_kept_in_the_composed_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert _read(f"{decomposed}\n", tmp_path) == ("café",)


def test_repeated_names_of_imagenet_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    index = {"0": ["n02012849", "crane"], "1": ["n1", "cup"], "2": ["n03126707", "crane"]}
    assert _read(json.dumps(index), tmp_path) == ("crane (n02012849)", "cup", "crane (n03126707)")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "are empty"),
        ("[]", "are empty"),
        ("cup\nmug\ncup\nmug\ncup", "'cup' in lines 1, 3, 5, 'mug' in lines 2, 4"),
        ('["cup", "mug", "cup"]', "'cup' in outputs 0, 2"),
        ("cup\n\nmug", "name in line 2 is empty"),
        ('["cup", 3]', "name in output 1 is no text but 3"),
        ("cup\nm\0ug", "name in line 2 should not be empty or contain NUL"),
        ('["cup", "mug"', "Expecting ',' delimiter"),
        ('{"0": "cup", "2": "mug"}', "numbers should be 0 to 1, but 1 is missing"),
        ('{"0": "cup", "0": "mug"}', "'0' is there twice"),
        ('{"cup": "a", "mug": "b"}', "from numbers to names, or back"),
        ("{'cup', 'mug'}", "a set has no order"),
        (b"caf\xe9", "no text in UTF-8"),
    ],
)
def test_a_file_that_names_no_classes_says_why(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        _read(content, tmp_path)
    assert said in caught.value.message
    assert "names.txt" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_path_without_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class names at"):
        read_class_names(tmp_path / "names.txt")
    with pytest.raises(DataError, match="cannot read the class names"):
        read_class_names(tmp_path)
