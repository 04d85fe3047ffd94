"""The widgets answer their controls, show what was computed, and leave a still figure where nobody can play."""

import io

import imageio.v3 as iio
import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure

from lab5 import figures, widgets, workbook
from lab5.drive import Drive, Motion
from lab5.evaluation import evaluate
from lab5.simulator import REACH


@pytest.fixture(scope="module")
def book(tmp_path_factory, tiny_root):
    book = workbook.open_book("smoke", str(tmp_path_factory.mktemp("widgets") / "run"), str(tiny_root))
    book.train(progress=False)
    return book


@pytest.fixture(scope="module")
def graded(book):
    return evaluate(book.model(), book.pack("test"), protocols=("sampled", "mean"), progress=False).psnr


@pytest.fixture
def player(book, graded):
    return widgets.StepThrough(book, graded["sampled"].mean(axis=1), 1)


def shown(stage: widgets.Stage, name: str) -> np.ndarray:
    return iio.imread(io.BytesIO(stage.images[name].value))[..., :3].astype(int)


# ---- stepping through ----

def test_the_player_shows_what_was_scored(player, graded):
    """Every frame's PSNR is the evaluation's, for the graded sample and for the prior mean."""
    for mode, protocol in (("sample", "sampled"), ("mean", "mean")):
        for index in range(4):
            assert player.futures.of(index, mode, 0, False)[1] == pytest.approx(graded[protocol][index], abs=0.05)


def test_the_slider_changes_the_picture_the_words_and_the_cursor(player):
    first = shown(player.stage, "prediction"), player.curve.value
    assert player.words.value == "frame 0: context"
    player.player.slider.value = 7
    video, scores = player.futures.of(1, "sample", 0, False)
    assert (shown(player.stage, "prediction") == video[7]).all() and (first[0] == video[0]).all()
    assert player.words.value == (f"frame 7: predicted, {scores[5]:.1f} dB; average so far {scores[:6].mean():.2f} dB")
    assert player.curve.value != first[1]


def test_the_difference_is_that_of_the_frames_shown(player):
    player.player.slider.value = 5
    truth, prediction = shown(player.stage, "truth"), shown(player.stage, "prediction")
    assert (shown(player.stage, "|difference|") == np.abs(truth - prediction)).all() and (truth != prediction).any()


def test_each_choice_shows_another_future(player):
    player.player.slider.value = 11
    seen = [shown(player.stage, "prediction")]
    for control, value in ((player.number, 2), (player.forced, True), (player.mode, "posterior")):
        control.value = value
        seen.append(shown(player.stage, "prediction"))
    assert all((a != b).any() for a, b in zip(seen, seen[1:], strict=False))


def test_best_and_worst_are_found_by_their_score(player, graded):
    order = np.argsort(graded["sampled"].mean(axis=1))
    for name, place in (("worst", 0), ("best", -1)):
        player.rule.value = dict(player.rule.options)[name]
        assert player.number.value == order[place]
    player.number.value = int(order[1 if order[1] != dict(player.rule.options)["median"] else 2])
    assert player.rule.value is None                            # none of the three by name any more


def test_a_line_beyond_the_cursor_is_faint_and_values_that_are_no_numbers_are_left_out():
    whole = widgets.curve({"a": ([0, 1, 2], [1.0, np.nan, 3.0])}, xlabel="", ylabel="", x=(0, 2), y=(0, 4), cursor=1)
    faint, solid = (part.split('"')[1].split() for part in whole.split("<polyline ")[1:])
    assert (len(faint), len(solid)) == (2, 1) and "nan" not in whole


def test_videos_are_played_frame_by_frame():
    videos = {name: np.random.default_rng(seed).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
              for seed, name in enumerate("ab")}
    played = widgets.Videos(videos, n_past=2)
    for t in (4, 1):
        played.player.slider.value = t
        assert all((shown(played.stage, name) == video[t]).all() for name, video in videos.items())


# ---- the latent space ----

def test_a_turned_number_changes_what_is_shown_and_zero_does_not(book):
    knob = widgets.Latent(book, 0)
    knob.turn.value = 0
    assert (shown(knob.stage, "z turned") == shown(knob.stage, "z = mean")).all()
    knob.which.value, knob.turn.value = int(knob.effects.argmax()), 4
    assert (knob.of(knob.which.value, 4.0) != knob.of(0, 0.0)).any()


def test_the_numbers_that_do_most_come_first(book):
    knob = widgets.Latent(book, 0)
    ordered = [knob.effects[which] for _, which in knob.which.options]
    assert ordered == sorted(knob.effects, reverse=True) and len(ordered) == book.config.z_dim


def test_mean_and_deviation_are_those_of_so_many_samples(book):
    knob = widgets.Latent(book, 0)
    knob.count.value, knob.player.slider.value = 3, 4
    some = knob.samples[:3, 4].astype(float)
    assert (shown(knob.spread, "mean of samples") == some.mean(axis=0).round()).all()
    assert f"3 samples deviate by {some.std(axis=0).mean():.2f}" in knob.words.value


# ---- schedules ----

def test_schedules_answer_and_name_the_command(book):
    board = widgets.Schedules(book.config)
    before = board.curve.value
    board.kind.value, board.cycles.value = "cyclical", 5
    assert board.curve.value != before
    assert board.words.value == ("<code>lab5 train --preset smoke --set kl_schedule=cyclical --set kl_cycles=5</code>")


def test_schedules_that_make_no_sense_do_not_break_the_board(book):
    board = widgets.Schedules(book.config)
    board.shares["tf_hold"].value, board.shares["tf_end"].value, board.shares["kl_ramp"].value = 1.0, 0.0, 0.0
    assert "nan" not in board.curve.value


# ---- driving ----

def test_the_simulated_robot_begins_where_the_sequence_stands(book):
    """Told what the sequence was told, it does what the sequence shows."""
    wheel = Drive(book, 1)
    frames, condition = wheel.futures.window(1)
    actions = condition[wheel.seen - 1:-1, 0, :4].double().numpy()
    truth = widgets.as_pictures(frames[:, 0])
    assert np.abs(wheel.robot.follow(list(actions)).astype(int) - truth).mean() < 1


def test_actions_lead_where_they_led(book):
    """The fitted motion against the positions of the test split: to a centimetre, in the plane to a millimetre."""
    motion, rows = Motion(book.pack("train")), np.asarray(book.pack("test").conditions, dtype=float)
    guess = np.array([[motion(row[4:], row[:4]) for row in sequence[:-1]] for sequence in rows])
    error = np.abs(guess - rows[:, 1:, 4:]).mean(axis=(0, 1))
    assert error[:2].max() < 1e-3 and error[2] < 2e-2


def test_steps_are_shown_and_can_be_taken_back(book):
    wheel = Drive(book, 1)
    real = shown(wheel.stage, "the simulated robot")
    right = next(button for button in wheel.steps if button.description == "→")
    right.click()
    wheel.go.click()
    assert [tuple(action) for action in wheel.actions] == [(0, REACH, 0, 0)] * 2
    after = shown(wheel.stage, "the simulated robot")
    assert (after != real).any() and "2 steps" in wheel.words.value
    wheel.undo.click()
    assert wheel.words.value.startswith("1 step,")
    wheel.go.click()
    assert (shown(wheel.stage, "the simulated robot") == after).all()           # the same again after an undo
    wheel.reset.click()
    assert (shown(wheel.stage, "the simulated robot") == real).all() and wheel.undo.disabled


def test_a_slider_shows_the_next_frames_at_once(book):
    wheel = Drive(book, 1)
    before = shown(wheel.ahead, "+5")
    wheel.dy.value = REACH
    assert (shown(wheel.ahead, "+5") != before).any() and not wheel.actions


def test_a_drive_is_kept_as_a_gif_of_all_its_frames(book):
    wheel = Drive(book, 1)
    for _ in range(3):
        wheel.go.click()
    wheel.save.click()
    kept = sorted((book.run / "drives").glob("*.gif"))
    assert kept and str(kept[-1]) in wheel.words.value
    assert len(iio.imread(kept[-1], index=...)) == wheel.seen + 3


def test_without_actions_there_is_nothing_to_steer(book):
    blind = workbook.Workbook(book.config.replace(condition="none"), book.run, book.data)
    with pytest.raises(ValueError, match="nothing to steer"):
        Drive(blind, 1)


# ---- where nobody can play ----

def test_an_export_keeps_the_figure_and_a_line_of_text(monkeypatch):
    displayed = []
    monkeypatch.setattr(widgets, "display", lambda item, **options: displayed.append((item, options)))
    figure = Figure(figsize=(1, 1))
    widgets.show(ipywidgets.HTML("live"), figure, "what is seen")
    (still, _), (bundle, options) = displayed
    assert still.data == figures.render(figure, "png") and still.alt == "what is seen"
    assert options == {"raw": True} and bundle["text/plain"] == widgets.NO_FRONT_END
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
