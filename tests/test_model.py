"""The CVAE: what it may look at, and that the fast model is the plain loop of `benchmarks/reference.py`.

Batch norms use their averages here: of the plain loop each frame is a batch of its own, of the fast path all frames
are one, so their batch statistics differ by construction.
"""

import pytest
import torch
from conftest import random_batch, seeded_model

from benchmarks.reference import Reference
from lab5.config import PRESETS, preset
from lab5.model import CVAE, teacher_forced_segments

PATTERNS = {"ratio 1": [True] * 11, "ratio 0": [False] * 11, "a coin a step": [True, False, False] * 3 + [True, False]}


def test_full_width_is_the_labs_22_million_parameters():
    count = sum(p.numel() for p in CVAE(PRESETS["full"], condition_dim=7).parameters())
    assert 22.1e6 < count < 22.4e6


def test_predict_cannot_be_given_a_future_frame():
    """Nothing but the context, the condition and the noise is an argument, and frames beyond n_past are refused."""
    config = preset("smoke")
    frames, condition, noise = random_batch(config)
    with pytest.raises(ValueError, match="context frames"):
        seeded_model(config).predict(frames, condition, noise)


def test_segments_group_the_steps_that_depend_on_no_prediction():
    T, F = True, False
    assert teacher_forced_segments([T] * 5, n_past=2) == [(0, 5, T)]
    assert teacher_forced_segments([F] * 5, n_past=2) == [(0, 2, T), (2, 3, F), (3, 4, F), (4, 5, F)]
    assert teacher_forced_segments([F, F, F, T, T], n_past=2) == [(0, 2, T), (2, 3, F), (3, 5, T)]


def test_with_teacher_forcing_a_frame_depends_on_the_true_ones_before_it_and_no_later_one(config):
    """The first future frame is that of free generation; poison in frame t reaches the predictions after t alone."""
    model = seeded_model(config).double()
    frames, condition, noise = (part.double() for part in random_batch(config, 2))
    with torch.inference_mode():
        forced = model.predict_one_step(frames, condition, noise)
        free = model.predict(frames[:config.n_past], condition, noise)
        frames[6] = float("nan")
        poisoned = model.predict_one_step(frames, condition, noise)
    torch.testing.assert_close(forced[0], free[0])
    assert (forced[1] - free[1]).abs().max() > 1e-6
    reached = poisoned.isnan().flatten(1).any(dim=1).tolist()
    assert reached == [step + config.n_past > 6 for step in range(config.n_future)]


@pytest.mark.parametrize("skip", ["context", "latest", "early"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_losses_and_gradients_are_those_of_the_plain_loop(config, pattern, skip):
    """In float64, where rounding is far below any mistake on every processor."""
    model, batch = seeded_model(config.replace(skip=skip)).double(), [part.double() for part in random_batch(config, 3)]
    reference = Reference.like(model)
    terms = model.elbo_terms(*batch, PATTERNS[pattern])
    mse, kl = reference(*batch, PATTERNS[pattern])
    torch.testing.assert_close(mse, terms.mse, rtol=1e-11, atol=0)
    torch.testing.assert_close(kl, terms.kl, rtol=1e-11, atol=0)
    (terms.mse + 0.1 * terms.kl).backward()
    (mse + 0.1 * kl).backward()
    compared = 0
    for mine, theirs in reference.gradients(model):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8 * float(theirs.abs().max()))
        compared += mine.numel()
    assert compared == sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in model.parameters())
