"""Every data figure: pure functions from arrays and records to a matplotlib `Figure`, and the GIF.

Videos are uint8 (T, H, W, C) with C 1 or 3; the first `n_past` frames are context and frame numbers count from 0.
No function shows or keeps a figure; `save` writes one as PDF and PNG.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.utils import make_grid

from lab5.files import write_atomically
from lab5.metrics import GRADES

STYLE = Path(__file__).with_name("lab5.mplstyle")
WIDTH = 6.3                                     # inches: the text column of an A4 or letter page
INK, GREY, FAINT = "#22262b", "#6f757d", "#c9cdd2"
NAVY, VERMILION, TEAL, AMBER, MAUVE = "#17456e", "#c2460f", "#35998a", "#c28c17", "#75417f"
CYCLE = (NAVY, VERMILION, TEAL, AMBER, MAUVE, GREY)
CONTEXT, PREDICTED = TEAL, VERMILION            # the two kinds of frame, in every figure
BORDER, GAP = 2, 2                              # pixels around a frame and between frames
MOST = 16                                       # numbers over or under a strip
HEAT = matplotlib.colormaps["magma_r"]          # of differences; 0 is the lightest


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


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")      # as saved: widths of texts vary


# Curves --------------------------------------------------------------------------------------------------

@styled
def training_curves(history: list[dict], *, baseline: float | None = None) -> Figure:
    """The graded plot: losses on the left axis (logarithmic), KL weight and teacher forcing dashed on the right
    one, and above them, over the same epochs, the validation PSNR as dots.

    `history`: one record per epoch, as `lab5.training` returns them; `baseline`: PSNR of repeating the last context
    frame in dB.
    """
    epochs, psnr, kl = (_column(history, key) for key in ("epoch", "psnr", "kl"))
    marker = "o" if len(history) < 3 else ""                    # a line of one or two points is hard to see
    figure = _figure(3.7)
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.1))
    ratios = losses.twinx()

    scores.plot(epochs, psnr, "o", color=INK, label="validation PSNR")
    if baseline is not None:
        scores.axhline(baseline, color=GREY, lw=0.8, label=f"repeating the last frame, {baseline:.1f} dB")
    losses.plot(epochs, _column(history, "mse"), color=NAVY, marker=marker, label="MSE")
    losses.plot(epochs, np.where(kl > 0, kl, np.nan), color=VERMILION, marker=marker,
                label="KL [nats per frame]" if (kl > 0).any() else "KL: 0 nats")
    ratios.plot(epochs, _column(history, "kl_weight"), ls=(0, (4, 2)), color=MAUVE, marker=marker, label="KL weight")
    ratios.plot(epochs, _column(history, "teacher_forcing"), ls=(0, (1.2, 1.4)), color=TEAL, marker=marker,
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


def _column(history: list[dict], key: str) -> np.ndarray:
    """One value of every record, NaN where it is missing: (epochs,)."""
    return np.array([np.nan if record.get(key) is None else record[key] for record in history], dtype=float)


def _interval(values: np.ndarray) -> np.ndarray:
    """Half-width of the 95% interval of the mean over the first axis; 0 for a single value."""
    return 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])


@styled
def psnr_over_time(curves: dict[str, np.ndarray], *, n_past: int) -> Figure:
    """Mean PSNR of every predicted frame with the 95% band of the mean over sequences.

    `curves`: name -> (N, n_future) in dB; `n_past`: number of the first predicted frame.
    """
    figure = _figure(2.6)
    axes = figure.subplots()
    for (name, values), colour, marker in zip(curves.items(), cycle(CYCLE), cycle("os^Dv"), strict=False):
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
    figure = _figure(0.46 * len(values) + 0.6)
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
    figure = _figure(1.65)
    grid = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)
    for axes, (name, values), colour in zip(grid.flat, curves.items(), cycle(CYCLE), strict=False):
        axes.plot(np.linspace(0, 1, len(values)), values, color=colour)
        axes.set(title=name, xlim=(-0.02, 1.02), xticks=(0, 0.5, 1))
    figure.supxlabel("progress of the run", size=8.8)
    figure.supylabel(ylabel, size=8.8)
    return figure


@styled
def comparison(choices: dict[str, dict[str, np.ndarray]], bands: dict[str, tuple[float, float]] | None = None, *,
               xlabel: str, lines: dict[str, float] | None = None) -> Figure:
    """Every option's value under each seed as a dot, and the mean as a bar, under the heading of its choice.

    Args:
        choices: choice -> option -> (seeds,); the first option is the choice's reference.
        bands: choice -> the values (low, high) within which a mean is not told apart from the reference's.
        lines: label -> value, such as a baseline.
    """
    rows = [(choice, option, values) for choice, options in choices.items()
            for option, values in [("", None), *options.items()]]
    figure = _figure(0.19 * len(rows) + 0.7)
    axes = figure.subplots()
    for y, (choice, option, values) in enumerate(rows):
        colour = CYCLE[list(choices).index(choice) % len(CYCLE)]
        if values is None:
            low, high = (bands or {}).get(choice, (np.nan, np.nan))
            axes.fill_between([low, high], y + 0.5, y + len(choices[choice]) + 0.5, color=colour, alpha=0.12, lw=0)
            continue
        axes.plot(values, np.full(len(values), y), "o", color=colour, mfc="white", ms=4)
        axes.plot(values.mean(), y, "|", color=colour, ms=11, mew=2)
    for (label, value), style in zip((lines or {}).items(), cycle(["--", ":"]), strict=False):
        axes.axvline(value, color=GREY, lw=0.8, ls=style, zorder=0)
        axes.annotate(f"{label}, {value:.1f}", (value, 1), (0, 3), ("data", "axes fraction"), "offset points",
                      ha="center", color=GREY, size=8.2)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(len(rows)), [option or choice for choice, option, _ in rows], size=8.8)
    for label, (_, option, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(weight="normal" if option else "bold", color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.grid(False, axis="y")
    return figure


@styled
def best_of(samples: dict[str, dict[str, np.ndarray]], xlabel: str = "N, samples of each sequence") -> Figure:
    """Score of the best of the first N samples, the mean over sequences, one panel for each measure.

    `samples`: measure -> model -> (sequences, N).
    """
    figure = _figure(2.1)
    for axes, (measure, models) in zip(figure.subplots(1, len(samples), squeeze=False).flat, samples.items(),
                                       strict=True):
        for (name, scores), colour, marker in zip(models.items(), CYCLE, "os^Dv", strict=False):
            best = np.maximum.accumulate(scores, axis=1).mean(axis=0)
            axes.plot(np.arange(1, len(best) + 1), best, color=colour, label=name, marker=marker, markevery=[0, -1])
        axes.set(xscale="log", xlabel=xlabel, ylabel=measure)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend()
    return figure


@styled
def rate_distortion(points: dict[str, dict[str, np.ndarray]]) -> Figure:
    """What the latents cost and what they buy: nats per frame against PSNR, of the posterior and of a prior sample.

    `points`: option -> "kl", "posterior" and "prior_sample", each (seeds,); a line joins the two scores of a seed.
    """
    figure = _figure(3.0)
    axes = figure.subplots()
    for (name, values), colour, marker in zip(points.items(), cycle(CYCLE), cycle("os^DvP"), strict=False):
        axes.plot([values["kl"]] * 2, [values["prior_sample"], values["posterior"]], color=colour, lw=0.7, alpha=0.6)
        axes.plot(values["kl"], values["posterior"], marker, color=colour, label=name)
        axes.plot(values["kl"], values["prior_sample"], marker, color=colour, mfc="white")
    axes.set(xscale="symlog", xlabel="rate: KL [nats per frame]", ylabel="PSNR [dB]", xlim=(-0.05, None))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left", title="full: posterior, hollow: prior sample", fontsize=8.2, title_fontsize=8.2)
    return figure


@styled
def spectrum(spectra: dict[str, np.ndarray], thresholds: dict[str, float]) -> Figure:
    """Variances along principal directions, largest first, on logarithmic axes; thresholds as horizontal lines."""
    figure = _figure(2.5)
    axes = figure.subplots()
    for (name, values), colour in zip(spectra.items(), CYCLE, strict=False):
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, label=name)
    for (name, value), style in zip(thresholds.items(), cycle(["--", "-.", ":"]), strict=False):
        axes.axhline(value, color=GREY, lw=0.8, ls=style, label=f"{name}: {value:.2g}")
    axes.set(xscale="log", yscale="log", xlabel="principal direction", ylabel="variance",
             ylim=(min(thresholds.values()) / 30, None))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure


@styled
def over_steps(panels: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Means over sequences at every step, a panel for each quantity: quantity -> model -> (sequences, T-1)."""
    figure = _figure(2.0)
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (quantity, models) in zip(grid.flat, panels.items(), strict=True):
        for (name, values), colour, marker in zip(models.items(), CYCLE, "os^Dv", strict=False):
            axes.plot(np.arange(1, values.shape[1] + 1), values.mean(axis=0), color=colour, marker=marker, label=name)
        axes.set(xlabel="frame t", ylabel=quantity, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure


# Frames --------------------------------------------------------------------------------------------------

@styled
def strip(rows: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None, count: int | None = None,
          maps: dict[str, np.ndarray] | None = None, lines: int = 1) -> Figure:
    """Frames side by side, one labelled row per video; borders tell context from predicted frames, if there are both.

    `rows`: name -> uint8 (T, H, W, C), all of one shape; `psnr`: (T - n_past,) dB of the predicted frames, written
    below them; `count`: how many frames to show, evenly spaced (all); `maps`: name -> (T, H, W) grey levels, further
    rows in colours with a scale; `lines`: how many lines the frames fill. Raises ValueError as `_check` does.
    """
    most = max((float(values.max()) for values in (maps or {}).values()), default=0.0)
    rows = rows | {name: in_colours(values, most) for name, values in (maps or {}).items()}
    framed = np.stack(list(_check(rows).values()))                                              # (rows, T, H, W, 3)
    T, H, W = framed.shape[1:4]
    canvas = np.full((len(rows), T, H + 2 * BORDER, W + 2 * BORDER, 3), 255, np.uint8)
    for first, colour in [(0, CONTEXT), (n_past, PREDICTED)] * (0 < n_past < T):
        canvas[:, first:] = np.round(255 * np.array(matplotlib.colors.to_rgb(colour)))
    canvas[:, :, BORDER:-BORDER, BORDER:-BORDER] = framed
    numbers = np.linspace(0, T - 1, count or T).round().astype(int)
    scores = np.array([*[""] * n_past, *(f"{score:.1f}" for score in ([] if psnr is None else psnr))])
    figure = _figure(WIDTH)                                     # higher than it needs to be, so that its width decides
    every = figure.subplots(lines, squeeze=False)[:, 0]
    for axes, part in zip(every, np.array_split(numbers, lines), strict=True):
        _line(axes, canvas[:, part], list(rows), part, n_past, [] if psnr is None else scores[part])
    if maps:
        colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), HEAT)
        figure.colorbar(colours, ax=list(every), label="grey levels", aspect=24 * lines, pad=0.01)
    figure.draw_without_rendering()                             # the height that the images need at the width left
    figure.set_figheight(sum(axes.get_tightbbox().height for axes in every) / figure.dpi + 0.16 * lines)
    figure.draw_without_rendering()                             # the layout begins from the last one
    return figure


def _line(axes: Axes, cells: np.ndarray, names: list[str], numbers: np.ndarray, n_past: int,
          scores: Sequence[str]) -> None:
    """Draw framed cells (rows, T, H, W, 3) as a grid, with names to the left, numbers above and scores below."""
    T, every = cells.shape[1], -(-cells.shape[1] // MOST)
    images = torch.from_numpy(cells).flatten(0, 1).permute(0, 3, 1, 2)
    grid = make_grid(images, nrow=T, padding=GAP, pad_value=255).permute(1, 2, 0).numpy()
    pitch_y, pitch_x = np.array(cells.shape[2:4]) + GAP
    axes.imshow(_sharp(grid), extent=(-0.5, grid.shape[1] - 0.5, grid.shape[0] - 0.5, -0.5))
    axes.set_xticks((GAP + pitch_x * np.arange(1, 2 * T, 2) - 1)[::every] / 2, numbers[::every], color=GREY, size=8.2)
    axes.set_yticks((GAP + pitch_y * np.arange(1, 2 * len(names), 2) - 1) / 2, names, color=INK, size=8.8)
    axes.xaxis.tick_top()
    first = int((numbers < n_past).sum())
    for name, at, colour in [("context", 0, CONTEXT), ("predicted", first, PREDICTED)] * (0 < first < T):
        axes.annotate(name, (GAP - 0.5 + pitch_x * at, -0.5), (0, 13), textcoords="offset points", color=colour,
                      size=8.2)
    if len(scores):
        below = axes.secondary_xaxis("bottom")
        below.set_xticks(axes.get_xticks(), scores[::every], size=8.2)
        axes.annotate("PSNR [dB]", (0, 0), (-3, -2), "axes fraction", "offset points", ha="right", va="top")
    for bare in (axes, *axes.child_axes):
        bare.tick_params(length=0, pad=2)
        bare.spines[:].set_visible(False)
    axes.grid(False)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The absolute difference of videos (..., H, W, C), mean over channels: (..., H, W) in their unit."""
    return np.abs(a.astype(float) - b).mean(axis=-1)


def in_colours(values: np.ndarray, most: float) -> np.ndarray:
    """Numbers from 0 to `most` (..., H, W) as uint8 colours (..., H, W, 3), 0 the lightest."""
    return HEAT(values / max(most, 1e-6), bytes=True)[..., :3]


def _sharp(image: np.ndarray, scale: int = 4) -> np.ndarray:
    """An image (H, W, C) enlarged, so that viewers which smooth images show its pixels."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


# Moving pictures and files -------------------------------------------------------------------------------

def panel_frames(panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4) -> list[np.ndarray]:
    """Videos side by side as captioned pictures: T arrays, uint8 (height, width, 3).

    Each panel has its name above it and a border that tells context from predicted frames; a line below
    counts the frames, so that no two pictures are equal. Raises ValueError as `strip` does.
    """
    videos, edge, size = _check(panels), max(scale, 2), max(3 * scale, 9)
    T, H, W, _ = next(iter(videos.values())).shape
    bar, cell, tall = round(1.7 * size), W * scale + 2 * edge, H * scale + 2 * edge
    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)
    pictures = [Image.new("RGB", (len(videos) * (cell + edge) - edge, tall + 2 * bar), "white") for _ in range(T)]
    for t, picture in enumerate(pictures):
        kind, colour = ("context", CONTEXT) if t < n_past else ("predicted", PREDICTED)
        draw, foot = ImageDraw.Draw(picture), picture.height - bar / 2
        for column, (name, video) in enumerate(videos.items()):
            x = column * (cell + edge)
            draw.text((x + cell / 2, bar / 2), name, fill=INK, font=font, anchor="mm")
            picture.paste(ImageOps.expand(Image.fromarray(_sharp(video[t], scale)), edge, colour), (x, bar))
        draw.text((edge, foot), f"frame {t} of 0–{T - 1}", fill=INK, font=font, anchor="lm")
        draw.text((picture.width - edge, foot), kind, fill=colour, font=font, anchor="rm")
    return [np.asarray(picture) for picture in pictures]


def gif(path: str | Path, panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4) -> Path:
    """Write the pictures of `panel_frames`, 4 per second, as a GIF that loops for ever; returns its path.

    `scale`: side of a pixel in the GIF. Raises ValueError as `strip` does.
    """
    pictures = np.stack(panel_frames(panels, n_past=n_past, scale=scale))
    write_atomically(Path(path), lambda part: iio.imwrite(part, pictures, extension=".gif", duration=250, loop=0))
    return Path(path)


def save(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.pdf`` and ``folder/name.png`` (200 dpi); the same figure gives the same bytes."""
    paths = Path(folder) / f"{name}.pdf", Path(folder) / f"{name}.png"
    for path, kind in zip(paths, ("pdf", "png"), strict=True):
        write_atomically(path, lambda part, kind=kind: part.write_bytes(render(figure, kind)))
    return paths


def render(figure: Figure, kind: Literal["pdf", "png"]) -> bytes:
    """A figure as the bytes of a PDF or PNG file, without dates or versions in them."""
    file = io.BytesIO()
    with matplotlib.style.context(STYLE, after_reset=True):
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    return file.getvalue()


def _check(videos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same videos with three channels. Raises ValueError naming the one that is no uint8 video or differs."""
    shape = next(iter(videos.values())).shape
    for name, video in videos.items():
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] not in (1, 3) or video.shape[:3] != shape[:3]:
            raise ValueError(f"{name}: is {video.dtype} of shape {video.shape}, and the first video's is {shape}; "
                             "expected uint8 (T, H, W, C) with 1 or 3 channels, the same T, H and W for all. Scale "
                             "[0, 1] by 255, round and convert")
    return {name: np.broadcast_to(video, (*video.shape[:3], 3)) for name, video in videos.items()}
