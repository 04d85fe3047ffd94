"""The camera of the simulated robot: a painted tray, and toys shaded by ray casting.

MuJoCo finds what each camera ray hits (`mj_multiRay` needs neither OpenGL nor a GPU), numpy computes its colour.
Camera and tray never move, so the tray is painted once per episode, and a frame casts rays at arm and toys only.
Lengths are in metres in the robot's frame: x points from the robot to the camera, y to the picture's right, z up.
"""

from __future__ import annotations

import mujoco
import numpy as np
from PIL import Image, ImageDraw

SIZE = 64                                       # pixels, height and width
VISIBLE = 1                                     # the geom group that rays hit: arm and toys, not the tray

# The camera stands opposite the robot and looks down. Its pose and the tray's were fitted to real BAIR frames: to the
# floor's outline in the picture, and to where the fingertips appear at known positions.
EYE = np.array([1.16, -0.05, 0.60])
FOCAL, PITCH = 64.9, np.radians(42)             # pixels; below the horizon
_ACROSS = np.array([0.0, 1.0, 0.0])
_AHEAD = np.array([-np.cos(PITCH), 0.0, -np.sin(PITCH)])
_DOWN = np.array([np.sin(PITCH), 0.0, -np.cos(PITCH)])

# The tray: a floor and four boards that lean outward. Rows of TRAY: a point and the inward normal, (5, 6)
FLOOR = 0.17                                    # m, its height
_FLOOR, _FRONT, _BACK, _LEFT, _RIGHT = range(5)
_FEET = ((0, 0), (0.82, 0), (0.29, 0), (0, -0.30), (0, 0.20))   # where each meets the floor, (x, y)
_INWARD = ((0, 0), (-1, 0), (1, 0), (0, 1), (0, -1))            # direction to the middle of the tray
_SLOPE = np.radians([0, 15, 55, 38, 38])
TRAY = np.column_stack([_FEET, np.full(5, FLOOR), _INWARD * np.sin(_SLOPE)[:, None], np.cos(_SLOPE)])

# Light: a lamp above for soft shadows, the sky for everything else
_LAMP = np.array([0.75, 0.1, 1.9])
_TO_LAMP = (_LAMP - [0.6, -0.05, FLOOR]) / np.linalg.norm(_LAMP - [0.6, -0.05, FLOOR])
_COARSE = SIZE // 2                             # shadows are soft: one value for each 2 x 2 pixels
_FINE = SIZE * 3                                # the tray is painted with 3 x 3 samples per pixel
_SUBPIXELS = np.array([(-.45, -.15), (.15, -.45), (.45, .15), (-.15, .45)])         # rays of a pixel on an outline


def _directions(pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 3) from the camera through points (n, 2) of the picture: (column, row), from 0 to SIZE."""
    across, down = ((pixels - SIZE / 2) / FOCAL).T
    rays = _AHEAD + across[:, None] * _ACROSS + down[:, None] * _DOWN
    return rays / np.sqrt((rays * rays).sum(1, keepdims=True))


def _hit_tray(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays (n, 3) from the camera meet the tray, (n, 3), and which of its planes they meet, (n,)."""
    points, normals = TRAY[:, :3], TRAY[:, 3:]
    slope = np.einsum("ni,pi->np", rays, normals)                                   # (n, 5)
    distance = np.where(slope < -1e-6, ((points - EYE) * normals).sum(1) / np.minimum(slope, -1e-6), 10).clip(max=10)
    return EYE + rays * distance.min(1, keepdims=True), distance.argmin(1)


def _centres(step: float) -> np.ndarray:
    """Centres (n, 2) of squares of `step` pixels, as (column, row), row by row."""
    at = np.arange(step / 2, SIZE, step)
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


def _upsampling(reach: float) -> np.ndarray:
    """Weights (SIZE, _COARSE) that make each pixel a mean of the coarse values at most `reach` of these away."""
    apart = (np.arange(SIZE)[:, None] + 0.5) / SIZE * _COARSE - (np.arange(_COARSE) + 0.5)
    weights = (1 - np.abs(apart) / reach).clip(1e-9)
    return weights / weights.sum(1, keepdims=True)


_PIXELS = _centres(1)
_RAYS = _directions(_PIXELS)
_COLUMN, _ROW = _centres(SIZE / _FINE).T        # of the painting's samples
_WHERE, _PLANE = _hit_tray(_directions(_centres(SIZE / _FINE)))
_GROUND, _GROUND_PLANE = _hit_tray(_directions(_centres(SIZE / _COARSE)))           # where shadows may fall
_UPWARD = TRAY[_GROUND_PLANE, 3:]
_LAMP_DISTANCE = np.linalg.norm(_GROUND - _LAMP, axis=1)
_FROM_LAMP = (_GROUND - _LAMP) / _LAMP_DISTANCE[:, None]
_SHARP, _SOFT = _upsampling(reach=1), _upsampling(reach=4)


class Scene:
    """The look of one episode: the painted tray and the light. `rng` decides both."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._gain = rng.uniform(0.94, 1.04)
        self._grain = rng.normal(0, 0.003, (SIZE, SIZE, 3))
        self._tray = _paint(rng)                                                    # (4096, 3)

    def render(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The camera's frame, uint8 (64, 64, 3), of the poses in `data`."""
        picture = self._tray * _shadow(model, data)[:, None]
        hits = _cast(model, data, EYE, _RAYS)
        geom = np.pad(hits[0].reshape(SIZE, SIZE), 1, mode="edge")
        neighbours = geom[:-2, 1:-1], geom[2:, 1:-1], geom[1:-1, :-2], geom[1:-1, 2:]
        outline = (neighbours != geom[1:-1, 1:-1]).any(0).ravel()
        _shade(model, data, picture, _RAYS, hits, (hits[0] >= 0) & ~outline)
        # a pixel on an outline is the mean of several rays, so that the outline is smooth
        finer = picture[outline].repeat(len(_SUBPIXELS), axis=0)
        rays = _directions((_PIXELS[outline, None] + _SUBPIXELS).reshape(-1, 2))
        hits = _cast(model, data, EYE, rays)
        _shade(model, data, finer, rays, hits, hits[0] >= 0)
        picture[outline] = finer.reshape(-1, len(_SUBPIXELS), 3).mean(1)
        picture = picture.reshape(SIZE, SIZE, 3) * self._gain + self._grain
        picture[0], picture[:, 0] = 0, 0                        # as in every real frame
        return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _paint(rng: np.random.Generator) -> np.ndarray:
    """The empty tray and what is seen around it, (4096, 3), in a random light like that of real frames."""
    daylight, warmth = rng.uniform(0, 1) ** 1.5, rng.normal(0.2, 0.9)
    wood = np.array([0.905, 0.88, 0.785]) + warmth * np.array([0.01, -0.01, -0.05])
    grain = _noise(rng, (14, 130), (256, 1024))
    (x, y, z), column, row = _WHERE.T, _COLUMN, _ROW
    veins = grain[((x + 1) * 120).astype(int) % 256, ((y + 1) * 700).astype(int) % 1024]
    broad = _noise(rng, (5, 5), (_FINE, _FINE)).ravel()
    colour = wood * (1 + 0.05 * veins + 0.04 * broad)[:, None]
    floor, front, back, left, right = (_PLANE == plane for plane in (_FLOOR, _FRONT, _BACK, _LEFT, _RIGHT))

    colour[floor] *= (0.86 + 0.15 * ((row[floor] - 14) / 28).clip(0, 1))[:, None]   # darker towards the robot
    # daylight from the left and the right of the camera whitens the boards, the far one most
    glow = ((32 - row) / 22).clip(0, 1) * (0.3 + 0.7 * daylight)
    _lay(colour, left, (0.84, 0.92, 1.0), glow * (1 - ((column - 8) / 14).clip(0, 1)))
    colour[left] *= 0.97
    colour[right] *= [0.88, 0.88, 0.82]
    feet = TRAY[[_LEFT, _RIGHT], 1]                             # the boards' joints are darker
    colour *= 1 - 0.25 * np.exp(-(np.abs(y[:, None] - feet).min(1) / 0.006) ** 2)[:, None]
    _lay(colour, front, (0.89, 0.88, 0.82), 0.65)
    shine = daylight * (0.45 + 0.55 * column / SIZE + 0.5 * broad)
    _lay(colour, front, (0.93, 0.99, 1.05), shine.clip(0, 1))
    _lay(colour, back, (1.04, 1.03, 0.97), ((z - FLOOR) / 0.04).clip(0, 1) * rng.uniform(0.2, 1) ** 0.5)

    steel = (np.array([0.47, 0.53, 0.55]) + 0.12 * daylight) * (1 + 0.15 * broad)[:, None]
    _paint_rim(colour, steel, rng.uniform(0.05, 1, (SIZE // 2 + 1, 1)) * [0.84, 0.85, 0.88])
    picture = colour.clip(0, 1.05).reshape(SIZE, _FINE // SIZE, SIZE, _FINE // SIZE, 3).mean((1, 3)).reshape(-1, 3)
    return picture + rng.normal(0, 0.006, (len(picture), 1))


def _paint_rim(colour: np.ndarray, steel: np.ndarray, clutter: np.ndarray) -> None:
    """Paint what is seen over the tray's rim where it lies in the real picture: corners, clutter, and the table."""
    for light, *corners in ((1.2, (-1, 7.5), (9, 1), (15, 1), (15, 7), (10, 13)),
                            (0.85, (8, 3), (15, 1), (15, 7), (10, 13)),
                            (0.95, (51, 1), (56, 1), (65, 8), (51, 13)),
                            (1.15, (56, 1), (65, 8), (61, 9), (51, 4))):
        _lay(colour, _inside(*corners), steel * light, 0.85)
    _lay(colour, _inside((-1, -1), (8, -1), (-1, 7)), (0.16, 0.15, 0.14), 0.85)
    _lay(colour, _inside((57, -1), (65, -1), (65, 6)), (0.16, 0.15, 0.14), 0.7)
    _lay(colour, _ROW < 2.2, clutter[(_COLUMN / 2).astype(int)], 0.8)
    _lay(colour, _inside((32, 0), (37, 0), (37, 2.2), (32, 2.2)), (0.4, 0.08, 0.1), 0.9)
    _lay(colour, _inside((-1, 43), (3.5, 43), (1, 47), (-1, 47)), (0.12, 0.14, 0.16), 0.9)
    _lay(colour, _inside((62.6, 43), (65, 43), (65, 45)), (0.2, 0.2, 0.2), 0.8)
    _lay(colour, _ROW > 58, (0.52, 0.48, 0.37), 1.0)            # the table in front of the tray, with its two legs
    _lay(colour, _ROW > 60.2, (0.31, 0.21, 0.08), 1.0)
    _lay(colour, _inside((19.3, 60.2), (21.9, 60.2), (22.7, 65), (20.5, 65)), (0.44, 0.42, 0.33), 1.0)
    _lay(colour, _inside((44.8, 60.2), (47.4, 60.2), (48.2, 65), (46, 65)), (0.44, 0.42, 0.33), 1.0)


def _lay(colour: np.ndarray, mask: np.ndarray, paint: np.ndarray | tuple, share: np.ndarray | float) -> None:
    """Mix a paint, (3,) or (n, 3), into colours (n, 3) where a mask (n,) says; its share is one number or (n,)."""
    paint, share = (np.broadcast_to(value, colour.shape)[mask] for value in (paint, np.reshape(share, (-1, 1))))
    colour[mask] = colour[mask] * (1 - share) + paint * share


def _inside(*corners: tuple[float, float]) -> np.ndarray:
    """Which of the painting's samples (n,) lie in a polygon of points (column, row) of the picture."""
    mask = Image.new("1", (_FINE, _FINE))
    ImageDraw.Draw(mask).polygon([(column * _FINE / SIZE, row * _FINE / SIZE) for column, row in corners], fill=1)
    return np.asarray(mask).ravel()


def _noise(rng: np.random.Generator, bumps: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Smooth noise of a shape, from -1 to 1, with so many bumps along each axis."""
    values = rng.uniform(-1, 1, (bumps[0] + 2, bumps[1] + 2))
    for axis, (count, size) in enumerate(zip(bumps, shape, strict=True)):
        at = np.linspace(0, count, size)
        low = at.astype(int)
        part = (at - low) ** 2 * (3 - 2 * (at - low))
        part = part[:, None] if axis == 0 else part
        values = values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part
    return values


def _shade(model: mujoco.MjModel, data: mujoco.MjData, picture: np.ndarray, rays: np.ndarray,
           hits: tuple[np.ndarray, ...], mask: np.ndarray) -> None:
    """Put into `picture` (n, 3) the colours of what rays (n, 3) from the camera hit, where a mask (n,) says."""
    rays, geom, distance, normal = (values[mask] for values in (rays, *hits))
    points = EYE + rays * distance[:, None]
    axes = data.geom_xmat.reshape(-1, 3, 3)[geom]
    local = np.einsum("ni,nij->nj", points - data.geom_xpos[geom], axes)            # patterns move with the geom
    pattern, second, gloss = np.split(model.geom_user[geom], [1, 4], axis=1)        # see toys.xml
    mix = np.choose(pattern[:, 0].astype(int), [
        np.zeros(len(geom)),
        (0.5 + 1.2 * np.sin(local.sum(1) * 190)).clip(0, 1),
        (0.2 + 2 * np.sin(local * 110 + 1).prod(1)).clip(0, 1),
        (0.5 + 0.9 * np.sin(local * [170, 190, 210]).sum(1) / 1.7).clip(0, 1)])
    colour = model.mat_rgba[model.geom_matid[geom], :3] * (1 - mix)[:, None] + second * mix[:, None]
    near_floor = 0.55 + 0.45 * ((points[:, 2] - FLOOR) / 0.05).clip(0, 1)
    light = (0.58 + 0.24 * normal[:, 2] + 0.36 * (normal @ _TO_LAMP).clip(0)) * near_floor
    half = _TO_LAMP - rays
    facing = ((normal * half).sum(1) / np.sqrt((half * half).sum(1))).clip(0)
    picture[mask] = colour * light[:, None] + gloss * (facing ** 20)[:, None]


def _shadow(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The light that reaches the tray in each pixel, (4096,): 1 where nothing is near or between it and the lamp."""
    geom, distance, _ = _cast(model, data, _LAMP, _FROM_LAMP)
    lamp = ((geom < 0) | (distance > _LAMP_DISTANCE)).reshape(_COARSE, _COARSE).astype(float)
    visible = np.flatnonzero(model.geom_group == VISIBLE)
    centre, radius = data.geom_xpos[visible], model.geom_rbound[visible].clip(max=0.04)
    squared = (centre ** 2).sum(1)[:, None] - 2 * centre @ _GROUND.T + (_GROUND ** 2).sum(1)        # (geoms, n)
    above = (centre @ _UPWARD.T - (_GROUND * _UPWARD).sum(1)).clip(0)
    hidden = 0.55 * radius ** 2 @ (above / (squared * np.sqrt(squared)))            # of the sky, as if all were spheres
    sky = np.exp(-hidden).reshape(_COARSE, _COARSE)
    return ((0.88 + 0.12 * (_SOFT @ lamp @ _SOFT.T)) * (0.25 + 0.75 * (_SHARP @ sky @ _SHARP.T))).ravel()


def _cast(model: mujoco.MjModel, data: mujoco.MjData, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The geom (n,), -1 for none, the distance (n,) and the normal (n, 3) of what unit rays (n, 3) hit first."""
    n = len(rays)
    geom, distance, normal = np.full(n, -1, np.int32), np.zeros(n), np.zeros(3 * n)
    groups = (np.arange(6) == VISIBLE).astype(np.uint8)
    mujoco.mj_multiRay(model, data, origin, rays.ravel(), groups, True, -1, geom, distance, normal, n, 10.0)
    return geom, distance, normal.reshape(n, 3)
