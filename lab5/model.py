"""The conditional VAE for video: what is trained (`elbo_terms`) and what is asked of it (`predict`).

    h(t), skips = Enc(x(t))
    z(t)  ~ q(z | x(1..t), c)   = N(mu(t), sigma(t)^2)      posterior LSTM over [h(t), c(t)]
    p(z)                        = N(0, I)                   the prior, or an LSTM over [h(t-1), c(t)]
    g(t)  = predictor LSTM over [h(t-1), c(t), z(t)]
    x^(t) = Dec(g(t), skips of the last context frame)

(Denton & Fergus 2018, SVG-FP and SVG-LP; the condition after Sohn et al. 2015.) What else can be switched
on, conditional convolutions, latent maps and aligned skips, lives inside encoder and decoder (`lab5.layers`).

Axes: T frames of a window, B sequences, C, H, W; videos are (T, B, C, H, W) in [0, 1], conditions (T, B, D).
Frames count from 0, so that step t in 1 .. T-1 predicts frame t. The model draws no random numbers: the
caller brings the noise, and noise of zeros means the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lab5.config import Config
from lab5.latents import FixedPrior, FramePredictor, GaussianLSTM, gaussian_kl, reparameterize
from lab5.layers import MAP_SIZES, Decoder, Encoder, Maps


@dataclass(frozen=True)
class ElboTerms:
    """What a training step needs of a batch; steps are the T-1 predicted frames of the window."""

    predictions: torch.Tensor                   # (T-1, B, C, H, W) in (0, 1)
    mse: torch.Tensor                           # (), squared error, mean over everything
    kl: torch.Tensor                            # (), nats a frame: sum over all latents, mean over steps and batch
    levels: Maps                                # its parts: of z(t), (T-1, B, z_dim), then maps, (T-1, B, channels)


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
    """The conditional VAE. `condition_width` is the number of values in a frame's condition, 0 for action-free."""

    def __init__(self, config: Config, condition_width: int) -> None:
        super().__init__()
        self.config = config
        steps_told = {"none": 0, "previous": 1, "target": 1, "both": 2}[config.condition] if condition_width else 0
        c_dim = config.condition_dim if steps_told else 0
        modulated = config.conditional_convolution and steps_told
        self.z_channels = config.z_channels if config.hierarchical else 0
        self.encoder = Encoder(config.width, config.g_dim, condition_width if modulated else 0)
        self.decoder = Decoder(config.width, config.g_dim, c_dim if modulated else 0, config.aligned, self.z_channels)
        self.embed_condition = nn.Linear(steps_told * condition_width, c_dim) if steps_told else None
        self.posterior = GaussianLSTM(config.g_dim + c_dim, config.z_dim, config.rnn_size, config.posterior_layers)
        self.prior = (GaussianLSTM(config.g_dim + c_dim, config.z_dim, config.rnn_size, config.prior_layers)
                      if config.learned_prior else FixedPrior(config.z_dim))
        self.predictor = FramePredictor(config.g_dim + c_dim + config.z_dim, config.g_dim, config.rnn_size,
                                        config.predictor_layers)
        self.register_buffer("condition_mean", torch.zeros(condition_width))
        self.register_buffer("condition_std", torch.ones(condition_width))

    @property
    def noise_size(self) -> int:
        """Numbers from N(0, I) that one step of one sequence takes: those of z(t), then of the latent maps."""
        return self.config.z_dim + self.z_channels * sum(size * size for size in MAP_SIZES)

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
            noise: (T-1, B, noise_size), from N(0, I).
            forced: T-1 flags; step t is given the true frame t-1 where set, else its own prediction of it.
                Steps whose previous frame is a context frame are always given the truth.
        """
        told = (condition - self.condition_mean) / self.condition_std           # (T, B, D)
        h, maps = self._encode(frames, told)                                    # (T, B, g), maps (T, B, ...)
        c = self._embed(told)                                                   # (T-1, B, c)
        mu, logvar, _ = self.posterior(torch.cat([h[1:], c], dim=-1))           # (T-1, B, z) each
        predictions, levels = self._unroll(h, maps, told, c, (mu, logvar), noise, runs(forced, self.config.n_past))
        mse = (predictions - frames[1:]).square().mean()                        # in the frames' precision
        return ElboTerms(predictions, mse, sum(level.sum(dim=-1).mean() for level in levels), levels)

    def predict(self, context: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Generate the future: teacher-forcing ratio 0, z from the prior. No future frame is an argument.

        Args:
            context: (n_past, B, C, H, W) in [0, 1], the frames seen.
            condition: (T, B, D) for the context and the future.
            noise: (T-1, B, noise_size): N(0, I) draws for a sample, zeros for the prior's mean.
        Returns:
            (T - n_past, B, C, H, W) in (0, 1).
        Raises:
            ValueError: more or fewer context frames than n_past.
        """
        seen = self.config.n_past
        if len(context) != seen:
            raise ValueError(f"predict was given {len(context)} context frames; the model is made for {seen}")
        return self._generate(context, condition, noise)

    def predict_one_step(self, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Each future frame from the true ones before it, z from the prior: generation with teacher forcing.

        To look at how errors pile up without it; as a score it would be another, easier task's. Arguments are those
        of `predict`, but for the frames (T, B, C, H, W), of which the last is not used.
        """
        return self._generate(frames, condition, noise)

    def _generate(self, known: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Frames from n_past on, z from the prior, each from the frame before it: the known one or the prediction."""
        seen = self.config.n_past
        told = (condition - self.condition_mean) / self.condition_std
        h, maps = self._encode(known, told[:len(known)])
        c = self._embed(told)
        mu, logvar, _ = self.posterior(torch.cat([h[1:seen], c[:seen - 1]], dim=-1))    # of the context
        passes = [(0, seen - 1, True), *((step, step + 1, step < len(known)) for step in range(seen - 1, len(c)))]
        return self._unroll(h, maps, told, c, (mu, logvar), noise, passes, wanted=seen - 1)[0]

    def _unroll(self, h: torch.Tensor, maps: Maps, told: torch.Tensor, c: torch.Tensor,
                posterior: tuple[torch.Tensor, torch.Tensor], noise: torch.Tensor,
                passes: list[tuple[int, int, bool]], wanted: int = 0) -> tuple[torch.Tensor, Maps]:
        """Run priors, predictor and decoder over all passes of (start, stop, known) steps.

        Consecutive steps whose previous frames are known depend on no prediction, so they go through in one
        pass; a step that is fed a prediction goes alone. Teacher forcing throughout is a single pass. z(t) is
        the posterior's where there is one, else the prior's; frames are decoded from step `wanted` on.

        Returns the frames (T-1 - wanted, B, C, H, W) and the KL of each level (T-1 - wanted, B, units).
        """
        frames, kl, state, prior_state = [], [], None, None
        last = self.config.n_past - 1 if self.config.skip != "early" else max(self.config.n_past - 2, 0)
        skips = self._skips(maps if self.config.skip == "latest" else [skip[:last + 1] for skip in maps])
        held = [skip[-1:] for skip in skips]                                    # of the last context frame
        for start, stop, known in passes:
            if known:
                h_in = h[start:stop]
            else:
                h_in, fresh = self._encode(frames[-1][-1:], told[start:stop])
            inputs = torch.cat([h_in, c[start:stop].to(h_in)], dim=-1)
            *prior, prior_state = self.prior(inputs, prior_state)
            has_posterior = stop <= len(posterior[0])
            q = [parameter[start:stop] for parameter in posterior] if has_posterior else prior
            vector_noise, map_noise = self._split(noise[start:stop])
            z = reparameterize(*q, vector_noise)                                # (T', B, z)
            g, state = self.predictor(torch.cat([inputs, z.to(inputs)], dim=-1), state)
            if stop <= wanted:
                continue
            if self.config.skip == "latest":
                used = [skip[start:stop] for skip in skips] if known else self._skips(fresh)
            else:
                used = held if start >= last else [                             # its own newest frame, until then
                    torch.cat([skip[start:last], newest.expand(stop - last, *newest.shape[1:])])
                    for skip, newest in zip(skips, held, strict=True)]
            target = [level[start + 1:stop + 1].flatten(0, 1) for level in maps] if has_posterior else None
            decoded, levels = self.decoder(g, used, c[start:stop], map_noise, target)
            frames.append(decoded.unflatten(0, g.shape[:2]))
            kl.append([gaussian_kl(*q, *prior), *(level.unflatten(0, g.shape[:2]) for level in levels)])
        return torch.cat(frames), [torch.cat(level) for level in zip(*kl, strict=True)]

    def _encode(self, frames: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, Maps]:
        """frames (T', B, C, H, W) and the frames' own conditions (T', B, D) -> h (T', B, g), maps (T', B, ...)."""
        T, B = frames.shape[:2]
        h, maps = self.encoder(frames.flatten(0, 1), told.flatten(0, 1))
        return h.unflatten(0, (T, B)), [level.unflatten(0, (T, B)) for level in maps]

    def _skips(self, maps: Maps) -> Maps:
        """The encoder's maps (T', B, ...) as the decoder takes them, from 8x8 up."""
        lead = maps[0].shape[:2]
        return [skip.unflatten(0, lead) for skip in self.decoder.skips([level.flatten(0, 1) for level in maps])]

    def _split(self, noise: torch.Tensor) -> tuple[torch.Tensor, Maps]:
        """Noise (T', B, noise_size) of z(t), (T', B, z_dim), and of the latent maps, (T'*B, channels, H, W)."""
        vector, rest = noise[..., :self.config.z_dim], noise[..., self.config.z_dim:].flatten(0, 1)
        sizes = MAP_SIZES if self.z_channels else ()
        parts = rest.split([self.z_channels * size * size for size in sizes], dim=-1)
        return vector, [part.unflatten(-1, (-1, size, size)) for part, size in zip(parts, sizes, strict=True)]

    def _embed(self, told: torch.Tensor) -> torch.Tensor:
        """What step t is told, embedded: normalised conditions (T, B, D) -> (T-1, B, c)."""
        if self.embed_condition is None:
            return told.new_zeros(len(told) - 1, told.shape[1], 0)
        previous, target = told[:-1], told[1:]
        steps = {"previous": [previous], "target": [target], "both": [previous, target]}[self.config.condition]
        return self.embed_condition(torch.cat(steps, dim=-1))
