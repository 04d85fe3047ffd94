"""Figures show the data they are given, read well, and come out byte for byte the same."""

import itertools
from unittest import mock

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from figures.draw import DRAWINGS
from lab5.workbook import figures, film

T, N_PAST = 12, 2
RNG = np.random.default_rng(0)
START = film.GAP + film.BORDER                  # pixels to the first frame of a strip
PITCH = 16 + START + film.BORDER                # ... and from each to the next


def video(length=T, size=16):
    return RNG.integers(0, 256, (length, size, size, 3), dtype=np.uint8)


def record(epoch, psnr=None, **values):
    return {"epoch": epoch, "loss": 0.02 / epoch, "mse": 0.019 / epoch, "kl": 10.0 / epoch, "kl_weight": 0.1 * epoch,
            "teacher_forcing": 1 - 0.1 * epoch, "lr": 1e-3, "psnr": psnr, "sequences_per_second": 20.0, **values}


HISTORY = [record(epoch, 17.0 + epoch if epoch % 2 == 0 else None) for epoch in range(1, 9)]
CURVES = {"prior samples": RNG.normal(22, 1, (20, 10)), "repeat last": RNG.normal(18, 1, (20, 10))}
COMPARED = {"KL": {"monotonic": np.array([20.0, 21.0]), "cyclical": np.array([19.0, 19.5])},
            "rate": {"1e-3": np.array([18.0, 22.0])}}
BANDS = {"KL": (19.2, 21.8), "rate": (np.nan, np.nan)}
SAMPLES = {"PSNR [dB]": {"told": RNG.normal(27, 0.1, (20, 8)), "action-free": RNG.normal(19, 2, (20, 8))}}
POINTS = {task: {"fixed prior": {"kl": np.array([80.0, 90.0]), "posterior": np.array([25.0, 26.0]),
                                 "prior_sample": np.array([17.0, 16.0])}} for task in ("told", "action-free")}

FIGURES = {
    "training_curves": lambda: figures.training_curves(HISTORY, baseline=17.9),
    "training_curves, an epoch": lambda: figures.training_curves(HISTORY[:1]),
    "strip": lambda: film.strip({"truth": video(), "prediction": video()}, n_past=N_PAST, psnr=np.linspace(25, 20, 10)),
    "strip with a map": lambda: film.strip({"truth": video(12, 32)}, n_past=N_PAST, psnr=np.linspace(25, 20, 10),
                                           maps={"difference": 90 * RNG.random((12, 32, 32))}, lines=2),
    "strip of 30": lambda: film.strip({"truth": video(30)}, n_past=N_PAST, psnr=np.linspace(25, 20, 28), lines=2),
    "psnr_over_time": lambda: figures.psnr_over_time(CURVES, n_past=N_PAST),
    "psnr_distribution": lambda: figures.psnr_distribution({name: psnr.mean(axis=1) for name, psnr in CURVES.items()}),
    "schedules": lambda: figures.schedules({"up": np.linspace(0, 1, 9), "flat": np.ones(9), "off": np.zeros(9)}),
    "comparison": lambda: figures.comparison(dict.fromkeys(("one [dB]", "two"), (COMPARED, BANDS)), {"hold": 17.4}),
    "best_of": lambda: figures.best_of(SAMPLES),
    "spectrum": lambda: figures.spectrum({"told": np.geomspace(1, 1e-4, 50)}, {"β = 0.0001": 0.6, "calibrated": 0.01}),
    "over_steps": lambda: figures.over_steps({"KL [nats]": {"told": RNG.random((20, 11))}}),
    "rate_distortion": lambda: figures.rate_distortion(POINTS),
    **DRAWINGS,
}


def texts(figure):
    """Every text that is drawn, with its extent in pixels."""
    drawn = []
    with mock.patch.object(Text, "draw", autospec=True, side_effect=lambda text, renderer: drawn.append(text)):
        figure.draw_without_rendering()
    return [(text.get_text(), text.get_window_extent()) for text in drawn
            if text.get_visible() and text.get_text().strip()]


def words(figure):
    return {text for text, _ in texts(figure)}


def line(axes, label):
    return next(drawn for drawn in axes.lines if drawn.get_label() == label)


# All of them ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_a_text_column_and_no_text_overlaps_another(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() == figures.WIDTH
    found, page = texts(figure), figure.bbox
    assert found
    for text, extent in found:
        assert page.x0 <= extent.x0 + 1 and extent.x1 - 1 <= page.x1, f"{text!r} leaves the page sideways"
        assert page.y0 <= extent.y0 + 1 and extent.y1 - 1 <= page.y1, f"{text!r} leaves the page up or down"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 0.5, f"{one!r} and {other!r} overlap by {overlap} pixels"


@pytest.mark.parametrize("name", ["training_curves", "strip", "03_training"])
def test_saving_again_gives_the_same_bytes_at_200_dots_per_inch(name, tmp_path):
    figure = FIGURES[name]()
    for folder in "ab":
        figures.save(figure, tmp_path / folder, "figure")
    pdf, png = ([(tmp_path / folder / f"figure.{kind}").read_bytes() for folder in "ab"] for kind in ("pdf", "png"))
    assert pdf[0] == pdf[1] and png[0] == png[1] and iio.imread(png[0]).shape[1] == round(200 * figures.WIDTH)
    assert b"/FontFile2" in pdf[0] and b"/Type3" not in pdf[0] and b"CreationDate" not in pdf[0]


def test_the_notebooks_settings_and_ours_leave_each_other_alone():
    with matplotlib.rc_context({"font.size": 30}):
        figure = figures.training_curves(HISTORY)
        assert matplotlib.rcParams["font.size"] == 30
    assert figure.axes[0].yaxis.label.get_size() < 10


# Numbers -------------------------------------------------------------------------------------------------

def test_training_curves_show_losses_left_ratios_dashed_right_and_psnr_as_dots():
    figure = figures.training_curves(HISTORY, baseline=17.9)
    scores, losses, ratios = figure.axes
    assert losses.get_yscale() == "log" and losses.yaxis.get_ticks_position() == "left"
    assert ratios.yaxis.get_ticks_position() == "right" and ratios.get_ylim() == pytest.approx((-0.04, 1.04))
    for axes, key, label in ((losses, "mse", "MSE"), (losses, "kl", "KL [nats per frame]"),
                             (ratios, "kl_weight", "KL weight"), (ratios, "teacher_forcing", "teacher-forcing ratio")):
        np.testing.assert_allclose(line(axes, label).get_ydata(), [r[key] for r in HISTORY])
        assert line(axes, label).is_dashed() == (axes is ratios)
    dots = line(scores, "validation PSNR")
    scored = ~np.isnan(dots.get_ydata())
    assert dots.get_linestyle() == "None" and dots.get_marker() == "o"
    assert dots.get_xdata()[scored].tolist() == [2, 4, 6, 8] and dots.get_ydata()[scored].tolist() == [19, 21, 23, 25]
    assert line(scores, "repeating the last frame, 17.9 dB").get_ydata()[0] == 17.9
    assert scores.get_shared_x_axes().joined(scores, losses) and "best 25.00 dB, epoch 8" in words(figure)
    first = figures.training_curves([record(1, kl=0.0)])
    assert {"not scored yet", "KL: 0 nats"} <= words(first) and first.axes[1].lines[0].get_marker() == "o"


def test_psnr_over_time_draws_the_mean_and_its_95_percent_band():
    axes, = figures.psnr_over_time(CURVES, n_past=N_PAST).axes
    for (name, values), band in zip(CURVES.items(), axes.collections, strict=True):
        assert line(axes, name).get_xdata().tolist() == list(range(2, 12))
        np.testing.assert_allclose(line(axes, name).get_ydata(), values.mean(axis=0))
        half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        edges = band.get_paths()[0].vertices
        for frame, mean, reach in zip(range(2, 12), values.mean(axis=0), half, strict=True):
            y = edges[edges[:, 0] == frame, 1]
            assert (y.min(), y.max()) == pytest.approx((mean - reach, mean + reach))


def test_a_comparison_shows_every_seed_under_its_choice_and_the_band_of_its_reference():
    figure = figures.comparison({"PSNR [dB]": (COMPARED, BANDS)}, {"hold": 17.4})
    axes, = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata().tolist() for dot in dots] == [[20, 21], [19, 19.5], [18, 22]]
    assert [round(dot.get_ydata().mean(), 9) for dot in dots] == [1, 2, 4]        # below the headings on lines 0 and 3
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"] == [20.5, 19.25, 20]
    shaded = axes.collections[0].get_datalim(axes.transData)
    assert (shaded.x0, shaded.x1, shaded.y0, shaded.y1) == pytest.approx((19.2, 21.8, 0.5, 2.5))
    assert {"KL", "rate", "cyclical", "hold, 17.4"} <= words(figure)


def test_the_best_of_n_and_the_means_of_steps_are_what_is_drawn():
    axes, = figures.best_of(SAMPLES).axes
    scores = SAMPLES["PSNR [dB]"]["told"]
    assert line(axes, "told").get_ydata() == pytest.approx([np.mean([
        scores[:, chosen].max(axis=1) for chosen in itertools.combinations(range(8), n)]) for n in range(1, 9)])
    axes, = figures.over_steps(SAMPLES).axes
    assert line(axes, "told").get_ydata() == pytest.approx(scores.mean(axis=0))


# Frames --------------------------------------------------------------------------------------------------

def shown(axes):
    """The image of some axes at one value per pixel."""
    return axes.images[0].get_array()[::film.SHARP, ::film.SHARP]


def test_a_strip_holds_every_frame_of_every_row_in_a_border_of_its_kind():
    rows = {"truth": video(), "prediction": video()}
    pixels = shown(film.strip(rows, n_past=N_PAST).axes[0])
    for row, frames in enumerate(rows.values()):
        for t, frame in enumerate(frames):
            y, x = row * PITCH + START, t * PITCH + START
            assert (pixels[y:y + 16, x:x + 16] == frame).all()
            kind = film.CONTEXT if t < N_PAST else film.PREDICTED
            assert matplotlib.colors.to_hex(pixels[y - 1, x - 1] / 255) == kind


def test_a_strip_numbers_its_frames_and_gives_the_scores_below_them():
    place = dict(texts(film.strip({"truth": video()}, n_past=N_PAST, psnr=np.arange(20.0, 30.0))))
    for t in range(N_PAST, T):
        above, below = place[str(t)], place[f"{18 + t}.0"]
        assert above.x0 + above.x1 == pytest.approx(below.x0 + below.x1, abs=2) and above.y0 > below.y1
    assert {"0", "1", "context", "predicted", "PSNR [dB]", "truth"} <= set(place)
    assert not {"context", "predicted"} & words(film.strip({"truth": video()}, n_past=T))       # all are known


def test_a_strip_of_some_frames_keeps_their_numbers_scores_and_kinds():
    frames = video()
    figure = film.strip({"truth": frames}, n_past=N_PAST, psnr=np.arange(20.0, 30.0), count=4)
    assert {"0", "4", "7", "11", "22.0", "25.0", "29.0"} <= words(figure) and not {"1", "3", "20.0"} & words(figure)
    pixels = shown(figure.axes[0])
    assert (pixels[START:START + 16, START + 3 * PITCH:][:, :16] == frames[11]).all()
    assert matplotlib.colors.to_hex(pixels[START - 1, START + PITCH - 1] / 255) == film.PREDICTED


def test_a_map_has_a_colour_scale_and_lines_hold_all_frames():
    values = np.zeros((T, 16, 16))
    values[7] = 80
    figure = film.strip({"truth": video()}, n_past=N_PAST, psnr=np.arange(20.0, 30.0), maps={"error": values}, lines=2)
    first, second, scale = figure.axes
    assert scale.get_ylabel() == "grey levels" and scale.get_ylim() == (0, 80)
    assert [label.get_text() for label in second.get_xticklabels()] == [str(t) for t in range(6, 12)]
    at = slice(PITCH + START, PITCH + START + 16)
    light, dark = (shown(axes)[at, at] for axes in (first, second))             # frames 1 and 7
    assert light.min() > 180 and dark.max() < 60 and {"20.0", "23.0", "29.0"} <= words(figure)


def test_a_gif_holds_every_frame_in_a_border_of_its_kind_even_where_nothing_moves(tmp_path):
    still = np.repeat(video(1), T, axis=0)
    for name in "ab":
        film.gif(tmp_path / f"{name}.gif", {"truth": still, "prediction": still}, n_past=N_PAST)
    facts = iio.immeta(tmp_path / "a.gif")
    assert len(iio.imread(tmp_path / "a.gif", index=None)) == T and facts["duration"] == 250 and facts["loop"] == 0
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    scale, pictures = film.MOVING, film.panels({"truth": still}, n_past=N_PAST)
    bar = (pictures.shape[1] - 18 * scale) // 2
    for t, picture in enumerate(pictures):
        kind = film.CONTEXT if t < N_PAST else film.PREDICTED
        assert matplotlib.colors.to_hex(picture[bar + 1, 1] / 255) == kind
        assert np.array_equal(picture[bar + scale:-bar - scale:scale, scale:-scale:scale], still[t])


@pytest.mark.parametrize("videos, found", [
    ({"p": np.zeros((T, 16, 16, 3))}, r"p.*float64.*\(12, 16, 16, 3\)"), ({"a": video(), "b": video(5)}, r"b.*\(5, 16"),
    ({"p": video()[0]}, r"p.*uint8.*\(16, 16, 3\).*expected uint8 \(T, H, W, 3\)")])
def test_what_is_no_uint8_video_is_refused_by_name(videos, found):
    for draw_them in (film.strip, film.panels):
        with pytest.raises(ValueError, match=found):
            draw_them(videos, n_past=N_PAST)
