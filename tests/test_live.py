"""Training with a view: it changes nothing but the screen, its button stops the training, and others can watch."""

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
import pytest
import torch
from conftest import weights
from filelock import FileLock
from jupyter_client.manager import start_new_kernel

from lab5.config import preset
from lab5.handin.report import find_notebooks
from lab5.training import NUMBERS, read_history, run_lock
from lab5.workbook import live
from lab5.workbook.run import Run

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """All that is displayed: a list for each place, from what it showed first to what it shows last."""
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
def lab(tiny_root, tmp_path) -> Run:
    config = preset("smoke", precision="float32", epochs=3, validate_every=2, norm_freeze=0.5)
    return Run(config, tmp_path / "run", tiny_root)


def test_a_training_started_as_a_process_outlives_the_one_that_started_it(lab, tmp_path):
    """A kernel is killed with all that belongs to it, as JupyterLab does."""
    other = Run(lab.config, tmp_path / "other", lab.data)
    other.train(progress=False)
    kernel = subprocess.Popen([sys.executable, "-c", f"""
import time
from pathlib import Path
from lab5.config import Config
from lab5.workbook.run import Run
Run(Config(**{lab.config.model_dump()!r}), Path({str(lab.folder)!r}), Path({str(lab.data)!r})).start()
print("started", flush=True)
time.sleep(600)
"""], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert any("started" in line for line in kernel.stdout)
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    while len(read_history(lab.folder)) < 3:
        time.sleep(0.1)
    with FileLock(lab.folder / ".training.lock", timeout=60):   # the history is written before the weights
        assert weights(lab.folder) == weights(other.folder)


def test_a_run_with_a_view_is_the_run_without(lab, shown, tmp_path):
    other = Run(lab.config, tmp_path / "other", lab.data)
    other.train(progress=False)
    with live.View(lab) as view:
        lab.train(view, progress=False)
    assert weights(lab.folder) == weights(other.folder)
    (_, *pictures), (button, end) = shown
    assert len({picture.data for picture in pictures}) == 3
    assert button[WIDGET] and button["text/plain"] == live.NO_FRONT_END
    assert "Finished after epoch 3 of 3" in end.data and view.button.disabled


def test_drawing_leaves_the_model_and_the_random_state_unchanged(lab, shown):
    history = lab.train(progress=False)
    model = lab.model().train()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    view = live.View(lab)
    assert view(history, model) is False
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    drawn = iio.imread(io.BytesIO(shown[0][-1].data))
    assert len(drawn) > len(iio.imread(live.figures.render(live.figures.training_curves(history), "png")))    # a strip


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
    assert 2 <= len(history) < 60 and history == read_history(lab.folder) and view.button.disabled
    assert f"Stopped after epoch {len(history)} of 60" in shown[1][-1].data
    with live.View(lab) as view:
        view.button.click()
        assert len(lab.train(view, progress=False)) == len(history) + 1
    assert "validation PSNR" in shown[2][0].alt                 # the curves so far are shown at once


@pytest.mark.parametrize("error, words", [(KeyboardInterrupt, "Interrupted"), (ValueError, "Ended by an error")])
def test_an_interrupt_and_an_error_are_not_called_a_stop(error, words, lab, shown):
    with pytest.raises(error), live.View(lab):
        raise error
    assert shown[1][-1].data.startswith(f"**{words} after epoch 0 of 3.**")


CELL = """
import time
from pathlib import Path
from lab5.workbook import live
from lab5.workbook.run import open_run

with live.View(open_run("smoke", str(Path("nowhere").absolute()))) as view:
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


def test_after_a_stop_the_training_notebook_shows_what_is_there_and_trains_no_further(tiny_root, tmp_path):
    path = next(path for path in find_notebooks() if path.stem.startswith("04"))
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f"preset, run, data, share = 'smoke', {str(tmp_path / 'run')!r}, {str(tiny_root)!r}, 0.5"
        if "as view:\n" in cell.source and cell.cell_type == "code":
            cell.source = cell.source.replace("as view:\n", "as view:\n    view.button.click()\n")
            training = cell
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert len(read_history(tmp_path / "run")) == 1
    picture, words, *_ = (output.data for output in training.outputs)
    assert "**Stopped after epoch 1 of 2.**" in words["text/markdown"] and not {WIDGET} & {*picture, *words}


def test_a_second_kernel_draws_each_epoch_until_the_run_is_finished_or_nobody_trains_it(lab, monkeypatch, shown):
    said = []
    monkeypatch.setattr(live, "say", said.append)

    def wait(_):
        history = read_history(lab.folder)
        if len(history) < last:
            record = dict.fromkeys(NUMBERS, 1.0) | {"epoch": len(history) + 1, "psnr": None}
            (lab.folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*history, record)))

    monkeypatch.setattr(live.time, "sleep", wait)
    with run_lock(lab.folder):
        last = 3
        live.watch(lab)
    assert "curves appear" in shown[0][0].data and len({picture.data for picture in shown[0][1:]}) == 3
    live.watch(longer := lab.variant(epochs=4))                 # no process trains it
    assert said[0].startswith("3 of 3 epochs") and not read_history(longer.folder)
    assert said[1].startswith("0 of 4 epochs are trained, and no process trains this run now.")
