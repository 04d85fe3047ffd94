"""What a notebook opens: the right configuration, data and weights, and nothing trained over."""

import shutil

import numpy as np
import pytest
import torch

from lab5.config import Config, preset
from lab5.data import to_video
from lab5.evaluation import evaluate
from lab5.metrics import psnr
from lab5.simulator import simulate
from lab5.workbook import NotYet, Workbook, open_book, simulated_root


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory) -> Workbook:
    run = tmp_path_factory.mktemp("trained") / "run"
    book = Workbook(preset("smoke", precision="float32", kl_schedule="cyclical"), run, tiny_root)
    book.train(progress=False)
    return book


def test_a_run_folder_keeps_its_configuration_and_its_data(trained):
    book = open_book("quick", str(trained.run))
    assert book.config == trained.config and book.data == trained.data


def test_without_data_the_robot_is_simulated_in_a_folder_of_its_size(tmp_path):
    book = open_book("smoke", str(tmp_path / "run"))
    assert book.data == simulated_root(preset("smoke")) and book.data.name == "simulated-8-4-4"


def test_a_finished_run_is_read_and_told_to_the_live_curve_once(trained):
    told = []
    history = trained.train(on_epoch=lambda history, model: told.append((history, model.config)))
    assert told == [(history, trained.config)] and len(history) == trained.config.epochs


def test_scores_are_kept_until_the_weights_change(trained, tiny_root, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    book = Workbook(trained.config, run, tiny_root)
    first = book.evaluation(protocols=("sampled",))
    table = run / "evaluation" / "test" / "steps.npz"
    written = table.stat().st_mtime_ns
    assert np.array_equal(book.evaluation(protocols=("sampled",)).psnr["sampled"], first.psnr["sampled"])
    assert table.stat().st_mtime_ns == written
    assert set(book.evaluation(protocols=("sampled", "hold")).psnr) == {"sampled", "hold"}     # more was asked for
    shutil.copy(run / "last.safetensors", run / "best.safetensors")                           # other bytes
    book.evaluation(protocols=("sampled",))
    assert table.stat().st_mtime_ns != written


def test_weights_from_elsewhere_are_scored_and_never_trained_over(trained, tiny_root, tmp_path):
    handed_in = tmp_path / "handed-in"
    handed_in.mkdir()
    shutil.copy(trained.run / "best.safetensors", handed_in)
    book = open_book("quick", str(handed_in), str(tiny_root))
    assert book.config == trained.config
    expected = evaluate(trained.model(), trained.pack("test"), protocols=("sampled",), progress=False)
    assert book.evaluation(protocols=("sampled",)).average("sampled") == expected.average("sampled")
    before = (handed_in / "best.safetensors").read_bytes()
    with pytest.raises(NotYet, match="holds weights from elsewhere"):
        book.train()
    assert (handed_in / "best.safetensors").read_bytes() == before


def test_equal_settings_are_one_variant(trained):
    assert trained.variant(kl_schedule="zero") == trained.variant(kl_schedule="zero")
    assert trained.variant(kl_schedule="zero").run != trained.variant().run
    assert isinstance(trained.variant(lr=1).config, Config)


def test_the_videos_shown_are_those_that_are_scored(trained):
    videos = trained.videos(2, samples=2)
    assert list(videos) == ["truth", "prediction", "sample 2"]
    n_past = trained.config.n_past
    assert np.array_equal(videos["truth"][:n_past], videos["prediction"][:n_past])
    prediction, truth = (to_video(torch.from_numpy(videos[name][n_past:]).permute(0, 3, 1, 2))
                         for name in ("prediction", "truth"))
    shown = psnr(prediction, truth).mean().item()
    assert shown == pytest.approx(trained.evaluation().psnr["sampled"][2].mean(), abs=0.05)    # rounded to grey levels


def test_a_run_is_not_continued_on_other_data(tiny_root, tmp_path):
    config = preset("smoke", precision="float32")
    Workbook(config, tmp_path / "run", tiny_root).train(lambda history, model: True, progress=False)
    simulate(tmp_path / "other", 4, 2, 2, seed=5, workers=1, progress=False)
    before = (tmp_path / "run" / "data.json").read_bytes()
    with pytest.raises(ValueError, match="was trained on the data in .*other.*choose another run folder"):
        Workbook(config, tmp_path / "run", tmp_path / "other").train(progress=False)
    assert (tmp_path / "run" / "data.json").read_bytes() == before
