"""The picture of the simulated robot: the camera, the tray it looks into, and shading by ray casting.

MuJoCo finds what each camera ray hits (`mj_multiRay` needs neither OpenGL nor a graphics card), numpy gives
it a colour. The camera and the tray never move, so the tray is painted once an episode, and a frame casts
rays at the arm and the toys alone. Lengths are metres in the robot's frame: x away from the robot and
towards the camera, y to the picture's right, z up.
"""

from __future__ import annotations

from functools import cache

import mujoco
import numpy as np
from PIL import Image, ImageDraw

SIZE = 64                                       # pixels, height and width
VISIBLE = 1                                     # the geom group that rays see: arm and toys, not the tray
PATTERNS = ("plain", "stripes", "spots", "fur")                 # what a geom's second colour makes of it

# The camera stands opposite the robot and looks down. It and the tray are fitted to real frames: to the floor's
# outline in the picture and to where the fingertips are seen at known positions.
EYE = np.array([1.16, -0.05, 0.60])
FOCAL, PITCH = 64.9, np.radians(42)             # pixels; below the horizon
_ACROSS = np.array([0.0, 1.0, 0.0])
_AHEAD = np.array([-np.cos(PITCH), 0.0, -np.sin(PITCH)])
_DOWN = np.array([np.sin(PITCH), 0.0, -np.cos(PITCH)])

# The tray: a floor and four boards that lean outward, five planes around a convex bowl
FLOOR = 0.17                                    # m, its height
_FLOOR, _FRONT, _BACK, _LEFT, _RIGHT = range(5)
_FEET = ((0, 0), (0.82, 0), (0.29, 0), (0, -0.30), (0, 0.20))   # where each meets the floor, (x, y)
_INWARD = ((0, 0), (-1, 0), (1, 0), (0, 1), (0, -1))            # the way to the middle from there
_RISE = np.radians([0, 15, 55, 38, 38])                         # and how steep it is
TRAY = np.column_stack([_FEET, np.full(5, FLOOR), _INWARD * np.sin(_RISE)[:, None], np.cos(_RISE)])
#   rows of (point, inward normal), (5, 6)

# Light: a lamp above for soft cast shadows, the sky for everything else
_LAMP = np.array([0.75, 0.1, 1.9])
_TO_LAMP = (_LAMP - [0.6, -0.05, FLOOR]) / np.linalg.norm(_LAMP - [0.6, -0.05, FLOOR])
_COARSE = 2                                     # pixels a side that share one value of the shadow, which is soft
_EDGE = np.array([(-.45, -.15), (.15, -.45), (.45, .15), (-.15, .45)])     # rays through a pixel on an outline


def _directions(pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 3) through the picture's points (n, 2), which are (column, row) from 0 to SIZE."""
    across, down = ((pixels - SIZE / 2) / FOCAL).T
    rays = _AHEAD + across[:, None] * _ACROSS + down[:, None] * _DOWN
    return rays / np.sqrt((rays * rays).sum(1, keepdims=True))


def _bowl(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays (n, 3) from the eye meet the tray, (n, 3), and which of its planes they meet, (n,)."""
    points, normals = TRAY[:, :3], TRAY[:, 3:]
    slope = np.einsum("ni,pi->np", rays, normals)                                   # (n, 5)
    distance = np.where(slope < -1e-6, ((points - EYE) * normals).sum(1) / np.minimum(slope, -1e-6), 10).clip(max=10)
    return EYE + rays * distance.min(1, keepdims=True), distance.argmin(1)


def _points(step: float) -> np.ndarray:
    """Centres (n, 2) of squares of `step` pixels, as (column, row), row by row."""
    at = np.arange(step / 2, SIZE, step)
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


_PIXELS = _points(1)
_RAYS = _directions(_PIXELS)
_GROUND, _PLANE = _bowl(_directions(_points(_COARSE)))                              # where shadows may fall
_UPWARD = TRAY[_PLANE, 3:]
_FROM_LAMP = _GROUND - _LAMP
_LAMP_DISTANCE = np.linalg.norm(_FROM_LAMP, axis=1)
_FROM_LAMP /= _LAMP_DISTANCE[:, None]


def _blend(outputs: int, inputs: int, reach: float) -> np.ndarray:
    """Weights (outputs, inputs) that make each output a mean of the inputs within so many inputs' widths."""
    apart = (np.arange(outputs)[:, None] + 0.5) / outputs * inputs - (np.arange(inputs) + 0.5)
    weights = (1 - np.abs(apart) / reach).clip(1e-9)
    return weights / weights.sum(1, keepdims=True)


_ENLARGE = _blend(SIZE, SIZE // _COARSE, reach=1)
_SOFTEN = _blend(SIZE, SIZE // _COARSE, reach=4)


class Scene:
    """The look of one episode: the tray as painted, and the light. It renders what stands in the tray."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._gain = rng.uniform(0.94, 1.04)
        self._grain = rng.normal(0, 0.003, (SIZE, SIZE, 3))
        self._tray = _paint(rng)                                                    # (4096, 3)

    def render(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The camera's frame, uint8 (64, 64, 3), of the poses in `data`."""
        picture = self._tray * _shadow(model, data)[:, None]
        geom, *rest = _cast(model, data, EYE, _RAYS)
        outline = _outlines(geom.reshape(SIZE, SIZE))
        inner, edge = np.flatnonzero((geom >= 0) & ~outline), np.flatnonzero(outline)
        picture[inner] = _surface(model, data, _RAYS[inner], geom[inner], *(found[inner] for found in rest))

        finer = picture[edge].repeat(len(_EDGE), axis=0)        # outlines are smooth: the mean of several rays
        rays = _directions((_PIXELS[edge, None] + _EDGE).reshape(-1, 2))
        geom, *rest = _cast(model, data, EYE, rays)
        seen = np.flatnonzero(geom >= 0)
        finer[seen] = _surface(model, data, rays[seen], geom[seen], *(found[seen] for found in rest))
        picture[edge] = finer.reshape(len(edge), len(_EDGE), 3).mean(1)

        picture = picture.reshape(SIZE, SIZE, 3) * self._gain + self._grain
        picture[0], picture[:, 0] = 0, 0                        # as in every real frame
        return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


# The tray's paint ----------------------------------------------------------------------------------------

_FINE = 3                                       # samples a pixel side


@cache
def _canvas() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Column, row, point on the tray (n, 3) and plane of each of the painting's samples."""
    pixels = _points(1 / _FINE)
    return *pixels.T, *_bowl(_directions(pixels))


def _paint(rng: np.random.Generator) -> np.ndarray:
    """The empty tray and what is seen around it, (4096, 3), in one of the lights that the real one was seen in."""
    column, row, where, plane = _canvas()
    daylight, warmth = rng.uniform(0, 1) ** 1.5, rng.normal(0.2, 0.9)

    wood = np.array([0.905, 0.88, 0.785]) + warmth * np.array([0.01, -0.01, -0.05])
    grain = _noise(rng, (14, 130), (256, 1024))
    veins = grain[((where[:, 0] + 1) * 120).astype(int) % 256, ((where[:, 1] + 1) * 700).astype(int) % 1024]
    broad = _noise(rng, (5, 5), (SIZE * _FINE, SIZE * _FINE)).ravel()
    colour = wood * (1 + 0.05 * veins + 0.04 * broad)[:, None]

    def lay(mask: np.ndarray, paint, share=1.0) -> None:
        share = share[mask, None] if np.ndim(share) else share
        colour[mask] = colour[mask] * (1 - share) + np.asarray(paint) * share

    floor = plane == _FLOOR                                     # darker towards the robot
    colour[floor] *= (0.86 + 0.15 * ((row[floor] - 14) / 28).clip(0, 1))[:, None]
    # daylight from the left and the right of the camera whitens the boards, the far one most
    glow = ((32 - row) / 22).clip(0, 1) * (0.3 + 0.7 * daylight)
    lay(plane == _LEFT, (0.84, 0.92, 1.0), glow * (1 - ((column - 8) / 14).clip(0, 1)))
    colour[plane == _LEFT] *= 0.97
    colour[plane == _RIGHT] *= [0.88, 0.88, 0.82]
    y, foot = where[:, 1], TRAY[[_LEFT, _RIGHT], 1]
    colour *= 1 - 0.25 * np.exp(-(np.abs(y[:, None] - foot).min(1) / 0.006) ** 2)[:, None]         # the boards' joints
    lay(plane == _FRONT, (0.89, 0.88, 0.82), 0.65)
    shine = daylight * (0.45 + 0.55 * column / SIZE + 0.5 * broad)
    lay(plane == _FRONT, (0.93, 0.99, 1.05), shine.clip(0, 1))
    lay(plane == _BACK, (1.04, 1.03, 0.97), ((where[:, 2] - FLOOR) / 0.04).clip(0, 1) * rng.uniform(0.2, 1) ** 0.5)

    # two steel corners, and what is seen over the tray's rim: all as it lies in the real picture
    steel = (np.array([0.47, 0.53, 0.55]) + 0.12 * daylight) * (1 + 0.15 * broad)[:, None]
    for light, *corners in ((1.2, (-1, 7.5), (9, 1), (15, 1), (15, 7), (10, 13)),
                            (0.85, (8, 3), (15, 1), (15, 7), (10, 13)),
                            (0.95, (51, 1), (56, 1), (65, 8), (51, 13)),
                            (1.15, (56, 1), (65, 8), (61, 9), (51, 4))):
        lay(mask := _inside(*corners), steel[mask] * light, 0.85)
    lay(_inside((-1, -1), (8, -1), (-1, 7)), (0.16, 0.15, 0.14), 0.85)
    lay(_inside((57, -1), (65, -1), (65, 6)), (0.16, 0.15, 0.14), 0.7)
    clutter = rng.uniform(0.05, 1, (SIZE // 2 + 1, 1)) * [0.84, 0.85, 0.88]
    lay(row < 2.2, clutter[(column[row < 2.2] / 2).astype(int)], 0.8)
    lay(_inside((32, 0), (37, 0), (37, 2.2), (32, 2.2)), (0.4, 0.08, 0.1), 0.9)
    lay(_inside((-1, 43), (3.5, 43), (1, 47), (-1, 47)), (0.12, 0.14, 0.16), 0.9)
    lay(_inside((62.6, 43), (65, 43), (65, 45)), (0.2, 0.2, 0.2), 0.8)
    # the table in front of the tray, with its two legs
    lay(row > 58, (0.52, 0.48, 0.37))
    lay(row > 60.2, (0.31, 0.21, 0.08))
    for left in (20.5, 46):
        lay(_inside((left - 1.2, 60.2), (left + 1.4, 60.2), (left + 2.2, 65), (left, 65)), (0.44, 0.42, 0.33))
    picture = colour.clip(0, 1.05).reshape(SIZE, _FINE, SIZE, _FINE, 3).mean((1, 3)).reshape(-1, 3)
    return picture + rng.normal(0, 0.006, (len(picture), 1))


@cache
def _inside(*corners: tuple[float, float]) -> np.ndarray:
    """Which of the painting's samples lie in a polygon of the picture's points, (column, row)."""
    mask = Image.new("1", (SIZE * _FINE, SIZE * _FINE))
    ImageDraw.Draw(mask).polygon([(column * _FINE, row * _FINE) for column, row in corners], fill=1)
    return np.asarray(mask).ravel()


def _noise(rng: np.random.Generator, bumps: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Smooth noise of a shape, within -1 to 1, with so many bumps along each axis."""
    values = rng.uniform(-1, 1, (bumps[0] + 2, bumps[1] + 2))
    for axis, (count, size) in enumerate(zip(bumps, shape, strict=True)):
        at = np.linspace(0, count, size)
        low = at.astype(int)
        part = (at - low) ** 2 * (3 - 2 * (at - low))
        part = part[:, None] if axis == 0 else part
        values = values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part
    return values


# Shading -------------------------------------------------------------------------------------------------

def _surface(model: mujoco.MjModel, data: mujoco.MjData, rays: np.ndarray, geom: np.ndarray, distance: np.ndarray,
             normal: np.ndarray) -> np.ndarray:
    """Colours (n, 3) where rays (n, 3) from the eye hit geoms (n,) at distances (n,), with normals (n, 3)."""
    points = EYE + rays * distance[:, None]
    axes = data.geom_xmat.reshape(-1, 3, 3)[geom]
    local = np.einsum("ni,nij->nj", points - data.geom_xpos[geom], axes)            # patterns move with the geom
    pattern, second, gloss = np.split(model.geom_user[geom], [1, 4], axis=1)
    mix = np.choose(pattern[:, 0].astype(int), [
        np.zeros(len(geom)),
        (0.5 + 1.2 * np.sin(local.sum(1) * 190)).clip(0, 1),
        (0.2 + 2 * np.sin(local * 110 + 1).prod(1)).clip(0, 1),
        (0.5 + 0.9 * np.sin(local * [170, 190, 210]).sum(1) / 1.7).clip(0, 1)])
    colour = model.geom_rgba[geom, :3] * (1 - mix)[:, None] + second * mix[:, None]
    near_floor = 0.55 + 0.45 * ((points[:, 2] - FLOOR) / 0.05).clip(0, 1)
    light = (0.58 + 0.24 * normal[:, 2] + 0.36 * (normal @ _TO_LAMP).clip(0)) * near_floor
    half = _TO_LAMP - rays
    facing = ((normal * half).sum(1) / np.sqrt((half * half).sum(1))).clip(0)
    return colour * light[:, None] + gloss * (facing ** 20)[:, None]


def _shadow(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The light that reaches the tray in each pixel, (4096,): 1 where nothing is near or in the lamp's way."""
    geom, distance, _ = _cast(model, data, _LAMP, _FROM_LAMP)
    lit = (geom < 0) | (distance > _LAMP_DISTANCE)
    visible = np.flatnonzero(model.geom_group == VISIBLE)
    centre, radius = data.geom_xpos[visible], model.geom_rbound[visible].clip(max=0.04)
    squared = (centre ** 2).sum(1)[:, None] - 2 * centre @ _GROUND.T + (_GROUND ** 2).sum(1)        # (geoms, n)
    above = (centre @ _UPWARD.T - (_GROUND * _UPWARD).sum(1)).clip(0)
    hidden = 0.55 * radius ** 2 @ (above / (squared * np.sqrt(squared)))            # of the sky, were they spheres
    light = (0.88 + 0.12 * _enlarged(lit, _SOFTEN)) * (0.25 + 0.75 * _enlarged(np.exp(-hidden), _ENLARGE))
    return light.ravel()


def _enlarged(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture (64, 64) that coarse values (n,) stand for; the weights are the same down and across."""
    coarse = values.reshape(SIZE // _COARSE, -1).astype(float)
    return weights @ coarse @ weights.T


def _cast(model: mujoco.MjModel, data: mujoco.MjData, origin: np.ndarray,
          rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The geom (n,), -1 for none, the distance (n,) and the normal (n, 3) of what unit rays (n, 3) hit first."""
    n = len(rays)
    geom, distance, normal = np.full(n, -1, np.int32), np.zeros(n), np.zeros(3 * n)
    groups = np.zeros(6, np.uint8)
    groups[VISIBLE] = 1
    if n:
        mujoco.mj_multiRay(model, data, origin, rays.ravel(), groups, True, -1, geom, distance, normal, n, 10.0)
    return geom, distance, normal.reshape(n, 3)


def _outlines(ids: np.ndarray) -> np.ndarray:
    """Where one of the four neighbours (H, W) is another; a flat mask."""
    edge = np.zeros(ids.shape, bool)
    down, across = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge.ravel()

