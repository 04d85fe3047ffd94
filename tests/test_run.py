"""What a notebook opens: the right configuration, data and weights, and nothing trained by loading."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import seeded_model

from lab5 import checkpoint
from lab5.config import preset
from lab5.data import DataError, to_video
from lab5.metrics import psnr
from lab5.robot.simulator import simulate
from lab5.workbook import show
from lab5.workbook.run import NotYet, Run, open_run, simulated_root


def test_a_run_folder_keeps_its_configuration_and_its_data(trained, tmp_path):
    lab = open_run("quick", str(trained.folder))
    assert lab.config.hash == trained.config.hash and lab.data == trained.data
    lab = open_run("smoke", str(tmp_path / "run"))              # without data: the robot, in a folder of its size
    assert lab.data == simulated_root(preset("smoke")) and lab.data.name == "simulated-8-4-4"


def test_loading_never_trains(tiny_root, tmp_path):
    lab = Run(preset("smoke"), tmp_path / "run", tiny_root)
    for load in (lab.history, lab.model, lab.evaluation):
        with pytest.raises(NotYet, match="notebook 04, or `lab5 train --preset smoke --run"):
            load()
    assert not lab.folder.exists()


def test_scores_are_kept_until_more_is_asked_for_or_the_weights_change(trained, tiny_root, tmp_path):
    lab = Run(trained.config, shutil.copytree(trained.folder, tmp_path / "run"), tiny_root)
    table, written = lab.folder / "evaluation" / "test" / "scores.json", []

    def score(*protocols):
        found = lab.evaluation(protocols=protocols)
        written.append(table.stat().st_mtime_ns)
        return found.psnr

    first, again, both = score("prior_sample"), score("prior_sample"), score("prior_sample", "repeat_last")
    assert np.allclose(again["prior_sample"], first["prior_sample"], atol=1e-4) and len(both) == 2
    shutil.copy(lab.folder / "last.safetensors", lab.folder / "best.safetensors")   # other bytes
    score("prior_sample")
    assert written[0] == written[1] < written[2] < written[3]


def test_weights_from_elsewhere_are_scored_and_never_replaced_by_training(trained, tiny_root, tmp_path):
    best = shutil.copy(trained.folder / "best.safetensors", tmp_path)
    lab = open_run("quick", str(tmp_path), str(tiny_root))
    assert lab.config.hash == trained.config.hash
    scores = [run.evaluation(protocols=("prior_sample",)).average("prior_sample") for run in (lab, trained)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    before = Path(best).read_bytes()
    for refused in (lab.train, lab.history):
        with pytest.raises(NotYet, match="holds weights that were trained elsewhere"):
            refused()
    assert Path(best).read_bytes() == before


def test_the_videos_shown_are_those_that_are_scored(trained):
    videos, n_past = trained.videos(2, samples=2), trained.config.n_past
    assert list(videos) == ["truth", "prediction", "sample 2"]
    assert np.array_equal(videos["truth"][:n_past], videos["prediction"][:n_past])
    truth, *futures = (to_video(torch.from_numpy(video[n_past:]).permute(0, 3, 1, 2)) for video in videos.values())
    shown = [psnr(future, truth).mean().item() for future in futures]
    assert shown == pytest.approx(trained.evaluation().samples["psnr"][2].tolist(), abs=0.05)       # grey levels


def test_a_sequence_that_is_not_there_is_refused_by_its_number(trained):
    for index in (4, -5):
        with pytest.raises(ValueError, match=f"there is no sequence {index} in test: they are 0 to 3"):
            trained.videos(index)


def test_a_run_is_not_resumed_on_other_data(tiny_root, tmp_path):
    config = preset("smoke", precision="float32")
    Run(config, tmp_path / "run", tiny_root).train(lambda history, model: True, progress=False)
    simulate(tmp_path / "other", 4, 2, 2, seed=5, workers=1, progress=False)
    before = (tmp_path / "run" / "data.json").read_bytes()
    with pytest.raises(ValueError, match="was trained on the data in .*other.*choose another run folder"):
        Run(config, tmp_path / "run", tmp_path / "other").train(progress=False)
    assert (tmp_path / "run" / "data.json").read_bytes() == before


def test_splits_and_weights_that_do_not_fit_are_refused_before_anything_is_trained(tiny_root, tmp_path):
    shutil.copytree(tiny_root / "processed_data", tmp_path / "processed_data")
    for table in (tmp_path / "processed_data" / "test").rglob("*.csv"):
        table.unlink()
    lab = Run(preset("smoke"), tmp_path / "run", tmp_path)
    with pytest.raises(DataError, match="test: each frame comes with 0 numbers.*conditioned on 7"):
        lab.train(progress=False)
    assert not lab.folder.exists()
    checkpoint.save(lab.folder / "best.safetensors", seeded_model(lab.config))
    with pytest.raises(DataError, match="test: each frame comes with 0 numbers.*conditioned on 7"):
        lab.evaluation()


def test_a_result_says_where_it_comes_from(trained):
    line = show.provenance(trained)
    for fact in (trained.config.hash, "simulated robot", trained.pack("test").data_sha, show.machine(), "float32"):
        assert fact in line
    assert show.table("a", "b", rows=[(1, "x")]) == "| a | b |\n| :-- | :-- |\n| 1 | x |"
