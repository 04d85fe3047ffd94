"""Training while it is looked at: the view changes nothing but the screen, its button stops, and others can watch."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import imageio.v3 as iio
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from filelock import FileLock
from jupyter_client.manager import start_new_kernel
from test_training import exact, weights

from lab5 import live
from lab5.config import preset
from lab5.report import find_notebooks
from lab5.training import MEASURES, read_history
from lab5.workbook import Workbook

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed: a list for each place, what it showed first to what it shows last."""
    places = []

    class Handle:
        def __init__(self):
            self.items = []
            places.append(self.items)

        def display(self, item, **_):
            self.items.append(item)

        update = display

    monkeypatch.setattr(live, "DisplayHandle", Handle)
    return places


@pytest.fixture
def book(tiny_root, tmp_path) -> Workbook:
    return Workbook(preset("smoke", precision="float32", epochs=3, validate_every=2, norm_freeze=0.5), tmp_path / "run",
                    tiny_root)


def test_a_training_started_as_a_process_outlives_the_one_that_started_it(book, tmp_path):
    """A kernel is killed with all that belongs to it, as JupyterLab does."""
    unseen = Workbook(book.config, tmp_path / "unseen", book.data)
    unseen.train(progress=False)
    kernel = subprocess.Popen([sys.executable, "-c", f"""
import sys, time
from pathlib import Path
from lab5.config import Config
from lab5.workbook import Workbook
config = Config.from_dict({dataclasses.asdict(book.config)!r})
Workbook(config, Path({str(book.run)!r}), Path({str(book.data)!r})).start()
print("started", flush=True)
time.sleep(600)
"""], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert any("started" in line for line in kernel.stdout)
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    seen = list(live.follow(book.run))
    assert [record["epoch"] for record in seen[-1]] == [1, 2, 3]
    with FileLock(book.run / ".training.lock", timeout=60):     # the history is written before the weights
        assert weights(book.run) == weights(unseen.run)


def pixels(image) -> np.ndarray:
    return iio.imread(io.BytesIO(image.data))


def test_a_run_that_is_looked_at_is_the_run_that_is_not(book, shown, tmp_path):
    unseen = Workbook(book.config, tmp_path / "unseen", book.data)
    history = unseen.train(progress=False)
    with book.live() as view:
        seen = book.train(view, progress=False)
    assert exact(seen) == exact(history) and weights(book.run) == weights(unseen.run)
    (_, *pictures), (button, end) = shown
    assert len(pictures) == 3 and not np.array_equal(pixels(pictures[1]), pixels(pictures[2]))
    assert button[WIDGET] and button["text/plain"] == live.NO_FRONT_END
    assert end.data == "*All 3 epochs are trained.*" and view.button.disabled


def test_drawing_leaves_the_model_and_the_random_state_as_they_were(book, shown):
    history = book.train(progress=False)
    model = book.model().train()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    predicted = []

    def predict(model):
        assert not model.training
        predicted.append(book.videos(0, split="validate", model=model))
        return predicted[0]

    assert live.View(book.config, book.run, predict)(history, model) is False
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(predicted[0]) == ["truth", "prediction"]


@pytest.mark.parametrize("moment", ["before", "while it trains"])
def test_the_button_ends_the_run_after_an_epoch_and_the_next_call_goes_on(moment, book, shown):
    book = Workbook(book.config.replace(epochs=60), book.run, book.data)

    def click():
        while moment == "while it trains" and len(read_history(book.run)) < 2:
            time.sleep(0.01)
        view.button.click()

    with book.live() as view:
        finger = threading.Thread(target=click)
        finger.start()
        if moment == "before":
            finger.join()
        history = book.train(view, progress=False)
        assert view.button.description == "stopping after this epoch..."
    assert len(history) == 1 if moment == "before" else 2 <= len(history) < 60
    assert history == read_history(book.run) and view.button.disabled
    assert f"Stopped after epoch {len(history)} of 60" in shown[1][-1].data
    with book.live() as view:
        view.button.click()
        assert len(book.train(view, progress=False)) == len(history) + 1
    assert "validation PSNR" in shown[2][0].alt                 # the curves so far are there at once


def test_an_interrupted_kernel_says_from_where_the_run_goes_on(book, shown):
    def interrupt(model):
        if len(read_history(book.run)) == 2:
            raise KeyboardInterrupt
        return book.videos(0, split="validate", model=model)

    with pytest.raises(KeyboardInterrupt), live.View(book.config, book.run, interrupt) as view:
        book.train(view, progress=False)
    assert "Interrupted after epoch 2 of 3" in shown[1][-1].data
    assert [record["epoch"] for record in book.train(progress=False)] == [1, 2, 3]


def test_an_error_is_not_called_a_stop(book, shown):
    with pytest.raises(ValueError), book.live():
        raise ValueError
    assert shown[1][-1].data == "**Ended by an error after epoch 0 of 3.**"


CELL = """
import time
from pathlib import Path
from lab5 import live
from lab5.config import preset

with live.View(preset("smoke"), Path("nowhere"), None) as view:
    end = time.monotonic() + 20
    while time.monotonic() < end and not view.stopping.is_set():
        time.sleep(0.02)                                        # as busy as a training
    print("heard:", view.stopping.is_set())
"""


def test_a_click_is_heard_while_the_cell_runs(tmp_path):
    """Messages as JupyterLab sends them: a click on a subshell of the kernel, whose main thread is busy."""
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        client.control_channel.send(client.session.msg("create_subshell_request", {}))
        subshell = client.get_control_msg(timeout=30)["content"]["subshell_id"]
        client.execute(CELL)
        printed = ""
        while not printed:
            message = client.get_iopub_msg(timeout=60)
            if WIDGET in message["content"].get("data", {}):
                comm = message["content"]["data"][WIDGET]["model_id"]
                click = client.session.msg("comm_msg", {"comm_id": comm, "data": {
                    "method": "custom", "content": {"event": "click"}}})
                click["header"]["subshell_id"] = subshell
                client.shell_channel.send(click)
            printed = message["content"].get("text", "")
        assert printed == "heard: True\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_after_a_stop_the_training_notebook_tells_of_what_is_there_and_trains_no_further(tiny_root, tmp_path):
    path = next(path for path in find_notebooks() if path.stem.startswith("04"))
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f"preset, run, data = 'smoke', {str(tmp_path / 'run')!r}, {str(tiny_root)!r}"
        if "with book.live() as view:" in cell.source and cell.cell_type == "code":
            cell.source = cell.source.replace("as view:\n", "as view:\n    view.button.click()\n")
            training = cell
        if "The run in numbers" in cell.source:
            numbers = cell
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert len(read_history(tmp_path / "run")) == 1
    picture, words, *bars = training.outputs
    assert "image/png" in picture.data and words.data["text/markdown"].startswith("**Stopped after epoch 1 of 2.**")
    assert WIDGET not in picture.data and WIDGET not in words.data
    assert all(bar.data["text/plain"].startswith("training:") for bar in bars)
    assert "stopped, and 1 are left" in numbers.outputs[0].data["text/markdown"]


def grow(run, monkeypatch, last: int) -> None:
    """A run that gets an epoch older each time that somebody waits for it."""
    def age(_=None):
        history = read_history(run)
        record = dict.fromkeys(MEASURES, len(history) + 1) | {"psnr": None}
        assert len(history) < last                              # nobody waits for a finished run
        (run / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*history, record)))

    run.mkdir()
    (run / "config.json").write_text(preset("smoke", epochs=last).to_json())
    monkeypatch.setattr(live.time, "sleep", age)


def test_lines_come_as_the_history_grows_and_end_with_it(tmp_path, monkeypatch):
    grow(tmp_path / "run", monkeypatch, 3)
    lines = live.lines(tmp_path / "run")
    assert "teacher forcing" in next(lines)
    for epoch in (1, 2, 3):
        assert next(lines).split() == [f"{epoch}", f"{epoch}.00000", f"{epoch}.000", *2 * [f"{epoch}.00"], "-",
                                       f"{epoch}.0"]
        assert len(read_history(tmp_path / "run")) == epoch
    assert next(lines, "the end") == "the end"


def test_a_second_kernel_draws_each_epoch_until_it_is_told_to_end(tmp_path, monkeypatch, shown, capsys):
    grow(tmp_path / "run", monkeypatch, 3)
    live.watch(tmp_path / "run")
    waiting, *pictures = shown[0]
    assert "`run`" in waiting.data and len({picture.data for picture in pictures}) == 3
    assert capsys.readouterr().out == ""

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", interrupt)
    live.watch(tmp_path / "untrained")
    assert "the training was left alone" in capsys.readouterr().out
