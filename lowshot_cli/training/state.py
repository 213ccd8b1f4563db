"""The saved state of unfinished training: weights, their means, momentum and progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lowshot_cli.config.difference import difference
from lowshot_cli.errors import CheckpointError, one_line
from lowshot_cli.models.backbones import load_state
from lowshot_cli.storage.tensors import read_tensors, write_tensors

_KEY = "lowshot_state"


@dataclass(frozen=True)
class TrainingState:
    """How far training has come.

    Attributes:
        step: number of steps taken.
        seconds: time that they took, with the hold-out evaluations, over all resumptions.
        holdout_accuracy: after the last whole epoch, in percent; 0 before that.
    """

    step: int = 0
    seconds: float = 0.0
    holdout_accuracy: float = 0.0


def save_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: TrainingState,
    config: Mapping[str, Any],
    *,
    means: Mapping[str, torch.Tensor],
) -> None:
    """Write weights, momentum, means and progress atomically; the state before is kept beside it.

    Args:
        path: the file to write.
        model: the model whose weights are written.
        optimiser: over the model's parameters.
        state: how far training has come.
        config: what the config must be when training is resumed.
        means: running means of the weights, by name; empty before there are any.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"mean.{name}": tensor for name, tensor in means.items()}
    for index, parameter in enumerate(_parameters(optimiser)):
        momentum = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{index}"] = momentum
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        if path.exists():
            path.replace(previous(path))
        about = {**asdict(state), "config": config}
        write_tensors(path, tensors, {_KEY: json.dumps(about)})
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {one_line(error)}",
            "free some space; `resume=True`, or the same sweep, continues from the last epoch",
        ) from None


def previous(path: Path) -> Path:
    """Path of the state before the newest one."""
    return path.with_suffix(f".previous{path.suffix}")


def is_resumable(path: Path) -> bool:
    """Whether there is a state, or the one before it."""
    return path.exists() or previous(path).exists()


def delete_states(path: Path) -> None:
    """Delete the training state and the one before it."""
    for state in (path, previous(path)):
        state.unlink(missing_ok=True)


def restore_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: Mapping[str, Any],
    *,
    means: dict[str, torch.Tensor],
) -> tuple[TrainingState, str | None]:
    """Load weights, momentum and means of the newest undamaged state.

    Args:
        path: the newest state.
        model: of the same shape as the saved one.
        optimiser: over the model's parameters, in the same order.
        config: what the saved config must be.
        means: is filled with the running means of the weights.

    Returns:
        How far training had come, and what is wrong with a newer state that was skipped, if any.

    Raises:
        CheckpointError: there is no state, only damaged ones, or one of another config.
    """
    problem = None
    for candidate in (path, previous(path)):
        try:
            tensors, metadata = read_tensors(candidate)
            about: dict[str, Any] = json.loads(metadata[_KEY])
            break
        except FileNotFoundError:
            continue
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            problem = problem or f"{candidate} is damaged: {error}"
    else:
        raise CheckpointError(
            problem or f"no training to resume at {path}", "leave out `resume=True`"
        )
    changed = difference(about["config"], config)
    if changed:
        raise CheckpointError(
            f"{path} was made with another config: {'; '.join(changed)}",
            "use the same settings, or delete it to start again",
        )
    load_state(model, _with_prefix(tensors, "model."))
    live = model.state_dict()
    for name, mean in _with_prefix(tensors, "mean.").items():
        # In the weight's memory layout, as kernels may round differently in another.
        means[name] = torch.empty_like(live[name]).copy_(mean)
    for index, parameter in enumerate(_parameters(optimiser)):
        if (momentum := tensors.get(f"momentum.{index}")) is not None:
            buffer = torch.empty_like(parameter).copy_(momentum)
            optimiser.state[parameter]["momentum_buffer"] = buffer
    return TrainingState(**{f.name: about[f.name] for f in fields(TrainingState)}), problem


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
