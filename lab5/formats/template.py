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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_weights
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lab5.checkpoint import CheckpointError, Tensors
from lab5.config import Config
from lab5.model import CVAE

CONDITION = 7                                   # values of a frame's condition: action 4, position 3
FOREIGN = {*sys.stdlib_module_names, "torch", "numpy"}         # packages that are not the student's own
HARMLESS = re.compile(r"torch\.(nn\.modules|nn\.parallel|optim|amp)\..+|(argparse\.|types\.Simple)Namespace|"
                      r"(pathlib|datetime)\..+|collections\.defaultdict|builtins\.dict|numpy\.(dtype|ndarray)|"
                      r"numpy\._?core\.multiarray\.(scalar|_reconstruct)")
WAY_OUT = ("Copy it again, or save it again where it was trained: what can be converted is a zip file of torch.save "
           "(1.6 or newer) with encoder and decoder (vgg_64), frame_predictor, posterior, perhaps prior, and the "
           "settings as args or opt")


class Inert:
    """What an object of the file becomes: it keeps its state and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def convert(path: Path, condition: str = "previous", order: str = "hzc", skip: str = "") -> CVAE:
    """Read a checkpoint as a model that predicts the same, in evaluation mode.

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
    try:
        saved = _read(path)
        settings = saved.get("args", saved.get("opt"))
        settings = getattr(settings, "state", settings) or {}
        theirs = {f"{name}.{key.removeprefix('module.')}": tensor
                  for name in ("encoder", "decoder", "frame_predictor", "posterior", *["prior"] * ("prior" in saved))
                  for key, tensor in _tensors(saved[name]).items() if not key.endswith("num_batches_tracked")}
        if sum(tensor.nbytes for tensor in theirs.values()) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")            # a view repeats one number at will
        if bad := [name for name, tensor in theirs.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{bad[0]} holds NaN or infinity")
        config = _config(theirs, settings, condition, skip)
        with torch.device("meta"):              # takes no memory, whatever sizes the file asks for
            model = CVAE(config, CONDITION)
        ours = _state_dict({name: tensor.double() for name, tensor in theirs.items()}, model, order)
        model.load_state_dict({name: tensor.float() for name, tensor in ours.items()}, assign=True)
    except Exception as error:                  # of a dozen kinds: it depends on where the file is damaged or another
        raise CheckpointError(f"{path}: is not the template's model ({type(error).__name__}: {str(error):.600}). "
                              f"{WAY_OUT}") from error
    return model.eval()


def _read(path: Path) -> Any:
    """What was saved with torch.save, its objects `Inert`: nothing that the file names is imported or called."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it would be larger unpacked, and torch.save does not compress")
        # reading compares the checksums, which torch does not; and torch would make a bytearray of any size
        refused = ["bytearray"] * any([b"bytearray" in archive.read(name) for name in archive.namelist()])
    names = get_unsafe_globals_in_checkpoint(path)
    refused += [name for name in names if name.partition(".")[0] in FOREIGN and not HARMLESS.fullmatch(name)]
    if refused:
        raise ValueError(f"it names {', '.join(sorted(refused))}, which trained weights do not need; it may be an "
                         "attack and was not opened")
    inert = dict.fromkeys(names, Inert) | {"collections.defaultdict": lambda *factory: {}}
    with safe_globals([(stand_in, name) for name, stand_in in inert.items()]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(saved: Any) -> Tensors:
    """The state dict of an inert module, from where nn.Module keeps it; a state dict is taken as it is."""
    if isinstance(saved, Mapping):
        return dict(saved)
    own = saved.state["_parameters"] | saved.state["_buffers"]
    children = {f"{name}.{key}": tensor for name, child in saved.state["_modules"].items()
                for key, tensor in _tensors(child).items()}
    return {name: tensor for name, tensor in own.items() if tensor is not None} | children


def _config(theirs: Tensors, settings: Mapping, condition: str, skip: str) -> Config:
    """Sizes from the shapes, numbers of frames and skips from the settings, the rest as it is by default."""
    g_dim, z_dim = theirs["encoder.c5.0.weight"].shape[0], theirs["posterior.mu_net.weight"].shape[0]
    embeds = {name.split(".")[0]: tensor for name, tensor in theirs.items() if name.endswith(".embed.weight")}
    conditioned = any(embed.shape[1] > g_dim + z_dim * (name == "frame_predictor") for name, embed in embeds.items())
    layers = {name: sum(key.startswith(f"{name}.lstm") for key in theirs) // 4 for name in embeds}
    return Config().replace(
        width=theirs["encoder.c1.0.main.0.weight"].shape[0], g_dim=g_dim, z_dim=z_dim, condition_dim=CONDITION,
        rnn_size=len(embeds["frame_predictor"]), predictor_layers=layers["frame_predictor"],
        posterior_layers=layers["posterior"], prior_layers=layers.get("prior", 1), learned_prior="prior" in layers,
        condition=condition if conditioned else "none",
        skip=skip or ("latest" if settings.get("last_frame_skip") else "early"),
        **{name: settings[name] for name in ("n_past", "n_future") if name in settings})


def _state_dict(theirs: Tensors, model: CVAE, order: str) -> Tensors:
    """The model's state dict from theirs, which is used up."""
    ours = _convolutions(theirs, model)
    ours |= {"condition_mean": torch.zeros(model.condition_dim), "condition_std": torch.ones(model.condition_dim)}
    if model.embed_condition:                                   # the condition as it is
        ours |= {"embed_condition.weight": torch.eye(CONDITION), "embed_condition.bias": torch.zeros(CONDITION)}
    if "frame_predictor.output.1.weight" in theirs:             # the template's; SVG has no norm there
        linear = [f"frame_predictor.output.0.{key}" for key in ("weight", "bias")]
        mean, var, weight, bias = (theirs.pop(f"frame_predictor.output.1.{key}")
                                   for key in ("running_mean", "running_var", "weight", "bias"))
        fused = fuse_linear_bn_weights(*map(theirs.get, linear), mean, var, 1e-5, weight, bias)
        theirs |= zip(linear, fused, strict=True)
    for key, tensor in theirs.items():
        name = re.sub(r"\.lstm\.(\d+)\.(\w+)$", r".lstm.\2_l\1", key).replace(".output.0.", ".to_g.0.")
        ours[name.replace(".mu_net.", ".to_mu.").replace(".logvar_net.", ".to_logvar.")] = tensor
        if key.endswith(".embed.weight"):
            ours[key] = _reordered(tensor, model.config, order if key.startswith("frame") else order.replace("z", ""))
    return ours


def _convolutions(theirs: Tensors, model: CVAE) -> Tensors:
    """Encoder and decoder. Their layers, [convolution, norm], sorted by name are ours as they are constructed."""
    layers = [name.removesuffix(".1.running_mean") for network in ("encoder", "decoder") for name in sorted(theirs)
              if name.startswith(network) and name.endswith(".1.running_mean")]
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    convolutions = [name for name in names if not name.endswith(("from_skip", "to_pixels"))]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    ours = {}
    for name, convolution, norm in zip(layers, convolutions, norms, strict=True):
        ours[f"{convolution}.weight"] = theirs.pop(f"{name}.0.weight")
        ours |= {f"{norm}.{key}": theirs.pop(f"{name}.1.{key}") for key in ("weight", "bias", "running_var")}
        # the mean takes up the convolution's bias: (x + bias) - mean = x - (mean - bias)
        ours[f"{norm}.running_mean"] = theirs.pop(f"{name}.1.running_mean") - theirs.pop(f"{name}.0.bias")
    for block in (f"decoder.blocks.{number}" for number in range(4)):                           # of [above, skip]
        ours[f"{block}.from_above.weight"], ours[f"{block}.from_skip.weight"] = (
            ours[f"{block}.from_above.weight"].chunk(2, dim=1))
    ours["decoder.to_pixels.weight"] = theirs.pop("decoder.upc5.1.weight").transpose(0, 1).flip(2, 3)   # a transposed
    ours["decoder.to_pixels.bias"] = theirs.pop("decoder.upc5.1.bias")                                  # convolution's
    return ours


def _reordered(weight: torch.Tensor, config: Config, order: str) -> torch.Tensor:
    """The columns of an embedding from `order` to [h, c, z]; where it has no condition but the model has, zeros."""
    sizes = {"h": config.g_dim, "z": config.z_dim * ("z" in order)}
    sizes["c"] = weight.shape[1] - sum(sizes.values())
    columns = dict(zip(order, weight.split([sizes[letter] for letter in order], dim=1), strict=True))
    if config.condition != "none" and sizes["c"] == 0:
        columns["c"] = weight.new_zeros(len(weight), CONDITION)
    return torch.cat([columns[letter] for letter in "hcz" if letter in columns], dim=1)
