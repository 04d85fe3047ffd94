"""What the latent variable of a trained model carries."""

from typing import NamedTuple

import numpy as np
import torch

from lab5.data import Pack, evaluation_loader, to_video
from lab5.evaluation import autocast, choose_precision, predict
from lab5.latents import gaussian_kl
from lab5.model import CVAE, posterior_and_prior

RIDGE = 1e-3                                    # of the regression, in units of the inputs' variance


class Gaussians(NamedTuple):
    """Posterior and prior of z(t) over a split, given the true frames before t: arrays (sequences, T-1, z_dim)."""

    mu: np.ndarray
    logvar: np.ndarray
    prior_mu: np.ndarray
    prior_logvar: np.ndarray

    @property
    def kl(self) -> np.ndarray:
        """Nats of each step of each sequence, (sequences, T-1)."""
        return gaussian_kl(*map(torch.from_numpy, self)).sum(dim=-1).numpy()

    @property
    def prior_scale(self) -> np.ndarray:
        """The prior's standard deviation over its mean over time, averaged over units: (sequences, T-1)."""
        sigma = np.exp(0.5 * self.prior_logvar)
        return (sigma / sigma.mean(axis=(0, 1))).mean(axis=-1)


@torch.inference_mode()
def gaussians(model: CVAE, pack: Pack) -> Gaussians:
    """Both distributions of z(t) at every step of every first window."""
    device, found = model.condition_mean.device, []
    for batch in evaluation_loader(pack, model.config.length, 32):
        with autocast(choose_precision("auto", device), device):
            four = posterior_and_prior(model, to_video(batch.frames.to(device)), batch.condition.to(device))
        found.append([values.float().transpose(0, 1).cpu().numpy() for values in four])
    return Gaussians(*map(np.concatenate, zip(*found, strict=True)))


def explained(inputs: np.ndarray, targets: np.ndarray, hidden: int = 0) -> np.ndarray:
    """R^2 of each column of `targets` (sequences, steps, D), regressed on `inputs` (sequences, steps, units).

    A ridge regression on three quarters of the sequences, scored on the others. With `hidden` > 0 on that many random
    ReLU features of the inputs beside them: a small network whose first layer is not trained.
    """
    inputs = (inputs - inputs.mean(axis=(0, 1))) / (inputs.std(axis=(0, 1)) + 1e-6)
    if hidden:
        rng, units = np.random.default_rng(1), inputs.shape[-1]
        features = inputs @ rng.normal(size=(units, hidden)) / np.sqrt(units) + rng.normal(size=hidden)
        inputs = np.concatenate([inputs, np.maximum(features, 0)], axis=-1)
    inputs = np.concatenate([inputs, np.ones_like(inputs[..., :1])], axis=-1)
    split = 3 * len(inputs) // 4
    (x, new_x), (y, new_y) = ([part.reshape(-1, part.shape[-1]).astype(float) for part in (a[:split], a[split:])]
                              for a in (inputs, targets))
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    rest = new_y - new_x @ weights
    return 1 - (rest ** 2).sum(axis=0) / ((new_y - new_y.mean(axis=0)) ** 2).sum(axis=0)


def residual_spectrum(model: CVAE, pack: Pack) -> np.ndarray:
    """Variances of the prior mean's error along its principal directions, largest first: (sequences * n_future,).

    A direction earns its nats where its variance exceeds that of the decoder: beta * D / 2, or the MSE if calibrated.
    """
    rest = []
    for batch in evaluation_loader(pack, model.config.length, 32):
        zeros = torch.zeros(model.config.length - 1, len(batch.index), model.noise_size)
        truth = to_video(batch.frames)[model.config.n_past:]
        rest.append((truth - predict(model, batch.frames, batch.condition, zeros).cpu()).flatten(0, 1).flatten(1))
    errors = torch.cat(rest).double()
    errors -= errors.mean(dim=0)
    return torch.linalg.eigvalsh(errors @ errors.T / len(errors)).flip(0).numpy()
