"""What a latent variable carries, measured on latents of which it is known."""

import numpy as np
import pytest
import torch
from conftest import seeded_model

from lab5.config import preset
from lab5.data import Windows, to_video
from lab5.evaluation import infer, prior_noise
from lab5.workbook.latents import explained, gaussians, residual_spectrum

CONFIG = preset("smoke", precision="float32", condition="none", learned_prior=True)
RNG = np.random.default_rng(0)


def test_explained_is_one_for_a_linear_map_zero_for_noise_and_needs_a_network_for_a_square():
    inputs = RNG.normal(size=(400, 6, 3))
    targets = np.stack([inputs @ [1.0, -2.0, 0.5], RNG.normal(size=(400, 6)), inputs[..., 0] ** 2], axis=-1)
    linear, network = explained(inputs, targets), explained(inputs, targets, hidden=256)
    assert linear == pytest.approx([1, 0, 0], abs=0.02)
    assert network[[0, 2]] == pytest.approx([1, 1], abs=0.1) and abs(network[1]) < 0.25


def test_with_teacher_forcing_the_gaussians_are_those_of_the_bound(tiny_packs):
    """Same KL as the training's, where all previous frames are known."""
    model, pack = seeded_model(CONFIG), tiny_packs["test"]
    batch = Windows(pack, CONFIG.length).__getitems__(list(range(len(pack))))
    noise = prior_noise(len(pack), CONFIG.length - 1, model.noise_size, 1)
    with torch.inference_mode():
        terms = model.elbo_terms(to_video(batch.frames), batch.condition, noise, [True] * (CONFIG.length - 1))
    assert gaussians(model, pack).kl.mean() == pytest.approx(float(terms.kl), rel=0.02)        # the machine's precision
    assert float(infer(model, batch.frames, batch.condition, noise, "float32").kl) != pytest.approx(float(terms.kl))


def test_the_spectrum_adds_up_to_the_variance_of_the_error(tiny_packs):
    spectrum = residual_spectrum(seeded_model(CONFIG), tiny_packs["test"])
    assert spectrum.shape == (4 * CONFIG.n_future,) and (np.diff(spectrum) <= 1e-9).all()
    assert spectrum.min() > -1e-6 and spectrum.sum() > 0
