"""The handout's first check: overfit a few sequences with KL weight 0, and see that all parts take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import trange

from lab5.config import Config
from lab5.data import Pack, Windows, condition_statistics, to_video
from lab5.evaluation import autocast, choose_device, choose_precision
from lab5.metrics import psnr
from lab5.model import CVAE, negative_elbo
from lab5.workbook import figures

SEQUENCES = 8
STEPS = 100                                     # with teacher forcing: half a minute of two cores for `quick`


@dataclass(frozen=True)
class Overfit:
    """What the overfitted model predicts for its sequences, with z from the posterior and from the prior."""

    videos: dict[str, np.ndarray]               # truth, posterior, prior: (SEQUENCES, T, H, W, C) uint8
    scores: dict[str, float]                    # posterior, prior, repeat_last: average PSNR in dB
    n_past: int
    idle: list[str]                             # parts of the model that get no gradient

    def figure(self, index: int = 0) -> Figure:
        """Truth and both predictions of one sequence."""
        return figures.strip({name: video[index] for name, video in self.videos.items()}, n_past=self.n_past, count=6)


def overfit(config: Config, pack: Pack, steps: int = STEPS, progress: bool = True) -> Overfit:
    """Train a new model on the first window of the first sequences, teacher-forced, with KL weight 0."""
    device = choose_device()
    precision = choose_precision(config.precision, device)
    batch = Windows(pack, config.length).__getitems__(range(min(SEQUENCES, len(pack))))
    frames, condition = to_video(batch.frames.to(device)), batch.condition.to(device)           # (T, B, ...)
    forced, free = [True] * (config.length - 1), [False] * (config.length - 1)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = CVAE(config, pack.condition_dim)
        model.set_condition_statistics(*condition_statistics(pack))
        noise = torch.randn(steps + 1, config.length - 1, frames.shape[1], model.noise_size).to(device)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(config.beta1, 0.999))
    for step in trange(steps, unit="step", desc="overfitting", disable=not progress):
        with autocast(precision, device):
            terms = model.elbo_terms(frames, condition, noise[step], forced)
        optimizer.zero_grad()
        negative_elbo(config, terms, kl_weight=0.0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or torch.inf)
        optimizer.param_groups[0]["lr"] = config.lr * min(1, (step + 1) / 20)
        optimizer.step()
    idle = _idle_parts(model)
    with torch.no_grad(), autocast(precision, device):
        _average_norms(model, lambda: model.elbo_terms(frames, condition, noise[0], free))
        terms = model.elbo_terms(frames, condition, torch.zeros_like(noise[0]), free)
        prior = model.predict(frames[:config.n_past], condition, noise[-1]).float()
    return _result(config.n_past, frames, terms.predictions[config.n_past - 1:].float(), prior, idle)


def _idle_parts(model: CVAE) -> list[str]:
    """Modules whose parameters have no gradient after a step; a prior has none at KL weight 0, and is not named."""
    moved: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        part = name.rpartition(".")[0]
        moved[part] = moved.get(part, False) or (parameter.grad is not None and bool(parameter.grad.any()))
    return [part for part, has_gradient in moved.items() if not has_gradient and "prior" not in part.split(".")]


def _average_norms(model: CVAE, forward: Callable[[], object]) -> None:
    """Set batch norms to the statistics of these passes: their running averages need more steps than there were."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None                              # the average of all passes
    forward()
    model.eval()


def _result(n_past: int, frames: torch.Tensor, posterior: torch.Tensor, prior: torch.Tensor, idle: list[str],
            ) -> Overfit:
    context, truth = frames[:n_past], frames[n_past:]
    guesses = {"posterior": posterior, "prior": prior, "repeat_last": context[-1].expand_as(truth)}
    scores = {name: psnr(future, truth).mean().item() for name, future in guesses.items()}
    futures = {"truth": truth, "posterior": posterior, "prior": prior}
    pictures = {name: (torch.cat([context, future]) * 255).round().byte().permute(1, 0, 3, 4, 2).cpu().numpy()
                for name, future in futures.items()}
    return Overfit(pictures, scores, n_past, idle)
