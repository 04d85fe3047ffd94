"""Checkpoints that survive a kill and cannot run code: one safetensors file, replaced atomically.

Weights, optimizer state and position travel in one file, so no kill can leave two halves that disagree. It carries
a digest of all of them, and the checkpoint before it stays beside it: of a file that a failing disk has changed
nothing is believed, and the run goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from lab5.config import Config
from lab5.files import write_atomically
from lab5.model import CVAE


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for another model; says which file and what to do."""


def save(path: Path, model: CVAE, optimizer: torch.optim.Optimizer | None = None, **facts: Any) -> None:
    """Write the model, and what a run needs to go on: the optimizer's state and plain facts (epoch, best, ...).

    What was in the file before is kept beside it, as `previous(path)`. Raises OSError where it cannot be written.
    """
    path = Path(path)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"config": model.config.to_json(), "facts": json.dumps(facts)}
    content = to_bytes(tensors, metadata | {"digest": _digest(tensors, metadata)})
    write_atomically(path, lambda temporary: temporary.write_bytes(content), keep=previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint that was in a file before its last change is kept."""
    return path.with_suffix(f".previous{path.suffix}")


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """What changes with any bit of a checkpoint."""
    content = hashlib.sha256(f"{metadata['config']}{metadata['facts']}".encode())
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        content.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def digest(path: Path) -> str:
    """Twelve hex digits that stand for a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint; of the one before it, with a warning, where it is damaged or missing."""
    path = Path(path)
    try:
        return _read_one(path)
    except CheckpointError as error:
        if not previous(path).is_file():
            raise
        found = _read_one(previous(path))
        warnings.warn(f"{error}. The one before it is used, {previous(path).name}", stacklevel=3)
        return found


def _read_one(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; notebook 04 or `lab5 train` makes it")
    advice = "delete it, and the run goes on from what is left or starts anew"
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); {advice}") from error
    if not {"config", "facts", "digest"} <= metadata.keys():
        raise CheckpointError(f"{path}: not a checkpoint of this version of the package; {advice}")
    if metadata["digest"] != _digest(tensors, metadata):
        raise CheckpointError(f"{path}: damaged, its content is not what was written (checksum); {advice}")
    return tensors, metadata


def load_model(path: Path) -> tuple[CVAE, dict[str, Any]]:
    """Rebuild a model from its checkpoint alone: the model in evaluation mode, and the facts saved beside it."""
    tensors, metadata = _read(path)
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    try:
        config = Config.from_dict(json.loads(metadata["config"]))
        model = CVAE(config, condition_width=len(weights["condition_mean"]))
        model.load_state_dict(weights)
        return model.eval(), json.loads(metadata["facts"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this package ({error})") from error


def read_facts(path: Path) -> dict[str, Any]:
    """The facts saved beside the weights. Raises CheckpointError as `load_model` does."""
    return json.loads(_read(path)[1]["facts"])


def restore(path: Path, model: CVAE, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved run's weights and optimizer state into these objects; returns the facts saved beside them."""
    tensors, metadata = _read(path)
    saved = Config.from_dict(json.loads(metadata["config"]))
    if saved != model.config:
        raise CheckpointError(f"{path}: was made with configuration {saved.hash}, this run has {model.config.hash}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:                 # the fused Adam walks both in the order of memory
                tensor = torch.empty_like(parameter).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()
                           if name.startswith("model.")})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["facts"])
