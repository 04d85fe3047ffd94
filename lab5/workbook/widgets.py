"""Widgets for JupyterLab: play videos, and step through a prediction.

Each widget stands under a still figure, which is what papermill, the PDF and a code-hosting page show. Frames are
PNGs of 64x64 that the browser enlarges, so that the kernel answers a slider in a few milliseconds.
"""

import html
from collections.abc import Callable, Sequence

import imageio.v3 as iio
import ipywidgets
import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure

from lab5.data import Pack, Windows, to_video
from lab5.evaluation import autocast, choose_precision, infer, predict, prior_noise
from lab5.metrics import psnr
from lab5.model import CVAE
from lab5.workbook import figures
from lab5.workbook.film import difference, in_colours
from lab5.workbook.run import Run, as_pictures
from lab5.workbook.show import SCREEN

NO_FRONT_END = "(Here JupyterLab shows controls to play with.)"
MOST = 64                                       # grey levels, the darkest colour of a difference
WIDE = "48em"                                   # of the curves
MODES = ("prior sample", "prior mean", "posterior", "teacher forcing")
STYLE = """<style>
.lab5 { max-width: 60em; }
.lab5-frame { image-rendering: pixelated; width: 100%; box-sizing: border-box; margin: 0; border: 3px solid #35998a; }
.lab5-frame.predicted { border-color: #c2460f; }
.lab5-panel { width: 11.5em; margin: 0 .5em .25em 0; }
</style>"""


def show(widget: ipywidgets.Widget, still: Figure, alt: str) -> None:
    """Show a still figure, which every export keeps, and under it the widget, or a line of text without a front end."""
    display(Image(data=figures.render(still, "png"), width=SCREEN, alt=alt))
    styled = ipywidgets.VBox([ipywidgets.HTML(STYLE), widget]).add_class("lab5")
    display({**styled._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)


class Stage(ipywidgets.HBox):
    """Frames side by side, each under its name; a border tells context from predicted frames."""

    def __init__(self, names: Sequence[str]) -> None:
        self.images = {name: ipywidgets.Image(format="png").add_class("lab5-frame") for name in names}
        super().__init__([ipywidgets.VBox([ipywidgets.HTML(html.escape(name)), image]).add_class("lab5-panel")
                          for name, image in self.images.items()], layout={"flex_flow": "row wrap"})

    def show(self, frames: dict[str, np.ndarray], predicted: bool = True) -> None:
        """Show a frame (H, W, 3) uint8 in each panel that is named."""
        for name, frame in frames.items():
            image = self.images[name]
            image.value = iio.imwrite("<bytes>", frame, extension=".png")
            (image.add_class if predicted else image.remove_class)("predicted")


def curves(scores: dict[str, np.ndarray], n_past: int) -> bytes:
    """The PSNR of every predicted frame of single videos as a PNG; `scores`: name -> (n_future,) in dB."""
    drawn = figures.psnr_over_time({name: values[None] for name, values in scores.items()}, n_past=n_past)
    return figures.render(drawn, "png")


def button(text: str, action: Callable[[], None]) -> ipywidgets.Button:
    made = ipywidgets.Button(description=text, layout={"width": "auto"})
    made.on_click(lambda _: action())
    return made


class Videos:
    """Videos side by side to be played, or stepped through with the arrow keys.

    `videos`: name -> uint8 (T, H, W, 3), the first `n_past` frames context.
    """

    def __init__(self, videos: dict[str, np.ndarray], n_past: int) -> None:
        self.n_past, self.stage, last = n_past, Stage(tuple(videos)), len(next(iter(videos.values()))) - 1
        self.slider = ipywidgets.IntSlider(0, 0, last, description="frame", layout={"width": "24em"})
        play = ipywidgets.Play(min=0, max=last, interval=250, repeat=True)
        ipywidgets.jslink((play, "value"), (self.slider, "value"))
        self.slider.observe(lambda _: self.draw(), names="value")
        self.widget = ipywidgets.VBox([self.stage, ipywidgets.HBox([play, self.slider])])
        self.show(videos)

    def show(self, videos: dict[str, np.ndarray]) -> None:
        """Show other videos of the same names and length."""
        self.videos = videos
        self.draw()

    def draw(self) -> None:
        """Show the frames at the slider."""
        t = self.slider.value
        self.stage.show({name: video[t] for name, video in self.videos.items()}, t >= self.n_past)


def future(model: CVAE, pack: Pack, index: int, mode: str, sample: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The video (T, H, W, C) uint8 of one sequence, context included, and its PSNR (n_future,) in dB.

    `mode`, one of `MODES`: a sample of the prior, of which number 0 is graded; the prior's mean; the posterior, which
    knows each frame before it is predicted; or a sample, but each frame predicted from the true one before it.
    """
    config, batch = model.config, Windows(pack, model.config.length)[index]
    n_past, device = config.n_past, model.condition_mean.device
    noise = prior_noise(len(pack), config.length - 1, model.noise_size, seed=1, sample=sample)[:, [index]]
    if mode == "teacher forcing":
        given = to_video(batch.frames.to(device)), batch.condition.to(device), noise.to(device)
        with torch.inference_mode(), autocast(choose_precision("auto", device), device):
            predicted = model.predict_one_step(*given)
    elif mode == "posterior":
        predicted = infer(model, batch.frames, batch.condition, noise).predictions[n_past - 1:]
    else:
        predicted = predict(model, batch.frames, batch.condition, noise * (mode == "prior sample"))
    predicted = predicted.float().cpu()
    scores = psnr(predicted, to_video(batch.frames[n_past:]))[:, 0].numpy()
    return np.concatenate([as_pictures(batch.frames[:n_past, 0]), as_pictures(predicted[:, 0])]), scores


class StepThrough:
    """A prediction frame by frame: truth, prediction and difference, and its PSNR beside that of the graded sample.

    `scores`: (N,) graded PSNR of the test sequences in dB, by which worst, median and best are found; `index`: the
    sequence that is shown first.
    """

    def __init__(self, lab: Run, scores: np.ndarray, index: int) -> None:
        self.model, self.pack, order = lab.model(), lab.pack("test"), np.argsort(scores, kind="stable")
        places = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
        self.number = ipywidgets.BoundedIntText(index, 0, len(scores) - 1, description="sequence")
        self.mode = ipywidgets.Dropdown(options=MODES, description="mode")
        self.sample = ipywidgets.BoundedIntText(0, 0, 99, description="sample")
        buttons = [button(name, lambda place=int(place): setattr(self.number, "value", place))
                   for name, place in places.items()]
        self.curve = ipywidgets.Image(format="png", layout={"width": WIDE})
        self.videos = Videos(self.predict(), self.model.config.n_past)
        for control in (self.number, self.mode, self.sample):
            control.observe(lambda _: self.videos.show(self.predict()), names="value")
        self.widget = ipywidgets.VBox([ipywidgets.HBox([self.number, *buttons]),
                                       ipywidgets.HBox([self.mode, self.sample]), self.videos.widget, self.curve])

    def predict(self) -> dict[str, np.ndarray]:
        """The videos that the controls ask for, and their PSNR as a curve."""
        index, mode, config = self.number.value, self.mode.value, self.model.config
        truth = np.asarray(self.pack.frames[index, :config.length])
        video, scores = future(self.model, self.pack, index, mode, self.sample.value)
        graded = future(self.model, self.pack, index, MODES[0])[1]
        self.curve.value = curves({f"{name}, average {values.mean():.2f} dB": values for name, values in (
            ("graded sample", graded), ("this prediction", scores))}, config.n_past)
        return {"truth": truth, "prediction": video, "|difference|": in_colours(difference(truth, video), MOST)}
