"""The check before a long training: it passes for the model, and fails where something is not connected."""

import numpy as np
import torch

from lab5 import model as models
from lab5.config import preset
from lab5.layers import Decoder
from lab5.workbook.overfit import overfit


def test_the_model_overfits_eight_sequences(tiny_packs):
    check = overfit(preset("quick"), tiny_packs["train"], steps=80, progress=False)
    assert not check.idle and check.scores["posterior"] > check.scores["repeat_last"] + 3
    assert (check.videos["truth"] == tiny_packs["train"].frames[0, :12]).all()
    assert np.abs(check.videos["posterior"].astype(float) - check.videos["truth"])[2:].mean() < 16


def test_every_extra_takes_part_and_a_decoder_without_z_and_skips_does_not_pass(tiny_packs, monkeypatch):
    extras, convolve = dict.fromkeys(("learned_prior", "hierarchical", "aligned"), True), Decoder.convolve_skips
    assert not overfit(preset("smoke", **extras), tiny_packs["train"], steps=3, progress=False).idle
    monkeypatch.setattr(Decoder, "convolve_skips", lambda self, maps: [0 * skip for skip in convolve(self, maps)])
    monkeypatch.setattr(models, "reparameterize", lambda mu, logvar, noise: torch.zeros_like(mu))
    found = overfit(preset("smoke"), tiny_packs["train"], steps=3, progress=False)
    assert {"decoder.blocks.0.from_skip", "posterior.to_mu"} <= set(found.idle)
