"""A training while it runs: a view with a stop button for the cell that trains, and a look at it from elsewhere.

A view draws what `training.train` hands it after each epoch. Who watches needs only the run folder, and so may sit in
another kernel or terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as iio
import ipywidgets
import numpy as np
from IPython.display import DisplayHandle, Image, Markdown
from matplotlib.figure import Figure

from lab5 import figures
from lab5.config import Config
from lab5.model import CVAE
from lab5.training import Record, read_history

PAUSE = 1.0                                     # seconds between two looks into a run folder
NO_FRONT_END = "(Here JupyterLab shows a button that stops the training.)"
COLUMNS = (("epoch", "epoch", "d"), ("MSE", "mse", ".5f"), ("KL", "kl", ".3f"), ("KL weight", "kl_weight", ".2f"),
           ("teacher forcing", "teacher_forcing", ".2f"), ("PSNR", "psnr", ".2f"),
           ("sequences/s", "sequences_per_second", ".1f"))       # heading, name in the record, format


class View:
    """What the training cell shows: the curves, a sequence as it is predicted now, and a stop button.

    Used as ``with view: train(..., on_epoch=view)``. The button ends the training after the epoch that is under way.
    At the end a sentence takes its place, so that what is saved or exported holds a picture and words only.

    Args:
        config: the run's.
        run: the run folder; an earlier part of the run is drawn at once.
        predict: called with ``model=`` in evaluation mode; returns videos, uint8 (T, H, W, C), as `figures.strip` does
            with them. It must leave the global random state alone.
    """

    def __init__(self, config: Config, run: Path, predict: Callable[..., dict[str, np.ndarray]]) -> None:
        self.config, self.predict, self.history = config, predict, read_history(run)
        self.stopping = threading.Event()
        self.button = ipywidgets.Button(description="stop after this epoch", icon="stop", layout={"width": "16em"})
        self.button.on_click(self._stop)
        # JupyterLab sends a click to another thread than the busy one, from which ipykernel 7.4 would call it back.
        vars(self.button.comm).pop("_reply_subshell_id", None)
        self._picture, self._words = DisplayHandle(), DisplayHandle()

    def __enter__(self) -> View:
        self._picture.display(_picture(figures.training_curves(self.history)) if self.history else
                              Markdown("*The curves come with the first epoch.*"))
        self._words.display({**self.button._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)
        return self

    def __call__(self, history: list[Record], model: CVAE) -> bool:
        """Draw the epoch that has just ended; True if the training is to end with it."""
        self.history = history
        training = model.training
        strip = figures.strip(self.predict(model=model.eval()), n_past=self.config.n_past)
        model.train(training)
        self._picture.update(_picture(figures.training_curves(history), strip))
        return self.stopping.is_set()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.button.disabled = True
        self._words.update(Markdown(self._end(error)))
        self.button.close()

    def _stop(self, button: ipywidgets.Button) -> None:
        self.stopping.set()
        button.disabled, button.description = True, "stopping after this epoch..."

    def _end(self, error: type[BaseException] | None) -> str:
        done, planned = len(self.history), self.config.epochs
        if done == planned:
            return f"*All {planned} epochs are trained.*"
        if error in (None, KeyboardInterrupt):
            return (f"**{'Interrupted' if error else 'Stopped'} after epoch {done} of {planned}.** All is saved: "
                    "run this cell again, and the training goes on.")
        return f"**Ended by an error after epoch {done} of {planned}.**"


def _picture(*parts: Figure) -> Image:
    """Figures of one width below one another in one picture, which changes as a whole."""
    pixels = np.concatenate([iio.imread(figures.render(part, "png")) for part in parts])
    return Image(data=iio.imwrite("<bytes>", pixels, extension=".png"), width=round(96 * figures.WIDTH * 1.15),
                 alt="Losses, validation PSNR and ratios over the epochs" + (
                     ", and the newest prediction of a validation sequence" if parts[1:] else ""))


def follow(run: Path) -> Iterator[list[Record]]:
    """The history of a run each time that it has changed, whoever trains it, until its last epoch is there."""
    seen: list[Record] = []
    while True:
        history = read_history(run)
        if history != seen:
            yield history
            seen = history
        if (run / "config.json").exists() and len(history) >= Config.load(run / "config.json").epochs:
            return
        time.sleep(PAUSE)


def lines(run: Path) -> Iterator[str]:
    """A table that grows with the run's history: its headings, then a line an epoch, until the run is finished."""
    widths = [max(len(heading), 7) for heading, *_ in COLUMNS]
    yield "  ".join(f"{heading:>{width}}" for (heading, *_), width in zip(COLUMNS, widths, strict=True))
    told = 0
    for history in follow(run):
        for record in history[told:]:
            cells = ("-" if record[name] is None else format(record[name], form) for _, name, form in COLUMNS)
            yield "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        told = len(history)


def watch(run: Path) -> None:
    """Draw the run's curves anew after each epoch, until it is finished or the kernel is interrupted."""
    handle = DisplayHandle()
    handle.display(Markdown(f"*The curves come with the first epoch in `{run.name}`.*"))
    try:
        for history in follow(run):
            if history:
                handle.update(_picture(figures.training_curves(history)))
    except KeyboardInterrupt:
        print("no longer watching; the training was left alone")
