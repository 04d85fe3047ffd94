"""The player follows its slider, and leaves a strip where nobody can play."""

import imageio.v3 as iio
import ipywidgets
import numpy as np
import pytest

from lab5 import figures, widgets

RNG = np.random.default_rng(0)
PANELS = {name: RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8) for name in ("truth", "prediction")}
PSNR = np.linspace(25, 20, 10)


def parts(player):
    image, controls, caption = player.children
    play, slider = controls.children
    return image, play, slider, caption


def test_the_slider_changes_image_and_caption():
    image, _, slider, caption = parts(widgets.player(PANELS, n_past=2, psnr=PSNR))
    pictures = figures.panel_frames(PANELS, n_past=2)
    for t, words in ((0, "frame 0: context"), (2, "frame 2: predicted, PSNR 25.0 dB"),
                     (11, "frame 11: predicted, PSNR 20.0 dB"), (1, "frame 1: context")):
        slider.value = t
        assert np.array_equal(iio.imread(image.value), pictures[t])
        assert caption.value == words


def test_without_scores_none_is_told():
    _, _, slider, caption = parts(widgets.player(PANELS, n_past=2))
    slider.value = 5
    assert caption.value == "frame 5: predicted"


def test_play_and_slider_are_linked_in_the_browser(monkeypatch):
    links = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: links.append(ends))
    _, play, slider, _ = parts(widgets.player(PANELS, n_past=2))
    assert links == [((play, "value"), (slider, "value"))]
    assert (play.min, play.max) == (slider.min, slider.max) == (0, 11)
    assert slider.readout and not slider.disabled and slider.tabbable is not False


def test_step_through_leaves_a_strip_first_and_words_where_no_front_end_listens(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda item, **options: shown.append((item, options)))
    widgets.step_through(PANELS, n_past=2, psnr=PSNR)
    (strip, _), (bundle, options) = shown
    assert strip.data == figures.render(figures.strip(PANELS, n_past=2, psnr=PSNR), "png")
    assert "truth, prediction" in strip.alt
    assert options == {"raw": True} and bundle["text/plain"] == widgets.NO_FRONT_END
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]


def test_wrong_videos_and_scores_are_refused():
    with pytest.raises(ValueError, match="truth: is float64"):
        widgets.player({"truth": PANELS["truth"] / 255}, n_past=2)
    with pytest.raises(ValueError, match="psnr has 3 values for 10 predicted frames"):
        widgets.player(PANELS, n_past=2, psnr=PSNR[:3])
