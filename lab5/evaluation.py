"""How good the predictions are: protocols over a split, scores of every sequence, intervals, baselines.

The graded number is the average of protocol "prior_sample": one z per step from the prior for each sequence, its
context frames given, the lab's PSNR of every predicted frame, the mean over frames and sequences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lab5.config import Config
from lab5.data import Batch, DataError, Pack, evaluation_loader, to_video
from lab5.files import tune_malloc, write_text
from lab5.metrics import grade, psnr, ssim
from lab5.model import CVAE

PROTOCOLS = {                                   # key -> what a reader sees
    "prior_sample": "prior sample (graded)",
    "prior_mean": "prior mean",
    "best_of_n": "best of N samples",
    "repeat_last": "last context frame repeated",
    "copy_previous": "previous true frame copied",
}
METRICS = {"psnr": psnr, "ssim": ssim}
Scores = dict[str, np.ndarray]


# The machine ---------------------------------------------------------------------------------------------

def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto": bfloat16 where the hardware multiplies in it, else float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the model computes; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


# Predicting and scoring ----------------------------------------------------------------------------------

def require_fit(config: Config, condition_dim: int, pack: Pack) -> None:
    """Raise DataError where a model of this configuration and condition size cannot be used on a pack."""
    if pack.frames.shape[1] < config.length:
        raise DataError(f"{pack.name}: its sequences have {pack.frames.shape[1]} frames, the model's windows "
                        f"{config.n_past} + {config.n_future}. Choose n_past and n_future to fit, or other data")
    if config.condition != "none" and condition_dim != pack.condition_dim:
        raise DataError(f"{pack.name}: each frame comes with {pack.condition_dim} numbers of action and position, the "
                        f"model is conditioned on {condition_dim}. Use data of the kind that it was trained on, or "
                        "train a model for these data (--set condition=none for an action-free one)")


def prior_noise(count: int, steps: int, size: int, seed: int, sample: int = 0) -> torch.Tensor:
    """N(0, I) draws (steps, count, size) for all `count` sequences of a split, so that no batch size changes them."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + sample)
    return torch.randn(count, steps, size, generator=generator).transpose(0, 1)


@torch.inference_mode()
def predict(model: CVAE, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor,
            precision: str = "auto") -> torch.Tensor:
    """Predict the future of uint8 windows (T, B, C, H, W): float32 (n_future, B, C, H, W) on the model's device.

    Only the first `n_past` frames are handed to the model.
    """
    device = model.condition_mean.device
    context = to_video(frames[:model.config.n_past].to(device))
    with autocast(choose_precision(precision, device), device):
        return model.predict(context, condition.to(device), noise.to(device)).float()


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split: for each protocol an array (sequences, n_future)."""

    psnr: Scores
    ssim: Scores
    names: list[str]                            # the sequences' names, in the split's order
    facts: dict[str, Any]                       # split, data, seed, best_of, precision, device, weights

    def average(self, protocol: str, measure: str = "psnr") -> tuple[float, float]:
        """Mean over frames and sequences, and the half-width of its 95% interval over sequences."""
        values = getattr(self, measure)[protocol].mean(axis=1)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return float(values.mean()), float(half)

    @property
    def grade(self) -> float:
        """Share of the demo's marks that the graded protocol earns."""
        return grade(self.average("prior_sample")[0])

    def table(self) -> str:
        """The averages as a Markdown table."""
        lines = ["| protocol | PSNR [dB] | SSIM |", "|---|---|---|"]
        for protocol in self.psnr:
            name = PROTOCOLS[protocol].replace("N", str(self.facts["best_of"]))
            (p, dp), (s, ds) = self.average(protocol), self.average(protocol, "ssim")
            lines.append(f"| {name} | {p:.2f} ± {dp:.2f} | {s:.3f} ± {ds:.3f} |")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write scores.json, atomically: the facts, the averages, and all scores to four decimals."""
        scores = {measure: {p: values.astype(float).round(4).tolist() for p, values in getattr(self, measure).items()}
                  for measure in METRICS}
        averages = {measure: {p: dict(zip(("mean", "half_width_95"), self.average(p, measure), strict=True))
                              for p in scores[measure]} for measure in METRICS}
        content = {"facts": self.facts, "grade": self.grade, "averages": averages, "names": self.names, **scores}
        write_text(folder / "scores.json", json.dumps(content) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what `save` wrote. Raises ValueError naming the file when it is missing or damaged."""
        path = folder / "scores.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = {measure: {p: np.array(values, np.float32) for p, values in content[measure].items()}
                      for measure in METRICS}
            return cls(**scores, names=list(content["names"]), facts=dict(content["facts"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a saved evaluation ({error}); delete the folder and evaluate again"
                             ) from error


def evaluate(model: CVAE, pack: Pack, *, protocols: tuple[str, ...] = tuple(PROTOCOLS), limit: int | None = None,
             best_of: int | None = None, seed: int = 1, batch_size: int = 32, precision: str = "auto",
             progress: bool = True, **facts: Any) -> Evaluation:
    """Score the first window of every sequence of a split (of the first `limit`) under each protocol.

    The arithmetic is the lab's; the same seed gives the same samples whatever the batch size. The many arguments are
    the protocol, which a score has to state. Raises ValueError on an unknown protocol, DataError on unfit data.
    """
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"unknown protocol {', '.join(sorted(unknown))}; the protocols are {', '.join(PROTOCOLS)}")
    require_fit(model.config, model.condition_dim, pack)
    tune_malloc()
    config, device = model.config, model.condition_mean.device
    best_of, precision = best_of or config.best_of, choose_precision(precision, device)
    noise = partial(prior_noise, len(pack), config.length - 1, model.noise_size, seed)
    names = list(pack.names[:limit])
    scores = {measure: {p: np.full((config.n_future, len(names)), -np.inf, np.float32) for p in protocols}
              for measure in METRICS}
    was_training = model.training
    model.eval()
    for batch in tqdm(evaluation_loader(pack, config.length, batch_size, limit), desc=f"scoring {pack.name}",
                      unit="batch", disable=not progress, leave=False):
        truth, index = to_video(batch.frames.to(device))[config.n_past:], batch.index.numpy()
        for protocol, prediction in _predictions(model, batch, protocols, noise, best_of, precision):
            for measure, function in METRICS.items():
                new, old = function(prediction, truth).cpu().numpy(), scores[measure][protocol][:, index]
                kept = np.where(old.mean(axis=0) > new.mean(axis=0), old, new)  # the best of several samples
                scores[measure][protocol][:, index] = kept                      # (n_future, B)
    model.train(was_training)
    return Evaluation(**{measure: {p: values.T for p, values in table.items()} for measure, table in scores.items()},
                      names=names, facts={"split": pack.name, "data": pack.data_sha, "simulated": pack.simulated,
                                          "seed": seed, "best_of": best_of, "precision": precision,
                                          "device": device.type, **facts})


def _predictions(model: CVAE, batch: Batch, protocols: tuple[str, ...], noise: Callable[[int], torch.Tensor],
                 best_of: int, precision: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every protocol's prediction of a batch, (n_future, B, C, H, W); "best_of_n" comes N times."""
    config = model.config
    for sample in range(best_of if "best_of_n" in protocols else int("prior_sample" in protocols)):
        prediction = predict(model, batch.frames, batch.condition, noise(sample)[:, batch.index], precision)
        if sample == 0 and "prior_sample" in protocols:
            yield "prior_sample", prediction
        if "best_of_n" in protocols:
            yield "best_of_n", prediction
    if "prior_mean" in protocols:
        zeros = torch.zeros(config.length - 1, len(batch.index), model.noise_size)
        yield "prior_mean", predict(model, batch.frames, batch.condition, zeros, precision)
    frames = to_video(batch.frames.to(model.condition_mean.device))
    if "repeat_last" in protocols:
        yield "repeat_last", frames[config.n_past - 1].expand(config.n_future, *frames.shape[1:])
    if "copy_previous" in protocols:
        yield "copy_previous", frames[config.n_past - 1:-1]
