"""The `model.pth` of the course's template or of SVG (github.com/edenton/svg) as a model of this package.

Those files are pickles of whole modules. Torch's restricted reader opens them: it reads the tensors, makes any other
object an `Inert` one, and runs no code of the file. Checked on the real modules and generation loops of SVG and of six
public copies of the template in evaluation mode: predictions are equal to 1e-6. SVG's own generation script leaves
encoder and decoder in training mode, so that its batch norms use the statistics of each batch: it predicts otherwise.
"""

from __future__ import annotations

import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.config import Config
from lab5.model import CVAE

Tensors = dict[str, torch.Tensor]
CONDITION = 7                                   # values of a frame's condition: action 4, position 3
NETWORKS = ("encoder", "decoder", "frame_predictor", "posterior")
FOREIGN = {*sys.stdlib_module_names, "torch", "numpy"}         # packages that are not the student's own
HARMLESS = re.compile(r"torch\.(nn\.modules|nn\.parallel|optim|amp)\..+|(argparse\.|types\.Simple)Namespace|"
                      r"(pathlib|datetime)\..+|collections\.defaultdict|builtins\.dict|numpy\.(dtype|ndarray)|"
                      r"numpy\._?core\.multiarray\.(scalar|_reconstruct)")
WAY_OUT = ("What can be converted is a file of torch.save with encoder and decoder (vgg_64), frame_predictor, "
           "posterior, perhaps prior, and the settings as args or opt")
LAYERS = {                                      # the template's [convolution, norm] -> our convolution and our norm
    "encoder.c5": ("encoder.to_vector.0", "encoder.to_vector.1"),
    "decoder.upc1": ("decoder.from_vector", "decoder.activation.norm"),
    **{f"encoder.c{block + 1}.{layer}.main":
       (f"encoder.blocks.{block}.convolutions.{layer}", f"encoder.blocks.{block}.activations.{layer}.norm")
       for block, layers in enumerate((2, 2, 3, 3)) for layer in range(layers)},
    **{f"decoder.upc{block + 2}.0.main":
       (f"decoder.blocks.{block}.from_above", f"decoder.blocks.{block}.activation.norm") for block in range(4)},
    **{f"decoder.upc{block + 2}.{layer + 1}.main":
       (f"decoder.blocks.{block}.convolutions.convolutions.{layer}",
        f"decoder.blocks.{block}.convolutions.activations.{layer}.norm")
       for block, layers in enumerate((2, 2, 1, 0)) for layer in range(layers)}}


@dataclass(frozen=True)
class Converted:
    """The model in evaluation mode, and what had to be assumed."""

    model: CVAE
    notes: list[str]


class Inert:
    """What an object of the file becomes: it keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def convert(path: str | Path, condition: str = "previous", order: str = "hzc", skip: str = "") -> Converted:
    """Read a checkpoint as a model that predicts the same.

    Three things are in the training script and not in the file. Of eight public copies of the template four condition
    step t on frame t-1 and four on t; five concatenate h, z, condition and three condition, h, z; seven, and SVG, take
    skips while `i < n_past`, so the last ones come from the frame before the last context frame.

    Args:
        condition: the frame whose condition the step t-1 -> t was given: previous (t-1) or target (t).
        order: of the predictor's input, a permutation of h, z and c (condition); the posterior's is the same less z.
        skip: the decoder's skips, as `Config.skip`; empty: latest where args.last_frame_skip is set, else early.
    Raises:
        CheckpointError: a file that cannot be read, or whose model is not the template's.
    """
    saved = _read(Path(path))
    keys = [str(key) for key in saved] if isinstance(saved, Mapping) else []
    if missing := [name for name in NETWORKS if name not in keys]:
        raise CheckpointError(f"{path}: has no {', '.join(missing)}, its keys are {str(keys):.300}. {WAY_OUT}")
    settings = saved.get("args", saved.get("opt"))
    settings = getattr(settings, "state", settings)
    settings = settings if isinstance(settings, Mapping) else {}
    try:
        theirs = {f"{name}.{key.removeprefix('module.')}": tensor.double() for name in (*NETWORKS, "prior")
                  for key, tensor in _tensors(saved.get(name)).items() if not key.endswith("num_batches_tracked")}
        config = _config(theirs, settings, condition, skip)
        model = CVAE(config, CONDITION if config.condition != "none" else 0)
        model.load_state_dict(_state_dict(theirs, config, order))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is not the template's model ({type(error).__name__}: {str(error):.600}). "
                              f"{WAY_OUT}") from error
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {broken[0]} holds NaN or infinity; convert an earlier checkpoint")
    used = {"n_past": config.n_past, "n_future": config.n_future, "last_frame_skip": f"skip {config.skip}"}
    return Converted(model.eval(), [f"the file's settings do not say {name}: {value} is assumed"
                                    for name, value in used.items() if name not in settings])


def save(converted: Converted, run: str | Path) -> Path:
    """Write the weights as those of a new run folder, and return their path. Raises ValueError if it is not empty."""
    run = Path(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run}: is not empty; choose another folder for the converted weights")
    checkpoint.save(run / "best.safetensors", converted.model, epoch=0)
    return run / "best.safetensors"


def _read(path: Path) -> Any:
    """What was saved with torch.save, its objects `Inert`: nothing that the file names is imported or called."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: is not a whole zip file of torch.save. If it is cut off, copy it again. If torch before 1.6 "
            "wrote it, it cannot be read without running its code: if you trust it, save it again where it was "
            "trained, torch.save(torch.load('model.pth', weights_only=False), 'new.pth')")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():    # torch does not compare the checksums that it writes
                raise ValueError(f"{damaged} does not match its checksum")
        names = get_unsafe_globals_in_checkpoint(path)
        tops = {name: name.partition(".")[0] for name in names}         # some with their Python 2 names
        refused = sorted(name for name, top in tops.items()
                         if IMPORT_MAPPING.get(top, top) in FOREIGN and not HARMLESS.fullmatch(name))
        if not refused:
            inert = {name: Inert for name in names} | {"collections.defaultdict": lambda *factory: {}}
            with safe_globals([(stand_in, name) for name, stand_in in inert.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                  # what a damaged zip or pickle raises depends on where it is damaged
        raise CheckpointError(f"{path}: is damaged or not a checkpoint of torch.save ({type(error).__name__}: "
                              f"{str(error):.160}); copy it again. {WAY_OUT}") from error
    raise CheckpointError(f"{path}: names {', '.join(refused)}, which trained weights do not need; it may be an attack "
                          f"and was not opened. If the file is your own, save it again without them. {WAY_OUT}")


def _tensors(saved: Any) -> Tensors:
    """The state dict of an inert module, from where nn.Module keeps it; a state dict is taken as it is."""
    if isinstance(saved, Mapping) or saved is None:
        return dict(saved or {})
    own = saved.state["_parameters"] | saved.state["_buffers"]
    children = {f"{name}.{key}": tensor for name, child in saved.state["_modules"].items()
                for key, tensor in _tensors(child).items()}
    return {name: tensor for name, tensor in own.items() if tensor is not None} | children


def _config(theirs: Tensors, settings: Mapping, condition: str, skip: str) -> Config:
    """Sizes from the shapes, numbers of frames and skips from the settings, the rest as it is by default."""
    g_dim, z_dim = theirs["encoder.c5.0.weight"].shape[0], theirs["posterior.mu_net.weight"].shape[0]
    embeds = {name.split(".")[0]: tensor for name, tensor in theirs.items() if name.endswith(".embed.weight")}
    widths = {name: embed.shape[1] - g_dim - (name == "frame_predictor") * z_dim for name, embed in embeds.items()}
    if not {*widths.values()} <= {0, CONDITION}:
        raise ValueError(f"beside h ({g_dim}) and z ({z_dim}) its inputs are of size {widths}, expected 0 or the "
                         f"{CONDITION} values of action and position")
    layers = {name: sum(key.startswith(f"{name}.lstm") for key in theirs) // 4 for name in embeds}
    return Config().replace(
        width=theirs["encoder.c1.0.main.0.weight"].shape[0], g_dim=g_dim, z_dim=z_dim, condition_dim=CONDITION,
        rnn_size=len(embeds["frame_predictor"]), predictor_layers=layers["frame_predictor"],
        posterior_layers=layers["posterior"], prior_layers=layers.get("prior", 1), learned_prior="prior" in layers,
        condition=condition if any(widths.values()) else "none",
        skip=skip or ("latest" if settings.get("last_frame_skip") else "early"),
        **{name: settings[name] for name in ("n_past", "n_future") if name in settings})


def _state_dict(theirs: Tensors, config: Config, order: str) -> Tensors:
    """Our model's state dict from theirs, which is used up."""
    size = CONDITION if config.condition != "none" else 0
    ours = {"condition_mean": torch.zeros(size), "condition_std": torch.ones(size)}             # conditions stay raw
    ours |= {"embed_condition.weight": torch.eye(size), "embed_condition.bias": torch.zeros(size)} if size else {}
    for name, (convolution, norm) in LAYERS.items():            # (x + bias) - mean = x - (mean - bias)
        ours[f"{convolution}.weight"] = theirs.pop(f"{name}.0.weight")
        ours |= {f"{norm}.{key}": theirs.pop(f"{name}.1.{key}") for key in ("weight", "bias", "running_var")}
        ours[f"{norm}.running_mean"] = theirs.pop(f"{name}.1.running_mean") - theirs.pop(f"{name}.0.bias")
    for block in (f"decoder.blocks.{number}" for number in range(4)):                           # of [above, skip]
        ours[f"{block}.from_above.weight"], ours[f"{block}.from_skip.weight"] = (
            ours[f"{block}.from_above.weight"].chunk(2, dim=1))
    ours["decoder.to_pixels.weight"] = theirs.pop("decoder.upc5.1.weight").transpose(0, 1).flip(2, 3)   # a transposed
    ours["decoder.to_pixels.bias"] = theirs.pop("decoder.upc5.1.bias")                                  # convolution's
    if "frame_predictor.output.1.weight" in theirs:             # the template's; SVG has no norm there
        weight, bias, mean, var = (theirs.pop(f"frame_predictor.output.1.{key}")
                                   for key in ("weight", "bias", "running_mean", "running_var"))
        scale = weight / (var + 1e-5).sqrt()
        theirs["frame_predictor.output.0.weight"] *= scale[:, None]
        theirs["frame_predictor.output.0.bias"] = scale * (theirs["frame_predictor.output.0.bias"] - mean) + bias
    for key, tensor in theirs.items():
        name = re.sub(r"\.lstm\.(\d+)\.(\w+)$", r".lstm.\2_l\1", key).replace(".output.0.", ".to_g.0.")
        ours[name.replace(".mu_net.", ".to_mu.").replace(".logvar_net.", ".to_logvar.")] = tensor
        if key.endswith(".embed.weight"):
            ours[key] = _reordered(tensor, config, order if key.startswith("frame") else order.replace("z", ""))
    return ours


def _reordered(weight: torch.Tensor, config: Config, order: str) -> torch.Tensor:
    """The columns of an embedding from `order` to [h, c, z]; where it has no condition but the model has, zeros."""
    sizes = {"h": config.g_dim, "z": config.z_dim * ("z" in order)}
    sizes["c"] = weight.shape[1] - sum(sizes.values())
    columns = dict(zip(order, weight.split([sizes[letter] for letter in order], dim=1), strict=True))
    if config.condition != "none" and sizes["c"] == 0:
        columns["c"] = weight.new_zeros(len(weight), CONDITION)
    return torch.cat([columns[letter] for letter in "hcz" if letter in columns], dim=1)
