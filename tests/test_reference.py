"""The fast model against the plain loop of `benchmarks/reference.py`: same weights, same noise, same numbers.

Batch norms use their averages here: of the plain loop each frame is a batch of its own, of the fast path all frames
are one, so their batch statistics differ by construction.
"""

import sys
from pathlib import Path

import pytest
import torch
from conftest import random_batch, seeded_model

sys.path.insert(0, str(Path(__file__).parents[1]))      # benchmarks/ is no part of the package

from benchmarks.reference import Reference

PATTERNS = {"ratio 1": [True] * 11, "ratio 0": [False] * 11, "a coin a step": [True, False, False] * 3 + [True, False]}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_losses_and_gradients_are_those_of_the_plain_loop(config, pattern):
    """In float64, where rounding is far below any mistake on every processor."""
    model, batch = seeded_model(config).double(), [part.double() for part in random_batch(config, 3)]
    reference = Reference.like(model)
    terms = model.elbo_terms(*batch, PATTERNS[pattern])
    mse, kl = reference(*batch, PATTERNS[pattern])
    torch.testing.assert_close(mse, terms.mse, rtol=1e-11, atol=0)
    torch.testing.assert_close(kl, terms.kl, rtol=1e-11, atol=0)
    (terms.mse + 0.1 * terms.kl).backward()
    (mse + 0.1 * kl).backward()
    compared = 0
    for mine, theirs in reference.gradients(model):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max()))
        compared += mine.numel()
    assert compared == sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in model.parameters())


def test_the_reference_does_not_share_the_models_mistakes(config):
    """A model whose skips come from another frame is told apart."""
    model, batch = seeded_model(config), random_batch(config, 3)
    other = seeded_model(config.replace(skip="early"))
    mse, _ = Reference.like(model)(*batch, PATTERNS["ratio 0"])
    assert abs(other.elbo_terms(*batch, PATTERNS["ratio 0"]).mse - mse) > 1e-4
