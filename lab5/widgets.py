"""Playing with the model in JupyterLab: step through a prediction, turn a latent, bend a schedule.

Each widget stands under a still figure, which is what papermill, the PDF and a code-hosting page show. Frames are
PNGs of 64x64 that the browser enlarges, and curves are SVGs in the colours of the theme, so that the kernel answers
a slider in a few milliseconds.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import imageio.v3 as iio
import ipywidgets
import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab5 import figures, schedules
from lab5.config import Config
from lab5.data import Windows, to_video
from lab5.evaluation import autocast, choose_precision, predict, prior_noise
from lab5.metrics import psnr
from lab5.workbook import Workbook

NO_FRONT_END = "(Here JupyterLab shows controls to play with.)"
MODES = {"prior sample": "sample", "prior mean": "mean", "posterior": "posterior"}
STYLE = """<style>
.lab5 { --lab5-0: #17456e; --lab5-1: #c2460f; --lab5-2: #35998a; --lab5-3: #75417f; max-width: 60em; }
[data-jp-theme-light="false"] .lab5 { --lab5-0: #7db4e8; --lab5-1: #f0854f; --lab5-2: #5cc4b3; --lab5-3: #c493d0; }
.lab5 .lab5-frame { image-rendering: pixelated; width: 100%; box-sizing: border-box; margin: 0;
  border: 3px solid var(--lab5-2); }
.lab5 .lab5-frame.predicted { border-color: var(--lab5-1); }
.lab5 .lab5-panel { width: 11.5em; margin: 0 .5em .25em 0; }
.lab5 .lab5-small .lab5-panel { width: 6em; }
.lab5 svg { display: block; width: 100%; max-width: 48em; height: auto; overflow: visible; }
.lab5 svg text { fill: var(--jp-ui-font-color1, #22262b); font: 11px var(--jp-ui-font-family, sans-serif); }
.lab5 svg .grid { stroke: var(--jp-border-color2, #ccc); stroke-width: .6; }
.lab5 svg .cursor { stroke: var(--jp-ui-font-color2, #777); stroke-width: 1; }
.lab5 svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
</style>"""
Line = tuple[Sequence[float], Sequence[float]]


def show(widget: ipywidgets.Widget, still: Figure, alt: str) -> None:
    """Show a still figure, which every export keeps, and under it the widget.

    Where no front end listens a line of text stands for the widget.
    """
    display(Image(data=figures.render(still, "png"), width=round(96 * still.get_figwidth() * 1.15), alt=alt))
    display({**widget._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)


def stack(*children: ipywidgets.Widget) -> ipywidgets.VBox:
    """Widgets one above the other, in the workbook's look."""
    box = ipywidgets.VBox([ipywidgets.HTML(STYLE), *children])
    box.add_class("lab5")
    return box


class Stage(ipywidgets.HBox):
    """Frames side by side, each under its name; a border tells context from predicted frames."""

    def __init__(self, names: Sequence[str], small: bool = False) -> None:
        self.images = {name: ipywidgets.Image(format="png") for name in names}
        for image in self.images.values():
            image.add_class("lab5-frame")
        panels = [ipywidgets.VBox([ipywidgets.HTML(html.escape(name)), image]) for name, image in self.images.items()]
        for panel in panels:
            panel.add_class("lab5-panel")
        super().__init__(panels, layout=ipywidgets.Layout(flex_flow="row wrap"))
        if small:
            self.add_class("lab5-small")

    def show(self, frames: dict[str, np.ndarray], predicted: bool = True) -> None:
        """Show a frame (H, W, C) uint8 in each panel that is named."""
        for name, frame in frames.items():
            image = self.images[name]
            image.value = iio.imwrite("<bytes>", np.broadcast_to(frame, (*frame.shape[:2], 3)), extension=".png")
            (image.add_class if predicted else image.remove_class)("predicted")


def curve(lines: dict[str, Line], *, xlabel: str, ylabel: str, x: tuple[float, float], y: tuple[float, float],
          cursor: float | None = None) -> str:
    """Lines as an SVG that takes the theme's colours; beyond the cursor they are faint.

    Args:
        lines: name -> (x values, y values).
        x, y: the ends of the axes.
    """
    width, height, left, bottom, top = 640, 170, 46, 132, 24

    def place(a: float, b: float) -> tuple[float, float]:
        return (left + (width - left - 8) * (a - x[0]) / (x[1] - x[0] or 1),
                bottom - (bottom - top) * (b - y[0]) / (y[1] - y[0] or 1))

    parts = [f'<text x="{left}" y="12">{ylabel}</text><text x="{width - 8}" y="{height - 6}" text-anchor="end">'
             f"{xlabel}</text>"]
    for tick in (tick for tick in MaxNLocator(4).tick_values(*y) if y[0] <= tick <= y[1]):
        level = place(x[0], tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{level:.1f}" y2="{level:.1f}"/>'
                     f'<text x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (tick for tick in MaxNLocator(11, integer=x[1] > 2).tick_values(*x) if x[0] <= tick <= x[1]):
        parts.append(f'<text x="{place(tick, 0)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        points = [(a, b) for a, b in zip(xs, ys, strict=True) if np.isfinite(b)]
        for faint, some in ((True, points), (False, [p for p in points if cursor is None or p[0] <= cursor])):
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(a, np.clip(b, *y)) for a, b in some))
            parts.append(f'<polyline points="{path}" style="stroke: var(--lab5-{number % 4}); '
                         f'opacity: {0.25 if faint else 1}"/>')
        parts.append(f'<text x="{width - 8 - 150 * (len(lines) - 1 - number)}" y="12" text-anchor="end" '
                     f'style="fill: var(--lab5-{number % 4})">{html.escape(name)}</text>')
    if cursor is not None:
        at = place(cursor, 0)[0]
        parts.append(f'<line class="cursor" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def range_of(*values: np.ndarray, least: float = 1.0) -> tuple[float, float]:
    """Ends of an axis that holds all finite values, at least so far apart."""
    finite = np.concatenate([np.ravel(value) for value in values])
    finite = finite[np.isfinite(finite)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = max(least - (high - low), 0.1 * (high - low)) / 2
    return low - margin, high + margin


def slider(low: float, high: float, value: float, name: str, step: float | None = None,
           form: str = ".2f") -> ipywidgets.Widget:
    """A slider for whole numbers, or with a step for others; it answers while it is dragged."""
    kind = ipywidgets.IntSlider if step is None else ipywidgets.FloatSlider
    return kind(min=low, max=high, value=value, step=step or 1, description=name, layout={"width": "24em"},
                style={"description_width": "7em"}, **({} if step is None else {"readout_format": form}))


def checkbox(name: str) -> ipywidgets.Checkbox:
    return ipywidgets.Checkbox(False, description=name, indent=False, layout={"width": "auto"})


def watch(controls: Sequence[ipywidgets.Widget], answer: Callable[[], None]) -> None:
    """Call `answer` whenever one of the controls has changed."""
    for control in controls:
        control.observe(lambda change: answer(), names="value")


# ---- a prediction ----

class Futures:
    """Predicted futures of single sequences of a split, each computed once."""

    def __init__(self, book: Workbook, split: str = "test") -> None:
        self.model, self.pack = book.model(), book.pack(split)
        self.config = self.model.config
        self.steps = self.config.length - 1
        self.of = functools.lru_cache(256)(self._of)

    def window(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames (T, 1, C, H, W) uint8 and conditions (T, 1, D) of one sequence."""
        batch = Windows(self.pack, self.config.length).__getitems__([index])
        return batch.frames, batch.condition

    def noise(self, index: int, sample: int) -> torch.Tensor:
        """The noise (T-1, 1, noise_size) of one sample of one sequence; sample 0 is the one that is graded."""
        return prior_noise(len(self.pack), self.steps, self.model.noise_size, seed=1, sample=sample)[:, [index]]

    def _of(self, index: int, mode: str, sample: int, forced: bool) -> tuple[np.ndarray, np.ndarray]:
        """The video (T, H, W, C) uint8, context included, and the PSNR (T - n_past,) of its predicted frames in dB.

        Args:
            mode: "sample" or "mean" of the prior, or "posterior", which sees each frame before it is predicted.
            forced: whether each step is given the true previous frame.
        """
        (frames, condition), seen, device = self.window(index), self.config.n_past, self.model.condition_mean.device
        noise = torch.zeros_like(self.noise(index, 0)) if mode == "mean" else self.noise(index, sample)
        if mode != "posterior" and not forced:
            future = predict(self.model, frames, condition, noise)
        else:
            video, told, noise = to_video(frames.to(device)), condition.to(device), noise.to(device)
            with torch.inference_mode(), autocast(choose_precision("auto", device), device):
                future = (self.model.predict_one_step(video, told, noise) if mode != "posterior" else
                          self.model.elbo_terms(video, told, noise, [forced] * self.steps).predictions[seen - 1:])
        future = future.float().cpu()
        scores = psnr(future, to_video(frames[seen:]))[:, 0].numpy()
        return np.concatenate([as_pictures(frames[:seen, 0]), as_pictures(future[:, 0])]), scores


def as_pictures(frames: torch.Tensor) -> np.ndarray:
    """Frames (T, C, H, W), uint8 or in [0, 1], as uint8 pictures (T, H, W, C)."""
    if frames.is_floating_point():
        frames = (frames * 255).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 1).cpu().numpy()


class Player:
    """A play button and a slider over the frames of a window; the arrow keys move it too."""

    def __init__(self, length: int) -> None:
        self.slider = slider(0, length - 1, 0, "frame")
        self.play = ipywidgets.Play(min=0, max=length - 1, interval=250, repeat=True)
        ipywidgets.jslink((self.play, "value"), (self.slider, "value"))
        self.row = ipywidgets.HBox([self.play, self.slider])


class Videos:
    """Videos side by side to be played: uint8 (T, H, W, C), the first `n_past` frames context."""

    def __init__(self, videos: dict[str, np.ndarray], n_past: int) -> None:
        self.videos, self.seen = videos, n_past
        self.player, self.stage = Player(len(next(iter(videos.values())))), Stage(tuple(videos))
        watch([self.player.slider], self.draw)
        self.widget = stack(self.stage, self.player.row)
        self.draw()

    def draw(self) -> None:
        """Show the frames at the slider."""
        t = self.player.slider.value
        self.stage.show({name: video[t] for name, video in self.videos.items()}, t >= self.seen)


class StepThrough:
    """A prediction frame by frame: truth, prediction and difference, and the PSNR so far as a curve.

    Args:
        book: the workbook, whose model predicts.
        scores: (N,) graded PSNR of the split's sequences in dB: best, median and worst are found by it.
        index: the sequence that is shown first.
    """

    def __init__(self, book: Workbook, scores: np.ndarray, index: int) -> None:
        self.futures = Futures(book)
        order = np.argsort(scores, kind="stable")
        named = [("worst", order[0]), ("median", order[(len(order) - 1) // 2]), ("best", order[-1])]
        self.rule = ipywidgets.ToggleButtons(options=[(name, int(place)) for name, place in named], value=None,
                                             style={"button_width": "6.5em"})
        self.number = ipywidgets.BoundedIntText(index, 0, len(scores) - 1, description="sequence",
                                                layout={"width": "12em"})
        self.mode = ipywidgets.Dropdown(options=MODES, description="z from", layout={"width": "16em"})
        self.sample = ipywidgets.BoundedIntText(0, 0, 99, description="sample", layout={"width": "11em"})
        self.forced = checkbox("teacher forcing")
        self.player = Player(self.futures.config.length)
        self.stage, self.curve = Stage(("truth", "prediction", "|difference|")), ipywidgets.HTML()
        self.words = ipywidgets.HTML()
        self.rule.observe(self._by_rule, names="value")
        watch([self.number, self.mode, self.sample, self.forced, self.player.slider], self.draw)
        self.widget = stack(ipywidgets.HBox([self.number, self.rule]),
                            ipywidgets.HBox([self.mode, self.sample, self.forced]),
                            self.stage, self.player.row, self.words, self.curve)
        self.draw()

    def _by_rule(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.number.value = change["new"]

    def draw(self) -> None:
        """Show the frame at the slider, of the future that the controls ask for."""
        index, t, seen = self.number.value, self.player.slider.value, self.futures.config.n_past
        self.rule.value = index if index in dict(self.rule.options).values() else None
        mode, forced = self.mode.value, self.forced.value
        self.sample.disabled = mode == "mean"
        video, scores = self.futures.of(index, mode, 0 if mode == "mean" else self.sample.value, forced)
        _, free = self.futures.of(index, mode, 0 if mode == "mean" else self.sample.value, False)
        truth = as_pictures(self.futures.window(index)[0][:, 0])
        difference = np.abs(truth[t].astype(np.int16) - video[t]).astype(np.uint8)
        self.stage.show({"truth": truth[t], "prediction": video[t], "|difference|": difference}, t >= seen)
        frames, lines = np.arange(seen, seen + len(scores)), {}
        if forced:
            lines["without teacher forcing"] = frames, free
        lines["with teacher forcing" if forced else "prediction"] = frames, scores
        self.curve.value = curve(lines, xlabel="frame", ylabel="PSNR [dB]", x=(0, frames[-1]), cursor=t,
                                 y=range_of(scores, free))
        so_far = scores[:t - seen + 1]
        self.words.value = f"frame {t}: " + ("context" if t < seen else
                                             f"predicted, {so_far[-1]:.1f} dB; average so far {so_far.mean():.2f} dB")


# ---- the latent space ----

class Latent:
    """One number of z turned by hand, and what many draws of z have in common.

    The number has the same value at every step, all others are the prior's mean. What a number does is measured
    first, by how far the frames at -2 and +2 are apart, and the list begins with the one that does most.
    """

    DRAWS = 64

    def __init__(self, book: Workbook, index: int) -> None:
        self.futures, self.index = Futures(book), index
        config = self.futures.config
        self.of = functools.lru_cache(256)(self._of)
        self.effects = self._effects()
        self.which = ipywidgets.Dropdown(description="number", layout={"width": "24em"}, options=[
            (f"z[{i}]: {self.effects[i]:.2f} grey levels", int(i)) for i in np.argsort(-self.effects, kind="stable")],
            style={"description_width": "7em"})
        self.turn = slider(-4, 4, 2, "value", 0.5)
        self.count = slider(2, self.DRAWS, 16, "samples")
        self.player = Player(config.length - config.n_past)
        self.stage, self.words = Stage(("z = mean", "z turned", "|difference|")), ipywidgets.HTML()
        self.spread = Stage(("mean of samples", "standard deviation"))
        watch([self.which, self.turn, self.count, self.player.slider], self.draw)
        self.widget = stack(self.which, self.turn, self.stage, self.count, self.spread, self.player.row, self.words)
        self.draw()

    def _predict(self, noise: torch.Tensor) -> np.ndarray:
        """Futures (B, T', H, W, C) uint8 of the sequence under noise (T-1, B, noise_size)."""
        frames, condition = self.futures.window(self.index)
        B = noise.shape[1]
        future = predict(self.futures.model, frames.expand(-1, B, -1, -1, -1), condition.expand(-1, B, -1), noise)
        return np.stack([as_pictures(video) for video in future.unbind(1)])

    def _turned(self, turns: Sequence[tuple[int, float]]) -> np.ndarray:
        noise = torch.zeros(self.futures.steps, len(turns), self.futures.model.noise_size)
        for column, (which, value) in enumerate(turns):
            noise[:, column, which] = value
        return self._predict(noise)

    def _effects(self) -> np.ndarray:
        """Mean absolute difference (z_dim,) in grey levels between each number at -2 and at +2."""
        z_dim = self.futures.config.z_dim
        videos = self._turned([(i, value) for value in (-2.0, 2.0) for i in range(z_dim)]).astype(np.int16)
        return np.abs(videos[:z_dim] - videos[z_dim:]).mean(axis=(1, 2, 3, 4))

    def _of(self, which: int, value: float) -> np.ndarray:
        return self._turned([(which, value)])[0]

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """Futures (DRAWS, T', H, W, C) of as many draws of z."""
        noises = [self.futures.noise(self.index, sample) for sample in range(self.DRAWS)]
        return self._predict(torch.cat(noises, dim=1))

    def draw(self) -> None:
        """Show the frame at the slider with z as it is turned, and the spread of the samples."""
        t = self.player.slider.value
        mean, turned = self.of(0, 0.0)[t], self.of(self.which.value, self.turn.value)[t]
        difference = np.abs(turned.astype(float) - mean)
        some = self.samples[:self.count.value, t].astype(float)
        deviation = some.std(axis=0)
        gains = [max(1, int(200 / max(picture.max(), 1))) for picture in (difference, deviation)]
        self.stage.show({"z = mean": mean, "z turned": turned,
                         "|difference|": (gains[0] * difference).clip(0, 255).astype(np.uint8)})
        self.spread.show({"mean of samples": some.mean(axis=0).round().astype(np.uint8),
                          "standard deviation": (gains[1] * deviation).clip(0, 255).astype(np.uint8)})
        self.words.value = (
            f"frame {t + self.futures.config.n_past}: z[{self.which.value}] = {self.turn.value:g} changes it by "
            f"{difference.mean():.2f} grey levels on average, {difference.max():.0f} at most (shown × {gains[0]}); "
            f"{len(some)} samples deviate by {deviation.mean():.2f}, {deviation.max():.1f} at most (× {gains[1]})")


# ---- schedules ----

class Schedules:
    """The KL weight and the teacher-forcing ratio over a run, under settings that can be moved."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kind = ipywidgets.Dropdown(options=("monotonic", "cyclical", "constant", "zero"),
                                        value=config.kl_schedule, description="KL weight",
                                        style={"description_width": "7em"}, layout={"width": "24em"})
        self.cycles = slider(1, 8, config.kl_cycles, "cycles")
        self.shares = {name: slider(0, 1, getattr(config, name), words, 0.05) for name, words in (
            ("kl_ramp", "ramp"), ("tf_start", "ratio at start"), ("tf_hold", "held until"),
            ("tf_end", "falls until"), ("tf_min", "lower bound"))}
        self.curve, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        watch([self.kind, self.cycles, *self.shares.values()], self.draw)
        kl, forcing = [self.kind, self.cycles, self.shares["kl_ramp"]], list(self.shares.values())[1:]
        self.widget = stack(ipywidgets.HBox([ipywidgets.VBox(kl), ipywidgets.VBox(forcing)],
                                            layout=ipywidgets.Layout(flex_flow="row wrap")), self.curve, self.words)
        self.draw()

    def draw(self) -> None:
        """Draw both curves, and say what to put into a command to train so."""
        chosen = {"kl_schedule": self.kind.value, "kl_cycles": self.cycles.value,
                  **{name: control.value for name, control in self.shares.items()}}
        config, progress = self.config.replace(**chosen), np.linspace(0, 1, 401)
        lines = {"KL weight": schedules.kl_weight, "teacher-forcing ratio": schedules.teacher_forcing_ratio}
        self.cycles.disabled = self.kind.value != "cyclical"
        self.curve.value = curve({name: (progress, schedule(config, progress)) for name, schedule in lines.items()},
                                 xlabel="share of the run", ylabel="", x=(0, 1), y=(0, 1))
        changed = [f"--set {name}={value:g}" if isinstance(value, float) else f"--set {name}={value}"
                   for name, value in chosen.items() if value != getattr(self.config, name)]
        self.words.value = (f"<code>lab5 train --preset {self.config.preset} {' '.join(changed)}</code>" if changed
                            else f"as preset {self.config.preset} has it")
