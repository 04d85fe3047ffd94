"""How good the predictions are: protocols over a split, a table for every sequence, intervals, baselines.

The graded number is the average of protocol "sampled": one z per step from the prior for each sequence,
its first frames given, the lab's PSNR of every predicted frame, the mean over frames and sequences.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lab5.data import Batch, Pack, evaluation_loader, to_video
from lab5.files import write_atomically, write_text
from lab5.metrics import grade, psnr, ssim
from lab5.model import CVAE

# What a reader sees for each protocol
PROTOCOLS = {
    "sampled": "prior sample (graded)",
    "mean": "prior mean",
    "best": "best of N samples",
    "hold": "hold last context frame",
    "copy": "copy previous true frame",
}
Measures = dict[str, np.ndarray]
ACTIVE = 0.01                                   # nats a frame from which on a latent unit counts as used


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto": bfloat16 where the hardware multiplies in it, else float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "float32"


@functools.cache
def keep_memory() -> None:
    """Let the C library keep what a batch frees for the next batch, which needs as much (glibc; elsewhere nothing).

    By default it maps every large tensor anew, and the kernel clears each of its pages: on two cores that took more
    time than the arithmetic of an evaluation (`benchmarks/README.md`).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3             # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the model computes; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def prior_noise(count: int, steps: int, size: int, seed: int, sample: int = 0) -> torch.Tensor:
    """N(0, I) draws (steps, count, size) for all `count` sequences of a split, so that no batch changes them."""
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

    psnr: Measures
    ssim: Measures
    names: list[str]                            # the sequences' names, in the split's order
    facts: dict[str, Any]                       # split, seed, best_of, precision, device, run

    def average(self, protocol: str, measure: str = "psnr") -> tuple[float, float]:
        """Mean over frames and sequences, and the half-width of its 95% interval over sequences."""
        values = getattr(self, measure)[protocol].mean(axis=1)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        return float(values.mean()), float(half)

    @property
    def grade(self) -> float:
        """Share of the demo's marks that the graded protocol earns."""
        return grade(self.average("sampled")[0])

    def table(self) -> str:
        """The averages as a Markdown table."""
        lines = ["| protocol | PSNR [dB] | SSIM |", "|---|---|---|"]
        for protocol in self.psnr:
            name = PROTOCOLS[protocol].replace("N", str(self.facts["best_of"]))
            (p, dp), (s, ds) = self.average(protocol), self.average(protocol, "ssim")
            lines.append(f"| {name} | {p:.2f} ± {dp:.2f} | {s:.3f} ± {ds:.3f} |")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write summary.json, per_sequence.csv (a line a sequence) and steps.npz (all arrays), each atomically."""
        summary = {**self.facts, "sequences": len(self.names), "grade": self.grade, **{
            measure: {protocol: dict(zip(("mean", "half_width_95"), self.average(protocol, measure), strict=True))
                      for protocol in self.psnr} for measure in ("psnr", "ssim")}}
        columns = [(f"{measure}_{protocol}", getattr(self, measure)[protocol].mean(axis=1))
                   for measure in ("psnr", "ssim") for protocol in self.psnr]

        def write_csv(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["sequence", *(name for name, _ in columns)])
                for index, name in enumerate(self.names):
                    writer.writerow([name, *(f"{values[index]:.4f}" for _, values in columns)])

        def write_steps(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez_compressed(file, names=np.array(self.names), facts=json.dumps(self.facts), **{
                    f"{measure}_{protocol}": getattr(self, measure)[protocol]
                    for measure in ("psnr", "ssim") for protocol in self.psnr})

        write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_atomically(folder / "per_sequence.csv", write_csv)
        write_atomically(folder / "steps.npz", write_steps)

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what `save` wrote. Raises ValueError naming the file when it is missing or damaged."""
        path = folder / "steps.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                measures = {measure: {protocol: arrays[f"{measure}_{protocol}"] for protocol in PROTOCOLS
                                      if f"{measure}_{protocol}" in arrays} for measure in ("psnr", "ssim")}
                names, facts = arrays["names"].tolist(), dict(json.loads(str(arrays["facts"])))
            rows = {len(values) for table in measures.values() for values in table.values()}
            if rows != {len(names)}:
                raise ValueError(f"scores of {rows} sequences under {len(names)} names")
            return cls(**measures, names=names, facts=facts)
        except Exception as error:              # zipfile, zlib and numpy each have their own for a damaged file
            raise ValueError(f"{path}: not a saved evaluation ({error}); "
                             "delete the folder and evaluate again") from error


def evaluate(model: CVAE, pack: Pack, *, protocols: tuple[str, ...] = tuple(PROTOCOLS), limit: int | None = None,
             best_of: int | None = None, seed: int = 1, batch_size: int = 32, precision: str = "auto",
             progress: bool = True, **facts: Any) -> Evaluation:
    """Score the first window of every sequence of a split (of the first `limit`) under each protocol.

    The arithmetic is the lab's; the same seed gives the same samples whatever the batch size.
    Raises ValueError on an unknown protocol.
    """
    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"unknown protocol {', '.join(sorted(unknown))}; the protocols are {', '.join(PROTOCOLS)}")
    keep_memory()
    config, device = model.config, model.condition_mean.device
    best_of = best_of or config.best_of
    precision = choose_precision(precision, device)
    rows: dict[str, dict[str, list]] = {"psnr": {p: [] for p in protocols}, "ssim": {p: [] for p in protocols}}
    was_training = model.training
    model.eval()
    loader = evaluation_loader(pack, config.length, batch_size, limit)
    for batch in tqdm(loader, desc=f"scoring {pack.name}", unit="batch", disable=not progress, leave=False):
        truth = to_video(batch.frames.to(device))[config.n_past:]
        scores: dict[tuple[str, str], np.ndarray] = {}
        for protocol, prediction in _predictions(model, batch, protocols, len(pack), best_of, seed, precision):
            for measure, function in (("psnr", psnr), ("ssim", ssim)):
                new = function(prediction, truth).T.cpu().numpy()               # (B, n_future)
                old = scores.get((measure, protocol), new)                      # of several samples the best is kept
                scores[measure, protocol] = np.where((new.mean(1) > old.mean(1))[:, None], new, old)
        for (measure, protocol), values in scores.items():
            rows[measure][protocol].append(values)
    model.train(was_training)
    return Evaluation(**{measure: {p: np.concatenate(values) for p, values in table.items()}
                         for measure, table in rows.items()}, names=list(pack.names[:limit]),
                      facts={"split": pack.name, "data": pack.fingerprint, "simulated": pack.simulated, "seed": seed,
                             "best_of": best_of, "precision": precision, "device": device.type, **facts})


def _predictions(model: CVAE, batch: Batch, protocols: tuple[str, ...], count: int, best_of: int, seed: int,
                 precision: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every protocol's prediction of a batch, (n_future, B, C, H, W); "best" comes N times."""
    config = model.config
    steps = config.length - 1
    for sample in range(best_of if "best" in protocols else int("sampled" in protocols)):
        noise = prior_noise(count, steps, model.noise_size, seed, sample)[:, batch.index]
        prediction = predict(model, batch.frames, batch.condition, noise, precision)
        if sample == 0 and "sampled" in protocols:
            yield "sampled", prediction
        if "best" in protocols:
            yield "best", prediction
    if "mean" in protocols:
        noise = torch.zeros(steps, len(batch.index), model.noise_size)
        yield "mean", predict(model, batch.frames, batch.condition, noise, precision)
    frames = to_video(batch.frames.to(model.condition_mean.device))
    if "hold" in protocols:
        yield "hold", frames[config.n_past - 1].expand(config.n_future, *frames.shape[1:])
    if "copy" in protocols:
        yield "copy", frames[config.n_past - 1:-1]


@dataclass(frozen=True)
class Diagnosis:
    """What the latents carry, over a split."""

    kl: list[np.ndarray]                        # nats a frame of each unit: (z_dim,), then (channels,) of each map
    psnr_posterior: np.ndarray                  # (sequences,) dB when z comes from the posterior, which sees the truth
    psnr_prior: np.ndarray                      # (sequences,) dB of the graded prediction

    @property
    def active(self) -> list[int]:
        """Units of each level that carry more than `ACTIVE` nats; none at all is posterior collapse."""
        return [int((level > ACTIVE).sum()) for level in self.kl]


@torch.inference_mode()
def diagnose(model: CVAE, pack: Pack, *, seed: int = 1, batch_size: int = 32, precision: str = "auto") -> Diagnosis:
    """KL of every latent unit, and what knowing the posterior would gain, on a split's first windows.

    Predictions are fed back in both cases, so that only the source of z differs.
    """
    config, device = model.config, model.condition_mean.device
    precision = choose_precision(precision, device)
    kl: list[list[np.ndarray]] = []
    scores: list[list[np.ndarray]] = []
    for batch in evaluation_loader(pack, config.length, batch_size):
        noise = prior_noise(len(pack), config.length - 1, model.noise_size, seed)[:, batch.index]
        frames = to_video(batch.frames.to(device))
        truth = frames[config.n_past:]
        with autocast(precision, device):
            terms = model.elbo_terms(frames, batch.condition.to(device), noise.to(device),
                                     [False] * (config.length - 1))
        kl.append([level.sum(dim=(0, 1)).cpu().numpy() / (config.length - 1) for level in terms.levels])
        prior = predict(model, batch.frames, batch.condition, noise, precision)
        scores.append([psnr(video, truth).mean(dim=0).cpu().numpy()
                       for video in (terms.predictions[config.n_past - 1:].float(), prior)])
    posterior, prior = (np.concatenate(values) for values in zip(*scores, strict=True))
    return Diagnosis([np.sum(level, axis=0) / len(pack) for level in zip(*kl, strict=True)], posterior, prior)
