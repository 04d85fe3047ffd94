"""The drawings without data: autoencoders, the reparameterization trick, the architecture, teacher forcing.

`python figures/draw.py` writes them beside this file; notebooks show the committed files. One unit is one inch. Boxes
are deterministic, circles random; what is learned is blue, frames are white, the condition is green, losses orange.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as Line

from lab5.workbook.figures import FAINT, GREY, INK, MAUVE, NAVY, TEAL, VERMILION, WIDTH, save, styled

KINDS = {                                       # fill and edge of each kind of node
    "frame": ("#ffffff", INK), "learned": ("#dfe9f2", NAVY), "condition": ("#ddf0ec", TEAL),
    "latent": ("#eee6f1", MAUVE), "loss": ("#fbe5da", VERMILION)}


@dataclass(frozen=True)
class Node:
    """A drawn box; its points are where arrows start and end."""

    x: float
    y: float
    width: float
    height: float

    def at(self, dx: float, dy: float) -> tuple[float, float]:
        """A point of the box; (-1, -1) is its lower left corner and (1, 1) its upper right one."""
        return self.x + dx * self.width / 2, self.y + dy * self.height / 2

    left = property(lambda self: self.at(-1, 0))
    right = property(lambda self: self.at(1, 0))
    top = property(lambda self: self.at(0, 1))
    bottom = property(lambda self: self.at(0, -1))


def canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def halves(axes: Axes, x: float, height: float, *titles: str) -> None:
    """A rule at x, and a title over each side of it."""
    axes.plot((x, x), (0.42, height - 0.1), color=FAINT, lw=0.7)
    for left, title in zip((0.05, x + 0.15), titles, strict=True):
        write(axes, left, height - 0.13, title, ha="left", weight="bold", color=INK, size=9.2)


def write(axes: Axes, x: float, y: float, text: str, **style) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 8.2, "color": GREY, "linespacing": 1.25, **style})


def box(axes: Axes, x: float, y: float, text: str, kind: str, width: float = 0.62, height: float = 0.4,
        sides: tuple[float, float] = (1, 1)) -> Node:
    """A box around a text; `sides` are its heights at the left and the right: a coder is narrow where the code is.

    Many parameters, because a box is a place, a size and a look.
    """
    fill, edge = KINDS[kind]
    (a, b), w = (height / 2 * np.array(sides)), width / 2
    corners = [(x - w, y - a), (x - w, y + a), (x + w, y + b), (x + w, y - b)]
    axes.add_patch(patches.Polygon(corners, fc=fill, ec=edge, lw=0.9, joinstyle="round"))
    write(axes, x, y, text, color=INK, size=8.8)
    return Node(x, y, width, a + b)


def encoder(axes: Axes, x: float, y: float) -> Node:
    return box(axes, x, y, "Enc", "learned", 0.56, 0.62, (1, 0.64))


def decoder(axes: Axes, x: float, y: float) -> Node:
    return box(axes, x, y, "Dec", "learned", 0.56, 0.62, (0.64, 1))


def circle(axes: Axes, x: float, y: float, text: str, diameter: float = 0.42) -> Node:
    axes.add_patch(patches.Circle((x, y), diameter / 2, fc=KINDS["latent"][0], ec=MAUVE, lw=0.9))
    write(axes, x, y, text, color=INK, size=9.2)
    return Node(x, y, diameter, diameter)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = INK, dashed: bool = False) -> None:
    axes.add_patch(patches.FancyArrowPatch(path=Line(points), arrowstyle="-|>", mutation_scale=7, color=colour, lw=0.9,
                                           ls=(0, (3, 2)) if dashed else "-", joinstyle="round", zorder=3))


def chain(axes: Axes, *nodes: Node) -> None:
    """Arrows from each node to the next one on its right."""
    for start, end in zip(nodes, nodes[1:], strict=False):
        arrow(axes, start.right, end.left)


# The drawings --------------------------------------------------------------------------------------------

@styled
def autoencoders() -> Figure:
    """An autoencoder, whose code is a point, beside a variational one, whose code is a distribution."""
    figure, axes = canvas(2.35)
    halves(axes, 2.77, 2.35, "Autoencoder", "Variational autoencoder")
    y = 1.62
    chain(axes, box(axes, 0.22, y, "$x$", "frame", 0.3), encoder(axes, 0.82, y),
          box(axes, 1.38, y, "$z$", "latent", 0.26), decoder(axes, 1.92, y),
          box(axes, 2.5, y, r"$\hat{x}$", "frame", 0.3))
    chain(axes, box(axes, 3.08, y, "$x$", "frame", 0.3), encoder(axes, 3.68, y),
          box(axes, 4.34, y, "$\\mu$\n$\\log\\sigma^2$", "latent", 0.48, 0.46), circle(axes, 4.95, y, "$z$", 0.36),
          decoder(axes, 5.5, y), box(axes, 6.1, y, r"$\hat{x}$", "frame", 0.3))
    write(axes, 1.38, 0.24, "codes are points; a code between\nthem may not decode to a frame")
    for dx, dy, colour in ((-0.42, 0.1, NAVY), (-0.2, -0.2, VERMILION), (0.36, 0.17, TEAL), (0.15, -0.13, MAUVE)):
        axes.plot(1.38 + dx, 0.83 + dy, "o", color=colour, ms=4)
    write(axes, 4.56, 0.24, "codes are distributions, which the KL term draws\n"
                            r"towards $\mathcal{N}(0, I)$, so that its samples decode")
    axes.add_patch(patches.Circle((4.56, 0.83), 0.36, fc="none", ec=GREY, lw=0.8, ls=(0, (3, 2))))
    for dx, dy, w, h, colour in ((-0.2, 0.08, 0.34, 0.26, NAVY), (-0.08, -0.14, 0.36, 0.24, VERMILION),
                                 (0.17, 0.11, 0.36, 0.28, TEAL), (0.17, -0.1, 0.26, 0.3, MAUVE)):
        axes.add_patch(patches.Ellipse((4.56 + dx, 0.83 + dy), w, h, fc=colour, ec=colour, alpha=0.35, lw=0.8))
        axes.plot(4.56 + dx, 0.83 + dy, "o", color=colour, ms=2.5)
    write(axes, 5.02, 0.83, r"$\mathcal{N}(0, I)$", ha="left")
    return figure


@styled
def reparameterization() -> Figure:
    """Sampling inside the graph blocks the gradient; with the noise as an input it flows to mu and sigma."""
    figure, axes = canvas(3.05)
    halves(axes, WIDTH / 2, 3.05, "Sampled directly", "Reparameterized")
    for x, trick in ((1.35, False), (4.6, True)):
        box(axes, x, 0.68, "encoder", "learned", 1.5, 0.34)
        loss = box(axes, x, 2.62, "loss", "loss", 0.7, 0.3)
        z = (box(axes, x, 1.98, r"$z = \mu + \sigma\odot\epsilon$", "latent", 1.2, 0.38) if trick else
             circle(axes, x, 1.98, "$z$", 0.44))
        for name, side in ((r"$\mu$", -1), (r"$\sigma$", 1)):
            parameter = box(axes, x + 0.5 * side, 1.3, name, "latent", 0.5, 0.34)
            outer, inner, foot = 0.57 * side, 0.43 * side, z.at(0.6 * side, -1 if trick else -0.8)
            arrow(axes, (x + inner, 0.85), (x + inner, parameter.bottom[1]))
            arrow(axes, (x + inner, parameter.top[1]), (foot[0] - 0.07 * side * trick, foot[1]))
            if trick:
                for start, end in (((foot[0] + 0.07 * side, foot[1]), (x + outer, parameter.top[1])),
                                   ((x + outer, parameter.bottom[1]), (x + outer, 0.85))):
                    arrow(axes, start, end, colour=VERMILION, dashed=True)
        arrow(axes, (x - 0.07, z.top[1]), (x - 0.07, loss.bottom[1]))
        arrow(axes, (x + 0.07, loss.bottom[1]), (x + 0.07, z.top[1]), colour=VERMILION, dashed=True)
    axes.plot(1.42, 2.3, "x", color=VERMILION, ms=7, mew=1.8, zorder=4)
    write(axes, 1.6, 2.32, "stops: a draw\nhas no derivative", ha="left", color=VERMILION)
    write(axes, 1.67, 1.98, r"$z\sim\mathcal{N}(\mu, \sigma^2)$", ha="left")
    arrow(axes, circle(axes, 5.82, 1.98, r"$\epsilon$", 0.38).left, (5.2, 1.98))
    write(axes, 5.82, 1.62, r"$\mathcal{N}(0, I)$")
    for x, name, colour, dashed in ((0.9, "forward", INK, False), (2.1, "gradient", VERMILION, True)):
        arrow(axes, (x - 0.45, 0.15), (x - 0.1, 0.15), colour=colour, dashed=dashed)
        write(axes, x, 0.15, name, ha="left", color=colour)
    write(axes, 3.3, 0.15, "circle: random      box: deterministic", ha="left")
    return figure


@styled
def architecture(training: bool) -> Figure:
    """One time step of the CVAE. Training: z(t) from the posterior, two losses. Generation: z(t) from the prior,
    and the prediction fed back as the next input."""
    figure, axes = canvas(3.2 if training else 2.75)
    y, middle = 0.88, 1.62
    source = box(axes, 0.38, y, "$x_{t-1}$" if training else r"$\hat{x}_{t-1}$", "frame", 0.46)
    enc, dec = encoder(axes, 1.22, y), decoder(axes, 4.85, y)
    predictor = box(axes, 3.02, y, "frame predictor LSTM", "learned", 1.84, 0.44)
    output = box(axes, 5.86, y, r"$\hat{x}_t$", "frame", 0.46)
    c, z = box(axes, 2.5, middle, "$c_t$", "condition", 0.42, 0.36), circle(axes, 3.54, middle, "$z_t$")
    chain(axes, source, enc, predictor, dec, output)
    write(axes, 1.8, y + 0.11, "$h_{t-1}$", color=INK)
    write(axes, 4.25, y + 0.11, "$g_t$", color=INK)
    for node in (c, z):
        arrow(axes, node.bottom, (node.x, predictor.top[1]))
    recurrence(axes, predictor, -1)
    write(axes, 2.21, middle, "action and end-\neffector position", ha="right")
    arrow(axes, enc.bottom, (enc.x, 0.16), (dec.x, 0.16), dec.bottom, colour=NAVY, dashed=True)
    write(axes, predictor.x, 0.28, "skips of the last context frame", color=NAVY)
    (posterior_and_losses if training else prior_and_feedback)(axes, source, c, z, output)
    return figure


def recurrence(axes: Axes, node: Node, side: int) -> None:
    """A small loop at the lower (-1) or upper (1) edge: the state is carried to the next step."""
    x, y = node.at(0, side)
    arrow(axes, (x + 0.16, y), (x + 0.16, y + 0.15 * side), (x - 0.16, y + 0.15 * side), (x - 0.16, y), colour=GREY)


def posterior_and_losses(axes: Axes, source: Node, c: Node, z: Node, output: Node) -> None:
    """What only training has: the posterior, which is given the frame to predict, and the two losses."""
    y, over = 2.42, 3.02
    target, enc = box(axes, source.x, y, "$x_t$", "frame", 0.46), encoder(axes, 1.22, y)
    posterior = box(axes, c.x, y, "posterior\nLSTM", "learned", 0.8, 0.44)
    q = box(axes, z.x, y, r"$\mu_t,\ \sigma_t$", "latent", 0.62, 0.36)
    kl = box(axes, 4.75, y, "KL loss\n" + r"to $\mathcal{N}(0, I)$", "loss", 0.9, 0.44)
    mse = box(axes, output.x, c.y, "L2 loss", "loss", 0.62, 0.36)
    chain(axes, target, enc, posterior, q, kl)
    for start, end in ((c.top, posterior.bottom), (q.bottom, z.top), (output.top, mse.bottom)):
        arrow(axes, start, end)
    arrow(axes, target.top, (target.x, over), (output.x, over), mse.top)
    recurrence(axes, posterior, 1)
    write(axes, 1.8, y + 0.11, "$h_t$", color=INK)
    write(axes, 0.06, 0.46, "or $\\hat{x}_{t-1}$,\nif not forced", ha="left")
    write(axes, 3.85, c.y, r"$z_t = \mu_t + \sigma_t\odot\epsilon$", ha="left")


def prior_and_feedback(axes: Axes, source: Node, c: Node, z: Node, output: Node) -> None:
    """What only generation has: z from the prior, and the way back from the prediction to the next input."""
    arrow(axes, box(axes, z.x, 2.2, r"prior $\mathcal{N}(0, I)$", "latent", 1.0, 0.32).bottom, z.top)
    arrow(axes, output.top, (output.x, 2.58), (source.x, 2.58), source.top, colour=VERMILION)
    write(axes, 0.52, 2.4, "the prediction is the next input", ha="left", color=VERMILION)
    write(axes, 0.06, 0.46, "at first the last\ncontext frame", ha="left")


@styled
def teacher_forcing() -> Figure:
    """Three steps that are given the true frames beside three that are given their own predictions."""
    figure, axes = canvas(2.5)
    halves(axes, WIDTH / 2, 2.5, "Teacher forcing: ratio 1", "Free running: ratio 0, as in testing")
    for x, forced in ((0.47, True), (3.72, False)):
        models = [box(axes, x + step, 1.05, "model", "learned", 0.66) for step in range(3)]
        outputs = [box(axes, x + step, 1.75, rf"$\hat{{x}}_{step + 2}$", "frame", 0.34, 0.36) for step in range(3)]
        for step, (model, output) in enumerate(zip(models, outputs, strict=True)):
            arrow(axes, model.top, output.bottom)
            if step == 0 or forced:
                given = box(axes, x + step, 0.35, f"$x_{step + 1}$", "frame", 0.34, 0.36)
                arrow(axes, given.top, model.bottom, colour=TEAL)
            else:
                turn = model.left[0] + 0.08                                        # clear of the box above
                arrow(axes, outputs[step - 1].right, (turn, 1.75), (turn, model.top[1]), colour=VERMILION)
        chain(axes, *models)
    write(axes, 0.05, 2.18, "each step is given the true frame", ha="left")
    write(axes, 3.3, 2.18, "each step is given its own prediction", ha="left")
    write(axes, 4.07, 0.35, "the last context frame, then\nonly predictions", ha="left")
    return figure


DRAWINGS = {"00_autoencoders": autoencoders, "01_reparameterization": reparameterization,
            "03_training": lambda: architecture(True), "03_generation": lambda: architecture(False),
            "03_teacher_forcing": teacher_forcing}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        save(draw(), Path(__file__).parent, name)
