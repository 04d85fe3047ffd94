"""How good the predictions are: protocols over a split, scores of every sequence, intervals, baselines.

The graded number is the average of protocol "prior_sample": one z per step from the prior for each sequence, its
context frames given, the lab's PSNR of every predicted frame, the mean over frames and sequences.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lab5.config import Config
from lab5.data import FRAME_SIZE, Batch, DataError, Pack, evaluation_loader, to_video
from lab5.files import tune_malloc, write_text
from lab5.metrics import psnr, ssim
from lab5.model import CVAE, ElboTerms

PROTOCOLS = {                                   # key -> what a reader sees
    "prior_sample": "prior sample (graded)",
    "prior_mean": "prior mean",
    "mean_of_n": "average of N samples",
    "best_of_n": "best of N samples",
    "posterior": "posterior, which sees the truth",
    "two_samples": "one sample beside another",
    "repeat_last": "last context frame repeated",
    "copy_previous": "previous true frame copied",
}
METRICS = {"psnr": psnr, "ssim": ssim}
Scores = dict[str, np.ndarray]


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


@torch.inference_mode()
def infer(model: CVAE, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor,
          precision: str = "auto") -> ElboTerms:
    """The terms of the bound of uint8 windows, predictions fed back; z is the posterior's, which sees the truth."""
    device = model.condition_mean.device
    with autocast(choose_precision(precision, device), device):
        return model.elbo_terms(to_video(frames.to(device)), condition.to(device), noise.to(device),
                                [False] * (len(frames) - 1))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one split: for each protocol an array (sequences, n_future)."""

    psnr: Scores
    ssim: Scores
    names: list[str]                            # the sequences' names, in the split's order
    facts: dict[str, Any]                       # split, data, seed, best_of, precision, device, weights
    samples: Scores = field(default_factory=dict)       # measure -> (sequences, N), each sample's mean over frames
    rate: Scores = field(default_factory=dict)          # of the posterior, (sequences,): kl in nats per frame, mse

    def average(self, protocol: str, measure: str = "psnr") -> tuple[float, float]:
        """Mean over frames and sequences, and the half-width of its 95% interval over sequences."""
        values = getattr(self, measure)[protocol].mean(axis=1)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return float(values.mean()), float(half)

    @property
    def bound(self) -> float:
        """A frame's lower bound in nats, at the variance that makes it largest, which is the posterior's MSE."""
        kl, mse = (self.rate[name].mean() for name in ("kl", "mse"))
        return float(-1.5 * FRAME_SIZE ** 2 * np.log(2 * np.pi * np.e * mse) - kl)

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
        scores = {name: {key: values.astype(float).round(6 if name == "rate" else 4).tolist()
                         for key, values in getattr(self, name).items()} for name in (*METRICS, "samples", "rate")}
        averages = {measure: {p: dict(zip(("mean", "half_width_95"), self.average(p, measure), strict=True))
                              for p in getattr(self, measure)} for measure in METRICS}
        content = {"facts": self.facts, "averages": averages, "names": self.names, **scores}
        write_text(folder / "scores.json", json.dumps(content, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what `save` wrote. Raises ValueError naming the file when it is missing or damaged."""
        path = folder / "scores.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = {name: {key: np.array(values, np.float32) for key, values in content[name].items()}
                      for name in (*METRICS, "samples", "rate")}
            return cls(**scores, names=list(content["names"]), facts=dict(content["facts"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a saved evaluation ({error}); delete the folder and evaluate again"
                             ) from error


def evaluate(model: CVAE, pack: Pack, *, protocols: tuple[str, ...] = tuple(PROTOCOLS), limit: int | None = None,
             n_future: int | None = None, best_of: int | None = None, seed: int = 1, batch_size: int = 32,
             precision: str = "auto", progress: bool = True, **facts: Any) -> Evaluation:
    """Score the first window of every sequence of a split (of the first `limit`) under each protocol.

    The arithmetic is the lab's; the same seed gives the same samples whatever the batch size. The many arguments are
    the protocol, which a score has to state; `n_future` and `best_of` are those of the model's configuration unless
    given. Raises ValueError on an unknown protocol, DataError on unfit data.
    """
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"unknown protocol {', '.join(sorted(unknown))}; the protocols are {', '.join(PROTOCOLS)}")
    config, device = model.config.replace(n_future=n_future or model.config.n_future), model.condition_mean.device
    require_fit(config, model.condition_dim, pack)
    tune_malloc()
    best_of, precision = best_of or config.best_of, choose_precision(precision, device)
    noise = partial(prior_noise, len(pack), config.length - 1, model.noise_size, seed)
    was_training = model.training
    model.eval()
    found = [_score(model, batch, protocols, noise, best_of, precision) for batch in tqdm(
        evaluation_loader(pack, config.length, batch_size, limit), desc=f"scoring {pack.name}", unit="batch",
        disable=not progress, leave=False)]
    model.train(was_training)
    tables = {key: np.concatenate([table[key] for table in found], axis=-2) for key in found[0]}
    samples, rate = tables.pop("samples", None), tables.pop("rate", None)
    return Evaluation(
        *({p: table[number] for p, table in tables.items()} for number in range(len(METRICS))),
        names=list(pack.names[:limit]), samples={} if samples is None else dict(zip(METRICS, samples, strict=True)),
        rate={} if rate is None else dict(zip(("kl", "mse"), rate[..., 0], strict=True)),
        facts={"split": pack.name, "data": pack.data_sha, "simulated": pack.simulated, "n_past": config.n_past,
               "n_future": config.n_future, "seed": seed, "best_of": best_of, "precision": precision,
               "device": device.type, **facts})


def _score(model: CVAE, batch: Batch, protocols: tuple[str, ...], noise: Callable[[int], torch.Tensor], best_of: int,
           precision: str) -> Scores:
    """A batch's scores under each protocol, (measures, B, n_future), and what the protocols give beside them:
    "samples", (measures, B, N), with "best_of_n", and "rate", (KL and MSE, B, 1), with "posterior".
    """
    frames, n_past, found = to_video(batch.frames.to(model.condition_mean.device)), model.config.n_past, {}

    def score(prediction: torch.Tensor, target: torch.Tensor = frames[n_past:]) -> np.ndarray:
        return np.stack([measure(prediction, target).T.cpu().numpy() for measure in METRICS.values()])

    def predicted(noise: torch.Tensor) -> torch.Tensor:
        return predict(model, batch.frames, batch.condition, noise, precision)

    count = next((n for n, of in ((best_of, {"best_of_n", "mean_of_n"}), (2, {"two_samples"}), (1, {"prior_sample"}))
                  if of & set(protocols)), 0)
    drawn, total = [], 0
    for number in range(count):
        sample = predicted(noise(number)[:, batch.index])
        drawn.append(score(sample))
        if number == 1:
            found["two_samples"] = score(sample, total)         # which is the first one
        total = total + sample
    if count:
        scores = np.stack(drawn)                                                # (N, measures, B, n_future)
        means = scores.mean(axis=-1)                                            # (N, measures, B)
        found |= {"prior_sample": scores[0], "mean_of_n": score(total / count), "samples": means.transpose(1, 2, 0),
                  "best_of_n": np.take_along_axis(scores, means.argmax(axis=0)[None, ..., None], axis=0)[0]}
    if "prior_mean" in protocols:
        found["prior_mean"] = score(predicted(torch.zeros_like(noise(0)[:, batch.index])))
    if "posterior" in protocols:
        terms = infer(model, batch.frames, batch.condition, noise(0)[:, batch.index], precision)
        found["posterior"] = score(terms.predictions[n_past - 1:].float())
        rate = [sum(level.sum(dim=-1).mean(dim=0) for level in terms.levels),
                (terms.predictions.float() - frames[1:]).square().mean(dim=(0, 2, 3, 4))]
        found["rate"] = torch.stack(rate)[..., None].cpu().numpy()
    found["repeat_last"] = score(frames[n_past - 1].expand_as(frames[n_past:]))
    found["copy_previous"] = score(frames[n_past - 1:-1])
    beside = [name for name, protocol in (("samples", "best_of_n"), ("rate", "posterior")) if protocol in protocols]
    return {key: found[key] for key in (*protocols, *beside)}
