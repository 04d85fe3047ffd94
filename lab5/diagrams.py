"""The schematic drawings: autoencoders, the reparameterization trick, the architecture, teacher forcing.

One unit is one inch, so that sizes and places in the code are those on paper. Boxes are deterministic,
circles random; what is learned is blue, frames are white, the condition is green, losses are orange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path

from lab5.figures import FAINT, GREY, INK, MAUVE, NAVY, TEAL, VERMILION, WIDTH, styled

Point = tuple[float, float]
KINDS = {                                       # fill and edge of each kind of node
    "frame": ("#ffffff", INK),
    "learned": ("#dfe9f2", NAVY),
    "condition": ("#ddf0ec", TEAL),
    "latent": ("#eee6f1", MAUVE),
    "loss": ("#fbe5da", VERMILION),
}


@dataclass(frozen=True)
class Node:
    """A drawn box; its points are where arrows start and end."""

    x: float
    y: float
    width: float
    height: float

    def at(self, dx: float, dy: float) -> Point:
        """A point of the box; (-1, -1) is its lower left corner and (1, 1) its upper right one."""
        return self.x + dx * self.width / 2, self.y + dy * self.height / 2

    @property
    def left(self) -> Point:
        return self.at(-1, 0)

    @property
    def right(self) -> Point:
        return self.at(1, 0)

    @property
    def top(self) -> Point:
        return self.at(0, 1)

    @property
    def bottom(self) -> Point:
        return self.at(0, -1)


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _text(axes: Axes, x: float, y: float, text: str, **style) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 7, "color": GREY, "linespacing": 1.25, **style})


def _box(axes: Axes, x: float, y: float, text: str, kind: str, width: float = 0.62, height: float = 0.4) -> Node:
    fill, edge = KINDS[kind]
    corner = 0.0 if kind == "frame" else 0.05
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, fc=fill, ec=edge, lw=0.9,
                                  boxstyle=f"round,pad=0,rounding_size={corner}"))
    _text(axes, x, y, text, color=INK, size=7.5)
    return Node(x, y, width, height)


def _circle(axes: Axes, x: float, y: float, text: str, kind: str = "latent", diameter: float = 0.42) -> Node:
    fill, edge = KINDS[kind]
    axes.add_patch(Circle((x, y), diameter / 2, fc=fill, ec=edge, lw=0.9))
    _text(axes, x, y, text, color=INK, size=8)
    return Node(x, y, diameter, diameter)


def _coder(axes: Axes, x: float, y: float, text: str, opens: int, width: float = 0.62, height: float = 0.62) -> Node:
    """An encoder (opens -1) or decoder (opens 1): a trapezoid whose narrow side is the code's."""
    sides = height / 2 * (1 - 0.36 * (opens > 0)), height / 2 * (1 - 0.36 * (opens < 0))
    left, right = x - width / 2, x + width / 2
    fill, edge = KINDS["learned"]
    axes.add_patch(Polygon([(left, y - sides[0]), (left, y + sides[0]), (right, y + sides[1]), (right, y - sides[1])],
                           fc=fill, ec=edge, lw=0.9, joinstyle="round"))
    _text(axes, x, y, text, color=INK, size=7.5)
    return Node(x, y, width, sum(sides))                                       # the height at mid-width


def _arrow(axes: Axes, *points: Point, colour: str = INK, dashed: bool = False, head: bool = True) -> None:
    """An arrow along straight pieces with rounded corners."""
    corners, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        corners += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*corners, points[-1]], [*codes, Path.LINETO])
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>" if head else "-", mutation_scale=7, color=colour,
                                   lw=0.9, ls=(0, (3, 2)) if dashed else "-", shrinkA=0, shrinkB=0, zorder=3))


def _towards(corner: Point, other: Point, distance: float = 0.08) -> Point:
    delta = np.subtract(other, corner)
    return tuple(corner + delta / np.hypot(*delta) * distance)


# ---- the drawings ----

@styled
def autoencoders() -> Figure:
    """An autoencoder, whose code is a point, beside a variational one, whose code is a distribution."""
    figure, axes = _canvas(2.35)
    axes.plot((2.75, 2.75), (0.1, 2.25), color=FAINT, lw=0.7)
    _text(axes, 0.05, 2.22, "Autoencoder", ha="left", weight="bold", color=INK, size=8)
    _text(axes, 2.92, 2.22, "Variational autoencoder", ha="left", weight="bold", color=INK, size=8)

    y = 1.62
    x, encoder, z = _box(axes, 0.22, y, "$x$", "frame", 0.3), _coder(axes, 0.82, y, "Enc", -1, 0.5), _box(
        axes, 1.36, y, "$z$", "latent", 0.26)
    decoder, output = _coder(axes, 1.88, y, "Dec", 1, 0.5), _box(axes, 2.46, y, r"$\hat{x}$", "frame", 0.3)
    for start, end in ((x, encoder), (encoder, z), (z, decoder), (decoder, output)):
        _arrow(axes, start.right, end.left)
    _text(axes, 1.36, 0.28, "codes are points; what lies between\nthem need not decode to a frame")
    for dx, dy, colour in ((-0.42, 0.1, NAVY), (-0.2, -0.2, VERMILION), (0.36, 0.17, TEAL), (0.15, -0.13, MAUVE)):
        axes.plot(1.36 + dx, 0.83 + dy, "o", color=colour, ms=4)

    x, encoder = _box(axes, 3.07, y, "$x$", "frame", 0.3), _coder(axes, 3.67, y, "Enc", -1, 0.5)
    q = _box(axes, 4.3, y, "$\\mu$\n$\\log\\sigma^2$", "latent", 0.48, 0.46)
    z, decoder = _circle(axes, 4.95, y, "$z$", diameter=0.36), _coder(axes, 5.5, y, "Dec", 1, 0.5)
    output = _box(axes, 6.08, y, r"$\hat{x}$", "frame", 0.3)
    for start, end in ((x, encoder), (encoder, q), (q, z), (z, decoder), (decoder, output)):
        _arrow(axes, start.right, end.left)
    _text(axes, 4.56, 0.28, "codes are distributions, which the KL term draws\n"
                            r"towards $\mathcal{N}(0, I)$, so that its samples decode")
    axes.add_patch(Circle((4.56, 0.83), 0.36, fc="none", ec=GREY, lw=0.8, ls=(0, (3, 2))))
    for dx, dy, w, h, colour in ((-0.2, 0.08, 0.34, 0.26, NAVY), (-0.08, -0.14, 0.36, 0.24, VERMILION),
                                 (0.17, 0.11, 0.36, 0.28, TEAL), (0.17, -0.1, 0.26, 0.3, MAUVE)):
        axes.add_patch(Ellipse((4.56 + dx, 0.83 + dy), w, h, fc=colour, ec=colour, alpha=0.35, lw=0.8))
        axes.plot(4.56 + dx, 0.83 + dy, "o", color=colour, ms=2.5)
    _text(axes, 5.02, 0.83, r"$\mathcal{N}(0, I)$", ha="left")
    return figure


@styled
def reparameterization() -> Figure:
    """Sampling inside the graph blocks the gradient; with the noise as an input it flows to mu and sigma."""
    figure, axes = _canvas(3.05)
    axes.plot((WIDTH / 2,) * 2, (0.42, 2.95), color=FAINT, lw=0.7)
    for x, title, trick in ((0.05, "Sampled directly", False), (WIDTH / 2 + 0.15, "Reparameterized", True)):
        _text(axes, x, 2.92, title, ha="left", weight="bold", color=INK, size=8)
        _sampling(axes, x + 1.3, trick)
    key = ((0.9, "forward", INK, False), (2.1, "gradient", VERMILION, True))
    for x, name, colour, dashed in key:
        _arrow(axes, (x - 0.45, 0.15), (x - 0.1, 0.15), colour=colour, dashed=dashed)
        _text(axes, x, 0.15, name, ha="left", color=colour)
    _text(axes, 3.3, 0.15, "circle: random      box: deterministic", ha="left")
    return figure


def _sampling(axes: Axes, x: float, trick: bool) -> None:
    """One half of the drawing: from the encoder below to the loss above."""
    _box(axes, x, 0.68, "encoder", "learned", 1.5, 0.34)
    mu = _box(axes, x - 0.5, 1.3, r"$\mu$", "latent", 0.5, 0.34)
    sigma = _box(axes, x + 0.5, 1.3, r"$\sigma$", "latent", 0.5, 0.34)
    loss = _box(axes, x, 2.62, "loss", "loss", 0.7, 0.3)
    if trick:
        z = _box(axes, x, 1.98, r"$z = \mu + \sigma\odot\epsilon$", "latent", 1.2, 0.38)
        noise = _circle(axes, x + 1.22, 1.98, r"$\epsilon$", diameter=0.38)
        _text(axes, x + 1.22, 1.62, r"$\mathcal{N}(0, I)$")
        _arrow(axes, noise.left, z.right)
    else:
        z = _circle(axes, x, 1.98, "$z$", diameter=0.44)
        _text(axes, x + 0.32, 1.98, r"$z\sim\mathcal{N}(\mu, \sigma^2)$", ha="left")
    for parameter in (mu, sigma):
        side = np.sign(parameter.x - x)
        foot = z.at(0.75 * side, -1) if trick else z.at(0.6 * side, -0.8)      # (0.6, 0.8) is on the circle
        _arrow(axes, (parameter.x - 0.07 * side, 0.85), parameter.at(-0.28 * side, -1))
        _arrow(axes, parameter.at(-0.28 * side, 1), (foot[0] - 0.1 * side * trick, foot[1]))
        if trick:
            _arrow(axes, foot, parameter.at(0.28 * side, 1), colour=VERMILION, dashed=True)
            _arrow(axes, parameter.at(0.28 * side, -1), (parameter.x + 0.07 * side, 0.85), colour=VERMILION,
                   dashed=True)
    _arrow(axes, z.at(-0.1, 1), (z.at(-0.1, 0)[0], loss.bottom[1]))
    _arrow(axes, (x + 0.1, loss.bottom[1]), (x + 0.1, z.top[1]), colour=VERMILION, dashed=True)
    if not trick:
        axes.plot(x + 0.1, 2.28, "x", color=VERMILION, ms=7, mew=1.8, zorder=4)
        _text(axes, x + 0.26, 2.3, "stops: a draw\nhas no derivative", ha="left", color=VERMILION)


@styled
def architecture(mode: Literal["training", "generation"]) -> Figure:
    """One time step of the CVAE. Training: z(t) from the posterior, two losses. Generation: z(t) from the prior,
    and the prediction fed back as the next input.

    Raises ValueError on another mode.
    """
    if mode not in ("training", "generation"):
        raise ValueError(f"unknown mode {mode!r}; the modes are training and generation")
    figure, axes = _canvas(3.2 if mode == "training" else 2.75)
    y, middle = 0.88, 1.62
    source = _box(axes, 0.38, y, "$x_{t-1}$" if mode == "training" else r"$\hat{x}_{t-1}$", "frame", 0.46)
    encoder = _coder(axes, 1.22, y, "Enc", -1)
    predictor = _box(axes, 3.02, y, "frame predictor LSTM", "learned", 1.84, 0.44)
    decoder = _coder(axes, 4.85, y, "Dec", 1)
    output = _box(axes, 5.86, y, r"$\hat{x}_t$", "frame", 0.46)
    c, z = _box(axes, 2.5, middle, "$c_t$", "condition", 0.42, 0.36), _circle(axes, 3.54, middle, "$z_t$")
    _arrow(axes, source.right, encoder.left)
    _labelled(axes, encoder, predictor, "$h_{t-1}$")
    _labelled(axes, predictor, decoder, "$g_t$")
    _arrow(axes, decoder.right, output.left)
    for node in (c, z):
        _arrow(axes, node.bottom, (node.x, predictor.top[1]))
    _recurrence(axes, predictor)
    _text(axes, c.left[0] - 0.08, middle, "action and end-\neffector position", ha="right")
    _arrow(axes, encoder.bottom, (encoder.x, 0.16), (decoder.x, 0.16), decoder.bottom, colour=NAVY, dashed=True)
    _text(axes, predictor.x, 0.28, "skips of the last context frame", color=NAVY)
    (_posterior_and_losses if mode == "training" else _prior_and_feedback)(axes, source, c, z, output)
    return figure


def _posterior_and_losses(axes: Axes, source: Node, c: Node, z: Node, output: Node) -> None:
    """What only training has: the posterior, which sees the frame to predict, and the two losses."""
    y, over = 2.42, 3.02
    target, encoder = _box(axes, source.x, y, "$x_t$", "frame", 0.46), _coder(axes, 1.22, y, "Enc", -1)
    posterior = _box(axes, c.x, y, "posterior\nLSTM", "learned", 0.8, 0.44)
    q = _box(axes, z.x, y, r"$\mu_t,\ \sigma_t$", "latent", 0.62, 0.36)
    kl = _box(axes, 4.75, y, "KL loss\n" + r"to $\mathcal{N}(0, I)$", "loss", 0.9, 0.44)
    l2 = _box(axes, output.x, c.y, "L2 loss", "loss", 0.62, 0.36)
    _arrow(axes, target.right, encoder.left)
    _labelled(axes, encoder, posterior, "$h_t$")
    _arrow(axes, c.top, posterior.bottom)
    _arrow(axes, posterior.right, q.left)
    _arrow(axes, q.bottom, z.top)
    _arrow(axes, q.right, kl.left)
    _arrow(axes, output.top, l2.bottom)
    _arrow(axes, target.top, (target.x, over), (output.x, over), l2.top)
    _recurrence(axes, posterior, 1)
    _text(axes, 0.06, 0.46, "or $\\hat{x}_{t-1}$,\nif not forced", ha="left")
    _text(axes, z.right[0] + 0.1, c.y, r"$z_t = \mu_t + \sigma_t\odot\epsilon$", ha="left")


def _prior_and_feedback(axes: Axes, source: Node, c: Node, z: Node, output: Node) -> None:
    """What only generation has: z from the prior, and the way back from the prediction to the next input."""
    over = 2.58
    prior = _box(axes, z.x, 2.2, r"prior $\mathcal{N}(0, I)$", "latent", 1.0, 0.32)
    _arrow(axes, prior.bottom, z.top)
    _arrow(axes, output.top, (output.x, over), (source.x, over), source.top, colour=VERMILION)
    _text(axes, 0.52, 2.4, "the prediction is the next input", ha="left", color=VERMILION)
    _text(axes, 0.06, 0.46, "at first the last\ncontext frame", ha="left")


def _labelled(axes: Axes, start: Node, end: Node, text: str) -> None:
    """A level arrow with the name of what it carries above it."""
    _arrow(axes, start.right, end.left)
    _text(axes, (start.right[0] + end.left[0]) / 2, start.y + 0.11, text, color=INK, size=7.5)


def _recurrence(axes: Axes, node: Node, side: int = -1) -> None:
    """A small loop at the lower (-1) or upper (1) edge: the state goes on to the next step."""
    x, y = node.at(0, side)
    _arrow(axes, (x + 0.16, y), (x + 0.16, y + 0.15 * side), (x - 0.16, y + 0.15 * side), (x - 0.16, y), colour=GREY)


@styled
def teacher_forcing() -> Figure:
    """Three steps that are given the true frames beside three that are given their own predictions."""
    figure, axes = _canvas(2.5)
    axes.plot((WIDTH / 2,) * 2, (0.1, 2.4), color=FAINT, lw=0.7)
    for x, title, words, forced in (
            (0.05, "Teacher forcing: ratio 1", "each step is given the true frame", True),
            (WIDTH / 2 + 0.15, "Free running: ratio 0, as in testing", "each step is given its own prediction", False)):
        _text(axes, x, 2.38, title, ha="left", weight="bold", color=INK, size=8)
        _text(axes, x, 2.2, words, ha="left")
        _chain(axes, x + 0.42, forced)
    return figure


def _chain(axes: Axes, x: float, forced: bool) -> None:
    previous = None
    for step in range(3):
        model = _box(axes, x + step, 1.05, "model", "learned", 0.66, 0.4)
        output = _box(axes, x + step, 1.75, rf"$\hat{{x}}_{step + 2}$", "frame", 0.34, 0.36)
        _arrow(axes, model.top, output.bottom)
        if step == 0 or forced:
            given = _box(axes, x + step, 0.35, f"$x_{step + 1}$", "frame", 0.34, 0.36)
            _arrow(axes, given.top, model.bottom, colour=TEAL)
        else:
            turn = model.left[0] + 0.08                                        # clear of the box above
            _arrow(axes, previous[1].right, (turn, 1.75), (turn, model.top[1]), colour=VERMILION)
        if previous:
            _arrow(axes, previous[0].right, model.left, colour=GREY)
            _text(axes, (previous[0].right[0] + model.left[0]) / 2, 0.95, "state", size=6.5)
        previous = model, output
    if not forced:
        _text(axes, x + 0.35, 0.35, "the last context frame, then\nnothing but predictions", ha="left")
