"""The plain loop, written from the assignment: one frame after another, LSTM cells, float32, no trick.

It is what a speed is compared with, and the oracle that the fast model is tested against: `Reference.like(model)`
has the same weights, and must compute the same loss. Extras are left out; the assignment's model has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from lab5.config import Config
from lab5.model import CVAE


class Block(nn.Sequential):
    """3x3 convolution, batch norm, leaky ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))


class Encoder(nn.Module):
    """A frame (B, 3, 64, 64) -> h (B, g_dim) and four skips."""

    def __init__(self, w: int, g_dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([
            nn.Sequential(Block(3, w), Block(w, w)),
            nn.Sequential(Block(w, 2 * w), Block(2 * w, 2 * w)),
            nn.Sequential(Block(2 * w, 4 * w), Block(4 * w, 4 * w), Block(4 * w, 4 * w)),
            nn.Sequential(Block(4 * w, 8 * w), Block(8 * w, 8 * w), Block(8 * w, 8 * w))])
        self.last = nn.Sequential(nn.Conv2d(8 * w, g_dim, 4, bias=False), nn.BatchNorm2d(g_dim), nn.Tanh())

    def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips, features = [], frame
        for stage in self.stages:
            skips.append(stage(features))
            features = F.max_pool2d(skips[-1], 2)
        return self.last(features).flatten(1), skips


class Decoder(nn.Module):
    """g (B, g_dim) and four skips -> a frame (B, 3, 64, 64)."""

    def __init__(self, w: int, g_dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ConvTranspose2d(g_dim, 8 * w, 4, bias=False), nn.BatchNorm2d(8 * w),
                                   nn.LeakyReLU(0.2))
        self.stages = nn.ModuleList([
            nn.Sequential(Block(16 * w, 8 * w), Block(8 * w, 8 * w), Block(8 * w, 4 * w)),
            nn.Sequential(Block(8 * w, 4 * w), Block(4 * w, 4 * w), Block(4 * w, 2 * w)),
            nn.Sequential(Block(4 * w, 2 * w), Block(2 * w, w)),
            nn.Sequential(Block(2 * w, w))])
        self.last = nn.Conv2d(w, 3, 3, padding=1)

    def forward(self, g: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        features = self.first(g[:, :, None, None])
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            features = stage(torch.cat([F.interpolate(features, scale_factor=2), skip], dim=1))
        return torch.sigmoid(self.last(features))


class Cells(nn.Module):
    """A linear layer and a stack of LSTM cells, one time step a call."""

    def __init__(self, n_in: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.cells = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
        self.state: list = []

    def reset(self) -> None:
        self.state = [None] * len(self.cells)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(inputs)
        for index, cell in enumerate(self.cells):
            self.state[index] = cell(hidden, self.state[index])
            hidden = self.state[index][0]
        return hidden


class Reference(nn.Module):
    """The assignment's CVAE for `Config`s without extras, conditioned on both steps' conditions."""

    def __init__(self, config: Config, condition_width: int = 7) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config.width, config.g_dim), Decoder(config.width, config.g_dim)
        self.condition = nn.Linear(2 * condition_width, config.condition_dim)
        n_in = config.g_dim + config.condition_dim
        self.posterior = Cells(n_in, config.rnn_size, config.posterior_layers)
        self.mu, self.logvar = (nn.Linear(config.rnn_size, config.z_dim) for _ in range(2))
        self.predictor = Cells(n_in + config.z_dim, config.rnn_size, config.predictor_layers)
        self.to_g = nn.Sequential(nn.Linear(config.rnn_size, config.g_dim), nn.Tanh())
        self.register_buffer("condition_mean", torch.zeros(condition_width))
        self.register_buffer("condition_std", torch.ones(condition_width))

    def forward(self, frames: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor, forced: list[bool],
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean squared error and the KL in nats per frame; arguments as `CVAE.elbo_terms` has them."""
        self.posterior.reset()
        self.predictor.reset()
        condition = (condition - self.condition_mean) / self.condition_std
        encoded = [self.encoder(frame) for frame in frames]
        mse, kl, prediction = 0.0, 0.0, None
        steps = len(frames) - 1
        last = {"context": self.config.n_past, "early": self.config.n_past - 1, "latest": steps}[self.config.skip]
        for t in range(1, len(frames)):
            known = prediction is None or t <= self.config.n_past or forced[t - 1]
            h, fresh = encoded[t - 1] if known else self.encoder(prediction)
            if t <= last:                                       # the skips of the newest frame that may give any
                skips = fresh
            c = self.condition(torch.cat([condition[t - 1], condition[t]], dim=-1))
            hidden = self.posterior(torch.cat([encoded[t][0], c], dim=-1))
            mu, logvar = self.mu(hidden), self.logvar(hidden)
            z = mu + torch.exp(logvar / 2) * noise[t - 1]
            prediction = self.decoder(self.to_g(self.predictor(torch.cat([h, c, z], dim=-1))), skips)
            mse = mse + F.mse_loss(prediction, frames[t]) / steps
            kl = kl - 0.5 * (1 + logvar - mu ** 2 - logvar.exp()).sum(dim=-1).mean() / steps
        return mse, kl

    @classmethod
    def like(cls, model: CVAE) -> Reference:
        """The same weights in the plain form."""
        reference = cls(model.config, len(model.condition_mean)).to(model.condition_mean.dtype)
        with torch.no_grad():
            for mine, theirs in reference._pairs(model):
                mine.copy_(theirs)
        return reference.train(model.training)

    def gradients(self, model: CVAE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(gradient here, the model's gradient of the same weight) for every weight."""
        return ((mine.grad, theirs) for mine, theirs in self._pairs(model, gradients=True))

    def _pairs(self, model: CVAE, gradients: bool = False) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(tensor here, the model's of the same meaning); the model's gradients instead where asked for."""
        def same(mine: nn.Module, theirs: nn.Module):
            for name, parameter in theirs.named_parameters(recurse=False):
                yield getattr(mine, name), parameter.grad if gradients else parameter
            if not gradients:
                for name, buffer in theirs.named_buffers(recurse=False):
                    yield getattr(mine, name), buffer

        def blocks(mine, convolutions, activations):
            for block, convolution, activation in zip(mine, convolutions, activations, strict=True):
                yield from same(block[0], convolution)
                yield from same(block[1], activation.norm)

        def recurrent(mine: Cells, theirs: nn.Module):
            yield from same(mine.embed, theirs.embed)
            for name, parameter in theirs.lstm.named_parameters():              # weight_ih_l0, ...
                kind, layer = name.rsplit("_l", 1)
                yield getattr(mine.cells[int(layer)], kind), parameter.grad if gradients else parameter

        yield from same(self, model)
        for mine, theirs in zip(self.encoder.stages, model.encoder.blocks, strict=True):
            yield from blocks(mine, theirs.convolutions, theirs.activations)
        yield from same(self.encoder.last[0], model.encoder.to_vector[0])
        yield from same(self.encoder.last[1], model.encoder.to_vector[1])
        yield from same(self.decoder.first[0], model.decoder.from_vector)
        yield from same(self.decoder.first[1], model.decoder.activation.norm)
        for mine, theirs in zip(self.decoder.stages, model.decoder.blocks, strict=True):
            halves = [theirs.from_above.weight, theirs.from_skip.weight]
            yield mine[0][0].weight, torch.cat([half.grad if gradients else half for half in halves], dim=1)
            yield from same(mine[0][1], theirs.activation.norm)
            yield from blocks(mine[1:], theirs.convolutions.convolutions, theirs.convolutions.activations)
        yield from same(self.decoder.last, model.decoder.to_pixels)
        yield from same(self.condition, model.embed_condition)
        yield from recurrent(self.posterior, model.posterior)
        yield from same(self.mu, model.posterior.to_mu)
        yield from same(self.logvar, model.posterior.to_logvar)
        yield from recurrent(self.predictor, model.frame_predictor)
        yield from same(self.to_g[0], model.frame_predictor.to_g[0])
