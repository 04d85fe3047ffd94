"""The CVAE: its mathematics, what it may look at, and that the parallel pass is the sequential one."""

import inspect

import pytest
import torch
from conftest import random_batch, seeded_model
from torch.distributions import Normal, kl_divergence

from lab5.config import PRESETS, preset
from lab5.model import CVAE, gaussian_kl, reparameterize, teacher_forced_segments


def test_the_kl_is_that_of_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 5, 7, generator=generator).double()
    q = Normal(mu, (0.5 * logvar).exp())
    assert torch.allclose(gaussian_kl(mu, logvar), kl_divergence(q, Normal(torch.zeros_like(mu), 1.0)))
    prior = Normal(prior_mu, (0.5 * prior_logvar).exp())
    assert torch.allclose(gaussian_kl(mu, logvar, prior_mu, prior_logvar), kl_divergence(q, prior))


def test_reparameterized_samples_have_the_mean_and_variance_asked_for():
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    z = reparameterize(torch.tensor(1.5), torch.tensor(4.0).log(), noise)
    assert z.mean().item() == pytest.approx(1.5, abs=0.02) and z.std().item() == pytest.approx(2.0, abs=0.02)


def test_full_width_is_the_labs_22_million_parameters():
    count = sum(p.numel() for p in CVAE(PRESETS["full"], condition_dim=7).parameters())
    assert 22.1e6 < count < 22.4e6


def test_predict_cannot_be_given_a_future_frame():
    """Nothing but the context, the condition and the noise is an argument, and frames beyond n_past are refused."""
    assert list(inspect.signature(CVAE.predict).parameters) == ["self", "context", "condition", "noise"]
    config = preset("smoke")
    frames, condition, noise = random_batch(config)
    with pytest.raises(ValueError, match="context frames"):
        seeded_model(config).predict(frames, condition, noise)


def test_a_prediction_depends_on_the_predictions_before_it():
    """Each predicted frame is fed back: the context changes the first one, and the whole future through it."""
    config = preset("smoke")
    model = seeded_model(config)
    fed = []
    model.encoder.register_forward_hook(lambda module, inputs, output: fed.append(inputs[0]))
    frames, condition, noise = random_batch(config)
    predictions = model.predict(frames[:config.n_past], condition, noise)
    assert len(fed) == config.n_future                              # the context, and all predictions but the last
    for prediction, seen in zip(predictions, fed[1:], strict=False):
        assert torch.equal(prediction, seen)


def test_an_earlier_training_step_never_sees_a_later_frame():
    """With teacher forcing, step t may see frames up to t (the posterior), and none after."""
    config = preset("smoke")
    model = seeded_model(config).double()
    frames, condition, noise = (tensor.double() for tensor in random_batch(config))
    clean = model.elbo_terms(frames, condition, noise, [True] * (config.length - 1)).predictions
    for future in (3, 7):
        changed = frames.clone()
        changed[future:] = 0.5
        other = model.elbo_terms(changed, condition, noise, [True] * (config.length - 1)).predictions
        difference = (clean - other).abs().amax(dim=(1, 2, 3, 4))       # a number for each step
        assert difference[:future - 1].max() < 1e-12 and difference[future - 1:].min() > 1e-9


@pytest.mark.parametrize("skip", ["context", "latest"])
@pytest.mark.parametrize("forced", [True, False])
def test_skips_come_from_the_right_frame(skip, forced):
    """By default from the last context frame, n_past - 1 (not n_past - 2); before it, from the newest one."""
    config = preset("smoke", skip=skip)
    model = seeded_model(config)
    frames, condition, noise = random_batch(config, batch=1)
    sources, fed = [], []
    finest = model.decoder.blocks[-1]
    model.encoder.register_forward_hook(lambda module, inputs, output: sources.extend(
        zip(inputs[0], finest.from_skip(output[1][0]), strict=True)))       # a frame and its finest skip, convolved
    model.decoder.register_forward_hook(lambda module, inputs, output: fed.extend(
        inputs[1][-1].expand(len(inputs[0]), -1, -1, -1, -1)[:, 0]))        # one skip may serve all steps of a pass
    terms = model.elbo_terms(frames, condition, noise, [forced] * (config.length - 1))
    newest = list(frames[:-1, 0]) if forced else [*frames[:2, 0], *terms.predictions[1:-1, 0]]
    for step, skip_map in enumerate(fed):
        expected = newest[step] if skip == "latest" else frames[min(step, config.n_past - 1), 0]
        frame = next(frame for frame, source in sources if torch.allclose(source, skip_map, atol=1e-6))
        assert torch.allclose(frame, expected, atol=1e-6), f"step {step}"


def test_segments_group_the_steps_that_depend_on_no_prediction():
    T, F = True, False
    assert teacher_forced_segments([T] * 5, n_past=2) == [(0, 5, T)]
    assert teacher_forced_segments([F] * 5, n_past=2) == [(0, 2, T), (2, 3, F), (3, 4, F), (4, 5, F)]
    assert teacher_forced_segments([F, F, F, T, T], n_past=2) == [(0, 2, T), (2, 3, F), (3, 5, T)]


def test_zero_noise_is_the_prior_mean_and_noise_changes_the_future():
    config = preset("smoke")
    model = seeded_model(config)
    frames, condition, noise = random_batch(config)
    mean = model.predict(frames[:2], condition, torch.zeros_like(noise))
    assert not torch.allclose(mean, model.predict(frames[:2], condition, noise))


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
