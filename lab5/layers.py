"""The parts that the model is made of: VGG encoder and decoder for 64x64 frames, and two LSTMs.

Every part takes a whole sequence or one step: convolutions see frames as (N, C, H, W) whatever the N
counts, and the LSTMs take (T, B, features) with a state, T being 1 when the loop is sequential.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

Skips = list[torch.Tensor]                      # feature maps of one frame, from 64x64 down to 8x8
State = tuple[torch.Tensor, torch.Tensor] | None


def vgg_block(*channels: int) -> nn.Sequential:
    """3x3 convolutions through the given channels, each with batch norm and leaky ReLU."""
    return nn.Sequential(*(
        module for n_in, n_out in pairwise(channels)
        for module in (nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out),
                       nn.LeakyReLU(0.2, inplace=True))))


class Encoder(nn.Module):
    """VGG-64 (Denton & Fergus 2018, appendix): (N, 3, 64, 64) -> h (N, g_dim) in (-1, 1), and the skips."""

    def __init__(self, width: int, g_dim: int) -> None:
        super().__init__()
        w = width
        self.blocks = nn.ModuleList([
            vgg_block(3, w, w),                                 # 64x64
            vgg_block(w, 2 * w, 2 * w),                         # 32x32
            vgg_block(2 * w, 4 * w, 4 * w, 4 * w),              # 16x16
            vgg_block(4 * w, 8 * w, 8 * w, 8 * w)])             # 8x8
        self.pool = nn.MaxPool2d(2)
        self.to_vector = nn.Sequential(nn.Conv2d(8 * w, g_dim, 4, bias=False), nn.BatchNorm2d(g_dim), nn.Tanh())

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, Skips]:
        skips, features = [], frames
        for block in self.blocks:
            skips.append(block(features))
            features = self.pool(skips[-1])
        return self.to_vector(features).flatten(1), skips       # (N, g_dim), 4 maps


class Decoder(nn.Module):
    """The encoder's mirror: g (N, g_dim) and the skips of an earlier frame -> a frame (N, 3, 64, 64) in (0, 1)."""

    def __init__(self, width: int, g_dim: int) -> None:
        super().__init__()
        w = width
        self.from_vector = nn.Sequential(
            nn.ConvTranspose2d(g_dim, 8 * w, 4, bias=False), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2, inplace=True))
        self.blocks = nn.ModuleList([
            vgg_block(16 * w, 8 * w, 8 * w, 4 * w),             # 8x8, half of the input channels are the skip's
            vgg_block(8 * w, 4 * w, 4 * w, 2 * w),              # 16x16
            vgg_block(4 * w, 2 * w, w),                         # 32x32
            vgg_block(2 * w, w)])                               # 64x64
        self.upsample = nn.UpsamplingNearest2d(scale_factor=2)
        self.to_pixels = nn.Sequential(nn.Conv2d(w, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, g: torch.Tensor, skips: Skips) -> torch.Tensor:
        features = self.from_vector(g[:, :, None, None])        # (N, 8 w, 4, 4)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            features = block(torch.cat([self.upsample(features), skip], dim=1))
        return self.to_pixels(features)


class Recurrent(nn.Module):
    """A linear embedding and an LSTM: (T, B, n_in) -> (T, B, hidden), with the state that a next call goes on from."""

    def __init__(self, n_in: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.lstm = nn.LSTM(hidden, hidden, layers)

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        return self.lstm(self.embed(inputs), state)


class GaussianLSTM(Recurrent):
    """A recurrent diagonal Gaussian: (T, B, n_in) -> mu and logvar, each (T, B, z_dim)."""

    def __init__(self, n_in: int, z_dim: int, hidden: int, layers: int) -> None:
        super().__init__(n_in, hidden, layers)
        self.to_mu, self.to_logvar = nn.Linear(hidden, z_dim), nn.Linear(hidden, z_dim)

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, torch.Tensor, State]:
        hidden, state = super().forward(inputs, state)
        return self.to_mu(hidden), self.to_logvar(hidden), state


class FramePredictor(Recurrent):
    """The LSTM that puts out g(t): (T, B, n_in) -> (T, B, g_dim) in (-1, 1)."""

    def __init__(self, n_in: int, g_dim: int, hidden: int, layers: int) -> None:
        super().__init__(n_in, hidden, layers)
        self.to_g = nn.Sequential(nn.Linear(hidden, g_dim), nn.Tanh())

    def forward(self, inputs: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        hidden, state = super().forward(inputs, state)
        return self.to_g(hidden), state
