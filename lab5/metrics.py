"""The lab's PSNR, SSIM, and the marks they earn. All vectorized over leading axes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

PSNR_CEILING = 100.0                            # dB, the score of identical frames, whose true PSNR is infinite

# Average PSNR on the test set in dB -> share of the demo's marks, best first (the handout's table)
GRADES = ((25.0, 1.0), (24.0, 0.9), (23.0, 0.8), (22.0, 0.7), (21.0, 0.6), (20.0, 0.5))


def psnr(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The graded measure: 10 log10(1 / mse) of each channel of each frame, then the mean over channels.

    (..., C, H, W) in [0, 1] -> (...,) in dB, at most `PSNR_CEILING`; ValueError where shapes differ. The logarithm per
    channel and frame is that of the lab's `finn_eval_seq` (after Finn et al. 2016). Pooling the squared error over
    channels, frames or sequences first gives another, lower number.
    """
    _same_shape(prediction, truth)
    mse = (prediction.float() - truth.float()).square().mean(dim=(-2, -1))          # (..., C)
    return (-10 * torch.log10(mse.clamp_min(10 ** (-PSNR_CEILING / 10)))).mean(dim=-1)


def ssim(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window, sigma 1.5, mean over pixels and channels.

    (..., C, H, W) in [0, 1], H and W at least 11 -> (...,) at most 1; ValueError where shapes differ.
    """
    _same_shape(prediction, truth)
    *lead, channels, height, width = truth.shape
    offsets = torch.arange(11, device=truth.device) - 5.0
    taps = torch.exp(-offsets.square() / (2 * 1.5 ** 2))
    taps = taps / taps.sum()

    def blur(images: torch.Tensor) -> torch.Tensor:             # separable, over the window's valid positions
        images = F.conv2d(images, taps.view(1, 1, 11, 1))
        return F.conv2d(images, taps.view(1, 1, 1, 11))

    x, y = (video.float().reshape(-1, 1, height, width) for video in (prediction, truth))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x ** 2, blur(y * y) - mean_y ** 2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01 ** 2, 0.03 ** 2                               # the paper's constants for a data range of 1
    score = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
             / ((mean_x ** 2 + mean_y ** 2 + c1) * (var_x + var_y + c2)))
    return score.mean(dim=(-3, -2, -1)).reshape(*lead, channels).mean(dim=-1)


def grade(average_psnr: float) -> float:
    """Share of the demo's 20 marks that an average test PSNR in dB earns, from 0 to 1."""
    return next((share for threshold, share in GRADES if average_psnr >= threshold), 0.0)


def _same_shape(prediction: torch.Tensor, truth: torch.Tensor) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}; "
                         "they must be the same frames")
