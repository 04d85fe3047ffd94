"""Every data figure: pure functions from arrays and records to a matplotlib `Figure`, and the GIF.

Videos are uint8 (T, H, W, C) with C 1 or 3; the first `n_past` frames are context and frame numbers
count from 0. No function shows or keeps a figure; `save` writes one as PDF and PNG.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from PIL import Image, ImageDraw, ImageFont

from lab5.files import write_atomically
from lab5.metrics import GRADES

STYLE = Path(__file__).with_name("lab5.mplstyle")
WIDTH = 6.3                                     # inches: the text column of an A4 or letter page
INK, GREY, FAINT = "#22262b", "#6f757d", "#c9cdd2"
NAVY, VERMILION, TEAL, AMBER, MAUVE = "#17456e", "#c2460f", "#35998a", "#c28c17", "#75417f"
CYCLE = (NAVY, VERMILION, TEAL, AMBER, MAUVE, GREY)
CONTEXT, PREDICTED = TEAL, VERMILION            # the two kinds of frame, in every figure
GAP, BREAK = 3, 8                               # pixels between frames, and between context and prediction


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the workbook's style, whatever the notebook has set."""
    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.style.context(STYLE, after_reset=True):
            return draw(*args, **kwargs)
    return wrapper


# ---- curves ----

@styled
def training_curves(history: list[dict], *, baseline: float | None = None, title: str = "") -> Figure:
    """The graded plot: losses on the left axis (logarithmic), KL weight and teacher forcing dashed on the right
    one, and above them, over the same epochs, the validation PSNR as dots.

    Args:
        history: a record an epoch, as `lab5.training` returns them.
        baseline: PSNR in dB of holding the last context frame.
    """
    epochs, psnr, kl = (_column(history, key) for key in ("epoch", "psnr", "kl"))
    solid, dashes, dots = ({"marker": "o" if len(history) < 3 else "", "ls": ls} for ls in
                           ("-", (0, (4, 2)), (0, (1.2, 1.4))))
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.1))
    ratios = losses.twinx()

    scored = scores.plot(epochs, psnr, "o", color=INK, label="validation PSNR")
    if baseline is not None:
        scored.append(scores.axhline(baseline, color=GREY, lw=0.8, label=f"holding the last frame, {baseline:.1f} dB"))
    lost = losses.plot(epochs, _column(history, "mse"), color=NAVY, label="reconstruction (MSE)", **solid)
    lost += losses.plot(epochs, np.where(kl > 0, kl, np.nan), color=VERMILION, **solid,
                        label="KL [nats per frame]" if (kl > 0).any() else "KL: 0 nats")
    set_to = ratios.plot(epochs, _column(history, "kl_weight"), color=MAUVE, label="KL weight", **dashes)
    set_to += ratios.plot(epochs, _column(history, "teacher_forcing"), color=TEAL, label="teacher-forcing ratio",
                          **dots)

    for axes, lines, place in ((scores, scored, 0), (losses, lost, 0), (ratios, set_to, 1)):
        axes.legend(handles=lines, loc=("lower left", "lower right")[place], bbox_to_anchor=(place, 1), ncols=2,
                    labelcolor=[line.get_color() for line in lines])
    figure.suptitle(title, x=0.01, ha="left", size=8, weight="bold")
    scores.set_ylabel("PSNR [dB]")
    scores.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    if np.isnan(psnr).all():
        scores.set_yticks([])
        scores.text(0.5, 0.5, "not scored yet", transform=scores.transAxes, ha="center", va="center", color=GREY)
    else:
        best = np.nanargmax(psnr)
        scores.text(1, 1.03, f"best {psnr[best]:.2f} dB, epoch {epochs[best]:.0f}", transform=scores.transAxes,
                    ha="right", va="bottom")
    losses.set(yscale="log", xlabel="epoch", ylabel="loss (logarithmic)")
    ratios.set(ylim=(-0.04, 1.04), yticks=np.linspace(0, 1, 5), ylabel="weight, ratio (dashed)")
    ratios.spines.right.set_visible(True)
    ratios.grid(False)
    _epoch_axis(losses, epochs)
    return figure


@styled
def learning_curves(history: list[dict]) -> Figure:
    """Beside the graded plot: the total loss, the learning rate and the throughput over the epochs."""
    epochs = _column(history, "epoch")
    figure = Figure(figsize=(WIDTH, 1.7), layout="constrained")
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
        _epoch_axis(axes, epochs)
    return figure


@styled
def psnr_over_time(curves: dict[str, np.ndarray], *, n_past: int) -> Figure:
    """Mean PSNR of every predicted frame with the 95% band of the mean over sequences.

    Args:
        curves: name -> (N, n_future) in dB.
        n_past: number of the first predicted frame.
    """
    figure = Figure(figsize=(WIDTH, 2.6))
    right = _text_width(curves, 7.5) + 0.2
    axes = _axes(figure, 0.45, 0.42, WIDTH - 0.45 - right, 2.1)
    ends = []
    for (name, values), colour, marker in zip(curves.items(), cycle(CYCLE), cycle("os^Dv"), strict=False):
        values = np.asarray(values, dtype=float)
        frames, mean = n_past + np.arange(values.shape[1]), values.mean(axis=0)
        if len(values) > 1:
            half = 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
            axes.fill_between(frames, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
        axes.plot(frames, mean, marker=marker, color=colour, label=name, ms=2.8)
        ends.append((frames[-1], mean[-1], name, colour))
    axes.set(xlabel="frame", ylabel="PSNR [dB]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    _end_labels(axes, ends)
    return figure


@styled
def psnr_distribution(values: dict[str, np.ndarray]) -> Figure:
    """Every sequence as a dot, sorted, a row a protocol; the mean with its 95% interval; the grade's thresholds.

    Args:
        values: name -> (N,) average PSNR of each sequence in dB.
    """
    left, right, height = _text_width(values, 7.5) + 0.2, 1.05, 0.46 * len(values)
    figure = Figure(figsize=(WIDTH, height + 0.75))
    axes = _axes(figure, left, 0.4, WIDTH - left - right, height)
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for row, (scores, colour) in enumerate(zip(values.values(), cycle(CYCLE), strict=False)):
        scores = np.sort(np.asarray(scores, dtype=float))
        mean = scores.mean()
        half = 1.96 * scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
        axes.plot(scores, row + np.linspace(0.36, -0.36, len(scores)), "o", ms=2.2, mew=0, color=colour, alpha=0.7)
        axes.errorbar(mean, row, xerr=half, fmt="D", ms=4.5, mfc="white", mec=INK, mew=0.9, ecolor=INK, capsize=2.5,
                      zorder=4)
        axes.text(1.02, row, f"{mean:.2f} ± {half:.2f} dB", transform=beside, va="center")
    axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5),
             xlabel="PSNR of a sequence [dB]")
    axes.tick_params(axis="y", length=0, labelsize=7.5, labelcolor=INK)
    axes.grid(False)
    _grade_lines(axes, inches=WIDTH - left - right)
    return figure


def _grade_lines(axes: Axes, inches: float) -> None:
    """Faint vertical lines at the grade's thresholds, with the share of the marks that each earns on top."""
    low, high = axes.get_xlim()
    low, high = min(low, GRADES[-1][0] - 0.5), max(high, GRADES[0][0] + 0.5)
    axes.set_xlim(low, high)
    every = 1 if inches / (high - low) > 0.19 else len(GRADES) - 1             # room for all the numbers, or the ends
    over = blended_transform_factory(axes.transData, axes.transAxes)
    for index, (threshold, share) in enumerate(GRADES):
        axes.axvline(threshold, color=FAINT, lw=0.7, zorder=0)
        if index % every == 0:
            axes.text(threshold, 1.02, f"{100 * share:.0f}", transform=over, ha="center", va="bottom", color=GREY,
                      size=6.5)
    axes.annotate("marks [%]", (GRADES[-1][0], 1.02), (-10, 0), xycoords=over, textcoords="offset points", ha="right",
                  va="bottom", color=GREY, size=6.5)
    axes.text(1.02, 1.02, "mean, 95% interval", transform=axes.transAxes, va="bottom", color=GREY, size=6.5)


@styled
def schedules(curves: dict[str, np.ndarray], *, ylabel: str = "weight") -> Figure:
    """Schedules side by side. `curves`: name -> (K,) values at K points from the run's start to its end."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.25 * rows), layout="constrained")
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

    A full dot is a gain or a loss that its interval keeps apart from zero, a hollow one may be chance.

    Args:
        rows: records with "group", "setting", "gain" and "half", the half-width of the gain's interval (NaN: unknown);
            a gain of None is the reference itself.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    left = max(_text_width([row["setting"] for row in rows], 7.5) + 0.25, _text_width(groups, 8.5)) + 0.1
    right, height = 1.0, 0.17 * (len(rows) + len(groups))
    figure = Figure(figsize=(WIDTH, height + 0.5))
    axes = _axes(figure, left, 0.4, WIDTH - left - right, height)
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    axes.axvline(0, color=INK, lw=0.8, ls=(0, (4, 2)), zorder=1)
    y = 0
    for group, colour in zip(groups, cycle(CYCLE), strict=False):
        axes.text(-(left - 0.05) / (WIDTH - left - right), y, group, transform=beside, va="center", weight="bold")
        for row in (row for row in rows if row["group"] == group):
            y += 1
            gain, half = row["gain"], row["half"]
            axes.text(-0.02, y, row["setting"], transform=beside, ha="right", va="center")
            if gain is None:
                axes.plot(0, y, marker="|", color=INK, ms=7)
                axes.text(1.02, y, "reference", transform=beside, va="center", color=GREY)
                continue
            apart = abs(gain) > half                            # of an unknown interval, nothing is
            axes.errorbar(gain, y, xerr=half, fmt="o", color=colour, elinewidth=1.1, mfc=colour if apart else "white")
            axes.text(1.02, y, f"{gain:+.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}"), transform=beside,
                      va="center", color=INK if apart else GREY)
        y += 1
    axes.set(ylim=(y - 0.4, -0.6), yticks=[], xlabel=xlabel)
    axes.spines.left.set_visible(False)
    return figure


# ---- frames ----

@styled
def strip(rows: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None, title: str = "") -> Figure:
    """Frames side by side, a labelled row a video, context set off from prediction.

    Args:
        rows: name -> uint8 (T, H, W, C), all of one shape.
        psnr: (T - n_past,) dB of the predicted frames, written under the last row.
    Raises:
        ValueError: a video that is not uint8, or shapes or lengths that differ.
    """
    videos = _check(rows)
    length = len(next(iter(videos.values())))
    check_scores(psnr, length - n_past)
    names = [*videos, *(["PSNR [dB]"] if psnr is not None else [])]
    left = _text_width(names, 7.5) + 0.12
    canvas, centres, middles = _mosaic(list(videos.values()), n_past)
    image = (WIDTH - left) * canvas.shape[0] / canvas.shape[1]
    top, bottom = 0.34 + 0.2 * bool(title), 0.2 if psnr is not None else 0.03
    figure = Figure(figsize=(WIDTH, image + top + bottom))
    axes = _image_axes(figure, canvas, left, bottom, WIDTH - left)
    _row_labels(axes, middles, videos)
    _time_header(axes, centres, n_past)
    if title:
        figure.text(0.03 / WIDTH, 1 - 0.04 / figure.get_figheight(), title, weight="bold", size=8, va="top")
    if psnr is not None:
        under = blended_transform_factory(axes.transData, figure.dpi_scale_trans)
        figure.text(left - 0.05, 0.08, "PSNR [dB]", transform=figure.dpi_scale_trans, ha="right", va="center")
        for index in range(0, len(psnr), _every(length)):
            axes.text(centres[n_past + index], 0.08, f"{psnr[index]:.1f}", transform=under, ha="center", va="center",
                      size=7)
    return figure


@styled
def uncertainty(samples: np.ndarray, truth: np.ndarray, *, n_past: int, steps: Sequence[int] | None = None) -> Figure:
    """Where samples differ: the truth, the samples' mean, and their standard deviation as a heat image.

    Args:
        samples: uint8 (S, T, H, W, C).
        truth: uint8 (T, H, W, C).
        steps: numbers of the frames to show; by default all.
    Raises:
        ValueError: samples that are not uint8 or not of the truth's shape.
    """
    _check({"truth": truth, **{f"sample {index}": sample for index, sample in enumerate(samples)}})
    steps = list(range(len(truth)) if steps is None else steps)
    chosen = samples[:, steps].astype(np.float32)
    mean, spread = chosen.mean(axis=0), chosen.std(axis=0).mean(axis=-1, keepdims=True)     # (T, H, W, 1)
    names = ["truth", f"mean of {len(samples)}", "std. dev."]
    seen = sum(step < n_past for step in steps)
    canvas, centres, middles = _mosaic([truth[steps], mean.round().astype(np.uint8)], seen)
    heat, *_ = _mosaic([spread], seen, empty=np.nan)
    left, right = _text_width(names, 7.5) + 0.12, 0.5
    inch = (WIDTH - left - right) / canvas.shape[1]                              # of a pixel
    upper, lower, gap = inch * canvas.shape[0], inch * heat.shape[0], inch * GAP
    figure = Figure(figsize=(WIDTH, upper + lower + gap + 0.37))
    images = _image_axes(figure, canvas, left, lower + gap + 0.03, WIDTH - left - right)
    heats = _image_axes(figure, heat[..., 0], left, 0.03, WIDTH - left - right)
    heats.images[0].set_clim(0, max(float(spread.max()), 1.0))
    _row_labels(images, middles, names[:2])
    _row_labels(heats, [heat.shape[0] / 2], names[2:])
    _time_header(images, centres, seen, steps)
    bar = _axes(figure, WIDTH - right + 0.06, 0.06, 0.08, lower - 0.06)
    figure.colorbar(heats.images[0], cax=bar).outline.set_visible(False)
    bar.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    bar.set_title("grey\nlevels", size=6.5, weight="normal", loc="left", pad=3, color=GREY)
    return figure


@styled
def conditions(condition: np.ndarray, frames: np.ndarray) -> Figure:
    """A sequence's frames above what the model is told: actions and end-effector position, on one time axis.

    Args:
        condition: (T, 7): movement x and y, lift, grip; position x, y, z.
        frames: uint8 (T, H, W, C).
    """
    video = _check({"frames": frames})["frames"]
    length, left, right, panel = len(video), 0.6, 0.4, 0.85
    every = -(-length // 12)
    shown = np.arange(0, length, every)
    span = (-every / 2, max(shown[-1] + every / 2, length - 0.5))
    inner = WIDTH - left - right
    tall = inner * every / (span[1] - span[0])
    figure = Figure(figsize=(WIDTH, tall + 3 * panel + 0.75))
    top = _axes(figure, left, 3 * panel + 0.72, inner, tall)
    for t in shown:
        top.imshow(video[t], extent=(t - 0.47 * every, t + 0.47 * every, 0.03, 0.97), aspect="auto")
    top.set(xlim=span, ylim=(0, 1))
    top.axis("off")
    rows = (("movement [m]", {"x": 0, "y": 1}), ("command", {"lift": 2, "grip": 3}),
            ("position [m]", {"x": 4, "y": 5, "z": 6}))
    for row, (name, columns) in enumerate(rows):
        axes = _axes(figure, left, (2 - row) * (panel + 0.1) + 0.38, inner, panel)
        style = "steps-post" if row < 2 else "default"                         # an action holds until the next one
        for (label, column), colour in zip(columns.items(), CYCLE, strict=False):
            axes.plot(np.arange(length), condition[:, column], drawstyle=style, color=colour, label=label)
        axes.set(xlim=span, ylabel=name, xticks=shown, xticklabels=[str(t) for t in shown] if row == 2 else [])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.12)
        axes.yaxis.set_label_coords(-0.48 / inner, 0.5)
        _end_labels(axes, [(span[1], line.get_ydata()[-1], line.get_label(), line.get_color())
                           for line in axes.lines])
    axes.set_xlabel("frame")
    return figure


@styled
def frame_grid(frames: np.ndarray, labels: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """A grid of frames, row by row. `frames`: uint8 (N, H, W, C); `labels`: N captions, each above its frame."""
    images = _check({"frames": frames})["frames"]
    N, H, W, C = images.shape
    rows = -(-N // columns)
    inch = WIDTH / (columns * (W + GAP) - GAP)                                  # of a pixel
    head = round(0.17 / inch) if labels else 0                                 # pixels over a frame for its caption
    canvas = np.full((rows * (H + head + GAP) - GAP, columns * (W + GAP) - GAP, C), 255, np.uint8)
    corners = [(n // columns * (H + head + GAP) + head, n % columns * (W + GAP)) for n in range(N)]
    for (y, x), image in zip(corners, images, strict=True):
        canvas[y:y + H, x:x + W] = image
    figure = Figure(figsize=(WIDTH, inch * canvas.shape[0]))
    axes = _image_axes(figure, canvas, 0, 0, WIDTH)
    for (y, x), label in zip(corners, labels or [], strict=False):
        axes.text(x + W / 2, y - 0.03 / inch, label, ha="center", va="bottom", size=7)
    return figure


# ---- moving pictures and files ----

def panel_frames(panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4) -> list[np.ndarray]:
    """Videos side by side as captioned pictures: T arrays, uint8 (height, width, 3).

    Each panel has its name above it and a border that tells context from predicted frames; a line below
    counts the frames, so that no two pictures are equal. Raises ValueError as `strip` does.
    """
    videos = {name: np.broadcast_to(video, (*video.shape[:3], 3)).repeat(scale, axis=1).repeat(scale, axis=2)
              for name, video in _check(panels).items()}
    T, H, W, _ = next(iter(videos.values())).shape
    edge, size = max(scale, 2), max(3 * scale, 9)
    bar, cell = round(1.7 * size), W + 2 * edge
    font = functools.partial(ImageFont.truetype, findfont(FontProperties(family="DejaVu Sans")))
    pictures = []
    for t in range(T):
        kind, colour = ("context", CONTEXT) if t < n_past else ("predicted", PREDICTED)
        picture = Image.new("RGB", (len(videos) * (cell + edge) - edge, H + 2 * edge + 2 * bar), "white")
        draw = ImageDraw.Draw(picture)
        for column, (name, video) in enumerate(videos.items()):
            x = column * (cell + edge)
            fitting = next(s for s in range(size, 0, -1) if s == 1 or font(s).getlength(name) <= cell)
            draw.text((x + cell / 2, bar / 2), name, fill=INK, font=font(fitting), anchor="mm")
            draw.rectangle((x, bar, x + cell - 1, bar + H + 2 * edge - 1), fill=colour)
            picture.paste(Image.fromarray(video[t]), (x + edge, bar + edge))
        draw.text((edge, picture.height - bar / 2), f"frame {t} of 0–{T - 1}", fill=INK, font=font(size), anchor="lm")
        draw.text((picture.width - edge, picture.height - bar / 2), kind, fill=colour, font=font(size), anchor="rm")
        pictures.append(np.asarray(picture))
    return pictures


def gif(path: str | Path, panels: dict[str, np.ndarray], *, n_past: int, scale: int = 4,
        milliseconds: int = 250) -> Path:
    """Write videos side by side as a GIF that loops for ever, a picture for every frame; returns its path.

    Args:
        panels: name -> uint8 (T, H, W, C), all of one shape.
        scale: side of a pixel in the GIF.
        milliseconds: how long each frame stays.
    Raises:
        ValueError: a video that is not uint8, or shapes that differ.
    """
    path = Path(path)
    pictures = panel_frames(panels, n_past=n_past, scale=scale)
    write_atomically(path, lambda part: iio.imwrite(part, np.stack(pictures), extension=".gif", duration=milliseconds,
                                                    loop=0))
    return path


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


# ---- helpers ----

def _check(videos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same videos with three channels. Raises ValueError naming the one that is no uint8 video or differs."""
    if not videos:
        raise ValueError("no video to show")
    first = next(iter(videos.values()))
    for name, video in videos.items():
        if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
            raise ValueError(f"{name}: is {getattr(video, 'dtype', type(video).__name__)}; frames must be a uint8 "
                             "array, so scale [0, 1] by 255, round and convert")
        if video.ndim != 4 or video.shape[-1] not in (1, 3):
            raise ValueError(f"{name}: has shape {video.shape}; expected (T, H, W, C) with 1 or 3 channels")
        if video.shape[:3] != first.shape[:3]:
            raise ValueError(f"{name}: has shape {video.shape}, but {next(iter(videos))} has {first.shape}")
    return {name: np.broadcast_to(video, (*video.shape[:3], 3)) for name, video in videos.items()}


def check_scores(psnr: np.ndarray | None, count: int) -> None:
    """Raise ValueError unless there is one score for each of `count` predicted frames, or none at all."""
    if psnr is not None and len(psnr) != count:
        raise ValueError(f"psnr has {len(psnr)} values for {count} predicted frames")


def _column(history: list[dict], key: str) -> np.ndarray:
    """One value of every record, NaN where it is missing: (epochs,)."""
    return np.array([np.nan if record.get(key) is None else record[key] for record in history], dtype=float)


def _epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    pad = max(0.02 * (epochs[-1] - epochs[0]), 0.3)
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)


def _text_width(texts: Sequence[str] | dict, size: float) -> float:
    """Inches that the widest of some texts takes."""
    return max(TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", size=size)).get_extents().width
               for text in texts) / 72


def _spread(values: np.ndarray, gap: float) -> np.ndarray:
    """The nearest positions (n,) in least squares whose neighbours are `gap` apart (isotonic regression)."""
    order, steps = np.argsort(values, kind="stable"), gap * np.arange(len(values))
    blocks: list[list[float]] = []
    for target in np.asarray(values, dtype=float)[order] - steps:
        blocks.append([target])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = np.empty(len(values))
    placed[order] = np.array([np.mean(block) for block in blocks for _ in block]) + steps
    return placed


def _end_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Name curves at their right ends, moved apart where they meet. `ends`: x, y, name, colour of each."""
    low, high = axes.get_ylim()
    inches = axes.get_position().height * axes.figure.get_figheight()
    heights = _spread(np.array([y for _, y, _, _ in ends]), 0.135 * (high - low) / inches)
    for (_, _, name, colour), y in zip(ends, heights, strict=True):
        axes.text(1.015, y, name, color=colour, va="center",
                  transform=blended_transform_factory(axes.transAxes, axes.transData))


def _mosaic(rows: list[np.ndarray], n_past: int, empty: float = 255) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of (T, H, W, C) in one image; also the frames' centres (T,) and the rows' middles, in pixels."""
    T, H, W, C = rows[0].shape
    x = np.arange(T) * (W + GAP) + np.where(np.arange(T) < n_past, 0, (BREAK - GAP) * (0 < n_past < T))
    y = np.arange(len(rows)) * (H + GAP)
    canvas = np.full((y[-1] + H, x[-1] + W, C), empty, rows[0].dtype)
    for top, row in zip(y, rows, strict=True):
        for left, frame in zip(x, row, strict=True):
            canvas[top:top + H, left:left + W] = frame
    return canvas, x + W / 2 - 0.5, y + H / 2 - 0.5


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def _image_axes(figure: Figure, canvas: np.ndarray, left: float, bottom: float, width: float) -> Axes:
    """Bare axes in pixel coordinates that hold one image, its pixels kept sharp by any viewer."""
    rows, columns = canvas.shape[:2]
    axes = _axes(figure, left, bottom, width, width * rows / columns)
    axes.imshow(canvas.repeat(4, axis=0).repeat(4, axis=1), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axes.axis("off")
    return axes


def _row_labels(axes: Axes, middles: Sequence[float], names: Sequence[str] | dict) -> None:
    for y, name in zip(middles, names, strict=True):
        axes.annotate(name, (0, y), (-5, 0), textcoords="offset points", ha="right", va="center")


def _every(length: int) -> int:
    """Of how many frames one has room for a number."""
    return -(-length // 16)


def _time_header(axes: Axes, centres: np.ndarray, n_past: int, numbers: Sequence[int] | None = None) -> None:
    """Above a row of frames: their numbers, and a rule over the context and one over the predicted frames."""
    numbers = range(len(centres)) if numbers is None else numbers
    for index in range(0, len(centres), _every(len(centres))):
        axes.annotate(f"{numbers[index]}", (centres[index], -0.5), (0, 2), textcoords="offset points", ha="center",
                      size=7, color=GREY)
    above = axes.transData + ScaledTranslation(0, 12 / 72, axes.figure.dpi_scale_trans)
    half = centres[0] + 0.5
    for first, stop, kind, colour in ((0, n_past, "context", CONTEXT),
                                      (n_past, len(centres), "predicted", PREDICTED)):
        if first < stop and n_past < len(centres):                             # all context: nothing to tell apart
            ends = centres[first] - half, centres[stop - 1] + half
            axes.plot(ends, (-0.5, -0.5), color=colour, lw=1.6, transform=above, clip_on=False, solid_capstyle="butt")
            axes.annotate(kind, (ends[0], -0.5), (0, 15), textcoords="offset points", color=colour, size=7)
