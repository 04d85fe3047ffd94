"""Scores: the lab's measure and averages, protocols that mean what they say, tables that survive a disk."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import seeded_model
from skimage.metrics import structural_similarity

from lab5.config import preset
from lab5.data import Windows, to_video
from lab5.evaluation import Evaluation, evaluate, infer, predict, prior_noise
from lab5.metrics import PSNR_CEILING, grade, psnr, ssim
from lab5.model import negative_elbo

CONFIG = preset("smoke", precision="float32", best_of=3)


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


def test_psnr_is_the_labs_definition_keeps_leading_axes_and_refuses_other_shapes():
    prediction, truth = videos()
    assert psnr(prediction, truth).mean().item() == pytest.approx(lab_psnr(prediction, truth), abs=1e-4)
    assert torch.equal(psnr(truth, truth), torch.full((4, 3), PSNR_CEILING))
    with pytest.raises(ValueError, match="same frames"):
        psnr(prediction[1:], truth)


def test_ssim_agrees_with_an_independent_library():
    prediction, truth = (video.flatten(0, 1) for video in videos())
    expected = [structural_similarity(                          # with the settings of Wang et al.
        a.numpy(), b.numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False) for a, b in zip(truth, prediction, strict=True)]
    assert ssim(prediction, truth).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("score, share", [(30, 1.0), (25.0, 1.0), (24.99, 0.9), (24, 0.9), (23.5, 0.8), (22, 0.7),
                                          (21, 0.6), (20.0, 0.5), (19.99, 0.0), (-3, 0.0), (float("nan"), 0.0)])
def test_the_grade_follows_the_handout(score, share):
    assert grade(score) == share


@pytest.fixture(scope="module")
def model():
    return seeded_model(CONFIG)


def scored(model, pack, **options) -> Evaluation:
    return evaluate(model, pack, precision="float32", progress=False, **options)


@pytest.fixture(scope="module")
def scores(model, tiny_packs):
    return scored(model, tiny_packs["test"])


def test_the_graded_number_is_the_labs_loop_over_the_whole_split(model, tiny_packs, scores):
    pack = tiny_packs["test"]
    batch = Windows(pack, CONFIG.length).__getitems__(list(range(len(pack))))
    noise = prior_noise(len(pack), CONFIG.length - 1, model.noise_size, seed=1)
    prediction = predict(model, batch.frames, batch.condition, noise, "float32")
    truth = to_video(batch.frames)[CONFIG.n_past:]
    assert scores.average("prior_sample")[0] == pytest.approx(lab_psnr(prediction, truth), abs=1e-3)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"limit": 3}], ids=str)
def test_batches_and_a_limit_change_no_score(options, model, tiny_packs, scores):
    """4 sequences in batches of 3: the fourth has the weight of each other one."""
    other, count = scored(model, tiny_packs["test"], **options), options.get("limit", 4)
    assert other.names == scores.names[:count] == tiny_packs["test"].names[:count]
    for protocol, values in scores.psnr.items():
        assert values.shape == (4, CONFIG.n_future)
        np.testing.assert_allclose(other.psnr[protocol], values[:count], atol=1e-3)


def test_the_same_seed_gives_the_same_scores_and_another_does_not(model, tiny_packs, scores):
    again, other = scored(model, tiny_packs["test"]), scored(model, tiny_packs["test"], seed=2)
    assert np.array_equal(again.psnr["prior_sample"], scores.psnr["prior_sample"])
    assert not np.array_equal(other.psnr["prior_sample"], scores.psnr["prior_sample"])
    assert np.array_equal(other.psnr["prior_mean"], scores.psnr["prior_mean"])          # no chance in it


def test_the_baselines_hold_and_copy_true_frames(tiny_packs, scores):
    frames = np.asarray(tiny_packs["test"].frames[:, :CONFIG.length], dtype=np.float64) / 255       # (N, T, H, W, C)

    def db(a, b):
        return (-10 * np.log10(((a - b) ** 2).mean(axis=(2, 3)))).mean(axis=-1)                     # (N, T')

    np.testing.assert_allclose(scores.psnr["repeat_last"], db(frames[:, 1:2], frames[:, 2:]), atol=1e-3)
    np.testing.assert_allclose(scores.psnr["copy_previous"], db(frames[:, 1:-1], frames[:, 2:]), atol=1e-3)


def test_the_interval_is_that_of_the_mean_over_sequences():
    values = np.random.default_rng(0).normal(20, 2, (50, 10))
    mean, half = Evaluation({"prior_sample": values}, {"prior_sample": values}, [], {}).average("prior_sample")
    per_sequence = values.mean(axis=1)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(1.96 * per_sequence.std(ddof=1) / 50 ** 0.5)


def test_scoring_leaves_the_model_in_training_as_it_was(tiny_packs):
    model = seeded_model(CONFIG).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scored(model, tiny_packs["test"], protocols=("prior_sample",))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_unknown_protocol_is_refused(model, tiny_packs):
    with pytest.raises(ValueError, match="unknown protocol lucky; the protocols are prior_sample, prior_mean"):
        scored(model, tiny_packs["test"], protocols=("prior_sample", "lucky"))


def test_what_is_saved_is_what_was_scored(scores, tmp_path):
    scores.save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded.names == scores.names and loaded.facts == scores.facts
    for protocol, values in scores.psnr.items():
        assert loaded.psnr[protocol] == pytest.approx(values, abs=1e-4)
        assert loaded.ssim[protocol] == pytest.approx(scores.ssim[protocol], abs=1e-4)
    assert loaded.bound == pytest.approx(scores.bound, rel=1e-3)
    np.testing.assert_allclose(loaded.samples["psnr"], scores.samples["psnr"], atol=1e-4)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["averages"]["psnr"]["prior_sample"]["mean"] == scores.average("prior_sample")[0]


def test_the_protocols_of_several_samples_are_about_the_same_samples(model, tiny_packs, scores):
    """Their average as a picture, two of them compared, and the score of each."""
    pack = tiny_packs["test"]
    batch = Windows(pack, CONFIG.length).__getitems__(list(range(len(pack))))
    samples = [predict(model, batch.frames, batch.condition, prior_noise(
        len(pack), CONFIG.length - 1, model.noise_size, 1, number), "float32") for number in range(3)]
    truth = to_video(batch.frames)[CONFIG.n_past:]
    np.testing.assert_allclose(scores.psnr["mean_of_n"], psnr(sum(samples) / 3, truth).T, atol=1e-3)
    np.testing.assert_allclose(scores.psnr["two_samples"], psnr(samples[1], samples[0]).T, atol=1e-2)
    assert scores.samples["psnr"].shape == scores.samples["ssim"].shape == (4, 3)
    own = np.stack([psnr(sample, truth).mean(0) for sample in samples], 1)
    np.testing.assert_allclose(scores.samples["psnr"], own, atol=1e-3)
    best = np.stack([psnr(sample, truth).T for sample in samples])[own.argmax(axis=1), range(4)]
    np.testing.assert_allclose(scores.psnr["best_of_n"], best, atol=1e-3)
    one = scored(model, pack, protocols=("best_of_n",), best_of=1).psnr["best_of_n"]
    assert np.array_equal(one, scores.psnr["prior_sample"])


def test_the_posterior_gives_rate_distortion_and_bound(model, tiny_packs, scores):
    pack = tiny_packs["test"]
    batch = Windows(pack, CONFIG.length).__getitems__(list(range(len(pack))))
    noise = prior_noise(len(pack), CONFIG.length - 1, model.noise_size, seed=1)
    terms = infer(model, batch.frames, batch.condition, noise, "float32")
    np.testing.assert_allclose(scores.psnr["posterior"], psnr(
        terms.predictions[CONFIG.n_past - 1:], to_video(batch.frames)[CONFIG.n_past:]).T, atol=1e-3)
    assert scores.rate["kl"].mean() == pytest.approx(float(terms.kl), rel=1e-4)
    assert scores.rate["mse"].mean() == pytest.approx(float(terms.mse), rel=1e-4)
    numbers = 3 * 64 * 64                                       # Gaussian of variance MSE: D/2 (log(2 pi MSE) + 1)
    calibrated = float(negative_elbo(CONFIG.replace(reconstruction="calibrated"), terms, 1.0))
    assert scores.bound == pytest.approx(-numbers * (calibrated + 0.5 * np.log(2 * np.pi) + 0.5), rel=1e-4)


def test_a_longer_future_is_scored_with_the_same_weights(model, tiny_packs, scores):
    longer = scored(model, tiny_packs["test"], protocols=("prior_mean", "repeat_last"), n_future=28)
    assert longer.psnr["prior_mean"].shape == (4, 28) and longer.facts["n_future"] == 28
    np.testing.assert_allclose(longer.psnr["prior_mean"][:, :10], scores.psnr["prior_mean"], atol=1e-3)
