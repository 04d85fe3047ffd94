"""The runs that come with the workbook: their weights score what is recorded, and the texts say what they score."""

import re

import numpy as np
import pytest

from lab5 import checkpoint
from lab5.config import Config, preset
from lab5.evaluation import Evaluation, evaluate
from lab5.formats.tree import open_or_pack
from lab5.robot.simulator import simulate
from lab5.training import read_history
from lab5.workbook import figures
from lab5.workbook import run as runs
from lab5.workbook.latents import explained, gaussians
from lab5.workbook.run import PROJECT, RECORDED, SIMULATION_SEED, Run, copy_recorded, open_run
from recorded.make import RUNS as CONFIGS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
HUNDRED = "test-best_of100-limit64"
MODELS = "told", "action_free"


@pytest.fixture(scope="module")
def first_sequences(tmp_path_factory):
    """The first sequences of the recorded test split; each depends only on its number."""
    root = tmp_path_factory.mktemp("first")
    simulate(root, 0, 0, 16, seed=SIMULATION_SEED, progress=False)
    return open_or_pack(root, "test", progress=False)


def recorded(name: str, scores: str = "test") -> Evaluation:
    return Evaluation.load(RECORDED.with_name(name) / "evaluation" / scores)


def assert_alike(scores: np.ndarray, expected: np.ndarray, slack: float) -> None:
    difference = np.abs(scores - expected)
    assert np.median(difference) < slack and difference.mean() < 3 * slack, difference


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_score_what_is_recorded(name, first_sequences):
    """In the recorded precision, which every processor computes in, if slowly; another one rounds otherwise, and since
    frames are fed back this may move one sequence by tenths of a decibel, but not most.
    """
    folder = RECORDED.with_name(name)
    model, facts = checkpoint.load_model(folder / "best.safetensors")
    whole, hundred = recorded(name), recorded(name, HUNDRED)
    for scores, number in ((whole, 256), (hundred, 64)):
        assert scores.facts["weights"] == checkpoint.weights_sha(folder / "best.safetensors")
        assert len(scores.names) == number and scores.names[:16] == first_sequences.names
    protocols = ("prior_mean", "best_of_n", "posterior", "two_samples", "repeat_last")
    again = evaluate(model, first_sequences, protocols=protocols, best_of=3, precision=whole.facts["precision"],
                     progress=False)
    for protocol in ("prior_mean", "posterior", "two_samples", "repeat_last"):
        slack = 0.03 if again.psnr[protocol].mean() < 45 else 1         # where bfloat16 is most of the difference
        assert_alike(again.psnr[protocol].mean(1), whole.psnr[protocol][:16].mean(1), slack)
    assert_alike(again.samples["psnr"], hundred.samples["psnr"][:16, :3], slack=0.03)
    assert again.rate["kl"].mean() == pytest.approx(whole.rate["kl"][:16].mean(), rel=0.05, abs=0.01)
    measure = "bound" if model.config.reconstruction == "calibrated" else "psnr"
    scored = {record["epoch"]: record[measure] for record in read_history(folder)}
    assert scored[facts["epoch"]] == facts[measure] == max(filter(None, scored.values()))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_a_small_and_finished_run_of_its_configuration(name):
    folder, chosen = RECORDED.with_name(name), CONFIGS[name]
    assert Config.load(folder / "config.json").differences(chosen) == []
    assert len(read_history(folder)) == chosen.epochs
    assert (folder / "best.safetensors").exists() == (name in MODELS)           # of the twin scores are enough
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 9.5e6


def test_the_two_models_differ_as_06_says():
    """Told, all protocols are equal. Action-free, they differ in the order of their definitions."""
    told, free, twin = (recorded(name, HUNDRED) for name in CONFIGS)
    at = {name: free.average(name)[0] for name in free.psnr} | {"prior_sample": free.samples["psnr"].mean()}
    asked = ("prior_sample", "prior_mean", "mean_of_n", "best_of_n", "posterior")
    assert np.ptp([told.average(name)[0] for name in asked]) < 0.1 and told.average("two_samples")[0] > 45
    assert max(at["prior_sample"], at["prior_mean"]) + 1 < at["mean_of_n"] < at["best_of_n"] - 1 < at["posterior"] - 5
    assert at["best_of_n"] > at["prior_sample"] + 3 and at["posterior"] > 26 and free.rate["kl"].mean() > 40
    assert free.psnr["two_samples"][:, -1].mean() < 21
    axes, = figures.best_of({"": {name: recorded(name, HUNDRED).samples["psnr"] for name in CONFIGS}}).axes
    same, gain, flat = (line.get_ydata() for line in axes.lines)
    assert gain[99] - gain[9] > 0.3 and np.ptp(same) < 0.1 and np.ptp(flat) < 0.1
    assert gain[3] < flat[3] < flat[4] < gain[4] and twin.rate["kl"].mean() < 0.01
    assert "the best of 5 samples is nearer to the truth" in README
    graded, posterior, two = (free.psnr[name] for name in ("prior_sample", "posterior", "two_samples"))
    said = {f"Its one answer scores {flat[0]:.2f} dB, more than one sample does": "06_timesteps",
            f"the best of a hundred scores {free.samples['psnr'][13].max():.1f} dB here, the posterior "
            f"{posterior[13].mean():.1f} (": "06_timesteps",
            f"{told.average('prior_sample')[0]:.1f} dB without $z$, against {flat[0]:.1f} dB for the": "06_timesteps",
            f"there the two PSNR are {graded.mean():.1f} and {two.mean():.1f} dB": "06_timesteps",
            f"the twin scores {recorded('twin').average('prior_sample')[0]:.2f} dB, a sample "
                             f"{recorded('action_free').average('prior_sample')[0]:.2f}, and of a hundred samples the "
                             f"best is {gain[99] - flat[99]:.1f} dB above the twin": "08_discussion"}
    for words, name in said.items():
        assert words in (PROJECT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")


def test_the_action_free_latent_carries_the_future(first_sequences):
    """The arm's place can be read off the latent, and the prior knows in which steps the arm moves most."""
    model = checkpoint.load_model(RECORDED.with_name("action_free") / "best.safetensors")[0]
    found, T = gaussians(model, first_sequences), model.config.length
    sideways = first_sequences.conditions[:, 1:T, 5:6]          # the true position to the left and right
    active = found.mu.var(axis=(0, 1)) > 0.01                   # by the definition of Burda et al. 2016
    assert active.all() and explained(found.mu, sideways)[0] > 0.5
    fast, slow = found.prior_logvar[:, 1::2].mean(), found.prior_logvar[:, 2::2].mean()      # into even, odd frames
    assert fast > slow + 1
    assert found.kl[:, 1::2].mean() == pytest.approx(1.5 * found.kl[:, 2::2].mean(), rel=0.1)


def test_the_future_of_28_frames_is_of_the_same_weights_and_draws_the_same_samples():
    longer, hundred = recorded("action_free", "test-best_of100-limit32-n_future28"), recorded("action_free", HUNDRED)
    assert longer.facts == hundred.facts | {"n_future": 28} and longer.names == hundred.names[:32]
    assert longer.samples["psnr"].shape == (32, 100)
    gain = longer.average("best_of_n")[0] - longer.average("prior_sample")[0]
    assert longer.psnr["prior_sample"].shape == (32, 28)
    text = (PROJECT / "notebooks" / "06_timesteps.ipynb").read_text(encoding="utf-8")
    assert f"the best of a hundred is {gain:.1f} dB above one sample" in text


def test_readme_quotes_the_recorded_scores():
    for name in CONFIGS:
        scores, best = recorded(name), recorded(name, HUNDRED).average("best_of_n")[0]
        (mean, half), (ssim, _) = scores.average("prior_sample"), scores.average("prior_sample", "ssim")
        assert (f"| {mean:.2f} ± {half:.2f} | {ssim:.3f} | {best:.2f} | {scores.average('posterior')[0]:.2f} | "
                f"{scores.rate['kl'].mean().round(4):.2g} |") in README.replace("*", ""), name
    one = [f"{recorded(name, HUNDRED).samples['psnr'].mean():.2f}" for name in MODELS]
    assert f"a sample scores {one[0]} and {one[1]} dB, averaged over the hundred" in README
    for protocol in ("repeat_last", "copy_previous"):
        assert re.search(rf"\b{scores.average(protocol)[0]:.2f}\b", README)


def test_where_nothing_is_trained_a_notebook_opens_a_copy_of_the_recorded_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    monkeypatch.setattr(runs, "say", said.append)
    lab = open_run("quick", recorded=True)
    assert len(said) == 1 and "Nothing is trained in `runs/quick` yet, so this is the recorded run" in said[0]
    assert not lab.config.differences(preset("standard")) and lab.folder == tmp_path / "runs" / "recorded" / "told"
    (lab.folder / "best.safetensors").write_bytes(b"another version's")
    assert checkpoint.weights_sha(copy_recorded("told") / "best.safetensors") == checkpoint.weights_sha(
        RECORDED / "best.safetensors")
    for named in (open_run("quick"), open_run("quick", "runs/quick", recorded=True)):
        assert named.folder == tmp_path / "runs" / "quick"


def test_a_run_of_ones_own_comes_before_the_recorded_one(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    mine = Run(preset("smoke"), tmp_path / "runs" / "smoke", tiny_root)
    mine.train(lambda history, model: True, progress=False)
    assert open_run("smoke", recorded=True).folder == mine.folder
