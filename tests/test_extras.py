"""The extras: each one's mathematics, and that all of them combine freely and keep the proofs."""

import itertools
import math

import pytest
import torch
from conftest import random_batch, seeded_model
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from lab5 import checkpoint
from lab5.config import preset
from lab5.evaluation import predict
from lab5.latents import LatentMap, gaussian_kl
from lab5.layers import Aligner, ConditionalConvolution, NormAct, affine_maps, warp
from lab5.model import CVAE, ElboTerms, negative_elbo

EXTRAS = ("learned_prior", "conditional_convolution", "hierarchical", "aligned")
COMBINATIONS = [dict(zip(EXTRAS, switches, strict=True)) for switches in itertools.product([False, True], repeat=4)]
BASICS = [{"condition": condition, "skip": skip} for condition in ("previous", "target", "none")
          for skip in ("context", "latest")]
ALL = dict.fromkeys(EXTRAS, True)


def test_conditional_is_the_papers_formula_channel_by_channel():
    """softplus(u_k . c) * conv_k(x) + v_k . c, written out, then the norm: frozen, where both are one map, or not."""
    torch.manual_seed(0)
    block = NormAct(3, 5).double()
    conditional = block.conditional
    for parameter in conditional.parameters():
        torch.nn.init.normal_(parameter).requires_grad_(False)
    features, condition = torch.randn(4, 3, 6, 6).double(), torch.randn(1, 4, 5).double()
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    scale = F.softplus(condition[0] @ conditional.scale.weight.T + conditional.scale.bias)
    expected = scale[..., None, None] * features + (condition[0] @ conditional.shift.weight.T)[..., None, None]
    for training in (False, True):
        block.train(training)
        result = block(features, iter(affine_maps(block, condition)))
        assert torch.allclose(result, F.leaky_relu(block.norm(expected), 0.2), atol=1e-9)


def test_conditional_starts_as_the_identity():
    scale, shift = ConditionalConvolution(5, 3)(torch.randn(4, 5))
    assert torch.allclose(scale, torch.ones(4, 3), atol=1e-6) and torch.equal(shift, torch.zeros(4, 3))


def test_an_aligner_starts_at_the_coarser_flow():
    state, skip = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    aligned, flow = Aligner(4)(state, skip, None)
    assert torch.equal(flow, torch.zeros(2, 2, 8, 8)) and torch.allclose(aligned, skip, atol=1e-5)
    _, flow = Aligner(4)(state, skip, torch.full((2, 2, 4, 4), 1.5))            # a coarser one: twice as many pixels
    assert torch.allclose(flow, torch.full((2, 2, 8, 8), 3.0))


@pytest.mark.parametrize("dx, dy", [(0, 0), (2, 0), (0, -3), (1, 2)])
def test_a_flow_says_from_how_many_pixels_away_a_feature_is_fetched(dx, dy):
    features = torch.randn(1, 1, 16, 16)
    flow = torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    moved = warp(features, flow)
    inner = slice(4, 12)
    expected = features[..., 4 + dy:12 + dy, 4 + dx:12 + dx]
    assert torch.allclose(moved[..., inner, inner], expected, atol=1e-4)


def test_a_latent_maps_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    level = LatentMap(4, 3, 2).double()
    for network in (level.prior, level.posterior):
        torch.nn.init.normal_(network.weight, std=0.15)
    features, target = torch.randn(1, 4, 4, 4).double(), torch.randn(1, 3, 4, 4).double()
    q = level.posterior(torch.cat([features, target], dim=1)).chunk(2, dim=1)
    p = level.prior(features).chunk(2, dim=1)
    posterior, prior = (Normal(mu, (0.5 * logvar).exp()) for mu, logvar in (q, p))
    _, kl = level(features, torch.zeros(1, 2, 4, 4).double(), target)
    assert torch.allclose(kl, kl_divergence(posterior, prior).sum(dim=(2, 3)))


def test_without_the_true_frame_a_latent_map_comes_from_its_prior():
    torch.manual_seed(0)
    level, features, noise = LatentMap(4, 3, 2), torch.randn(1, 4, 4, 4), torch.randn(1, 2, 4, 4)
    result, kl = level(features, noise, None)
    mu, logvar = level.prior(features).chunk(2, dim=1)
    assert torch.allclose(result, features + level.inject(mu + (0.5 * logvar).exp() * noise))
    assert torch.equal(kl, torch.zeros(1, 2))


def test_the_kl_of_a_hierarchy_is_the_sum_over_its_levels():
    config = preset("smoke", **ALL)
    model = seeded_model(config)
    frames, condition, noise = random_batch(config)
    terms = model.elbo_terms(frames, condition, noise, [True] * (config.length - 1))
    assert [tuple(level.shape) for level in terms.levels] == [(11, 3, config.z_dim)] + [(11, 3, config.z_channels)] * 2
    assert terms.kl.item() == pytest.approx(sum(level.sum(-1).mean().item() for level in terms.levels), rel=1e-5)


def test_a_learned_prior_is_what_the_kl_is_measured_against():
    config = preset("smoke", learned_prior=True)
    model = seeded_model(config)
    frames, condition, noise = random_batch(config)
    put_out = {}
    for name in ("prior", "posterior"):
        getattr(model, name).register_forward_hook(lambda _, given, output, name=name: put_out.update({name: output}))
    terms = model.elbo_terms(frames, condition, noise, [True] * (config.length - 1))
    (mu, logvar, _), (prior_mu, prior_logvar, _) = put_out["posterior"], put_out["prior"]
    assert torch.allclose(terms.levels[0], gaussian_kl(mu, logvar, prior_mu, prior_logvar))
    assert not torch.allclose(prior_mu, torch.zeros_like(prior_mu))


@pytest.mark.parametrize("switches", [*COMBINATIONS, *BASICS], ids=str)
@pytest.mark.parametrize("width", [7, 0], ids=["conditioned", "action-free"])
def test_every_combination_trains_predicts_and_reloads(switches, width, tmp_path):
    config = preset("smoke", **switches)
    torch.manual_seed(0)
    model = CVAE(config, width).train()
    model.set_condition_statistics(torch.arange(7.0), torch.arange(1.0, 8.0))
    frames, condition, noise = random_batch(config, condition_width=width)
    for forced in (True, False):
        terms = model.elbo_terms(frames, condition, noise, [forced] * (config.length - 1))
        (terms.mse + 1e-3 * terms.kl).backward()
        assert terms.predictions.shape == (config.length - 1, 3, 3, 64, 64)
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    checkpoint.save(tmp_path / "model.safetensors", model, epoch=3)
    again, facts = checkpoint.load_model(tmp_path / "model.safetensors")
    assert again.config == config and facts == {"epoch": 3}
    context = frames[:config.n_past]
    prediction = again.predict(context, condition, noise)
    assert prediction.shape == (config.n_future, 3, 3, 64, 64) and 0 <= prediction.min() <= prediction.max() <= 1
    assert torch.equal(prediction, model.eval().predict(context, condition, noise))


@pytest.mark.parametrize("skip", ["context", "latest", "early"])
@pytest.mark.parametrize("switches", [{}, ALL], ids=["plain", "all"])
def test_predictions_do_not_depend_on_future_frames(switches, skip, monkeypatch):
    """The proof of teacher-forcing ratio 0: every future frame is NaN, and not one bit changes.

    Scores are computed with `evaluation.predict`, which is given whole windows, the truth included.
    """
    config = preset("smoke", skip=skip, **switches)
    model = seeded_model(config)
    frames, condition, noise = random_batch(config)
    monkeypatch.setattr("lab5.evaluation.to_video", lambda video: video)
    clean = predict(model, frames, condition, noise, "float32")
    frames[config.n_past:] = float("nan")
    assert torch.isfinite(clean).all() and torch.equal(clean, predict(model, frames, condition, noise, "float32"))


@pytest.mark.parametrize("pattern", ["forced", "free", "mixed"])
def test_with_all_of_them_the_parallel_pass_is_the_frame_by_frame_loop(pattern, monkeypatch):
    """Same weights, same noise, float64: the same losses and gradients when every step goes alone."""
    config = preset("smoke", **ALL)
    model = seeded_model(config).double()
    batch, steps = [tensor.double() for tensor in random_batch(config)], config.length - 1
    forced = {"forced": [True] * steps, "free": [False] * steps,
              "mixed": [step % 3 != 0 for step in range(steps)]}[pattern]

    def losses_and_gradient():
        model.zero_grad()
        terms = model.elbo_terms(*batch, forced)
        (terms.mse + 1e-2 * terms.kl).backward()
        return terms.mse.item(), terms.kl.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    *losses, gradient = losses_and_gradient()
    monkeypatch.setattr("lab5.model.teacher_forced_segments", lambda forced, n_past: [
        (step, step + 1, step < n_past or is_forced) for step, is_forced in enumerate(forced)])
    *plain, plain_gradient = losses_and_gradient()
    assert losses == pytest.approx(plain, rel=1e-11)
    assert (gradient - plain_gradient).norm() <= 1e-10 * plain_gradient.norm()


def test_the_calibrated_loss_is_the_bound_at_the_best_variance():
    """D/2 log MSE + KL, over D, is the negative ELBO of a Gaussian decoder at its best variance, up to a constant."""
    torch.manual_seed(0)
    truth, predictions = torch.rand(11, 2, 3, 64, 64).double(), torch.rand(11, 2, 3, 64, 64).double()
    kl = torch.tensor(37.0).double()
    D = 3 * 64 * 64

    def negative_bound(variance):                               # nats per frame
        log_p = Normal(predictions, math.sqrt(variance)).log_prob(truth).sum() / 22
        return float(kl - log_p)

    mse = F.mse_loss(predictions, truth)
    terms = ElboTerms(predictions, mse, kl, [])
    loss = negative_elbo(preset("smoke", reconstruction="calibrated"), terms, kl_weight=1.0).item()
    assert D * (loss + 0.5 * math.log(2 * math.pi) + 0.5) == pytest.approx(negative_bound(mse.item()), rel=1e-6)
    assert all(negative_bound(mse.item()) < negative_bound(mse.item() * factor) for factor in (0.9, 1.1))
