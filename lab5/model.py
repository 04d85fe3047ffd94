"""The conditional VAE for video: `elbo_terms` and `negative_elbo` for training, `predict` for testing.

    h(t), skips = Enc(x(t))
    z(t)  ~ q(z | x(1..t), c)   = N(mu(t), sigma(t)^2)      posterior LSTM over [h(t), c(t)]
    p(z)                        = N(0, I)                   the prior, or an LSTM over [h(t-1), c(t)]
    g(t)  = frame-predictor LSTM over [h(t-1), c(t), z(t)]
    x^(t) = Dec(g(t), skips of the last context frame)

(Denton & Fergus 2018, SVG-FP and SVG-LP; the condition after Sohn et al. 2015.) The other extras are parts of encoder
and decoder (`lab5.layers`). Videos are (T, B, C, H, W) in [0, 1], conditions (T, B, D); frames count from 0, and step t
in 1 .. T-1 predicts frame t. The model draws no random numbers: noise is an argument, and zeros give the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lab5.config import Config
from lab5.latents import FixedPrior, FramePredictor, GaussianLSTM, gaussian_kl, reparameterize
from lab5.layers import MAP_SIZES, Affine, Decoder, Encoder, Maps, affine_maps

Segment = tuple[int, int, bool]                 # steps start .. stop-1, and whether their previous frames are known


@dataclass(frozen=True)
class ElboTerms:
    """The terms of the bound for a batch; steps are the T-1 predicted frames of the window."""

    predictions: torch.Tensor                   # (T-1, B, C, H, W) in (0, 1)
    mse: torch.Tensor                           # (), squared error, mean over everything
    kl: torch.Tensor                            # (), nats per frame: sum over all latents, mean over steps and batch
    levels: Maps                                # its parts: of z(t), (T-1, B, z_dim), then maps, (T-1, B, channels)


def teacher_forced_segments(forced: list[bool], n_past: int) -> list[Segment]:
    """Split the steps 0 .. T-2 (step s goes from frame s to frame s+1) into (start, stop, known) segments.

    A step is known if frame s is a context frame or is forced to be the true one. Consecutive known steps
    form one segment, since none depends on a prediction; every other step is a segment of its own.
    """
    found: list[Segment] = []
    for step, is_forced in enumerate(forced):
        known = step < n_past or is_forced
        if known and found and found[-1][2]:
            found[-1] = (found[-1][0], step + 1, True)
        else:
            found.append((step, step + 1, known))
    return found


def negative_elbo(config: Config, terms: ElboTerms, kl_weight: float) -> torch.Tensor:
    """The loss: the negative bound, up to scale and constants.

    "mse": the pixel-mean squared error + beta * kl_weight * KL, the bound of a decoder whose variance is fixed at
    beta * D / 2, D being the numbers in a frame. "calibrated": the variance is the one of the largest likelihood of the
    batch, which is the MSE itself (sigma-VAE: Rybkin, Daniilidis & Levine 2021); a frame's negative bound D/2 log MSE +
    KL is divided by D to keep gradients in a common range.
    """
    if config.reconstruction == "mse":
        return terms.mse + config.beta * kl_weight * terms.kl
    return 0.5 * terms.mse.log() + kl_weight * terms.kl / terms.predictions[0, 0].numel()


def _skips_of(skips: Maps, start: int, stop: int) -> Maps:
    """The skips of a segment, (T' or 1, B, ...): those of the step's own frame, or of the last frame that has any."""
    last = len(skips[0]) - 1
    if start >= last:
        return [skip[last:] for skip in skips]                  # one frame's serve all steps
    if stop <= last:
        return [skip[start:stop] for skip in skips]
    return [torch.cat([skip[start:last], skip[last:].expand(stop - last, *skip.shape[1:])]) for skip in skips]


def _part(affine: Affine, start: int, stop: int) -> Affine:
    return [(scale[start:stop], shift[start:stop]) for scale, shift in affine]


class CVAE(nn.Module):
    """The conditional VAE, for D = `condition_dim` numbers per frame. An action-free one ignores conditions."""

    def __init__(self, config: Config, condition_dim: int) -> None:
        super().__init__()
        self.config = config
        frames_used = {"none": 0, "previous": 1, "target": 1, "both": 2}[config.condition] if condition_dim else 0
        D, c_dim = (condition_dim, config.condition_dim) if frames_used else (0, 0)
        self.z_channels = config.z_channels if config.hierarchical else 0
        convolved, n_in, hidden = config.conditional_convolution, config.g_dim + c_dim, config.rnn_size
        self.encoder = Encoder(config.width, config.g_dim, D if convolved else 0)
        self.decoder = Decoder(config.width, config.g_dim, c_dim if convolved else 0, config.aligned, self.z_channels)
        self.embed_condition = nn.Linear(frames_used * D, c_dim) if frames_used else None
        self.posterior = GaussianLSTM(n_in, config.z_dim, hidden, config.posterior_layers, config.residual)
        self.prior = (GaussianLSTM(n_in, config.z_dim, hidden, config.prior_layers, config.residual)
                      if config.learned_prior else FixedPrior(config.z_dim))
        self.frame_predictor = FramePredictor(
            n_in + config.z_dim, config.g_dim, hidden, config.predictor_layers, config.residual)
        self.condition_dim = D                                  # 0: action-free
        self.register_buffer("condition_mean", torch.zeros(D))
        self.register_buffer("condition_std", torch.ones(D))

    @property
    def noise_size(self) -> int:
        """Draws from N(0, I) for one step of one sequence: those of z(t), then of the latent maps."""
        return self.config.z_dim + self.z_channels * sum(size * size for size in MAP_SIZES)

    def set_condition_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set the training split's mean and standard deviation (D,) of the conditions."""
        self.condition_mean.copy_(mean[:self.condition_dim])
        self.condition_std.copy_(std[:self.condition_dim])

    def forward(self, *batch) -> ElboTerms:
        """`elbo_terms`, for `DistributedDataParallel`."""
        return self.elbo_terms(*batch)

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
        segments = teacher_forced_segments(forced, self.config.n_past)
        predictions, levels = self._unroll(frames, condition, noise, segments, n_posterior=len(frames))
        mse = (predictions - frames[1:]).square().mean()                        # in the frames' precision
        return ElboTerms(predictions, mse, sum(level.sum(dim=-1).mean() for level in levels), levels)

    def predict(self, context: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Generate the future (T - n_past, B, C, H, W): teacher-forcing ratio 0, z from the prior.

        No future frame is an argument.

        Args:
            context: (n_past, B, C, H, W) in [0, 1]; ValueError where it has another number of frames.
            condition: (T, B, D) for the context and the future.
            noise: (T-1, B, noise_size): N(0, I) draws for a sample, zeros for the prior's mean.
        """
        if len(context) != self.config.n_past:
            raise ValueError(f"predict was given {len(context)} context frames; this model needs {self.config.n_past}")
        return self.predict_one_step(context, condition, noise)

    def predict_one_step(self, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """As `predict`, but each future frame from the true one before it, where it is among `frames`.

        With all frames it is generation with teacher forcing, an easier task than the graded one.
        """
        n_past = self.config.n_past
        segments = [(0, n_past - 1, True), *((step, step + 1, step < len(frames))
                                             for step in range(n_past - 1, len(condition) - 1))]
        return self._unroll(frames, condition, noise, segments, n_posterior=n_past, first=n_past - 1)[0]

    def _unroll(self, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor, segments: list[Segment],
                n_posterior: int, first: int = 0) -> tuple[torch.Tensor, Maps]:
        """Run prior, frame predictor and decoder over all segments, each at once; decode from step `first` on.

        The known frames (T', B, C, H, W) are encoded first. z(t) is the posterior's in the first `n_posterior` of them,
        else the prior's. Returns the frames (T-1 - first, B, C, H, W) and the KL of each level (T-1 - first, B, units).
        """
        condition = (condition[..., :self.condition_dim] - self.condition_mean) / self.condition_std
        all_c = self._embed(condition)
        encoder_maps, decoder_maps = affine_maps(self.encoder, condition), affine_maps(self.decoder, all_c)
        all_h, all_maps = self._encode(frames, encoder_maps)
        *posterior, _ = self.posterior(torch.cat([all_h[1:n_posterior], all_c[:n_posterior - 1]], dim=-1))
        with_skips = {"latest": len(frames), "context": self.config.n_past, "early": self.config.n_past - 1}
        all_skips = self.decoder.convolve_skips([level[:with_skips[self.config.skip]] for level in all_maps])
        predictions, kl, state, prior_state = [], [], None, None
        for start, stop, known in segments:
            h, maps = (all_h[start:stop], None) if known else self._encode(predictions[-1][-1:], encoder_maps, start)
            newest = maps and self.config.skip == "latest"
            skips = self.decoder.convolve_skips(maps) if newest else _skips_of(all_skips, start, stop)
            lstm_input = torch.cat([h, all_c[start:stop].to(h)], dim=-1)
            *prior, prior_state = self.prior(lstm_input, prior_state)
            has_posterior = stop < n_posterior
            q = [parameter[start:stop] for parameter in posterior] if has_posterior else prior
            vector_noise, map_noise = self._split(noise[start:stop])
            z = reparameterize(*q, vector_noise)                                # (T', B, z)
            g, state = self.frame_predictor(torch.cat([lstm_input, z.to(lstm_input)], dim=-1), state)
            if stop <= first:
                continue
            target = [level[start + 1:stop + 1].flatten(0, 1) for level in all_maps] if has_posterior else None
            decoded, levels = self.decoder(g, skips, _part(decoder_maps, start, stop), map_noise, target)
            predictions.append(decoded.unflatten(0, g.shape[:2]))
            kl.append([gaussian_kl(*q, *prior), *(level.unflatten(0, g.shape[:2]) for level in levels)])
        return torch.cat(predictions), [torch.cat(level) for level in zip(*kl, strict=True)]

    def _encode(self, frames: torch.Tensor, affine: Affine, first: int = 0) -> tuple[torch.Tensor, Maps]:
        """Frames `first`, ... (T', B, C, H, W), the `affine_maps` of all -> h (T', B, g), maps (T', B, ...)."""
        T, B = frames.shape[:2]
        h, maps = self.encoder(frames.flatten(0, 1), _part(affine, first, first + T))
        return h.unflatten(0, (T, B)), [level.unflatten(0, (T, B)) for level in maps]

    def _split(self, noise: torch.Tensor) -> tuple[torch.Tensor, Maps]:
        """Noise (T', B, noise_size) of z(t), (T', B, z_dim), and of the latent maps, (T'*B, channels, H, W)."""
        vector, rest = noise[..., :self.config.z_dim], noise[..., self.config.z_dim:].flatten(0, 1)
        sizes = MAP_SIZES if self.z_channels else ()
        parts = rest.split([self.z_channels * size * size for size in sizes], dim=-1)
        return vector, [part.unflatten(-1, (-1, size, size)) for part, size in zip(parts, sizes, strict=True)]

    def _embed(self, condition: torch.Tensor) -> torch.Tensor:
        """Normalised conditions (T, B, D) -> the embedded condition of each step (T-1, B, c)."""
        if self.embed_condition is None:
            return condition.new_zeros(len(condition) - 1, condition.shape[1], 0)
        previous, target = condition[:-1], condition[1:]
        steps = {"previous": [previous], "target": [target], "both": [previous, target]}[self.config.condition]
        return self.embed_condition(torch.cat(steps, dim=-1))


def posterior_and_prior(model: CVAE, frames: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Posterior and prior of z(t), all frames (T, B, C, H, W) known: mu, logvar, mu, logvar, (T-1, B, z_dim) each."""
    condition = (condition[..., :model.condition_dim] - model.condition_mean) / model.condition_std
    h, c = model._encode(frames, affine_maps(model.encoder, condition))[0], model._embed(condition)
    *posterior, _ = model.posterior(torch.cat([h[1:], c], dim=-1))
    *prior, _ = model.prior(torch.cat([h[:-1], c], dim=-1))
    return *posterior, *prior
