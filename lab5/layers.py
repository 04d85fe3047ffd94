"""The convolutions that the model is made of: VGG encoder and decoder for 64x64 frames.

Frames are (N, C, H, W); only the decoder separates time from batch, since all steps of a sequence share the skips
of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from lab5.latents import LatentMap, full_precision

Maps = list[torch.Tensor]                       # feature maps of frames, at several resolutions
Affine = list[tuple[torch.Tensor, torch.Tensor]]    # scale and shift of each conditional convolution, (T, B, channels)
MAP_SIZES = (8, 16)                             # pixels a side of the latent maps, in the decoder's order

convolution = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)


class ConditionalConvolution(nn.Module):
    """What makes a convolution conditional (Choi, El-Khamy & Lee 2019): softplus(u_k . c) * conv_k(x) + v_k . c.

    A FiLM layer (Perez et al. 2018) but for the softplus. c is continuous here, one-hot in the paper. It starts as
    the identity: scale 1, shift 0.
    """

    def __init__(self, n_condition: int, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(n_condition, channels), nn.Linear(n_condition, channels, bias=False)
        for weight in (self.scale.weight, self.shift.weight):
            nn.init.zeros_(weight)
        nn.init.constant_(self.scale.bias, math.log(math.e - 1))        # where softplus is 1

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """condition (..., n_condition) -> scale and shift of the convolution's channels, (..., channels) each."""
        return F.softplus(self.scale(condition)), self.shift(condition)


class NormAct(nn.Module):
    """What follows a convolution: scale and shift by the condition (if n_condition > 0), batch norm, leaky ReLU."""

    def __init__(self, channels: int, n_condition: int) -> None:
        super().__init__()
        self.conditional = ConditionalConvolution(n_condition, channels) if n_condition else None
        self.norm = nn.BatchNorm2d(channels)

    def affine(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """condition (..., n_condition) -> scale and shift (..., channels).

        A norm that uses its running averages is an affine map as well, and the two are made one.
        """
        scale, shift = self.conditional(condition)
        if self.norm.training:
            return scale, shift
        factor = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        return scale * factor, (shift - self.norm.running_mean) * factor + self.norm.bias

    def forward(self, features: torch.Tensor, affine: Iterator) -> torch.Tensor:
        """features (N, channels, H, W); `affine` gives the scale and shift of each layer in turn, (T, B, channels)."""
        if self.conditional is not None:
            scale, shift = (value.flatten(0, 1)[:, :, None, None].to(features) for value in next(affine))
            features = features * scale + shift
        if self.conditional is None or self.norm.training:
            features = self.norm(features)
        return F.leaky_relu(features, 0.2, inplace=True)


def affine_maps(network: nn.Module, condition: torch.Tensor) -> Affine:
    """What conditions (T, B, n) make of each conditional convolution of an encoder or decoder, in their order.

    Independent of frames and predictions, so all steps are computed at once.
    """
    return [part.affine(condition) for part in network.modules() if isinstance(part, NormAct) and part.conditional]


class ConvBlock(nn.Module):
    """3x3 convolutions through the given channels, each followed by `NormAct`."""

    def __init__(self, *channels: int, n_condition: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolution(n_in, n_out) for n_in, n_out in pairwise(channels))
        self.activations = nn.ModuleList(NormAct(n_out, n_condition) for n_out in channels[1:])

    def forward(self, features: torch.Tensor, affine: Iterator) -> torch.Tensor:
        for convolve, activate in zip(self.convolutions, self.activations, strict=True):
            features = activate(convolve(features), affine)
        return features


class Encoder(nn.Module):
    """VGG-64 (Denton & Fergus 2018, appendix): (N, 3, 64, 64) -> h (N, g_dim) in (-1, 1), and the skips."""

    def __init__(self, width: int, g_dim: int, n_condition: int = 0) -> None:
        super().__init__()
        w = width
        self.blocks = nn.ModuleList(ConvBlock(*channels, n_condition=n_condition) for channels in (
            (3, w, w),                                          # 64x64
            (w, 2 * w, 2 * w),                                  # 32x32
            (2 * w, 4 * w, 4 * w, 4 * w),                       # 16x16
            (4 * w, 8 * w, 8 * w, 8 * w)))                      # 8x8
        self.to_vector = nn.Sequential(nn.Conv2d(8 * w, g_dim, 4, bias=False), nn.BatchNorm2d(g_dim), nn.Tanh())

    def forward(self, frames: torch.Tensor, affine: Affine) -> tuple[torch.Tensor, Maps]:
        skips, features, affine = [], frames, iter(affine)
        for block in self.blocks:
            skips.append(block(features, affine))
            features = F.max_pool2d(skips[-1], 2)
        return self.to_vector(features).flatten(1), skips       # (N, g_dim), 4 maps


class Aligner(nn.Module):
    """Warps skip features to where they belong at each step, by a flow that the decoder's state predicts.

    A flow (N, 2, H, W) holds the offset, in pixels, at which each position's feature is sampled. The coarser level's
    flow is refined (Ranjan & Black 2017), from zero at the start. Our own design, with the aim of HAF-SVG (Lin, Yuan &
    Li 2020), whose equations we could not read.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.refine = nn.Conv2d(2 * channels, 2, 3, padding=1)
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)

    def forward(self, state: torch.Tensor, skip: torch.Tensor, coarser: torch.Tensor | None,
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """State and skip (N, channels, H, W), the coarser flow (N, 2, H/2, W/2) -> aligned skip, and the flow."""
        flow = full_precision(self.refine(torch.cat([state, skip], dim=1)))
        if coarser is not None:
            flow = flow + 2 * F.interpolate(coarser, scale_factor=2, mode="bilinear", align_corners=False)
        return warp(skip, flow), flow


def warp(features: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample features (N, C, H, W) at an offset of `flow` (N, 2, H, W) pixels, x first; the border is repeated."""
    N, _, H, W = flow.shape
    x = (2 * torch.arange(W, device=flow.device) + 1) / W - 1   # centres of the pixels on [-1, 1]
    y = (2 * torch.arange(H, device=flow.device) + 1) / H - 1
    place = torch.stack([x.expand(H, W) + 2 / W * flow[:, 0], y[:, None] + 2 / H * flow[:, 1]], dim=-1)
    return F.grid_sample(full_precision(features), place, padding_mode="border", align_corners=False).to(features.dtype)


class DecoderBlock(nn.Module):
    """One resolution of the decoder: upsampled features and a skip -> features.

    A convolution over [upsampled, skip] is the sum of two convolutions. The skip's is independent of the time step,
    so it is computed once per sequence (`Decoder.convolve_skips`).
    """

    def __init__(self, n_above: int, n_skip: int, *channels: int, n_condition: int, aligned: bool,
                 z_channels: int) -> None:
        super().__init__()
        self.from_above, self.from_skip = convolution(n_above, channels[0]), convolution(n_skip, channels[0])
        self.aligner = Aligner(channels[0]) if aligned else None
        self.activation = NormAct(channels[0], n_condition)
        self.latent = LatentMap(channels[0], n_skip, z_channels) if z_channels else None
        self.convolutions = ConvBlock(*channels, n_condition=n_condition)

    def fuse_skip(self, above: torch.Tensor, skip: torch.Tensor, affine: Iterator, flow: torch.Tensor | None,
                  ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """above (T*B, n_above, H/2, W/2), convolved skip (T or 1, B, C, H, W) -> (T*B, C, H, W), and the flow."""
        above = self.from_above(F.interpolate(above, scale_factor=2, mode="nearest"))
        steps = above.unflatten(0, (-1, skip.shape[1]))                         # (T, B, C, H, W)
        if self.aligner is not None:
            moved, flow = self.aligner(above, skip.expand_as(steps).flatten(0, 1), flow)
            return self.activation(above + moved, affine), flow
        return self.activation((steps + skip).flatten(0, 1), affine), None


class Decoder(nn.Module):
    """The encoder's mirror: g and an earlier frame's skips -> a frame in (0, 1).

    `n_condition` and `z_channels` are 0 for plain convolutions and for no latent maps (at 8x8 and 16x16).
    """

    def __init__(self, width: int, g_dim: int, n_condition: int = 0, aligned: bool = False,
                 z_channels: int = 0) -> None:
        super().__init__()
        w = width
        self.from_vector = nn.ConvTranspose2d(g_dim, 8 * w, 4, bias=False)
        self.activation = NormAct(8 * w, n_condition)
        options = {"n_condition": n_condition, "aligned": aligned}
        self.blocks = nn.ModuleList([
            DecoderBlock(8 * w, 8 * w, 8 * w, 8 * w, 4 * w, z_channels=z_channels, **options),         # 8x8
            DecoderBlock(4 * w, 4 * w, 4 * w, 4 * w, 2 * w, z_channels=z_channels, **options),         # 16x16
            DecoderBlock(2 * w, 2 * w, 2 * w, w, z_channels=0, **options),                             # 32x32
            DecoderBlock(w, w, w, z_channels=0, **options)])                                           # 64x64
        self.to_pixels = nn.Conv2d(w, 3, 3, padding=1)

    def convolve_skips(self, maps: Maps) -> Maps:
        """The encoder's maps (T, B, ...) as `forward` takes them, from 8x8 up: independent of the time step."""
        return [block.from_skip(skip.flatten(0, 1)).unflatten(0, skip.shape[:2])
                for block, skip in zip(self.blocks, reversed(maps), strict=True)]

    def forward(self, g: torch.Tensor, skips: Maps, affine: Affine, noise: Maps,
                target_maps: Maps | None = None) -> tuple[torch.Tensor, Maps]:
        """Decode consecutive steps: frames (T*B, 3, 64, 64), and the KL of each latent map, (T*B, z_channels) nats.

        Args:
            g: (T, B, g_dim).
            skips: four maps (T or 1, B, C, H, W) from `convolve_skips`; those of one frame serve all steps.
            affine: `affine_maps` of these steps.
            noise: (T*B, z_channels, H, W) for each latent map, from 8x8 up.
            target_maps: the encoder's maps (T*B, ...) of the frames to predict, from 64x64 down; with them the latent
                maps come from the posterior, without them from the prior.
        """
        kl, flow, affine = [], None, iter(affine)
        features = self.activation(self.from_vector(g.flatten(0, 1)[:, :, None, None]), affine)     # (T*B, 8 w, 4, 4)
        for index, (block, skip) in enumerate(zip(self.blocks, skips, strict=True)):
            features, flow = block.fuse_skip(features, skip, affine, flow)
            if block.latent is not None:
                target = target_maps[-1 - index] if target_maps else None
                features, divergence = block.latent(features, noise[index], target)
                kl.append(divergence)
            features = block.convolutions(features, affine)
        return torch.sigmoid(self.to_pixels(features)), kl
