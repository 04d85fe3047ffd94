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
def training_curves(history: list[dict], *, baseline: float | None = None, title: str = "") -> Figure:
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

    figure.suptitle(title, x=0.01, ha="left", size=8, weight="bold")
    best = f"best {np.nanmax(psnr):.2f} dB, epoch {epochs[np.nanargmax(psnr)]:.0f}" if np.isfinite(psnr).any() else (
        "not scored yet")
    scores.set_title(best, loc="right", weight="normal", size=7.5, pad=3)
    scores.set_ylabel("PSNR [dB]")
    scores.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    losses.set(yscale="log", xlabel="epoch", ylabel="loss (logarithmic)")
    ratios.set(ylim=(-0.04, 1.04), yticks=np.linspace(0, 1, 5), ylabel="weight, ratio (dashed)")
    ratios.spines.right.set_visible(True)
    ratios.grid(False)
    epoch_axis(losses, epochs)
    return figure


@styled
def learning_curves(history: list[dict]) -> Figure:
    """Beside the graded plot: the total loss, the learning rate and the throughput over the epochs."""
    epochs, figure = _column(history, "epoch"), _figure(1.7)
    panels = ((_column(history, "loss"), "total loss", NAVY),
              (1e3 * _column(history, "lr"), "learning rate [0.001]", MAUVE),
              (_column(history, "sequences_per_second"), "sequences per second", GREY))
    for axes, (values, name, colour) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(epochs, values, marker="o" if len(history) < 3 else "", color=colour)
        axes.set(title=name, xlabel="epoch")
        if name == "total loss":
            axes.set_yscale("log" if (values > 0).all() else "linear")     # a calibrated loss falls below 0
        else:
            axes.set_ylim(0, 1.1 * max(values.max(), 0.01))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        epoch_axis(axes, epochs)
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
    figure = _figure(0.46 * len(values) + 0.75)
    axes = figure.subplots()
    beside, over = axes.get_yaxis_transform(), axes.get_xaxis_transform()
    for row, (scores, colour) in enumerate(zip(values.values(), cycle(CYCLE), strict=False)):
        scores = np.sort(scores)
        mean, half = scores.mean(), _interval(scores)
        axes.plot(scores, row + np.linspace(0.36, -0.36, len(scores)), "o", ms=2.2, mew=0, color=colour, alpha=0.7)
        axes.errorbar(mean, row, xerr=half, fmt="D", ms=4.5, mfc="white", mec=INK, mew=0.9, ecolor=INK, capsize=2.5,
                      zorder=4)
        axes.text(1.02, row, f"{mean:.2f} ± {half:.2f} dB", transform=beside, va="center")
    low, high = axes.get_xlim()
    axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5),
             xlabel="PSNR of a sequence [dB]", xlim=(min(low, GRADES[-1][0] - 0.5), max(high, GRADES[0][0] + 0.5)))
    axes.tick_params(axis="y", length=0, labelsize=7.5, labelcolor=INK)
    axes.grid(False)
    small = {"va": "bottom", "color": GREY, "size": 6.5}
    for threshold, share in GRADES:
        axes.axvline(threshold, color=FAINT, lw=0.7, zorder=0)
        if np.ptp(axes.get_xlim()) < 18 or share in (GRADES[0][1], GRADES[-1][1]):      # room for all, or for the ends
            axes.text(threshold, 1.02, f"{100 * share:.0f}", transform=over, ha="center", **small)
    axes.annotate("marks [%]", (GRADES[-1][0], 1.02), (-8, 0), over, "offset points", ha="right", **small)
    axes.text(1.02, 1.02, "mean, 95% interval", transform=axes.transAxes, **small)
    return figure


@styled
def schedules(curves: dict[str, np.ndarray], *, ylabel: str = "weight") -> Figure:
    """Schedules side by side. `curves`: name -> (K,) values at K points from the run's start to its end."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = _figure(0.4 + 1.25 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, values), colour in zip(grid.flat, curves.items(), cycle(CYCLE), strict=False):
        axes.plot(np.linspace(0, 1, len(values)), values, color=colour)
        axes.set(title=name, xlim=(-0.02, 1.02), xticks=(0, 0.5, 1))
    for axes in grid.flat[len(curves):]:
        axes.set_visible(False)
    figure.supxlabel("progress of the run", size=7.5)
    figure.supylabel(ylabel, size=7.5)
    return figure


@styled
def effects(rows: list[dict], *, xlabel: str = "gain over the reference [dB]") -> Figure:
    """A forest plot: what every setting gains over the reference, with its interval, under the heading of its group.

    A full dot is a gain or a loss whose interval excludes zero; a hollow one may be chance. `rows`: records with
    "group", "setting", "gain" (None: the reference itself) and "half", the half-width of its interval (NaN: unknown).
    """
    colours = dict(zip(dict.fromkeys(row["group"] for row in rows), cycle(CYCLE), strict=False))
    lines = [line for group in colours for line in (group, *(row for row in rows if row["group"] == group))]
    figure = _figure(0.17 * len(lines) + 0.5)
    axes = figure.subplots()
    axes.axvline(0, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlabel=xlabel)
    axes.set_yticks(range(len(lines)), [line if isinstance(line, str) else line["setting"] for line in lines], size=7.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines.left.set_visible(False)
    axes.grid(False, axis="y")
    for y, (line, label) in enumerate(zip(lines, axes.get_yticklabels(), strict=True)):
        if isinstance(line, str):
            label.set_weight("bold")
            continue
        gain, half = line["gain"], line["half"]
        if gain is None:
            axes.plot(0, y, marker="|", color=INK, ms=7)
            words, apart = "reference", False
        else:
            apart, colour = abs(gain) > half, colours[line["group"]]            # never, if the interval is unknown
            axes.errorbar(gain, y, xerr=half, fmt="o", color=colour, elinewidth=1.1, mfc=colour if apart else "white")
            words = f"{gain:+.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}")
        axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), va="center", color=INK if apart else GREY)
    return figure


# Frames --------------------------------------------------------------------------------------------------

@styled
def strip(rows: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None, title: str = "") -> Figure:
    """Frames side by side, one labelled row per video; borders tell context from predicted frames.

    `rows`: name -> uint8 (T, H, W, C), all of one shape; `psnr`: (T - n_past,) dB of the predicted frames, written
    under the last row. Raises ValueError for a video that is not uint8, or shapes or lengths that differ.
    """
    length = len(next(iter(rows.values()), ()))
    if psnr is not None and len(psnr) != length - n_past:
        raise ValueError(f"psnr has {len(psnr)} values for {length - n_past} predicted frames")
    figure = _figure(0)
    axes = _strip(figure, rows, [t < n_past for t in range(length)], range(length))
    axes.set_title(title, pad=26)
    if psnr is not None:
        below = axes.secondary_xaxis("bottom")
        scores = [""] * n_past + [f"{score:.1f}" for score in psnr]
        below.set_xticks(axes.get_xticks(), scores[::-(-length // MOST)], size=7)
        _bare(below)
        axes.annotate("PSNR [dB]", (0, 0), (-3, -2), "axes fraction", "offset points", ha="right", va="top")
    return _fit(figure)


@styled
def uncertainty(samples: np.ndarray, truth: np.ndarray, *, n_past: int, steps: Sequence[int] | None = None) -> Figure:
    """Where samples differ: the truth, the samples' mean, and their standard deviation as a heat image.

    `samples`: uint8 (S, T, H, W, C); `truth`: uint8 (T, H, W, C); `steps`: numbers of the frames to show, by default
    all. Raises ValueError for samples that are not uint8 or not of the truth's shape.
    """
    _check({"truth": truth, **{f"sample {index}": sample for index, sample in enumerate(samples)}})
    steps = list(range(len(truth)) if steps is None else steps)
    chosen = samples[:, steps].astype(np.float32)
    mean, spread = chosen.mean(axis=0), chosen.std(axis=0).mean(axis=-1)         # (T, H, W, C) and (T, H, W)
    heat = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, max(float(spread.max()), 1.0)), "magma")
    rows = {"truth": truth[steps], f"mean of {len(samples)}": mean.round().astype(np.uint8),
            "std. dev.": heat.cmap(heat.norm(spread), bytes=True)[..., :3]}
    figure = _figure(0)
    axes = _strip(figure, rows, [step < n_past for step in steps], steps)
    bar = figure.colorbar(heat, ax=axes, fraction=0.05, pad=0.01, aspect=30, label="grey levels")
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, integer=True)
    return _fit(figure)


def _strip(figure: Figure, rows: dict[str, np.ndarray], context: Sequence[bool], numbers: Sequence[int]) -> Axes:
    """Axes with a labelled row per video, numbers over the frames, and borders that tell context from prediction."""
    videos, T = _check(rows), len(numbers)
    marked = any(context) and not all(context)                  # where all are of one kind, there is nothing to tell
    colours = [matplotlib.colors.to_rgb((CONTEXT if known else PREDICTED) if marked else "white") for known in context]
    framed = np.stack(list(videos.values()))                                                    # (rows, T, H, W, 3)
    H, W = framed.shape[2:4]
    edges = np.uint8(np.round(255 * np.array(colours)))[:, None, None]
    canvas = np.broadcast_to(edges, (len(videos), T, H + 2 * BORDER, W + 2 * BORDER, 3)).copy()
    canvas[:, :, BORDER:-BORDER, BORDER:-BORDER] = framed
    cells = torch.from_numpy(canvas).flatten(0, 1).permute(0, 3, 1, 2)
    grid = make_grid(cells, nrow=T, padding=GAP, pad_value=255).permute(1, 2, 0).numpy()
    axes = figure.subplots()
    axes.imshow(_sharp(grid), extent=(-0.5, grid.shape[1] - 0.5, grid.shape[0] - 0.5, -0.5))
    every = -(-T // MOST)
    pitch_x, pitch_y = W + 2 * BORDER + GAP, H + 2 * BORDER + GAP
    centres = GAP / 2 + pitch_x * (np.arange(T) + 0.5) - 0.5
    axes.set_xticks(centres[::every], numbers[::every], color=GREY, size=7)
    axes.set_yticks(GAP / 2 + pitch_y * (np.arange(len(videos)) + 0.5) - 0.5, list(videos), color=INK, size=7.5)
    axes.xaxis.tick_top()
    _bare(axes)
    for name, known, colour in (("context", True, CONTEXT), ("predicted", False, PREDICTED)) if marked else ():
        first = GAP - 0.5 + pitch_x * list(context).index(known)
        axes.annotate(name, (first, -0.5), (0, 12), textcoords="offset points", color=colour, size=7)
    return axes


@styled
def conditions(condition: np.ndarray, frames: np.ndarray) -> Figure:
    """A sequence's `frames`, uint8 (T, H, W, C), above its `condition` (T, 7), on one time axis.

    The condition's columns: movement x and y, lift, grip; end-effector position x, y, z.
    """
    video = _check({"frames": frames})["frames"]
    length, every = len(video), -(-len(video) // 12)
    shown = np.arange(0, length, every)
    span = (-every / 2, max(shown[-1] + every / 2, length - 0.5))
    tall = 1.08 * (WIDTH - 1) * every / np.ptp(span)                             # inches of a frame, and a little more
    figure = _figure(tall + 3 * 0.95 + 0.3)
    top, *panels = figure.subplots(4, 1, sharex=True, height_ratios=(tall, 0.9, 0.9, 0.9))
    for t in shown:
        top.imshow(_sharp(video[t]), extent=(t - 0.47 * every, t + 0.47 * every, 0, 0.94 * every))
    top.set(xlim=span, ylim=(0, 0.94 * every), anchor="S")
    top.axis("off")
    rows = (("movement [m]", {"x": 0, "y": 1}), ("command", {"lift": 2, "grip": 3}),
            ("position [m]", {"x": 4, "y": 5, "z": 6}))
    for axes, (name, columns) in zip(panels, rows, strict=True):
        style = "default" if name.startswith("position") else "steps-post"      # an action holds until the next one
        for (label, column), colour in zip(columns.items(), CYCLE, strict=False):
            axes.plot(np.arange(length), condition[:, column], drawstyle=style, color=colour, label=label)
        axes.set(ylabel=name, xticks=shown)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.12)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), labelcolor="linecolor")
    figure.align_ylabels()
    axes.set_xlabel("frame")
    return figure


@styled
def frame_grid(frames: np.ndarray, labels: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """A grid of frames, row by row. `frames`: uint8 (N, H, W, C); `labels`: N captions, each above its frame."""
    images = _check({"frames": frames})["frames"]
    rows = -(-len(images) // columns)
    figure = _figure(rows * (WIDTH / columns + 0.2 * bool(labels)))
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label in zip(grid, images, labels or [""] * len(images), strict=False):
        axes.imshow(_sharp(image))
        axes.set_title(label, loc="center", size=7, weight="normal", pad=2)
    return figure


def _sharp(image: np.ndarray, scale: int = 4) -> np.ndarray:
    """An image (H, W, C) enlarged, so that viewers which smooth images show its pixels."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _bare(axes: Axes) -> None:
    """Only the ticks' labels, without lines."""
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    if hasattr(axes, "grid"):
        axes.grid(False)


def _fit(figure: Figure) -> Figure:
    """Give a figure the height that its image needs at the width which the labels leave."""
    figure.set_figheight(WIDTH)                                 # more than it needs, so that its width decides
    figure.draw_without_rendering()
    figure.set_figheight(figure.axes[0].get_tightbbox().height / figure.dpi + 0.16)
    figure.draw_without_rendering()                             # the layout begins from the last one
    return figure


# Moving pictures and files -------------------------------------------------------------------------------

def panel_frames(panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4) -> list[np.ndarray]:
    """Videos side by side as captioned pictures: T arrays, uint8 (height, width, 3).

    Each panel has its name above it and a border that tells context from predicted frames; a line below
    counts the frames, so that no two pictures are equal. Raises ValueError as `strip` does.
    """
    videos, edge, size = _check(panels), max(scale, 2), max(3 * scale, 9)
    T, H, W, _ = next(iter(videos.values())).shape
    bar, cell, tall = round(1.7 * size), W * scale + 2 * edge, H * scale + 2 * edge
    pictures = [Image.new("RGB", (len(videos) * (cell + edge) - edge, tall + 2 * bar), "white") for _ in range(T)]
    for t, picture in enumerate(pictures):
        kind, colour = ("context", CONTEXT) if t < n_past else ("predicted", PREDICTED)
        draw, foot = ImageDraw.Draw(picture), picture.height - bar / 2
        for column, (name, video) in enumerate(videos.items()):
            x = column * (cell + edge)
            fitting = next(s for s in range(size, 0, -1) if s == 1 or _font(s).getlength(name) <= cell)
            draw.text((x + cell / 2, bar / 2), name, fill=INK, font=_font(fitting), anchor="mm")
            picture.paste(ImageOps.expand(Image.fromarray(_sharp(video[t], scale)), edge, colour), (x, bar))
        draw.text((edge, foot), f"frame {t} of 0–{T - 1}", fill=INK, font=_font(size), anchor="lm")
        draw.text((picture.width - edge, foot), kind, fill=colour, font=_font(size), anchor="rm")
    return [np.asarray(picture) for picture in pictures]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


def gif(path: str | Path, panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4,
        milliseconds: int = 250) -> Path:
    """Write the pictures of `panel_frames` as a GIF that loops for ever; returns its path.

    `scale`: side of a pixel in the GIF; `milliseconds`: how long each frame stays. Raises ValueError as `strip` does.
    """
    pictures = np.stack(panel_frames(panels, n_past=n_past, scale=scale))
    write_atomically(Path(path), lambda part: iio.imwrite(part, pictures, extension=".gif", duration=milliseconds,
                                                          loop=0))
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
    if not videos:
        raise ValueError("no video to show")
    first, shape = next((name, np.shape(video)) for name, video in videos.items())
    for name, video in videos.items():
        if getattr(video, "dtype", None) != np.uint8:
            raise ValueError(f"{name}: is {getattr(video, 'dtype', type(video).__name__)}; frames must be a uint8 "
                             "array, so scale [0, 1] by 255, round and convert")
        if video.ndim != 4 or video.shape[-1] not in (1, 3) or video.shape[:3] != shape[:3]:
            raise ValueError(f"{name}: has shape {video.shape}, and {first} has {shape}; expected (T, H, W, C) with 1 "
                             "or 3 channels, the same T, H and W for all")
    return {name: np.broadcast_to(video, (*video.shape[:3], 3)) for name, video in videos.items()}
