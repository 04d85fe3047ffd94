"""The runs that come with the workbook: their weights score what is recorded, and README says so."""

import json
import re

import numpy as np
import pytest

from lab5 import checkpoint, workbook
from lab5.config import Config, preset
from lab5.data import open_pack
from lab5.evaluation import Evaluation, evaluate
from lab5.simulator import simulate
from lab5.training import read_history
from lab5.workbook import PROJECT, RECORDED, SIMULATION_SEED, Workbook, open_book, recorded_run

RUNS = ("standard", "plain")
README = (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def first_sequences(tmp_path_factory):
    """The first sequences of the recorded test split; each depends on its number alone."""
    root = tmp_path_factory.mktemp("first")
    simulate(root, 0, 0, 16, seed=SIMULATION_SEED, progress=False)
    return open_pack(root, "test", progress=False)


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_score_what_is_recorded(name, first_sequences):
    """Within 0.1 dB a sequence: another processor rounds, and samples, a little otherwise."""
    folder = RECORDED.with_name(name)
    model, facts = checkpoint.load_model(folder / "best.safetensors")
    recorded = Evaluation.load(folder / "evaluation" / "test")
    assert recorded.facts["weights"] == checkpoint.digest(folder / "best.safetensors")
    assert len(recorded.names) == 256 and recorded.names[:16] == first_sequences.names
    again = evaluate(model, first_sequences, protocols=("mean", "hold"), progress=False)
    for protocol in ("mean", "hold"):
        assert np.allclose(again.psnr[protocol].mean(1), recorded.psnr[protocol][:16].mean(1), atol=0.1)
    scored = {record["epoch"]: record["psnr"] for record in read_history(folder)}
    assert scored[facts["epoch"]] == facts["psnr"] == max(filter(None, scored.values()))


def test_they_are_finished_runs_of_the_preset():
    assert Config.load(RECORDED / "config.json") == preset("standard")
    assert Config.load(RECORDED.with_name("plain") / "config.json") == preset("standard", conditional_convolution=False)
    assert all(len(read_history(RECORDED.with_name(name))) == preset("standard").epochs for name in RUNS)


def test_they_are_small():
    assert sum(path.stat().st_size for path in RECORDED.parent.rglob("*.safetensors")) < 16e6


@pytest.mark.parametrize("name", RUNS)
def test_readme_quotes_the_recorded_scores(name):
    scores = Evaluation.load(RECORDED.with_name(name) / "evaluation" / "test")
    (mean, half), (ssim, _) = scores.average("sampled"), scores.average("sampled", "ssim")
    assert f"{mean:.2f} ± {half:.2f} | {ssim:.3f} |" in README.replace("*", "")
    summary = json.loads((RECORDED.with_name(name) / "evaluation" / "test" / "summary.json").read_text())
    assert summary["psnr"]["sampled"]["mean"] == mean
    for protocol in ("hold", "copy"):
        assert re.search(rf"\b{scores.average(protocol)[0]:.2f}\b", README)


def test_readme_quotes_the_gain_of_the_conditional_convolutions():
    standard, plain = (Evaluation.load(RECORDED.with_name(name) / "evaluation" / "test") for name in RUNS)
    gain = (standard.psnr["sampled"] - plain.psnr["sampled"]).mean(axis=1)
    half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
    assert f"gain {gain.mean():.2f} ± {half:.2f} dB" in README


def test_where_nothing_is_trained_a_notebook_opens_a_copy_of_the_recorded_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(workbook, "PROJECT", tmp_path)
    monkeypatch.setattr(workbook, "display", lambda words: said.append(words.data))
    book = open_book("quick", recorded=True)
    assert len(said) == 1 and "Nothing is trained in `runs/quick` yet, so this is the recorded run" in said[0]
    assert book.config == preset("standard") and book.run == tmp_path / "runs" / "recorded"
    (book.run / "best.safetensors").write_bytes(b"another version's")
    assert checkpoint.digest(recorded_run() / "best.safetensors") == checkpoint.digest(RECORDED / "best.safetensors")
    assert open_book("quick").run == open_book("quick", "runs/quick", recorded=True).run == tmp_path / "runs" / "quick"


def test_a_run_of_ones_own_comes_before_the_recorded_one(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(workbook, "PROJECT", tmp_path)
    mine = Workbook(preset("smoke"), tmp_path / "runs" / "smoke", tiny_root)
    mine.train(lambda history, model: True, progress=False)
    assert open_book("smoke", recorded=True).run == mine.run
