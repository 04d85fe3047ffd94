"""The conditional VAE for video: what is trained (`elbo_terms`) and what is asked of it (`predict`).

    h(t), skips = Enc(x(t))
    z(t)  ~ q(z | x(1..t), c)   = N(mu(t), sigma(t)^2)      posterior LSTM over [h(t), c(t)]
    p(z)                        = N(0, I)                   the prior
    g(t)  = predictor LSTM over [h(t-1), z(t), c(t)]
    x^(t) = Dec(g(t), skips of the last context frame)

(Denton & Fergus 2018, SVG-FP; the condition after Sohn et al. 2015.) Axes: T frames of a window, B
sequences, C, H, W; videos are (T, B, C, H, W) in [0, 1], conditions (T, B, D). Frames count from 0, so
that step t in 1 .. T-1 predicts frame t. The model draws no random numbers: the caller brings the noise,
and noise of zeros means the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lab5.config import Config
from lab5.layers import Decoder, Encoder, FramePredictor, GaussianLSTM, Skips


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = mu + sigma * noise: a sample whose randomness comes from outside, so that gradients reach mu and sigma.

    The network puts out log sigma^2, so exp(logvar / 2) is positive whatever it says (Kingma & Welling
    2014, section 2.4). All shapes are equal.
    """
    return mu + torch.exp(0.5 * logvar) * noise


def gaussian_kl(mu: torch.Tensor, logvar: torch.Tensor,
                prior_mu: torch.Tensor | None = None, prior_logvar: torch.Tensor | None = None) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))) in nats, element by element; no prior means N(0, 1)."""
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu
    prior_logvar = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    return 0.5 * (prior_logvar - logvar - 1
                  + (logvar - prior_logvar).exp() + (mu - prior_mu).square() * (-prior_logvar).exp())


@dataclass(frozen=True)
class ElboTerms:
    """What a training step needs of a batch; steps are the T-1 predicted frames of the window."""

    predictions: torch.Tensor                   # (T-1, B, C, H, W) in (0, 1)
    mse: torch.Tensor                           # (), squared error, mean over everything
    kl: torch.Tensor                            # (), nats a frame: summed over z, mean over steps and batch


def runs(forced: list[bool], n_past: int) -> list[tuple[int, int, bool]]:
    """Split the steps 0 .. T-2 (step s goes from frame s to frame s+1) into (start, stop, known) runs.

    A step is known if frame s is a context frame or is forced to be the true one. Consecutive known steps
    form one run, since none depends on a prediction; every other step is a run of its own.
    """
    found: list[tuple[int, int, bool]] = []
    for step, is_forced in enumerate(forced):
        known = step < n_past or is_forced
        if known and found and found[-1][2]:
            found[-1] = (found[-1][0], step + 1, True)
        else:
            found.append((step, step + 1, known))
    return found


class CVAE(nn.Module):
    """The fixed-prior CVAE. `condition_width` is the number of values in a frame's condition, 0 for action-free."""

    def __init__(self, config: Config, condition_width: int) -> None:
        super().__init__()
        self.config = config
        steps_told = {"none": 0, "previous": 1, "target": 1, "both": 2}[config.condition] if condition_width else 0
        c_dim = config.condition_dim if steps_told else 0
        self.encoder = Encoder(config.width, config.g_dim)
        self.decoder = Decoder(config.width, config.g_dim)
        self.embed_condition = nn.Linear(steps_told * condition_width, c_dim) if steps_told else None
        self.posterior = GaussianLSTM(config.g_dim + c_dim, config.z_dim, config.rnn_size, config.posterior_layers)
        self.predictor = FramePredictor(config.g_dim + config.z_dim + c_dim, config.g_dim, config.rnn_size,
                                        config.predictor_layers)
        self.register_buffer("condition_mean", torch.zeros(condition_width))
        self.register_buffer("condition_std", torch.ones(condition_width))

    def set_condition_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take over the training split's mean and standard deviation (D,), by which conditions are normalised."""
        self.condition_mean.copy_(mean)
        self.condition_std.copy_(std)

    def elbo_terms(self, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor,
                   forced: list[bool]) -> ElboTerms:
        """The two terms of the bound for a batch.

        Args:
            frames: (T, B, C, H, W) in [0, 1].
            condition: (T, B, D).
            noise: (T-1, B, z_dim), from N(0, I).
            forced: T-1 flags; step t is given the true frame t-1 where set, else its own prediction of it.
                Steps whose previous frame is a context frame are always given the truth.
        """
        h, skips = self._encode(frames)                                         # (T, B, g), maps (T, B, ...)
        c = self._condition(condition)                                          # (T-1, B, c)
        mu, logvar, _ = self.posterior(torch.cat([h[1:], c], dim=-1))           # (T-1, B, z) each
        z = reparameterize(mu.float(), logvar.float(), noise)
        predictions = self._unroll(h, skips, z, c, forced)                      # (T-1, B, C, H, W)
        mse = (predictions.float() - frames[1:]).square().mean()
        kl = gaussian_kl(mu.float(), logvar.float()).sum(dim=-1).mean()
        return ElboTerms(predictions, mse, kl)

    def predict(self, context: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Generate the future: teacher-forcing ratio 0, z from the prior. No future frame is an argument.

        Args:
            context: (n_past, B, C, H, W) in [0, 1], the frames seen.
            condition: (T, B, D) for the context and the future.
            noise: (T-1, B, z_dim): N(0, I) draws for a sample, zeros for the prior's mean.
        Returns:
            (T - n_past, B, C, H, W) in (0, 1).
        Raises:
            ValueError: more or fewer context frames than n_past.
        """
        seen = self.config.n_past
        if len(context) != seen:
            raise ValueError(f"predict was given {len(context)} context frames; the model is made for {seen}")
        h, skips = self._encode(context)
        c = self._condition(condition)
        mu, logvar, _ = self.posterior(torch.cat([h[1:], c[:seen - 1]], dim=-1))        # frames that are known
        z_seen = reparameterize(mu.float(), logvar.float(), noise[:seen - 1])
        z = torch.cat([z_seen, noise[seen - 1:]])                                       # then N(0, I)
        return self._unroll(h, skips, z, c, forced=[False] * len(z))[seen - 1:]

    def _unroll(self, h: torch.Tensor, skips: Skips, z: torch.Tensor, c: torch.Tensor,
                forced: list[bool]) -> torch.Tensor:
        """Run predictor and decoder over all steps: (T-1, B, C, H, W).

        Consecutive steps whose previous frames are known depend on no prediction, so they go through
        together; a step that is fed a prediction goes alone. Teacher forcing throughout is one pass.
        """
        predictions, state, last = [], None, self.config.n_past - 1
        for start, stop, known in runs(forced, self.config.n_past):
            if known:
                h_in, newest = h[start:stop], range(start, stop)
            else:
                h_in, predicted_skips = self._encode(predictions[-1][-1:])
            g, state = self.predictor(torch.cat([h_in, z[start:stop].to(h_in), c[start:stop].to(h_in)], dim=-1), state)
            if self.config.skip == "context":                                   # never a frame that is yet to come
                source, chosen = skips, [min(step, last) for step in range(start, stop)]
            else:
                source, chosen = (skips, list(newest)) if known else (predicted_skips, [0])
            predictions.append(self._decode(g, [skip[chosen] for skip in source]))
        return torch.cat(predictions)

    def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, Skips]:
        T, B = frames.shape[:2]
        h, skips = self.encoder(frames.flatten(0, 1))
        return h.unflatten(0, (T, B)), [skip.unflatten(0, (T, B)) for skip in skips]

    def _decode(self, g: torch.Tensor, skips: Skips) -> torch.Tensor:
        T, B = g.shape[:2]
        return self.decoder(g.flatten(0, 1), [skip.flatten(0, 1) for skip in skips]).unflatten(0, (T, B))

    def _condition(self, condition: torch.Tensor) -> torch.Tensor:
        """What step t is told, embedded: (T, B, D) -> (T-1, B, c)."""
        if self.embed_condition is None:
            return condition.new_zeros(len(condition) - 1, condition.shape[1], 0)
        told = (condition - self.condition_mean) / self.condition_std
        previous, target = told[:-1], told[1:]
        told = {"previous": [previous], "target": [target], "both": [previous, target]}[self.config.condition]
        return self.embed_condition(torch.cat(told, dim=-1))
