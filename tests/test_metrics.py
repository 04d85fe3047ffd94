"""The graded PSNR, SSIM and the grade, against the lab's definition and independent implementations."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from lab5.metrics import PSNR_CEILING, grade, psnr, ssim


def videos():
    generator, shape = torch.Generator().manual_seed(0), (4, 3, 3, 64, 64)
    truth = torch.rand(shape, generator=generator)
    error = torch.randn(shape, generator=generator) * torch.rand(*shape[:3], 1, 1, generator=generator)
    return (truth + 0.3 * error).clamp(0, 1), truth             # every channel of every frame errs by its own amount


def lab_psnr(prediction, truth) -> float:
    """A plain transcription of the lab's `finn_eval_seq`: loops over sequences, frames and channels."""
    per_frame = []
    for t in range(truth.shape[0]):
        for b in range(truth.shape[1]):
            channels = []
            for c in range(truth.shape[2]):
                mse = ((truth[t, b, c].double() - prediction[t, b, c].double()) ** 2).mean().item()
                channels.append(10 * math.log10(1 / mse))
            per_frame.append(sum(channels) / len(channels))
    return sum(per_frame) / len(per_frame)


def test_psnr_is_the_labs_definition():
    prediction, truth = videos()
    assert psnr(prediction, truth).mean().item() == pytest.approx(lab_psnr(prediction, truth), abs=1e-4)


def test_pooling_the_error_first_would_be_another_number():
    prediction, truth = videos()
    pooled = 10 * math.log10(1 / ((prediction - truth) ** 2).mean().item())
    assert psnr(prediction, truth).mean().item() > pooled + 1.0


def test_identical_frames_have_a_finite_psnr():
    truth = videos()[1]
    assert torch.equal(psnr(truth, truth), torch.full((4, 3), PSNR_CEILING))


def test_psnr_keeps_leading_axes_and_refuses_other_shapes():
    prediction, truth = videos()
    assert psnr(prediction, truth).shape == (4, 3)
    with pytest.raises(ValueError, match="same frames"):
        psnr(prediction[1:], truth)


def test_ssim_agrees_with_an_independent_library():
    prediction, truth = videos()
    for t in range(4):
        for b in range(3):
            expected = structural_similarity(                   # with the settings of Wang et al.
                truth[t, b].numpy(), prediction[t, b].numpy(), data_range=1.0, channel_axis=0,
                gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
            assert ssim(prediction, truth)[t, b].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("score, share", [(30, 1.0), (25.0, 1.0), (24.99, 0.9), (24, 0.9), (23.5, 0.8), (22, 0.7),
                                          (21, 0.6), (20.0, 0.5), (19.99, 0.0), (-3, 0.0), (float("nan"), 0.0)])
def test_the_grade_follows_the_handout(score, share):
    assert grade(score) == share
