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

ADVICE = "delete it, and the run goes on from what is left or starts anew"


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


Content = tuple[dict[str, torch.Tensor], Config, dict[str, Any]]


def _read(path: Path) -> Content:
    """Tensors, configuration and facts; of the checkpoint before, with a warning, where one is damaged or missing."""
    path = Path(path)
    try:
        return _read_one(path)
    except CheckpointError as error:
        if not previous(path).is_file():
            raise
        found = _read_one(previous(path))
        warnings.warn(f"{error}. The one before it is used, {previous(path).name}", stacklevel=3)
        return found


def _read_one(path: Path) -> Content:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; notebook 04 or `lab5 train` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); {ADVICE}") from error
    if not {"config", "facts", "digest"} <= metadata.keys():
        raise CheckpointError(f"{path}: not a checkpoint of this version of the package; {ADVICE}")
    if metadata["digest"] != _digest(tensors, metadata):
        raise CheckpointError(f"{path}: damaged, its content is not what was written (checksum); {ADVICE}")
    tensors = {name: tensor.float() if tensor.dtype == torch.half else tensor    # kept so, to be shipped (recorded/)
               for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity, so it predicts nothing; {ADVICE}")
    try:
        config, facts = Config.from_json(metadata["config"]), json.loads(metadata["facts"])
        if not isinstance(facts, dict):
            raise ValueError(f"its facts are {facts!r:.80}, expected an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this package ({error}); {ADVICE}") from error
    return tensors, config, facts


def _part(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The model's or the optimizer's tensors of a checkpoint, by their own names."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _refuse_misfit(path: Path, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError that names the first tensor which is not of the type and shape expected."""
    def kind(tensor: torch.Tensor | None, none: str) -> str:
        return none if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    for name in [*expected, *found]:
        has, wants = kind(found.get(name), "missing"), kind(expected.get(name), "nothing of that name")
        if has != wants:
            raise CheckpointError(f"{path}: does not fit its configuration, {name} is {has}, expected {wants}; "
                                  f"{ADVICE}")


def load_model(path: Path) -> tuple[CVAE, dict[str, Any]]:
    """Rebuild a model from its checkpoint alone: the model in evaluation mode, and the facts saved beside it."""
    tensors, config, facts = _read(path)
    weights = _part(tensors, "model")
    with torch.device("meta"):                  # takes no memory, whatever sizes a stranger's configuration asks for
        model = CVAE(config, weights["condition_mean"].numel() if "condition_mean" in weights else 0)
    _refuse_misfit(path, weights, model.state_dict())
    model.load_state_dict(weights, assign=True)
    return model.eval(), facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts saved beside the weights. Raises CheckpointError as `load_model` does."""
    return _read(path)[2]


def restore(path: Path, model: CVAE, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Put a saved run's weights and optimizer state into these objects; returns the facts saved beside them."""
    tensors, config, facts = _read(path)
    if config != model.config:
        raise CheckpointError(f"{path}: was made with configuration {config.hash}, this run has {model.config.hash}; "
                              "choose another run folder")
    if not isinstance(facts.get("history"), list):
        raise CheckpointError(f"{path}: holds weights without the history of their training, so there is no going on; "
                              f"{ADVICE}")
    weights, moments = _part(tensors, "model"), _part(tensors, "optimizer")
    _refuse_misfit(path, weights, model.state_dict())
    stepped = {index: parameter for index, parameter in enumerate(optimizer.param_groups[0]["params"])
               if f"{index}.step" in moments}
    _refuse_misfit(path, moments, {f"{index}.{name}": like for index, parameter in stepped.items() for name, like in (
        ("step", torch.tensor(0.0)), ("exp_avg", parameter), ("exp_avg_sq", parameter))})
    # the fused Adam walks parameters and moments in the order of memory
    state = {index: {"step": moments[f"{index}.step"], **{
        name: torch.empty_like(parameter).copy_(moments[f"{index}.{name}"]) for name in ("exp_avg", "exp_avg_sq")}}
        for index, parameter in stepped.items()}
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
