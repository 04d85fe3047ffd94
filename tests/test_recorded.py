"""The run that comes with the workbook: its weights score what is recorded, and README says so."""

import re

import numpy as np
import pytest

from lab5 import checkpoint
from lab5.config import Config, preset
from lab5.evaluation import Evaluation, evaluate
from lab5.formats.tree import open_or_pack
from lab5.robot.simulator import simulate
from lab5.training import read_history
from lab5.workbook import run as runs
from lab5.workbook.run import PROJECT, RECORDED, SIMULATION_SEED, Run, copy_recorded, open_run

README = (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def first_sequences(tmp_path_factory):
    """The first sequences of the recorded test split; each depends only on its number."""
    root = tmp_path_factory.mktemp("first")
    simulate(root, 0, 0, 16, seed=SIMULATION_SEED, progress=False)
    return open_or_pack(root, "test", progress=False)


def test_the_weights_score_what_is_recorded(first_sequences):
    """Within 0.1 dB for each sequence: the recorded scores are of bfloat16, these of this processor's precision."""
    folder = RECORDED
    model, facts = checkpoint.load_model(folder / "best.safetensors")
    recorded = Evaluation.load(folder / "evaluation" / "test")
    assert recorded.facts["weights"] == checkpoint.weights_sha(folder / "best.safetensors")
    assert len(recorded.names) == 256 and recorded.names[:16] == first_sequences.names
    again = evaluate(model, first_sequences, protocols=("prior_mean", "repeat_last"), progress=False)
    for protocol in ("prior_mean", "repeat_last"):
        assert np.allclose(again.psnr[protocol].mean(1), recorded.psnr[protocol][:16].mean(1), atol=0.1)
    scored = {record["epoch"]: record["psnr"] for record in read_history(folder)}
    assert scored[facts["epoch"]] == facts["psnr"] == max(filter(None, scored.values()))


def test_it_is_a_small_and_finished_run_of_the_preset():
    assert Config.load(RECORDED / "config.json").differences(preset("standard")) == []
    assert len(read_history(RECORDED)) == preset("standard").epochs
    assert (RECORDED / "best.safetensors").stat().st_size < 8e6


def test_readme_quotes_the_recorded_scores():
    scores = Evaluation.load(RECORDED / "evaluation" / "test")
    (mean, half), (ssim, _) = scores.average("prior_sample"), scores.average("prior_sample", "ssim")
    assert f"{mean:.2f} ± {half:.2f} | {ssim:.3f} |" in README.replace("*", "")
    for protocol in ("repeat_last", "copy_previous"):
        assert re.search(rf"\b{scores.average(protocol)[0]:.2f}\b", README)


def test_where_nothing_is_trained_a_notebook_opens_a_copy_of_the_recorded_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    monkeypatch.setattr(runs, "say", said.append)
    lab = open_run("quick", recorded=True)
    assert len(said) == 1 and "Nothing is trained in `runs/quick` yet, so this is the recorded run" in said[0]
    assert not lab.config.differences(preset("standard")) and lab.folder == tmp_path / "runs" / "recorded"
    (lab.folder / "best.safetensors").write_bytes(b"another version's")
    assert checkpoint.weights_sha(copy_recorded() / "best.safetensors") == checkpoint.weights_sha(
        RECORDED / "best.safetensors")
    for named in (open_run("quick"), open_run("quick", "runs/quick", recorded=True)):
        assert named.folder == tmp_path / "runs" / "quick"


def test_a_run_of_ones_own_comes_before_the_recorded_one(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    mine = Run(preset("smoke"), tmp_path / "runs" / "smoke", tiny_root)
    mine.train(lambda history, model: True, progress=False)
    assert open_run("smoke", recorded=True).folder == mine.folder
