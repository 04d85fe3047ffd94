"""What the latent variable of a trained model carries."""

from __future__ import annotations

import numpy as np
import torch

from lab5.data import Pack, evaluation_loader
from lab5.evaluation import infer, prior_noise
from lab5.model import CVAE

ACTIVE = 0.01                                   # of the variance of a unit's mean over data (Burda et al. 2016)


def kl_of_units(model: CVAE, pack: Pack) -> list[np.ndarray]:
    """Nats per frame of each unit over a split, predictions fed back: (z_dim,), then (channels,) of each map."""
    found = []
    for batch in evaluation_loader(pack, model.config.length, 32):
        noise = prior_noise(len(pack), model.config.length - 1, model.noise_size, 1)[:, batch.index]
        terms = infer(model, batch.frames, batch.condition, noise)
        found.append([level.mean(dim=0).sum(dim=0).cpu().numpy() for level in terms.levels])
    return [np.sum(level, axis=0) / len(pack) for level in zip(*found, strict=True)]
