"""What the latents of a trained model carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lab5.data import Pack, evaluation_loader, to_video
from lab5.evaluation import autocast, choose_precision, predict, prior_noise
from lab5.metrics import psnr
from lab5.model import CVAE

ACTIVE = 0.01                                   # nats per frame from which on a latent unit counts as active


@dataclass(frozen=True)
class LatentUsage:
    """What the latents carry, over a split."""

    kl: list[np.ndarray]                        # nats per frame of each unit: (z_dim,), then (channels,) of each map
    psnr_posterior: np.ndarray                  # (sequences,) dB when z comes from the posterior, which sees the truth
    psnr_prior: np.ndarray                      # (sequences,) dB of the graded prediction

    @property
    def active(self) -> list[int]:
        """Units of each level that carry more than `ACTIVE` nats; none at all is posterior collapse."""
        return [int((level > ACTIVE).sum()) for level in self.kl]


@torch.inference_mode()
def latent_usage(model: CVAE, pack: Pack, *, seed: int = 1, batch_size: int = 32,
                 precision: str = "auto") -> LatentUsage:
    """KL of every latent unit, and the gain of knowing the posterior, on a split's first windows.

    Predictions are fed back in both cases, so that only the source of z differs.
    """
    config, device = model.config, model.condition_mean.device
    kl, scores, forced = [], [], [False] * (config.length - 1)
    for batch in evaluation_loader(pack, config.length, batch_size):
        noise = prior_noise(len(pack), config.length - 1, model.noise_size, seed)[:, batch.index]
        frames = to_video(batch.frames.to(device))
        with autocast(choose_precision(precision, device), device):
            terms = model.elbo_terms(frames, batch.condition.to(device), noise.to(device), forced)
        kl.append([level.sum(dim=(0, 1)).cpu().numpy() / (config.length - 1) for level in terms.levels])
        prior = predict(model, batch.frames, batch.condition, noise, precision)
        scores.append([psnr(video, frames[config.n_past:]).mean(dim=0).cpu().numpy()
                       for video in (terms.predictions[config.n_past - 1:].float(), prior)])
    posterior, prior = (np.concatenate(values) for values in zip(*scores, strict=True))
    return LatentUsage([np.sum(level, axis=0) / len(pack) for level in zip(*kl, strict=True)], posterior, prior)
