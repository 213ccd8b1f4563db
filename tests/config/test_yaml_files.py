"""Random YAML through the loading of every command's config: an error in words or a valid config.

`pytest -s -m slow tests/config/test_yaml_files.py` tries 20,000 documents.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowshot_cli.config import yaml_file
from lowshot_cli.config.schema import (
    Config,
    FinetuneConfig,
    ImprintConfig,
    SweepConfig,
    TrainBaseConfig,
)
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import LowshotError

FEW, MANY = 500, 20_000
SECTIONS = (None, "train_base", "imprint", "finetune", "sweep")
MODELS = (Config, TrainBaseConfig, ImprintConfig, FinetuneConfig, SweepConfig)
KEYS = sorted({name for model in MODELS for name in model.model_fields})
WORDS = [
    "all",
    "none",
    "auto",
    "resnet9",
    "timm:x",
    "seeded",
    "imprint,random",
    "1,5",
    "1,1",
    "0",
    "",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.dates(),
    st.datetimes(),
    st.sampled_from([*WORDS, "\0", "a\nb", "x" * 5_000]),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=8), st.integers())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
documents = st.one_of(
    st.dictionaries(keys, values, max_size=6).map(yaml.dump),
    st.dictionaries(st.sampled_from(KEYS), st.dictionaries(st.sampled_from(KEYS), scalars)).map(
        lambda value: yaml.dump(value, allow_unicode=True)
    ),
    values.map(yaml.dump),
    st.text(max_size=200),
    st.text(alphabet="{}[]:,-&*!|>%@`'\"#? \n\tabc012.", max_size=80),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
contents = st.one_of(documents, st.binary(max_size=100))


class Tried:
    """Counts how documents ended."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.outcomes: Counter[str] = Counter()

    def document(self, content: bytes) -> None:
        path = self.folder / "config.yaml"
        path.write_bytes(content)
        # Parsing is the same for all sections and takes most of the time, so it is done once.
        parse = lru_cache(yaml_file._read_yaml)
        with mock.patch.object(yaml_file, "_read_yaml", lambda path: deepcopy(parse(path))):
            for section in SECTIONS:
                self.outcomes[self._load(path, section)] += 1
        self.outcomes["documents"] += 1

    def _load(self, path: Path, section: str | None) -> str:
        try:
            loaded = load_config(path, section, {"seed": 1})
        except LowshotError as error:
            return "refused" if 0 < len(error.message) < 20_000 else "refused at length"
        again = yaml.safe_load(loaded.to_yaml())
        assert Config.model_validate(again).portable() == loaded.portable()
        return "valid"

    def close(self) -> None:
        shutil.rmtree(self.folder)


def _fuzz(count: int) -> Counter[str]:
    tried = Tried()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def run(content: bytes) -> None:
        tried.document(content)

    run()
    tried.close()
    return tried.outcomes


def test_random_yaml_is_refused_in_words_or_valid() -> None:
    outcomes = _fuzz(FEW)
    assert outcomes["documents"] >= FEW
    assert outcomes["refused"] > 0
    assert outcomes["valid"] > 0
    assert not outcomes["refused at length"]


@pytest.mark.slow
def test_twenty_thousand_yaml_documents() -> None:
    outcomes = _fuzz(MANY)
    print(f"{dict(outcomes)}")
    assert outcomes["documents"] >= MANY
    assert not outcomes["refused at length"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"workdir": "a\0b"}, "NUL"),
        ({"imprint": {"classes": ["a\0"]}}, "NUL"),
        ({"imprint": {"classes": [""]}}, "empty"),
        ({"train_base": {"weights": "\0"}}, "NUL"),
        ({"train_base": {"classes": [1, 2]}}, "train_base.classes"),
        ({"seed": 10**400}, "seed"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    tmp_path: Path, content: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(LowshotError, match=complaint):
        load_config(path)
