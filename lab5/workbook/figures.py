"""Plots of numbers: pure functions from arrays and records to a matplotlib `Figure`; the style of all; their files.

No function shows or keeps a figure; `save` writes one as PDF and PNG. Frame numbers count from 0.
"""

import functools
import io
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.special import comb

from lab5.files import write_atomically
from lab5.metrics import GRADES

STYLE = Path(__file__).with_name("lab5.mplstyle")
WIDTH = 6.3                                     # inches: the text column of an A4 or letter page
INK, GREY, FAINT = "#22262b", "#6f757d", "#c9cdd2"
NAVY, VERMILION, TEAL, AMBER, MAUVE = "#17456e", "#c2460f", "#35998a", "#c28c17", "#75417f"
CYCLE = (NAVY, VERMILION, TEAL, AMBER, MAUVE, GREY)
MARKERS = "os^Dv"


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the workbook's style, whatever the notebook has set, and keep the layout as it is, for equal bytes."""
    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.style.context(STYLE, after_reset=True):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure
    return wrapper


def canvas(height: float) -> Figure:
    """An empty figure, as wide as a column of text; the height is in inches."""
    return Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")      # as saved: widths of texts vary


@styled
def training_curves(history: list[dict], *, baseline: float | None = None) -> Figure:
    """The graded plot: losses on the left axis (logarithmic), KL weight and teacher forcing dashed on the right
    one, and above them, over the same epochs, the validation PSNR as dots.

    `history`: one record per epoch, as `lab5.training` returns them; `baseline`: PSNR of repeating the last context
    frame in dB.
    """
    epochs, psnr, mse, kl, kl_weight, forced = (
        np.array([record[key] for record in history], dtype=float)              # NaN where it was not scored
        for key in ("epoch", "psnr", "mse", "kl", "kl_weight", "teacher_forcing"))
    marker = "o" if len(history) < 3 else ""                    # a line of one or two points is hard to see
    figure = canvas(3.7)
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.1))
    ratios = losses.twinx()

    scores.plot(epochs, psnr, "o", color=INK, label="validation PSNR")
    if baseline is not None:
        scores.axhline(baseline, color=GREY, lw=0.8, label=f"repeating the last frame, {baseline:.1f} dB")
    losses.plot(epochs, mse, color=NAVY, marker=marker, label="MSE")
    losses.plot(epochs, np.where(kl > 0, kl, np.nan), color=VERMILION, marker=marker,
                label="KL [nats per frame]" if (kl > 0).any() else "KL: 0 nats")
    ratios.plot(epochs, kl_weight, ls=(0, (4, 2)), color=MAUVE, marker=marker, label="KL weight")
    ratios.plot(epochs, forced, ls=(0, (1.2, 1.4)), color=TEAL, marker=marker,
                label="teacher-forcing ratio")
    for axes, side in ((scores, 0), (losses, 0), (ratios, 1)):
        axes.legend(loc=("lower left", "lower right")[side], bbox_to_anchor=(side, 1), ncols=2, labelcolor="linecolor")

    best = f"best {np.nanmax(psnr):.2f} dB, epoch {epochs[np.nanargmax(psnr)]:.0f}" if np.isfinite(psnr).any() else (
        "not scored yet")
    scores.set_title(best, loc="right", weight="normal", size=8.8, pad=3)
    scores.set_ylabel("PSNR [dB]")
    scores.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    losses.set(yscale="log", xlabel="epoch", ylabel="loss (logarithmic)")
    ratios.set(ylim=(-0.04, 1.04), yticks=np.linspace(0, 1, 5), ylabel="weight, ratio (dashed)")
    ratios.spines.right.set_visible(True)
    ratios.grid(False)
    epoch_axis(losses, epochs)
    return figure


def epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    """Whole epochs on the x axis, with room for a single one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    pad = max(0.02 * (epochs[-1] - epochs[0]), 0.3)
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)


def _interval(values: np.ndarray) -> np.ndarray:
    """Half-width of the 95% interval of the mean over the first axis; 0 for a single value."""
    return 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])


@styled
def psnr_over_time(curves: dict[str, np.ndarray], *, n_past: int) -> Figure:
    """Mean PSNR of every predicted frame with the 95% band of the mean over sequences.

    `curves`: name -> (N, n_future) in dB; `n_past`: number of the first predicted frame.
    """
    figure = canvas(2.6)
    axes = figure.subplots()
    for (name, values), colour, marker in zip(curves.items(), cycle(CYCLE), cycle(MARKERS), strict=False):
        frames, mean, half = n_past + np.arange(values.shape[1]), values.mean(axis=0), _interval(values)
        axes.fill_between(frames, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
        axes.plot(frames, mean, marker=marker, color=colour, label=name, ms=2.8)
    axes.set(xlabel="frame", ylabel="PSNR [dB]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    by_height = sorted(axes.lines, key=lambda line: -line.get_ydata()[-1])      # the legend's order is the curves'
    figure.legend(handles=by_height, loc="outside right center", labelcolor="linecolor")
    return figure


@styled
def psnr_distribution(values: dict[str, np.ndarray]) -> Figure:
    """Every sequence as a dot, sorted, one row per protocol; the mean with its 95% interval; the grade's thresholds.

    `values`: name -> (N,) average PSNR of each sequence in dB.
    """
    figure = canvas(0.46 * len(values) + 0.6)
    axes = figure.subplots()
    for row, (scores, colour) in enumerate(zip(values.values(), cycle(CYCLE), strict=False)):
        mean, half = scores.mean(), _interval(scores)
        axes.plot(np.sort(scores), row + np.linspace(0.36, -0.36, len(scores)), "o", ms=2.2, mew=0, color=colour)
        axes.errorbar(mean, row, xerr=half, fmt="D", ms=4.5, mfc="white", color=INK, capsize=2.5, zorder=4)
        axes.text(1.02, row, f"{mean:.2f} ± {half:.2f} dB", transform=axes.get_yaxis_transform(), va="center")
    for threshold, _ in GRADES:
        axes.axvline(threshold, color=FAINT, lw=0.7, zorder=0)
    axes.set_yticks(range(len(values)), list(values))
    axes.set(ylim=(len(values) - 0.5, -0.5), xlabel="PSNR of a sequence [dB]")
    axes.grid(False)
    return figure


@styled
def schedules(curves: dict[str, np.ndarray], *, ylabel: str = "weight") -> Figure:
    """Schedules side by side. `curves`: name -> (K,) values at K points from the run's start to its end."""
    figure = canvas(1.65)
    grid = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)
    for axes, (name, values), colour in zip(grid.flat, curves.items(), cycle(CYCLE), strict=False):
        axes.plot(np.linspace(0, 1, len(values)), values, color=colour)
        axes.set(title=name, xlim=(-0.02, 1.02), xticks=(0, 0.5, 1))
    figure.supxlabel("progress of the run", size=8.8)
    figure.supylabel(ylabel, size=8.8)
    return figure


@styled
def comparison(panels: dict[str, tuple[dict[str, dict[str, np.ndarray]], dict[str, tuple[float, float]]]],
               lines: dict[str, float]) -> Figure:
    """Every option's value under each seed as a circle, and the mean as a bar, under the heading of its choice.

    `panels`: quantity -> (choices, bands), side by side. Choices: choice -> option -> (seeds,), the first option being
    the reference; bands: choice -> (low, high), between which means do not differ significantly from the reference's.
    `lines`: label -> value, such as a baseline.
    """
    choices = next(iter(panels.values()))[0]
    rows = [(choice, option) for choice, options in choices.items() for option in ("", *options)]
    figure = canvas(0.19 * len(rows) + 0.7)
    for axes, (quantity, (values, bands)) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False).flat,
                                                 panels.items(), strict=True):
        for y, (choice, option) in enumerate(rows):
            colour = CYCLE[list(choices).index(choice) % len(CYCLE)]
            if option:
                seeds = values[choice][option]                  # one below the other, since some are equal
                axes.plot(seeds, y + np.linspace(-0.2, 0.2, len(seeds)), "o", color=colour, mfc="white", ms=3.4)
                axes.plot(seeds.mean(), y, "|", color=colour, ms=11, mew=2)
            else:
                below = y + len(choices[choice]) + 0.5
                axes.fill_between(bands[choice], y + 0.5, below, color=colour, alpha=0.12, lw=0)
        for (label, value), style in zip(lines.items(), cycle(["--", ":"]), strict=False):
            axes.axvline(value, color=GREY, lw=0.8, ls=style, zorder=0)
            axes.annotate(f"{label}, {value:.1f}", (value, 1), (0, 3), ("data", "axes fraction"), "offset points",
                          ha="center", color=GREY, size=8.2)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=quantity)
        axes.tick_params(axis="y", length=0)
        axes.spines.left.set_visible(False)
        axes.grid(False, axis="y")
    names = figure.axes[0].set_yticks(range(len(rows)), [option or choice for choice, option in rows], size=8.8)
    for tick, (_, option) in zip(names, rows, strict=True):
        tick.label1.set(weight="normal" if option else "bold", color=INK)
    return figure


@styled
def rate_distortion(points: dict[str, dict[str, dict[str, np.ndarray]]]) -> Figure:
    """What the latents cost and what they buy: nats per frame against PSNR, of the posterior and of a prior sample.

    `points`: task -> option -> "kl", "posterior" and "prior_sample", each (seeds,); a line joins the scores of a seed.
    """
    figure = canvas(3.9)
    for axes, (task, options) in zip(figure.subplots(1, len(points), sharey=True, squeeze=False).flat, points.items(),
                                     strict=True):
        for (name, values), colour, marker in zip(options.items(), CYCLE, "os^DvP", strict=False):
            scores = [values["prior_sample"], values["posterior"]]
            axes.plot([values["kl"]] * 2, scores, color=colour, lw=0.7, alpha=0.6)
            axes.plot(values["kl"], scores[1], marker, color=colour, label=name)
            axes.plot(values["kl"], scores[0], marker, color=colour, mfc="white")
        axes.set(xscale="symlog", xlim=(-0.1, None), xlabel="rate: KL [nats per frame]")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(title=task, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8.2)
    figure.axes[0].set_ylabel("PSNR [dB]: posterior full, sample hollow")
    return figure


def _lines(panels: dict[str, dict[str, np.ndarray]], height: float, markers: Iterable[str] = MARKERS,
           markevery: list[int] | None = None, **settings: object) -> Figure:
    """Panels side by side: quantity -> name -> values (K,) at 1, 2, ..., K. `settings`: of all axes."""
    figure = canvas(height)
    for axes, (quantity, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(),
                                        strict=True):
        for (name, values), colour, marker in zip(curves.items(), CYCLE, markers, strict=False):
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, label=name, marker=marker,
                      markevery=markevery)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylabel=quantity, **settings)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend()
    return figure


@styled
def best_of(samples: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Score of the best of N of M samples, the mean over sequences and all choices of N of the M.

    `samples`: measure -> model -> (sequences, M). The k-th lowest is the best in C(k-1, N-1) of the C(M, N) choices.
    """
    def best(scores: np.ndarray) -> np.ndarray:
        N, k = np.ogrid[1:scores.shape[1] + 1, 1:scores.shape[1] + 1]
        return comb(k - 1, N - 1) / comb(k.size, N) @ np.sort(scores, axis=1).mean(axis=0)

    curves = {measure: {name: best(scores) for name, scores in models.items()} for measure, models in samples.items()}
    return _lines(curves, 2.1, markevery=[0, -1], xscale="log", xlabel="N, samples of each sequence")


@styled
def over_steps(quantities: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Means over sequences at every step: quantity -> model -> (sequences, T-1)."""
    means = {quantity: {name: values.mean(axis=0) for name, values in models.items()}
             for quantity, models in quantities.items()}
    return _lines(means, 2.0, xlabel="frame t", ylim=(0, None))


@styled
def spectrum(spectra: dict[str, np.ndarray], thresholds: dict[str, float]) -> Figure:
    """Variances along principal directions, largest first, on logarithmic axes; thresholds as horizontal lines."""
    figure = _lines({"variance": spectra}, 2.5, cycle([""]), xscale="log", yscale="log", xlabel="principal direction",
                    ylim=(min(thresholds.values()) / 30, None))
    for (name, value), style in zip(thresholds.items(), cycle(["--", "-.", ":"]), strict=False):
        figure.axes[0].axhline(value, color=GREY, lw=0.8, ls=style, label=f"{name}: {value:.2g}")
    figure.axes[0].get_legend().remove()
    figure.legend(loc="outside right center")
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write ``folder/name.pdf`` and ``folder/name.png`` (200 dpi); the same figure gives the same bytes."""
    for kind in ("pdf", "png"):
        write_atomically(folder / f"{name}.{kind}", lambda part, kind=kind: part.write_bytes(render(figure, kind)))


def render(figure: Figure, kind: Literal["pdf", "png"]) -> bytes:
    """A figure as the bytes of a PDF or PNG file, without dates or versions in them; a PNG has `few_colours`."""
    file, content = io.BytesIO(), io.BytesIO()
    with matplotlib.style.context(STYLE, after_reset=True):
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})
    if kind == "pdf":
        return file.getvalue()
    few_colours(Image.open(file).convert("RGB")).save(content, "png", dpi=(figure.dpi, figure.dpi))
    return content.getvalue()


def few_colours(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, the rarest among them: the same to the eye, in a third of the file."""
    return picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
