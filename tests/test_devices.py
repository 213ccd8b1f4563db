"""Devices by name: the processor, GPUs, and Apple's GPUs where PyTorch has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from lowshot_cli.cli.torchrun import LaunchEnvironment, _take_device
from lowshot_cli.environment import hardware, pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.sweep.embeddings import SweepEmbeddings
from lowshot_cli.training import precision
from tests.conftest import RunCommand, save_images

APPLE = torch.device("mps")


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose PyTorch has an Apple GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_is_taken_where_there_is_one() -> None:
    assert pick_device("mps") == APPLE
    assert pick_device("auto").type != "mps"
    assert hardware(APPLE).startswith("Apple GPU, ")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_without_an_apple_gpu_one_line_says_so(lowshot: RunCommand, workdir: Path) -> None:
    save_images([torch.zeros(3, 32, 32, dtype=torch.uint8)], workdir / "photos")
    result = lowshot("predict", workdir / "photos", "--device", "mps", "--workdir", workdir)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: PyTorch finds no Apple GPU mps here",
        "  -> --device cpu works without one",
    ]


def test_an_apple_gpu_computes_in_fp32_unless_bf16_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "matrix_rate", Mock(side_effect=AssertionError("measured")))
    assert precision.pick_precision("auto", APPLE) == "fp32"
    assert precision.pick_precision("bf16", APPLE) == "bf16"


def test_trials_stay_on_the_processor_as_an_apple_gpu_has_no_float64() -> None:
    at_home: Any = Mock()
    at_home.backgrounds = (Mock(device=torch.device("cpu")),)
    assert SweepEmbeddings.to(at_home, APPLE) is at_home


@pytest.mark.usefixtures("apple")
def test_ranks_do_not_share_an_apple_gpu() -> None:
    with pytest.raises(UsageError, match="Apple GPU"):
        _take_device("mps", Mock(spec=LaunchEnvironment))
