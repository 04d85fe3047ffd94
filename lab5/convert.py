"""The `model.pth` of the course's template, or of SVG, as a run folder of this package: read, never run.

Those files are pickles of whole modules, and a pickle may call whatever it names. Here torch's restricted reader
opens it: tensors are built, everything else that a checkpoint has reason to name becomes an object that only keeps
its state, and a file that names more is refused. What code the template's modules run is not in the file; it is
taken to be that of `models/vgg_64.py` and `models/lstm.py`, and converted exactly:

- a bias before a batch norm moves into the norm's running mean: (x + b) - mean = x - (mean - b);
- the convolution over [upsampled, skip] is split into one over each;
- the transposed convolution that ends the decoder is one with the flipped, transposed kernel;
- raw conditions are embedded by the identity, and the LSTMs' inputs are put into the order [h, c, z].
"""

from __future__ import annotations

import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.config import Config
from lab5.latents import Recurrent
from lab5.layers import Convolutions, Decoder, Encoder
from lab5.model import CVAE

CONDITION = 7                                   # numbers that the template tells of a step: action 4, position 3
NETWORKS = ("encoder", "decoder", "frame_predictor", "posterior")
WAY_OUT = ("What can be converted is a file that the template's training saved: encoder, decoder, frame_predictor, "
           "posterior and args, with the template's own vgg_64 and lstm modules")
PLAIN = {"argparse.Namespace", "numpy.dtype", "numpy.ndarray",                  # settings, and scores kept beside them
         *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct"))}


# ---- reading ----

class Inert:
    """What an object of the file becomes: it keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_expected(name: str) -> bool:
    """Whether a checkpoint has reason to name this global: layers, an optimizer's class, settings, own classes.

    Own is what neither Python, torch nor numpy brings. Any of them becomes `Inert`; the others are no part of a
    trained model, and a file that names them is not one.
    """
    top = name.partition(".")[0]
    top = IMPORT_MAPPING.get(top, top)          # pickles name some of Python's modules as Python 2 did
    own = top not in sys.stdlib_module_names and top not in ("torch", "numpy")
    return own or name in PLAIN or name.startswith(("torch.nn.modules.", "torch.optim."))


def read(path: Path) -> Any:
    """What was saved with torch.save, its objects `Inert`. No code of the file runs, and nothing that it names.

    Raises CheckpointError: no such file, no checkpoint, an old or damaged one, or one that names what it should not.
    """
    _check_format(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():    # torch does not compare the checksums that it writes
                raise ValueError(f"{damaged} is not what was written")
        names = get_unsafe_globals_in_checkpoint(path)
        unexpected = sorted(name for name in names if not is_expected(name))
        if not unexpected:
            with safe_globals([(Inert, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                  # what a damaged zip or pickle raises depends on where it is damaged
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, cut off, or not a checkpoint of torch.save ({reason}); "
                              f"copy it again. {WAY_OUT}") from error
    raise CheckpointError(f"{path}: names {', '.join(unexpected)}, which a trained model has no need of, so it was not "
                          f"opened: it may be an attack. If it is your own, save it again without. {WAY_OUT}")


def _check_format(path: Path) -> None:
    """Raises CheckpointError unless the file begins as torch.save's zip format does."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with open(path, "rb") as file:
        start = file.read(4)
    if start.startswith(b"\x80"):               # the opcode that begins a bare pickle
        raise CheckpointError(
            f"{path}: a bare pickle, torch's format before 1.6, where modules cannot be read without running code; it "
            "was not opened. If you trust it, save it again where it was trained: "
            "torch.save(torch.load('model.pth', weights_only=False), 'new.pth')")
    if start != b"PK\x03\x04":
        raise CheckpointError(f"{path}: begins with {start!r}, expected a zip file of torch.save. {WAY_OUT}")


def _tensors(module: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict of an inert module, from where nn.Module keeps it."""
    own = module.state["_parameters"] | module.state["_buffers"]
    found = {prefix + name: tensor.detach() for name, tensor in own.items() if tensor is not None}
    for name, child in module.state["_modules"].items():
        found |= _tensors(child, f"{prefix}{name}.") if child is not None else {}
    return found


class Network:
    """One of the file's networks: its tensors, each of which is to be taken once, in the shape that it must have."""

    def __init__(self, path: Path, name: str, saved: Any) -> None:
        self.where = f"{path}: {name}"
        try:
            tensors = dict(saved) if isinstance(saved, Mapping) else _tensors(saved)        # a state dict will do
            self.tensors = {key: tensor.to("cpu", torch.float32) for key, tensor in tensors.items()
                            if not key.endswith("num_batches_tracked")}
            if any(tensor.untyped_storage().nbytes() < tensor.nbytes for tensor in self.tensors.values()):
                raise RuntimeError("shapes that are larger than what is stored")
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.where} holds no weights of a module. {WAY_OUT}") from error

    def size(self, name: str, axis: int = 0) -> int:
        """Length of one axis of a weight, from which the model's sizes are read."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        if len(shape) <= axis:
            raise CheckpointError(f"{self.where} has no weight {name}, but {self._some()}. {WAY_OUT}")
        return shape[axis]

    def layers(self) -> int:
        """LSTM cells."""
        return max(sum(name.startswith("lstm.") and name.endswith(".weight_ih") for name in self.tensors), 1)

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor, which is then no longer left. Raises CheckpointError if it is missing or of another shape."""
        tensor = self.tensors.pop(name, None)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise CheckpointError(f"{self.where}.{name} {found}, expected shape {shape}. {WAY_OUT}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{self.where}.{name} holds NaN or infinity, so the model predicts nothing: convert "
                                  "an earlier checkpoint, from before the training diverged")
        return tensor

    def finish(self) -> None:
        """Raises CheckpointError where something is left: another model, whose predictions would be others."""
        if self.tensors:
            raise CheckpointError(f"{self.where} has more than the template's: {self._some()}. {WAY_OUT}")

    def _some(self) -> str:
        names = sorted(self.tensors)
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"


# ---- converting ----

@dataclass(frozen=True)
class Converted:
    """The model, and what whoever converted it should know."""

    model: CVAE
    notes: list[str]


def convert(path: Path, condition: str = "previous", order: str = "hzc", skip: str = "") -> Converted:
    """Read a template's checkpoint as a model that predicts the same.

    Three things are in the template's training loop and not in the file, so the caller says them.

    Args:
        condition: which step's raw condition t-1 -> t was told: previous or target.
        order: of the predictor's input, a permutation of h, z and c (condition); the posterior's is the same less z.
        skip: the decoder's skips, as `Config.skip`; empty: context, or latest where args.last_frame_skip is set.
    Raises:
        CheckpointError: a file that cannot be read, or whose model is not the template's.
    """
    saved = read(path)
    found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
    missing = [name for name in NETWORKS if not isinstance(saved, Mapping) or name not in saved]
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(missing)}; found {str(found)[:300]}. {WAY_OUT}")
    names = [*NETWORKS, *(["prior"] if saved.get("prior") is not None else [])]
    networks = {name: Network(path, name, saved[name]) for name in names}
    settings = getattr(saved.get("args", saved.get("opt")), "state", None)
    told = settings if isinstance(settings, dict) else {}
    config = _config(path, networks, told, condition, skip)
    model = CVAE(config, CONDITION if config.condition != "none" else 1)    # one number fits data with and without
    with torch.no_grad():
        _fill(model, networks, order)
    for network in networks.values():
        network.finish()
    return Converted(model.eval(), _notes(config, told))


def save(converted: Converted, run: Path) -> Path:
    """Write the weights as those of a new run folder, and return their path. Raises ValueError if it is not empty."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run}: is there already and not empty; name another folder for the converted weights")
    checkpoint.save(run / "best.safetensors", converted.model, epoch=0)         # none of this package's training
    return run / "best.safetensors"


def _config(path: Path, networks: dict[str, Network], told: dict[str, Any], condition: str, skip: str) -> Config:
    """The model's settings: sizes from the shapes, numbers of frames from args, the rest as it is by default."""
    recurrent = {name: network for name, network in networks.items() if name not in ("encoder", "decoder")}
    g_dim, z_dim = networks["encoder"].size("c5.0.weight"), networks["posterior"].size("mu_net.weight")
    widths = {name: network.size("embed.weight", 1) - g_dim - (z_dim if name == "frame_predictor" else 0)
              for name, network in recurrent.items()}
    strange = [f"{name} {width}" for name, width in widths.items() if width not in (0, CONDITION)]
    if strange:
        raise CheckpointError(f"{path}: beside h ({g_dim}) and z ({z_dim}) the input is wide: {', '.join(strange)}; "
                              f"expected 0 or the {CONDITION} numbers of action and position. {WAY_OUT}")
    optional = {"learned_prior": True, "prior_layers": networks["prior"].layers()} if "prior" in networks else {}
    frames = {name: told[name] for name in ("n_past", "n_future") if name in told}
    try:
        return Config().replace(
            width=networks["encoder"].size("c1.0.main.0.weight"), g_dim=g_dim, z_dim=z_dim, condition_dim=CONDITION,
            rnn_size=networks["frame_predictor"].size("embed.weight"), condition=condition if any(widths.values())
            else "none", predictor_layers=networks["frame_predictor"].layers(),
            posterior_layers=networks["posterior"].layers(), **frames, **optional,
            skip=skip or ("latest" if told.get("last_frame_skip") is True else "context"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _notes(config: Config, told: dict[str, Any]) -> list[str]:
    """Where the file's args say something else than its shapes, or nothing."""
    sizes = {name: getattr(config, name) for name in ("g_dim", "z_dim", "rnn_size", "predictor_layers")}
    said = {name: told.get(name.replace("predictor_layers", "predictor_rnn_layers"), size)
            for name, size in sizes.items()}
    return [*(f"args say {name} {said[name]}, the weights {size}: the weights count"
              for name, size in sizes.items() if said[name] != size),
            *(f"args do not say {name}: {getattr(config, name)} is assumed"
              for name in ("n_past", "n_future") if name not in told)]


def _fill(model: CVAE, networks: dict[str, Network], order: str) -> None:
    """Put all of the networks' tensors into the model."""
    _fill_encoder(model.encoder, networks["encoder"])
    _fill_decoder(model.decoder, networks["decoder"])
    if model.embed_condition is not None:
        nn.init.eye_(model.embed_condition.weight)
        nn.init.zeros_(model.embed_condition.bias)
    gaussians = {"posterior": model.posterior} | ({"prior": model.prior} if "prior" in networks else {})
    for name, ours in gaussians.items():
        _fill_recurrent(ours, networks[name], model.config, order.replace("z", ""))
        _fill_linear(ours.to_mu, networks[name], "mu_net")
        _fill_linear(ours.to_logvar, networks[name], "logvar_net")
    _fill_recurrent(model.predictor, networks["frame_predictor"], model.config, order)
    _fill_linear(model.predictor.to_g[0], networks["frame_predictor"], "output.0")


def _fill_encoder(encoder: Encoder, network: Network) -> None:
    for number, block in enumerate(encoder.blocks, 1):
        _fill_convolutions(block, network, f"c{number}")
    _fill_layer([encoder.to_vector[0].weight], encoder.to_vector[1], network, "c5")


def _fill_decoder(decoder: Decoder, network: Network) -> None:
    _fill_layer([decoder.from_vector.weight], decoder.activate.norm, network, "upc1")
    for number, level in enumerate(decoder.levels, 2):
        _fill_layer([level.from_above.weight, level.from_skip.weight], level.activate.norm, network,
                    f"upc{number}.0.main")
        _fill_convolutions(level.convolutions, network, f"upc{number}", first=1)
    last = decoder.to_pixels
    kernel = network.take("upc5.1.weight", *last.weight.transpose(0, 1).shape)                  # (w, 3, 3, 3)
    last.weight.copy_(kernel.transpose(0, 1).flip(2, 3))
    last.bias.copy_(network.take("upc5.1.bias", *last.bias.shape))


def _fill_convolutions(ours: Convolutions, network: Network, source: str, first: int = 0) -> None:
    """A Sequential of vgg_layers, from its element `first` on."""
    for index, (convolve, activate) in enumerate(zip(ours.convolutions, ours.activations, strict=True), first):
        _fill_layer([convolve.weight], activate.norm, network, f"{source}.{index}.main")


def _fill_layer(weights: list[torch.Tensor], norm: nn.BatchNorm2d, network: Network, source: str) -> None:
    """A convolution and its batch norm; `weights` are its parts along the second axis."""
    whole = network.take(f"{source}.0.weight", *torch.cat(weights, dim=1).shape)
    for weight, part in zip(weights, whole.split([weight.shape[1] for weight in weights], dim=1), strict=True):
        weight.copy_(part)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).copy_(network.take(f"{source}.1.{name}", norm.num_features))
    norm.running_mean -= network.take(f"{source}.0.bias", norm.num_features)


def _fill_recurrent(ours: Recurrent, network: Network, config: Config, order: str) -> None:
    """Embedding and LSTM cells. Columns of the input go from `order` to [h, c, z]; no condition becomes zeros."""
    hidden, n_in = ours.embed.weight.shape
    c_dim = config.condition_dim if config.condition != "none" else 0
    sizes = {"h": config.g_dim, "z": config.z_dim if "z" in order else 0}
    sizes["c"] = network.size("embed.weight", 1) - sum(sizes.values())
    theirs = network.take("embed.weight", hidden, sum(sizes.values())).split([sizes[name] for name in order], dim=1)
    columns = dict(zip(order, theirs, strict=True))
    if sizes["c"] == 0:
        columns["c"] = torch.zeros(hidden, c_dim)
    ours.embed.weight.copy_(torch.cat([columns[name] for name in "hcz" if name in columns], dim=1))
    ours.embed.bias.copy_(network.take("embed.bias", hidden))
    for layer in range(ours.lstm.num_layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            parameter = getattr(ours.lstm, f"{name}_l{layer}")
            parameter.copy_(network.take(f"lstm.{layer}.{name}", *parameter.shape))


def _fill_linear(ours: nn.Linear, network: Network, source: str) -> None:
    ours.weight.copy_(network.take(f"{source}.weight", *ours.weight.shape))
    ours.bias.copy_(network.take(f"{source}.bias", *ours.bias.shape))
