"""Latent variables: Gaussians, their divergence, and the networks that put out their parameters.

Nothing here draws random numbers: noise is an argument, and noise of zeros gives the mean. Recurrent networks take
(T, B, features) and a state; T is 1 where a loop is sequential.
"""

from __future__ import annotations

import torch
from torch import nn

State = tuple[torch.Tensor, torch.Tensor] | None


def full_precision(values: torch.Tensor) -> torch.Tensor:
    """At least float32: what autocast computed in bfloat16 is widened, and float64 stays float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = mu + sigma * noise, all of one shape: the noise is an input, so gradients reach mu and sigma.

    The network puts out log sigma^2, so sigma is positive whatever it says (Kingma & Welling 2014, section 2.4).
    """
    return mu + torch.exp(0.5 * logvar) * noise


def gaussian_kl(mu: torch.Tensor, logvar: torch.Tensor,
                prior_mu: torch.Tensor | None = None, prior_logvar: torch.Tensor | None = None) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))) in nats, element by element; no prior means N(0, 1)."""
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu
    prior_logvar = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    return 0.5 * (prior_logvar - logvar - 1 + (logvar - prior_logvar).exp()
                  + (mu - prior_mu).square() * (-prior_logvar).exp())


class EmbedLSTM(nn.Module):
    """A linear embedding and an LSTM: (T, B, n_in) -> (T, B, hidden), and the state for the next call.

    A residual one adds the embedding to the LSTM's output (Wu et al. 2016), so that what it is given passes through
    from the first training step on.
    """

    def __init__(self, n_in: int, hidden: int, layers: int, residual: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers)
        self.residual = residual

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        embedded = self.embed(inputs)
        hidden, state = self.lstm(embedded, state)
        return (hidden + embedded if self.residual else hidden), state


class FramePredictor(EmbedLSTM):
    """The LSTM that puts out g(t): (T, B, n_in) -> (T, B, g_dim) in (-1, 1)."""

    def __init__(self, n_in: int, g_dim: int, hidden: int, layers: int, residual: bool) -> None:
        super().__init__(n_in, hidden, layers, residual)
        self.to_g = nn.Sequential(nn.Linear(hidden, g_dim), nn.Tanh())

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        hidden, state = super().forward(inputs, state)
        return self.to_g(hidden), state


class GaussianLSTM(EmbedLSTM):
    """A posterior or learned prior (Denton & Fergus 2018): (T, B, n_in) -> mu and logvar (T, B, z_dim), >= float32."""

    def __init__(self, n_in: int, z_dim: int, hidden: int, layers: int, residual: bool) -> None:
        super().__init__(n_in, hidden, layers, residual)
        self.to_mu, self.to_logvar = nn.Linear(hidden, z_dim), nn.Linear(hidden, z_dim)

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, torch.Tensor, State]:
        hidden, state = super().forward(inputs, state)
        return full_precision(self.to_mu(hidden)), full_precision(self.to_logvar(hidden)), state


class FixedPrior(nn.Module):
    """N(0, I), with the interface of a learned prior: (T, B, n_in) -> zeros (T, B, z_dim)."""

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.z_dim = z_dim

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, torch.Tensor, State]:
        zeros = full_precision(inputs.new_zeros(*inputs.shape[:-1], self.z_dim))
        return zeros, zeros, None


class LatentMap(nn.Module):
    """A latent variable at every position of a feature map, below the latents that the map already depends on.

    The features (N, C, H, W) come from above, so prior and posterior are both conditioned on all coarser
    latents (Castrejon, Ballas & Courville 2019); the posterior is conditioned on the encoder's map of the
    true frame too. A map has no memory over time.
    """

    def __init__(self, n_features: int, n_target: int, z_channels: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(n_features, 2 * z_channels, 3, padding=1)
        self.posterior = nn.Conv2d(n_features + n_target, 2 * z_channels, 3, padding=1)
        self.inject = nn.Conv2d(z_channels, n_features, 3, padding=1)
        for network in (self.prior, self.posterior):            # close to N(0, I) at first: else the KL of so many
            nn.init.normal_(network.weight, std=0.01)           # numbers outweighs the reconstruction
            nn.init.zeros_(network.bias)

    def forward(self, features: torch.Tensor, noise: torch.Tensor, target: torch.Tensor | None,
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """features with z added to them, and the KL (N, z_channels) in nats; without `target`, z is the prior's."""
        prior = full_precision(self.prior(features)).chunk(2, dim=1)
        q = prior if target is None else full_precision(
            self.posterior(torch.cat([features, target], dim=1))).chunk(2, dim=1)
        z = reparameterize(*q, noise)                                           # (N, z_channels, H, W)
        return features + self.inject(z.to(features)), gaussian_kl(*q, *prior).sum(dim=(2, 3))
