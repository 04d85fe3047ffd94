"""Training with a view: it changes nothing but the screen, and its button stops the training."""

import threading
import time
from types import SimpleNamespace

import imageio.v3 as iio
import pytest
from conftest import weights

from lab5.config import preset
from lab5.training import read_history
from lab5.workbook import live
from lab5.workbook.run import Run

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed: a list for each place, from what it showed first to what it shows last."""
    places = []

    def handle():
        places.append(items := [])
        return SimpleNamespace(display=lambda item, **_: items.append(item), update=items.append)

    monkeypatch.setattr(live, "DisplayHandle", handle)
    return places


@pytest.fixture
def lab(tiny_root, tmp_path) -> Run:
    config = preset("smoke", precision="float32", epochs=3, validate_every=2, norm_freeze=0.5)
    return Run(config, tmp_path / "run", tiny_root)


def test_a_run_with_a_view_is_the_run_without(lab, shown, tmp_path):
    other = Run(lab.config, tmp_path / "other", lab.data)
    other.train(progress=False)
    with live.View(lab) as view:
        lab.train(view, progress=False)
    assert weights(lab.folder) == weights(other.folder)
    (_, *pictures), (button, end) = shown
    assert len({picture.data for picture in pictures}) == 3
    curves = live.figures.render(live.figures.training_curves(lab.history()), "png")
    assert len(iio.imread(pictures[-1].data)) > len(iio.imread(curves))         # the newest prediction is below them
    assert button[WIDGET] and button["text/plain"] == live.NO_FRONT_END
    assert "Finished after epoch 3 of 3" in end.data


def test_the_button_ends_the_run_after_an_epoch_and_the_next_call_resumes(lab, shown):
    lab = lab.variant(epochs=60)

    def click():
        while len(read_history(lab.folder)) < 2:
            time.sleep(0.01)
        view.button.click()

    with live.View(lab) as view:
        threading.Thread(target=click).start()
        history = lab.train(view, progress=False)
        assert view.button.description == "stopping after this epoch..."
    assert 2 <= len(history) < 60 and history == read_history(lab.folder)
    assert f"Stopped after epoch {len(history)} of 60" in shown[1][-1].data
    with live.View(lab) as view:
        view.button.click()
        assert len(lab.train(view, progress=False)) == len(history) + 1
    assert "validation PSNR" in shown[2][0].alt                 # the curves so far are shown at once
