"""Widgets for JupyterLab: step through a prediction, turn one number of the latent, change a schedule.

Each widget stands under a still figure, which is what papermill, the PDF and a code-hosting page show. Frames are
PNGs of 64x64 that the browser enlarges, and curves are SVGs in the colours of the theme, so that the kernel answers
a slider in a few milliseconds.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence

import imageio.v3 as iio
import ipywidgets
import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab5 import schedules
from lab5.config import Config
from lab5.data import Windows, to_video
from lab5.evaluation import autocast, choose_precision, predict, prior_noise
from lab5.metrics import psnr
from lab5.workbook import figures
from lab5.workbook.run import Run

NO_FRONT_END = "(Here JupyterLab shows controls to play with.)"
MODES = {"prior sample": "sample", "prior mean": "mean", "posterior": "posterior"}
STYLE = """<style>
.lab5 { --lab5-0: #17456e; --lab5-1: #c2460f; --lab5-2: #35998a; max-width: 60em; }
[data-jp-theme-light="false"] .lab5 { --lab5-0: #7db4e8; --lab5-1: #f0854f; --lab5-2: #5cc4b3; }
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


def show(widget: ipywidgets.Widget, still: Figure, alt: str) -> None:
    """Show a still figure, which every export keeps, and under it the widget, or a line of text without a front end."""
    display(Image(data=figures.render(still, "png"), width=round(96 * still.get_figwidth() * 1.15), alt=alt))
    display({**widget._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)


# Parts ---------------------------------------------------------------------------------------------------

def stack(*children: ipywidgets.Widget) -> ipywidgets.VBox:
    """Widgets one above the other, in the workbook's look."""
    box = ipywidgets.VBox([ipywidgets.HTML(STYLE), *children])
    box.add_class("lab5")
    return box


class Stage(ipywidgets.HBox):
    """Frames side by side, each under its name; a border tells context from predicted frames."""

    def __init__(self, names: Sequence[str], small: bool = False) -> None:
        self.images = {name: ipywidgets.Image(format="png").add_class("lab5-frame") for name in names}
        super().__init__([ipywidgets.VBox([ipywidgets.HTML(html.escape(name)), image]).add_class("lab5-panel")
                          for name, image in self.images.items()], layout={"flex_flow": "row wrap"})
        self.add_class("lab5-small" if small else "lab5-large")

    def show(self, frames: dict[str, np.ndarray], predicted: bool = True) -> None:
        """Show a frame (H, W, C) uint8 in each panel that is named."""
        for name, frame in frames.items():
            image = self.images[name]
            image.value = iio.imwrite("<bytes>", np.broadcast_to(frame, (*frame.shape[:2], 3)), extension=".png")
            (image.add_class if predicted else image.remove_class)("predicted")


def curve(lines: dict[str, np.ndarray], x: np.ndarray, y: tuple[float, float], xlabel: str, ylabel: str = "",
          cursor: float | None = None) -> str:
    """Lines over the values `x` as an SVG that takes the theme's colours; beyond the cursor they are faint.

    `lines`: name -> values, like `x`, NaN where there are none; `y`: the ends of the axis. Six parameters, as it is
    one picture with two labelled axes.
    """
    right, left, bottom, top = 632, 46, 132, 24

    def place(a: np.ndarray | float, b: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        return np.interp(a, (x[0], x[-1]), (left, right)), np.interp(b, y, (bottom, top))

    parts = [_text(left, 12, ylabel, "start"), _text(right, 164, xlabel, "end")]
    for tick in _ticks(*y, count=4):
        level = place(0, tick)[1]
        parts += [f'<line class="grid" x1="{left}" x2="{right}" y1="{level}" y2="{level}"/>',
                  _text(left - 6, level + 4, f"{tick:g}", "end")]
    parts += [_text(place(tick, 0)[0], bottom + 16, f"{tick:g}", "middle") for tick in _ticks(x[0], x[-1], count=11)]
    for number, (name, values) in enumerate(lines.items()):
        known, past = np.isfinite(values), x <= (x[-1] if cursor is None else cursor)
        for opacity, kept in ((0.25, known), (1, known & past)):
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*place(x[kept], values[kept]), strict=True))
            parts.append(f'<polyline points="{points}" style="stroke: var(--lab5-{number}); opacity: {opacity}"/>')
        parts.append(_text(right - 150 * (len(lines) - 1 - number), 12, name, "end", f"fill: var(--lab5-{number})"))
    if cursor is not None:
        at = place(cursor, 0)[0]
        parts.append(f'<line class="cursor" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
    return f'<svg viewBox="0 0 640 170" role="img">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{html.escape(text)}</text>'


def _ticks(low: float, high: float, count: int) -> list[float]:
    return [tick for tick in MaxNLocator(count).tick_values(low, high) if low <= tick <= high]


def range_of(*values: np.ndarray) -> tuple[float, float]:
    """Ends of an axis that holds all values, which are finite, at least 1 apart."""
    low, high = np.concatenate(values).min(), np.concatenate(values).max()
    margin = max(1 - (high - low), 0.1 * (high - low)) / 2
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


class Player:
    """A play button and a slider over the frames of a window; the arrow keys move it too."""

    def __init__(self, length: int) -> None:
        self.slider = slider(0, length - 1, 0, "frame")
        self.play = ipywidgets.Play(min=0, max=length - 1, interval=250, repeat=True)
        ipywidgets.jslink((self.play, "value"), (self.slider, "value"))
        self.row = ipywidgets.HBox([self.play, self.slider])


# A prediction --------------------------------------------------------------------------------------------

class Futures:
    """Predicted futures of single sequences of the test split, each computed once."""

    def __init__(self, lab: Run) -> None:
        self.model, self.pack = lab.model(), lab.pack("test")
        self.config = self.model.config
        self.steps = self.config.length - 1
        self.of = functools.lru_cache(256)(self._of)

    def window(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames (T, 1, C, H, W) uint8 and conditions (T, 1, D) of one sequence."""
        batch = Windows(self.pack, self.config.length)[index]
        return batch.frames, batch.condition

    def noise(self, index: int, sample: int) -> torch.Tensor:
        """The noise (T-1, 1, noise_size) of one sample of one sequence; sample 0 is the one that is graded."""
        return prior_noise(len(self.pack), self.steps, self.model.noise_size, seed=1, sample=sample)[:, [index]]

    def _of(self, index: int, mode: str, sample: int, forced: bool) -> tuple[np.ndarray, np.ndarray]:
        """The video (T, H, W, C) uint8, context included, and the PSNR (T - n_past,) of its predicted frames in dB.

        `mode`: "sample" or "mean" of the prior, or "posterior", which knows each frame before it is predicted;
        `forced`: whether each step is given the true previous frame.
        """
        frames, condition = self.window(index)
        n_past, device = self.config.n_past, self.model.condition_mean.device
        noise = self.noise(index, sample) * float(mode != "mean")
        if mode != "posterior" and not forced:
            future = predict(self.model, frames, condition, noise)
        else:
            video, condition, noise = to_video(frames.to(device)), condition.to(device), noise.to(device)
            with torch.inference_mode(), autocast(choose_precision("auto", device), device):
                if mode == "posterior":
                    terms = self.model.elbo_terms(video, condition, noise, [forced] * self.steps)
                    future = terms.predictions[n_past - 1:]
                else:
                    future = self.model.predict_one_step(video, condition, noise)
        future = future.float().cpu()
        scores = psnr(future, to_video(frames[n_past:]))[:, 0].numpy()
        return np.concatenate([as_pictures(frames[:n_past, 0]), as_pictures(future[:, 0])]), scores


def as_pictures(frames: torch.Tensor) -> np.ndarray:
    """Frames (T, C, H, W), uint8 or in [0, 1], as uint8 pictures (T, H, W, C)."""
    if frames.is_floating_point():
        frames = (frames * 255).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 1).cpu().numpy()


class Videos:
    """Videos side by side to be played: uint8 (T, H, W, C), the first `n_past` frames context."""

    def __init__(self, videos: dict[str, np.ndarray], n_past: int) -> None:
        self.videos, self.n_past = videos, n_past
        self.player, self.stage = Player(len(next(iter(videos.values())))), Stage(tuple(videos))
        watch([self.player.slider], self.draw)
        self.widget = stack(self.stage, self.player.row)
        self.draw()

    def draw(self) -> None:
        """Show the frames at the slider."""
        t = self.player.slider.value
        self.stage.show({name: video[t] for name, video in self.videos.items()}, t >= self.n_past)


class StepThrough:
    """A prediction frame by frame: truth, prediction and difference, and the PSNR so far as a curve.

    `scores`: (N,) graded PSNR of the test sequences in dB, by which worst, median and best are found; `index`: the
    sequence that is shown first.
    """

    def __init__(self, lab: Run, scores: np.ndarray, index: int) -> None:
        self.futures, order = Futures(lab), np.argsort(scores, kind="stable")
        self.number = ipywidgets.BoundedIntText(index, 0, len(scores) - 1, description="sequence",
                                                layout={"width": "12em"})
        self.named = {"worst": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "best": int(order[-1])}
        self.mode = ipywidgets.Dropdown(options=MODES, description="z from", layout={"width": "16em"})
        self.sample = ipywidgets.BoundedIntText(0, 0, 99, description="sample", layout={"width": "11em"})
        self.forced, self.player = checkbox("teacher forcing"), Player(self.futures.config.length)
        self.stage = Stage(("truth", "prediction", "|difference|"))
        self.curve, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        watch([self.number, self.mode, self.sample, self.forced, self.player.slider], self.draw)
        self.widget = stack(ipywidgets.HBox([self.number, *map(self._button, self.named)]),
                            ipywidgets.HBox([self.mode, self.sample, self.forced]),
                            self.stage, self.player.row, self.words, self.curve)
        self.draw()

    def _button(self, name: str) -> ipywidgets.Button:
        button = ipywidgets.Button(description=name, layout={"width": "6.5em"})
        button.on_click(lambda _: setattr(self.number, "value", self.named[name]))
        return button

    def draw(self) -> None:
        """Show the frame at the slider, of the future that the controls ask for."""
        t, n_past, forced = self.player.slider.value, self.futures.config.n_past, self.forced.value
        wanted = self.number.value, self.mode.value, self.sample.value
        (video, scores), (_, free) = (self.futures.of(*wanted, forcing) for forcing in (forced, False))
        truth = as_pictures(self.futures.window(self.number.value)[0][:, 0])
        difference = np.abs(truth[t].astype(np.int16) - video[t]).astype(np.uint8)
        self.stage.show({"truth": truth[t], "prediction": video[t], "|difference|": difference}, t >= n_past)
        lines = {"without teacher forcing": free, "with teacher forcing": scores} if forced else {"prediction": scores}
        context = np.full(n_past, np.nan)
        self.curve.value = curve({name: np.concatenate([context, values]) for name, values in lines.items()},
                                 np.arange(len(video)), range_of(scores, free), "frame", "PSNR [dB]", cursor=t)
        so_far = scores[:max(t - n_past + 1, 0)]
        self.words.value = f"frame {t}: " + (f"predicted, {so_far[-1]:.1f} dB; average so far {so_far.mean():.2f} dB"
                                             if len(so_far) else "context")


# The latent space ----------------------------------------------------------------------------------------

class Latent:
    """One number of z set with a slider, and what many draws of z have in common.

    The number has the same value at every step, all others are the prior's mean. What a number does is measured
    first, by how far the frames at -2 and +2 are apart, and the list begins with the one that does most.
    """

    DRAWS = 64

    def __init__(self, lab: Run, index: int) -> None:
        self.futures, self.index = Futures(lab), index
        config = self.futures.config
        self.of = functools.lru_cache(256)(self._of)
        self.effects = self._effects()
        self.which = ipywidgets.Dropdown(description="number", layout={"width": "24em"}, options=[
            (f"z[{i}]: {self.effects[i]:.2f} grey levels", int(i)) for i in np.argsort(-self.effects, kind="stable")],
            style={"description_width": "7em"})
        self.turn, self.count = slider(-4, 4, 2, "value", 0.5), slider(2, self.DRAWS, 16, "samples")
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
        return self._predict(torch.cat([self.futures.noise(self.index, sample) for sample in range(self.DRAWS)], dim=1))

    def draw(self) -> None:
        """Show the frame at the slider with z as it is turned, and the spread of the samples."""
        t = self.player.slider.value
        mean, turned = self.of(0, 0.0)[t], self.of(self.which.value, self.turn.value)[t]
        difference, some = np.abs(turned.astype(float) - mean), self.samples[:self.count.value, t].astype(float)
        deviation = some.std(axis=0)
        gains = [max(1, int(200 / max(picture.max(), 1))) for picture in (difference, deviation)]
        brighter = [(gain * picture).clip(0, 255).astype(np.uint8)
                    for gain, picture in zip(gains, (difference, deviation), strict=True)]
        self.stage.show({"z = mean": mean, "z turned": turned, "|difference|": brighter[0]})
        self.spread.show({"mean of samples": some.mean(axis=0).round().astype(np.uint8),
                          "standard deviation": brighter[1]})
        self.words.value = (
            f"frame {t + self.futures.config.n_past}: z[{self.which.value}] = {self.turn.value:g} changes it by "
            f"{difference.mean():.2f} grey levels on average, {difference.max():.0f} at most (shown × {gains[0]}); "
            f"{len(some)} samples deviate by {deviation.mean():.2f}, {deviation.max():.1f} at most (× {gains[1]})")


# Schedules -----------------------------------------------------------------------------------------------

class Schedules:
    """The KL weight and the teacher-forcing ratio over a run, under settings that can be moved."""

    def __init__(self, config: Config) -> None:
        self.config = config
        wide = {"style": {"description_width": "7em"}, "layout": {"width": "24em"}}
        self.kind = ipywidgets.Dropdown(options=("monotonic", "cyclical", "constant", "zero"),
                                        value=config.kl_schedule, description="KL weight", **wide)
        self.cycles = slider(1, 8, config.kl_cycles, "cycles")
        self.shares = {name: slider(0, 1, getattr(config, name), words, 0.05) for name, words in (
            ("kl_ramp", "ramp"), ("tf_start", "ratio at start"), ("tf_hold", "held until"),
            ("tf_end", "falls until"), ("tf_min", "lower bound"))}
        self.curve, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        watch([self.kind, self.cycles, *self.shares.values()], self.draw)
        ramp, *forcing = self.shares.values()
        self.widget = stack(ipywidgets.HBox([ipywidgets.VBox([self.kind, self.cycles, ramp]), ipywidgets.VBox(forcing)],
                                            layout={"flex_flow": "row wrap"}), self.curve, self.words)
        self.draw()

    def draw(self) -> None:
        """Draw both curves, and the command that trains so."""
        chosen = {"kl_schedule": self.kind.value, "kl_cycles": self.cycles.value,
                  **{name: control.value for name, control in self.shares.items()}}
        config, progress = self.config.replace(**chosen), np.linspace(0, 1, 401)
        self.cycles.disabled = self.kind.value != "cyclical"
        self.curve.value = curve({"KL weight": schedules.kl_weight(config, progress),
                                  "teacher-forcing ratio": schedules.teacher_forcing_ratio(config, progress)},
                                 progress, (0, 1), "share of the run")
        changed = [f"--set {name}={value if name == 'kl_schedule' else format(value, 'g')}"
                   for name, value in chosen.items() if value != getattr(self.config, name)]
        self.words.value = f"<code>lab5 train {' '.join(['--preset', self.config.preset, *changed])}</code>"
