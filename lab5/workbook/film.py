"""Pictures made of frames: strips for paper, and GIFs.

Videos are uint8 (T, H, W, 3); the first `n_past` frames are context, and frame numbers count from 0.
"""

from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.utils import make_grid

from lab5.files import write_atomically
from lab5.workbook.figures import GREY, INK, TEAL, VERMILION, WIDTH, canvas, few_colours, styled

CONTEXT, PREDICTED = TEAL, VERMILION            # the two kinds of frame, in every picture
BORDER, GAP = 2, 2                              # pixels around a frame and between frames
SHARP = 4                                       # side of a frame's pixel in a strip: viewers smooth small images
MOVING = 3                                      # ... and in a GIF: four panels fit the width of a notebook
HEAT = matplotlib.colormaps["magma_r"]          # of differences; 0 is the lightest


@styled
def strip(rows: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None, count: int | None = None,
          maps: dict[str, np.ndarray] | None = None, lines: int = 1) -> Figure:
    """Frames side by side, one labelled row per video; borders tell context from predicted frames, if there are both.

    `rows`: name -> uint8 (T, H, W, 3), all of one shape; `psnr`: (T - n_past,) dB of the predicted frames, written
    below them; `count`: how many frames to show, evenly spaced (all); `maps`: name -> (T, H, W) grey levels, further
    rows in colours with a scale; `lines`: how many lines the frames fill. Raises ValueError as `_stack` does.
    """
    most = max((float(values.max()) for values in (maps or {}).values()), default=0.0)
    framed = _stack(rows | {name: in_colours(values, most) for name, values in (maps or {}).items()})
    T, H, W = framed.shape[1:4]
    cells = np.full((len(framed), T, H + 2 * BORDER, W + 2 * BORDER, 3), 255, np.uint8)
    for first, colour in [(0, CONTEXT), (n_past, PREDICTED)] * (0 < n_past < T):
        cells[:, first:] = np.round(255 * np.array(matplotlib.colors.to_rgb(colour)))
    cells[:, :, BORDER:-BORDER, BORDER:-BORDER] = framed
    numbers = np.linspace(0, T - 1, count or T).round().astype(int)
    scores = np.array([""] * T if psnr is None else [""] * n_past + [f"{score:.1f}" for score in psnr])
    figure = canvas(WIDTH)                                      # higher than it needs to be, so that its width decides
    every = figure.subplots(lines, squeeze=False)[:, 0]
    for axes, part in zip(every, np.array_split(numbers, lines), strict=True):
        _line(axes, cells[:, part], [*rows, *(maps or ())], part, n_past, scores[part])
    if maps:
        colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), HEAT)
        figure.colorbar(colours, ax=list(every), label="grey levels", aspect=24 * lines, pad=0.01)
    figure.draw_without_rendering()                             # the height that the images need at the width left
    figure.set_figheight(sum(axes.get_tightbbox().height for axes in every) / figure.dpi + 0.16 * lines)
    figure.draw_without_rendering()                             # the layout begins from the last one
    return figure


def _line(axes: Axes, cells: np.ndarray, names: list[str], numbers: np.ndarray, n_past: int,
          scores: np.ndarray) -> None:
    """Draw framed cells (rows, T, H, W, 3) as a grid, with names to the left, numbers above and scores below."""
    T, images = cells.shape[1], torch.from_numpy(cells).flatten(0, 1).permute(0, 3, 1, 2)
    grid = make_grid(images, nrow=T, padding=GAP, pad_value=255).permute(1, 2, 0).numpy()
    pitch_y, pitch_x = np.array(cells.shape[2:4]) + GAP
    axes.imshow(_sharp(grid, SHARP), extent=(-0.5, grid.shape[1] - 0.5, grid.shape[0] - 0.5, -0.5))
    axes.set_xticks((GAP + pitch_x * np.arange(1, 2 * T, 2) - 1) / 2, numbers, color=GREY, size=8.2)
    axes.set_yticks((GAP + pitch_y * np.arange(1, 2 * len(names), 2) - 1) / 2, names, color=INK, size=8.8)
    axes.xaxis.tick_top()
    first = int((numbers < n_past).sum())
    for name, at, colour in [("context", 0, CONTEXT), ("predicted", first, PREDICTED)] * (0 < first < T):
        axes.annotate(name, (GAP - 0.5 + pitch_x * at, -0.5), (0, 13), textcoords="offset points", color=colour,
                      size=8.2)
    if any(scores):
        below = axes.secondary_xaxis("bottom")
        below.set_xticks(axes.get_xticks(), scores, size=8.2)
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


def _sharp(image: np.ndarray, scale: int) -> np.ndarray:
    """An image (H, W, C) enlarged, so that viewers which smooth images show its pixels."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def panels(videos: dict[str, np.ndarray], *, n_past: int) -> np.ndarray:
    """Videos side by side as captioned pictures, uint8 (T, height, width, 3).

    Each has its name above it and a border that tells context from predicted frames; a line below counts the frames,
    so that no two pictures are equal. Raises ValueError as `_stack` does.
    """
    (T, H, W), size, bar = _stack(videos).shape[1:4], 3 * MOVING, 15
    cell, tall = MOVING * W + 2 * MOVING, MOVING * H + 2 * MOVING
    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)
    pictures = [Image.new("RGB", (len(videos) * (cell + MOVING) - MOVING, tall + 2 * bar), "white") for _ in range(T)]
    for t, picture in enumerate(pictures):
        kind, colour = ("context", CONTEXT) if t < n_past else ("predicted", PREDICTED)
        draw, foot = ImageDraw.Draw(picture), picture.height - bar / 2
        for column, (name, video) in enumerate(videos.items()):
            x = column * (cell + MOVING)
            draw.text((x + cell / 2, bar / 2), name, fill=INK, font=font, anchor="mm")
            picture.paste(ImageOps.expand(Image.fromarray(_sharp(video[t], MOVING)), MOVING, colour), (x, bar))
        draw.text((MOVING, foot), f"frame {t} of 0–{T - 1}", fill=INK, font=font, anchor="lm")
        draw.text((picture.width - MOVING, foot), kind, fill=colour, font=font, anchor="rm")
    return np.stack(pictures)


def gif(path: Path, videos: dict[str, np.ndarray], *, n_past: int) -> None:
    """Write the pictures of `panels`, 4 per second, as a GIF that loops for ever, all in the same 256 colours."""
    pictures = panels(videos, n_past=n_past)
    alike = few_colours(Image.fromarray(np.concatenate(pictures))).convert("RGB")       # below one another
    content = iio.imwrite("<bytes>", np.reshape(alike, pictures.shape), extension=".gif", duration=250, loop=0)
    write_atomically(path, lambda part: part.write_bytes(content))


def _stack(videos: dict[str, np.ndarray]) -> np.ndarray:
    """Videos of one shape as an array (videos, T, H, W, 3). Raises ValueError where they are anything else."""
    found = {name: (str(video.dtype), video.shape) for name, video in videos.items()}
    if len({*found.values()}) > 1 or not all(kind == "uint8" and len(shape) == 4 for kind, shape in found.values()):
        raise ValueError(f"{found}: expected uint8 (T, H, W, 3), alike for all. Scale [0, 1] by 255, round and convert")
    return np.stack(list(videos.values()))
