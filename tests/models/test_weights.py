"""Weights find their way into a backbone from whatever lies around them in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.errors import CheckpointError
from lowshot_cli.models.backbones import Backbone, build_backbone
from lowshot_cli.models.weights import (
    LoadedWeights,
    load_weights,
    read_weights,
)

SHUFFLENET = "torchvision:shufflenet_v2_x0_5"
State = dict[str, Tensor]


def _backbone(name: str = "resnet9") -> Backbone:
    torch.manual_seed(1)
    return build_backbone(name, 2, 4 if name == "resnet9" else None, 32)


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a small network of the package's own."""
    return {name: torch.full_like(t, 7) for name, t in _backbone().state_dict().items()}


def _under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _load(content: object, folder: Path) -> tuple[Backbone, LoadedWeights]:
    torch.save(content, folder / "w.ckpt")
    options = TrainBaseConfig(weights=str(folder / "w.ckpt"))
    backbone = _backbone()
    return backbone, load_weights(backbone, read_weights(options), "w.ckpt")


NESTINGS: dict[str, tuple[list[str], str]] = {
    "plain": ([], ""),
    "model_state_dict": (["model_state_dict"], ""),
    "net": (["net"], ""),
    "deep": (["checkpoint", "model", "state_dict"], ""),
    "lightning": (["state_dict"], "model."),
    "lightning net": (["state_dict"], "net.backbone."),
    "parallel": (["model"], "module."),
    "compiled": ([], "_orig_mod."),
    "compiled in parallel": (["state_dict"], "module._orig_mod.encoder."),
    "any": (["any key"], "student.trunk.features."),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_weights_are_found_under_any_keys_and_prefixes(
    state: State, tmp_path: Path, nesting: str
) -> None:
    keys, prefix = NESTINGS[nesting]
    content: dict[str, Any] = _under(prefix, state)
    for key in reversed(keys):
        content = {
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            key: content,
        }
    backbone, loaded = _load(content, tmp_path)
    assert loaded == LoadedWeights((), ())
    assert all(bool((tensor == 7).all()) for tensor in backbone.state_dict().values())


def test_what_a_wrapper_puts_within_names_is_taken_out(state: State, tmp_path: Path) -> None:
    wrapped = {n.replace("early.", "early._orig_mod.", 1): t for n, t in state.items()}
    assert wrapped.keys() != state.keys()
    assert _load(wrapped, tmp_path)[1] == LoadedWeights((), ())


@pytest.mark.parametrize("order", [1, -1])
def test_a_copy_that_goes_unused_is_named(state: State, tmp_path: Path, order: int) -> None:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    both = [("state_dict", state), ("state_dict_ema", _under("module.", averaged))][::order]
    backbone, loaded = _load(dict(both), tmp_path)
    assert all(bool((tensor == 7).all()) for tensor in backbone.state_dict().values())
    assert loaded == LoadedWeights((), ("state_dict_ema",))
    assert loaded.notes() == ["weights: 1 not used: state_dict_ema"]


def test_what_lies_beside_the_network_is_named(state: State, tmp_path: Path) -> None:
    beside = {"head.weight": torch.ones(3, 4), "n_averaged": torch.tensor(3)}
    _, loaded = _load({"state_dict": {**_under("backbone.", state), **beside}}, tmp_path)
    assert loaded.unexpected == ("head.weight", "n_averaged")


def test_of_two_networks_the_one_that_fits_is_taken(state: State, tmp_path: Path) -> None:
    larger = {name: torch.cat([tensor, tensor]) for name, tensor in state.items() if tensor.ndim}
    backbone, loaded = _load({"teacher": larger, "student": state}, tmp_path)
    assert loaded == LoadedWeights((), ())
    assert all(bool((tensor == 7).all()) for tensor in backbone.state_dict().values())


def test_names_that_fit_by_accident_are_not_taken_for_the_network(
    state: State, tmp_path: Path
) -> None:
    first = next(iter(state))
    with pytest.raises(
        CheckpointError, match=f"only 1 of the {len(state)} weights .* it has net/x"
    ):
        _load({"net": {f"x.{first}": state[first]}}, tmp_path)


def _integers(state: State) -> State:
    return {name: tensor.to(torch.int8) for name, tensor in state.items()}


def _sparse(state: State) -> State:
    return {
        name: tensor.to_sparse() if tensor.ndim > 1 else tensor for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("change", "said"), [(_integers, "int8, not float32"), (_sparse, "sparse")]
)
def test_weights_that_are_no_plain_numbers_are_refused(
    state: State, tmp_path: Path, change: Any, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        _load(change(state), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(
    state: State, tmp_path: Path, dtype: torch.dtype
) -> None:
    other = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    backbone, _ = _load(other, tmp_path)
    assert all(bool((tensor == 7).all()) for tensor in backbone.state_dict().values())


def test_a_checkpoint_of_this_package_lends_its_network_alone(base_path: Path) -> None:
    tensors = read_weights(TrainBaseConfig(weights=str(base_path)))
    assert tensors
    assert all(name.startswith("backbone.") for name in tensors)
