"""The widgets answer their controls, show what was computed, and leave a still figure where there is no front end."""

import io

import imageio.v3 as iio
import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure

from lab5.evaluation import evaluate
from lab5.robot.simulator import REACH
from lab5.workbook import figures, widgets
from lab5.workbook.drive import Drive, Motion
from lab5.workbook.run import open_run


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_root):
    lab = open_run("smoke", str(tmp_path_factory.mktemp("widgets") / "run"), str(tiny_root))
    lab.train(progress=False)
    return lab


@pytest.fixture(scope="module")
def graded(lab):
    return evaluate(lab.model(), lab.pack("test"), protocols=("prior_sample", "prior_mean"), progress=False).psnr


@pytest.fixture
def player(lab, graded):
    return widgets.StepThrough(lab, graded["prior_sample"].mean(axis=1), 1)


def shown(stage: widgets.Stage, name: str) -> np.ndarray:
    return iio.imread(io.BytesIO(stage.images[name].value))[..., :3].astype(int)


def press(widget, name: str) -> None:
    """Click the button of a widget that has this text."""
    if getattr(widget, "description", None) == name and isinstance(widget, ipywidgets.Button):
        widget.click()
    for child in getattr(widget, "children", ()):
        press(child, name)


# A prediction --------------------------------------------------------------------------------------------

def test_the_player_shows_what_was_scored(lab, graded):
    """Every frame's PSNR is the evaluation's, for the graded sample and for the prior mean."""
    for mode, protocol in (("prior sample", "prior_sample"), ("prior mean", "prior_mean")):
        for index in range(4):
            scores = widgets.future(lab.model(), lab.pack("test"), index, mode)[1]
            assert scores == pytest.approx(graded[protocol][index], abs=0.05)


def test_the_slider_changes_the_pictures(player):
    player.videos.slider.value = 7
    truth, prediction = (shown(player.videos.stage, name) for name in ("truth", "prediction"))
    assert (prediction == player.videos.videos["prediction"][7]).all()
    colours = figures.in_colours(np.abs(truth - prediction).mean(axis=-1), widgets.MOST)
    assert (shown(player.videos.stage, "|difference|") == colours).all()


def test_each_choice_shows_another_future(player):
    player.videos.slider.value = 11
    found = [(shown(player.videos.stage, "prediction"), player.curve.value)]
    for control, value in ((player.number, 2), (player.mode, "teacher forcing"), (player.sample, 1),
                           (player.mode, "posterior")):
        control.value = value
        found.append((shown(player.videos.stage, "prediction"), player.curve.value))
    assert all((a != b).any() and one != other for (a, one), (b, other) in zip(found, found[1:], strict=False))


def test_best_and_worst_are_found_by_their_score(player, graded):
    order = np.argsort(graded["prior_sample"].mean(axis=1))
    for name, place in (("worst", 0), ("best", -1)):
        press(player.widget, name)
        assert player.number.value == order[place]


def test_videos_are_played_frame_by_frame():
    videos = {name: np.random.default_rng(seed).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
              for seed, name in enumerate("ab")}
    played = widgets.Videos(videos, n_past=2)
    for t in (4, 1):
        played.slider.value = t
        assert all((shown(played.stage, name) == video[t]).all() for name, video in videos.items())


# Driving -------------------------------------------------------------------------------------------------

def test_the_simulated_robot_repeats_the_sequence_under_its_actions(lab):
    wheel = Drive(lab, 1)
    pack, length = lab.pack("test"), lab.config.length
    actions = pack.conditions[1, wheel.n_past - 1:length - 1, :4].astype(float)
    assert wheel.robot
    assert np.abs(wheel.real(list(actions)).astype(int) - pack.frames[1, :length]).mean() < 1


def test_actions_lead_where_they_led(lab):
    """The fitted motion against the positions of the test split: in the plane to a millimetre, in height to 2 cm."""
    motion, rows = Motion(lab.pack("train")), np.asarray(lab.pack("test").conditions, dtype=float)
    guess = np.array([[motion(row[4:], row[:4], t) for t, row in enumerate(sequence[:-1])] for sequence in rows])
    error = np.abs(guess - rows[:, 1:, 4:]).mean(axis=(0, 1))
    assert error[:2].max() < 1e-3 and error[2] < 2e-2


def test_steps_are_shown_and_can_be_taken_back(lab):
    wheel = Drive(lab, 1)
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
