"""A training while it runs: its curves, its newest prediction, and a button that stops it."""

from __future__ import annotations

import threading

import imageio.v3 as iio
import ipywidgets
import numpy as np
from IPython.display import DisplayHandle, Image, Markdown
from matplotlib.figure import Figure

from lab5.model import CVAE
from lab5.training import Record, read_history
from lab5.workbook import figures, film
from lab5.workbook.run import Run
from lab5.workbook.show import SCREEN

NO_FRONT_END = "(Here JupyterLab shows a button that stops the training.)"


class View:
    """Curves, a validation sequence as it is predicted now, and a button that stops the training after the epoch.

    Used as ``with View(lab) as view: lab.train(view)``. At the end a text replaces the button, so that a saved notebook
    holds no widget.
    """

    def __init__(self, lab: Run) -> None:
        self.lab, self.history, self.stopping = lab, read_history(lab.folder), threading.Event()
        self.button = ipywidgets.Button(description="stop after this epoch", icon="stop", layout={"width": "16em"})
        self.button.on_click(self._stop)
        # JupyterLab sends a click to another thread than the busy one, from which ipykernel 7.4 would call it back.
        vars(self.button.comm).pop("_reply_subshell_id", None)
        self._picture, self._text = DisplayHandle(), DisplayHandle()

    def __enter__(self) -> View:
        self._picture.display(self._drawn(self.lab.model()) if self.lab.finished else
                              _picture(figures.training_curves(self.history)) if self.history else
                              Markdown("*The curves appear with the first epoch.*"))
        self._text.display({**self.button._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)
        return self

    def __call__(self, history: list[Record], model: CVAE) -> bool:
        """Draw the epoch that has just ended; True if the training is to end with it."""
        self.history, training = history, model.training
        self._picture.update(self._drawn(model.eval()))
        model.train(training)
        return self.stopping.is_set()

    def _drawn(self, model: CVAE) -> Image:
        videos = self.lab.videos(0, split="validate", model=model)
        return _picture(figures.training_curves(self.history),
                        film.strip(videos, n_past=self.lab.config.n_past, count=6))

    def __exit__(self, *_: object) -> None:
        how = "Finished" if len(self.history) >= self.lab.config.epochs else "Stopped"
        self._text.update(Markdown(f"**{how} after epoch {len(self.history)} of {self.lab.config.epochs}.** All is "
                                   "saved; an unfinished training resumes when this cell runs again."))
        self.button.close()

    def _stop(self, button: ipywidgets.Button) -> None:
        self.stopping.set()
        button.disabled, button.description = True, "stopping after this epoch..."


def _picture(*parts: Figure) -> Image:
    """Figures of one width below one another in one picture, which changes as a whole."""
    pixels = np.concatenate([iio.imread(figures.render(part, "png")) for part in parts])
    return Image(data=iio.imwrite("<bytes>", pixels, extension=".png"), width=SCREEN,
                 alt="Losses, validation PSNR and ratios over the epochs; in a live view, the newest prediction")
