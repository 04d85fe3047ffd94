"""The widgets answer their controls, show what was computed, and leave a still figure where there is no front end."""

from dataclasses import replace

import imageio.v3 as iio
import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure

from lab5.robot.simulator import REACH, simulate
from lab5.workbook import drive, figures, film, widgets


@pytest.fixture(scope="module")
def graded(trained):
    return trained.evaluation().psnr


@pytest.fixture
def player(trained, graded):
    return widgets.StepThrough(trained, graded["prior_sample"].mean(axis=1), 1)


def shown(stage: widgets.Stage, name: str) -> np.ndarray:
    return iio.imread(stage.images[name].value)[..., :3].astype(int)


def press(widget, name: str) -> None:
    """Click the button of a widget that has this text."""
    if getattr(widget, "description", None) == name and isinstance(widget, ipywidgets.Button):
        widget.click()
    for child in getattr(widget, "children", ()):
        press(child, name)


def test_the_player_shows_what_was_scored(trained, graded):
    """Every frame's PSNR is the evaluation's, for the graded sample and for the prior mean."""
    for mode, protocol in (("prior sample", "prior_sample"), ("prior mean", "prior_mean")):
        for index in range(4):
            scores = widgets.future(trained.model(), trained.pack("test"), index, mode)[1]
            assert scores == pytest.approx(graded[protocol][index], abs=0.05)


def test_the_slider_shows_the_frame_of_every_video(player):
    for t in (7, 1):
        player.videos.slider.value = t
        truth, prediction = (shown(player.videos.stage, name) for name in ("truth", "prediction"))
        assert all((shown(player.videos.stage, name) == video[t]).all() for name, video in player.videos.videos.items())
    colours = film.in_colours(np.abs(truth - prediction).mean(axis=-1), widgets.MOST)
    assert (shown(player.videos.stage, "|difference|") == colours).all()


def test_each_choice_shows_another_future(player, graded):
    press(player.widget, "worst")
    assert player.number.value == graded["prior_sample"].mean(axis=1).argmin()
    player.videos.slider.value, player.number.value = 11, 1
    found = [(shown(player.videos.stage, "prediction"), player.curve.value)]
    for control, value in ((player.number, 2), (player.mode, "teacher forcing"), (player.sample, 1),
                           (player.mode, "posterior")):
        control.value = value
        found.append((shown(player.videos.stage, "prediction"), player.curve.value))
    assert all((a != b).any() and one != other for (a, one), (b, other) in zip(found, found[1:], strict=False))


def test_the_simulated_robot_repeats_the_sequence_under_its_actions(trained):
    """... and so does the model: it is told what it was told in the evaluation, but for the sample of z."""
    wheel, pack, length = drive.Drive(trained, 1), trained.pack("test"), trained.config.length
    predicted, robot = wheel.follow([*pack.conditions[1, wheel.n_past - 1:length - 1, :4].astype(float)])
    assert np.abs(robot.astype(int) - pack.frames[1, :length]).mean() < 1
    assert np.abs(predicted.astype(int) - widgets.future(trained.model(), pack, 1, "prior mean")[0]).mean() < 1


def test_only_a_model_of_our_robots_actions_is_driven(trained, tmp_path):
    simulate(tmp_path, 0, 0, 1, seed=5, workers=1, progress=False)
    others = replace(trained, data=tmp_path), replace(trained, config=trained.config.replace(condition="none"))
    assert [drive.steerable(run) for run in (trained, *others)] == [True, False, False]


def test_steps_are_shown_and_can_be_taken_back(trained):
    wheel = drive.Drive(trained, 1)
    start = shown(wheel.stage, "the simulated robot")
    wheel.lift.value = True
    press(wheel.widget, "→")
    press(wheel.widget, "→")
    assert [tuple(action) for action in wheel.actions] == [(0, REACH, 1, 0)] * 3      # frame 1, then 2 and 3
    after = shown(wheel.stage, "the simulated robot")
    assert (after != start).any() and wheel.words.value.startswith("3 of 28 steps")
    press(wheel.widget, "undo")
    press(wheel.widget, "→")
    assert (shown(wheel.stage, "the simulated robot") == after).all()           # the same again after an undo
    press(wheel.widget, "reset")
    assert (shown(wheel.stage, "the simulated robot") == start).all() and wheel.undo.disabled


def test_an_export_keeps_the_figure_and_a_line_of_text(monkeypatch):
    displayed = []
    monkeypatch.setattr(widgets, "display", lambda item, **options: displayed.append((item, options)))
    figure = Figure(figsize=(1, 1))
    widgets.show(ipywidgets.HTML("live"), figure, "what it shows")
    (still, _), (bundle, options) = displayed
    assert still.data == figures.render(figure, "png") and still.alt == "what it shows"
    assert options == {"raw": True} and bundle["text/plain"] == widgets.NO_FRONT_END
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
