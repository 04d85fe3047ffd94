"""Checkpoints that survive a kill and cannot run code: one safetensors file, replaced by one atomic rename.

Weights, optimizer state and position are in one file, so a kill leaves no two halves that disagree.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from lab5.config import Config
from lab5.files import file_sha, write_atomically
from lab5.model import CVAE

WAY_OUT = "Delete it: a training resumes from what is left, or starts again"
Tensors = dict[str, torch.Tensor]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for another model; says which file and what to do."""


def save(path: Path, model: CVAE, optimizer: torch.optim.Optimizer | None = None, **facts: Any) -> None:
    """Write the model, the optimizer's state and plain facts (epoch, best, ...). Raises OSError naming the file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = to_bytes(tensors, {"config": model.config.to_json(), "facts": json.dumps(facts)})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def weights_sha(path: Path) -> str:
    """Twelve hex digits of a checkpoint's SHA-256."""
    return file_sha(path)[:12]


def _read(path: Path) -> tuple[Tensors, Config, dict[str, Any]]:
    """Tensors, configuration and facts of a file whose tensors are finite."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; notebook 04 or `lab5 train` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
        config, facts = Config.model_validate_json(metadata["config"]), dict(json.loads(metadata["facts"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of this version of the package "
                              f"({type(error).__name__}: {error}). {WAY_OUT}") from error
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor       # recorded/ is in half precision
               for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {bad[0]} holds NaN or infinity. {WAY_OUT}")
    return tensors, config, facts


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _load_weights(path: Path, model: CVAE, tensors: Tensors, assign: bool = False) -> None:
    try:
        model.load_state_dict(_part(tensors, "model."), assign=assign)
    except RuntimeError as error:               # names every tensor that is missing, unknown or of another shape
        raise CheckpointError(f"{path}: does not fit its configuration: {error!s:.600}. {WAY_OUT}") from error


def load_model(path: Path) -> tuple[CVAE, dict[str, Any]]:
    """Rebuild a model from its checkpoint alone: the model in evaluation mode, and the facts saved beside it."""
    tensors, config, facts = _read(path)
    with torch.device("meta"):                  # takes no memory, whatever sizes the configuration asks for
        model = CVAE(config, tensors.get("model.condition_mean", torch.empty(0)).numel())
    _load_weights(path, model, tensors, assign=True)
    return model.eval(), facts


def restore(path: Path, model: CVAE, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Load a saved run's weights and optimizer state into these objects; returns the facts saved beside them."""
    tensors, config, facts = _read(path)
    if differences := model.config.differences(config):
        raise CheckpointError(f"{path}: was made with other settings ({'; '.join(differences)}). Choose another run "
                              "folder")
    _load_weights(path, model, tensors)
    parameters, state = optimizer.param_groups[0]["params"], defaultdict(dict)
    for key, tensor in _part(tensors, "optimizer.").items():
        index, name = key.split(".")
        # like the parameters in memory layout, since the fused Adam reads both in the order of memory
        state[int(index)][name] = tensor if name == "step" else torch.empty_like(parameters[int(index)]).copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
