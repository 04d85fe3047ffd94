"""Stepping through a prediction in the notebook: a player, and the strip that stands in for it on paper."""

from __future__ import annotations

import imageio.v3 as iio
import ipywidgets
import numpy as np
from IPython.display import Image, display

from lab5 import figures

NO_FRONT_END = "(Here JupyterLab shows a player that steps through these frames.)"


def player(panels: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None,
           scale: int = 4) -> ipywidgets.VBox:
    """Videos side by side with a play button and a slider, which the arrow keys move too.

    Args:
        panels: name -> uint8 (T, H, W, C), all of one shape.
        psnr: (T - n_past,) dB of the predicted frames, told with each.
        scale: side of a pixel on the screen.
    Raises:
        ValueError: a video that is not uint8, or shapes or lengths that differ.
    """
    pictures = figures.panel_frames(panels, n_past=n_past, scale=scale)
    figures.check_scores(psnr, len(pictures) - n_past)
    encoded = [iio.imwrite("<bytes>", picture, extension=".png") for picture in pictures]
    captions = [_caption(t, n_past, psnr) for t in range(len(pictures))]

    image = ipywidgets.Image(value=encoded[0], format="png", width=pictures[0].shape[1],
                             layout=ipywidgets.Layout(max_width="100%", object_fit="contain"))
    caption = ipywidgets.HTML(captions[0])
    slider = ipywidgets.IntSlider(0, 0, len(pictures) - 1, description="frame", layout={"width": "22em"})
    play = ipywidgets.Play(value=0, min=0, max=len(pictures) - 1, interval=250, repeat=True)
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def show(change: dict) -> None:
        image.value, caption.value = encoded[change["new"]], captions[change["new"]]

    slider.observe(show, names="value")
    return ipywidgets.VBox([image, ipywidgets.HBox([play, slider]), caption])


def _caption(t: int, n_past: int, psnr: np.ndarray | None) -> str:
    if t < n_past:
        return f"frame {t}: context"
    return f"frame {t}: predicted" + (f", PSNR {psnr[t - n_past]:.1f} dB" if psnr is not None else "")


def step_through(panels: dict[str, np.ndarray], *, n_past: int, psnr: np.ndarray | None = None) -> None:
    """Show the videos as a static strip, and under it the player.

    The strip stays in every export; where no front end listens, a line of text stands for the player.
    Raises ValueError as `player` does.
    """
    widget = player(panels, n_past=n_past, psnr=psnr)
    strip = figures.strip(panels, n_past=n_past, psnr=psnr)
    display(Image(data=figures.render(strip, "png"), width=round(96 * strip.get_figwidth() * 1.15),
                  alt=f"Frames of {', '.join(panels)}, the first {n_past} of them context"))
    display({**widget._repr_mimebundle_(), "text/plain": NO_FRONT_END}, raw=True)
