"""The numbers and names that the notebooks' prose quotes are those of the record, of the code and of each other."""

import inspect
import json
import math
import re

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import checkpoint
from lab5.config import Config
from lab5.handin.report import find_notebooks
from lab5.metrics import GRADES
from lab5.model import CVAE
from lab5.training import read_history
from lab5.workbook.run import PROJECT, RECORDED

NOTEBOOKS = {path.stem[:2]: path for path in find_notebooks()}


def prose(number: str) -> str:
    """A notebook's Markdown."""
    return "\n".join(cell.source for cell in nbformat.read(NOTEBOOKS[number], 4).cells if cell.cell_type == "markdown")


def rows(number: str) -> dict[str, list[str]]:
    """The rows of all tables in a notebook's Markdown: first cell -> the others."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in prose(number).splitlines()
             if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_00_states_the_grades_of_the_handout():
    table = rows("00")
    assert table["average PSNR [dB]"] == ["below 20", *(f"≥ {threshold:.0f}" for threshold, _ in reversed(GRADES))]
    assert table["share of the demo's 20 marks"] == ["0%", *(f"{share:.0%}" for _, share in reversed(GRADES))]


def test_00_leads_to_every_notebook():
    assert set(re.findall(r"\]\((\w+\.ipynb)\)", prose("00"))) == {path.name for path in NOTEBOOKS.values()}


def test_01_states_what_each_beta_means():
    D, mse_0 = 3 * 64 * 64, 10 ** -1.8
    calibrated = 2 * 10 ** -2.2 / D
    for name, beta in (("the trap", 1.0), ("SVG on BAIR", 1e-4), ("calibrated at 22 dB", calibrated)):
        numbers = [float(cell.strip("$").replace("{,}", "")) for cell in rows("01")[name][1:]]
        assert numbers == pytest.approx([beta * D / 2, math.sqrt(beta * D / 2), mse_0 / beta], rel=0.02)
    assert rows("01")["calibrated at 22 dB"][0] == rf"${calibrated * 1e6:.2f}\cdot10^{{-6}}$"
    assert rf"$D\,\mathrm{{MSE}}_0={D * mse_0:.0f}$" in prose("01")


def describe(hold: np.ndarray, copy: np.ndarray) -> list[str]:
    """Cells of 02's table from the PSNR of the baselines, (sequences, 10) each: frame 2 is copied from frame 1."""
    return [f"{hold[:, 0].mean():.1f}, {hold[:, -1].mean():.1f}, {hold.mean():.1f}",
            f"{copy[:, 1::2].mean():.1f}, {copy[:, ::2].mean():.1f}"]


BASELINES = ("repeat last: frame 2, frame 11, all", "copy previous: from even frames, from odd frames")


def test_02_compares_the_simulated_robot_by_the_recorded_runs_test_split():
    scores = json.loads((RECORDED / "evaluation" / "test" / "scores.json").read_text())["psnr"]
    hold, copy = (np.array(scores[name]) for name in ("repeat_last", "copy_previous"))
    assert [rows("02")[name][1] for name in BASELINES] == describe(hold, copy)
    assert f"the {len(hold)} test sequences on which the recorded run" in prose("02")
    assert 25 - hold.mean() > 7 and 10 ** ((hold.mean() - 25) / 10) < 1 / 5


def test_02_compares_it_with_real_sequences(bair_root):
    hold, copy = [], []
    for folder in (*bair_root.glob("frames_only/*/"), *bair_root.glob("processed_data/test/*/*/")):
        video = np.stack([Image.open(folder / f"{t}.png").convert("RGB") for t in range(12)]) / 255
        for found, prediction in ((hold, video[[1] * 10]), (copy, video[1:-1])):
            found.append((-10 * np.log10(((prediction - video[2:]) ** 2).mean(axis=(1, 2)))).mean(axis=-1))
    assert len(hold) == 10 and f"{np.mean(hold):.1f} dB on ten real sequences" in (PROJECT / "README.md").read_text()
    assert [rows("02")[name][0] for name in BASELINES] == describe(np.array(hold), np.array(copy))


def test_03_quotes_the_line_that_feeds_predictions_back():
    quoted, = re.findall(r"```python\n(.*)\n```", prose("03"))
    assert quoted in inspect.getsource(CVAE._unroll)


def test_03_says_what_the_recorded_scales_depend_on():
    """By which factor a channel's scale changes within two standard deviations of movement x and of position y."""
    model, _ = checkpoint.load_model(RECORDED / "best.safetensors")
    factors = []
    for column in (0, 5):
        condition = torch.zeros(2, 41, model.condition_dim)     # steps t-1 and t
        condition[..., column] = torch.linspace(-2, 2, 41)
        scale = model.decoder.blocks[0].convolutions.activations[0].conditional.scale(model._embed(condition)[0])
        scales = torch.nn.functional.softplus(scale)
        factors.append((scales.amax(dim=0) / scales.amin(dim=0)).max().item())
    assert factors[0] < 2 and factors[1] > 100


def test_what_05_says_of_the_recorded_run_stands_in_its_history():
    text, run = prose("05"), {record["epoch"]: record for record in read_history(RECORDED)}
    peak = max(run, key=lambda epoch: run[epoch]["kl"])
    assert f"highest in epoch {peak}, at {run[peak]['kl']:.1f} nats" in text and run[peak]["kl_weight"] < 0.1
    assert all(record["kl"] < 0.01 for record in run.values() if record["kl_weight"] > 0.999)
    assert run[6]["teacher_forcing"] > 0.9 and run[8]["teacher_forcing"] == pytest.approx(5 / 6, abs=0.01)
    assert run[14]["teacher_forcing"] == pytest.approx(0.5, abs=0.01) and run[24]["teacher_forcing"] == 0
    assert 6 < Config.load(RECORDED / "config.json").norm_freeze * len(run) < 7
    for said, epoch in (("rises to {:.1f} dB in epoch 6", 6), ("it is {:.1f} dB, with five of six", 8),
                        ("rises from {:.1f} to", 14), ("to {:.1f} dB, not evenly", 24),
                        ("in epoch 20 it is {:.1f} dB", 20)):
        assert said.format(run[epoch]["psnr"]) in text


def test_what_08_says_of_the_action_free_training_stands_in_its_history():
    text, history = prose("08"), read_history(RECORDED.with_name("action_free"))
    peak = max(history, key=lambda record: record["kl"])
    assert f"up to {peak['kl']:.0f} nats per frame in epoch {peak['epoch']}, and ends with" in text
    assert f"ends with {history[-1]['kl']:.0f}," in text
    psnr = [record["psnr"] for record in history[5:] if record["psnr"]]
    assert f"From epoch 6 on its validation PSNR stays between {min(psnr):.1f} and {max(psnr):.1f} dB" in text
    assert history[-1]["bound"] == max(record["bound"] for record in history if record["bound"])


def test_09_states_the_marks_and_folds_its_answers_away():
    text = prose("09")
    assert f"| marks, of 20 | {' | '.join(f'{20 * share:.0f}' for _, share in GRADES)} | 0 |" in text
    assert text.count("<details>\n<summary>Answer</summary>\n\n") == text.count("\n\n</details>") == 18
