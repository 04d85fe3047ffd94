"""The picture of the simulated robot: the camera, the tray it looks into, and shading by ray casting.

MuJoCo finds what each camera ray hits (`mj_multiRay` needs neither OpenGL nor a graphics card), numpy gives
it a colour. The camera and the tray never move, so the tray is painted once an episode and a frame casts
rays at the arm and the toys alone. Lengths are metres in the robot's frame: x away from the robot and
towards the camera, y to the picture's right, z up.
"""

from __future__ import annotations

import mujoco
import numpy as np

SIZE = 64                                       # pixels, height and width
VISIBLE = 1                                     # the geom group that rays see: arm and toys, not the tray
PLAIN, STRIPES, SPOTS, FUR, HALVES = range(5)   # what a geom's second colour makes of it

# The tray: a floor and four boards that lean outward, as (point, normal) of planes; a convex bowl
FLOOR = 0.17
NEAR, FAR, LEFT, RIGHT = 0.85, 0.36, -0.32, 0.24
_LEAN = np.radians(38)
_out, _up = np.sin(_LEAN), np.cos(_LEAN)
TRAY = np.array([
    [0, 0, FLOOR, 0, 0, 1],
    [NEAR, 0, FLOOR, -np.sin(np.radians(22)), 0, np.cos(np.radians(22))],
    [FAR, 0, FLOOR, np.sin(np.radians(50)), 0, np.cos(np.radians(50))],
    [0, LEFT, FLOOR, 0, _out, _up],
    [0, RIGHT, FLOOR, 0, -_out, _up]])
FLOOR_, FRONT, BACK, WEST, EAST = range(5)      # rows of TRAY

# The camera: opposite the robot, looking down into the tray
EYE = np.array([1.025, -0.04, 0.555])
FOCAL, PITCH = 45.6, np.radians(52)             # pixels, below the horizon
_RIGHT = np.array([0.0, 1.0, 0.0])
_FORWARD = np.array([-np.cos(PITCH), 0.0, -np.sin(PITCH)])
_DOWN = np.array([np.sin(PITCH), 0.0, -np.cos(PITCH)])

SUN = np.array([0.45, 0.25, 1.6])               # the ceiling lamp that casts shadows
_TO_SUN = (SUN - [0.6, -0.04, FLOOR]) / np.linalg.norm(SUN - [0.6, -0.04, FLOOR])
_SUBSAMPLES = np.array([(x + 0.5, y + 0.5) for y in range(3) for x in range(3)]) / 3 - 0.5


def _directions(pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 3) through the picture's points (n, 2), which are (column, row), 0 to SIZE."""
    across, down = ((pixels - SIZE / 2) / FOCAL).T
    rays = _FORWARD + across[:, None] * _RIGHT + down[:, None] * _DOWN
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _bowl(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays (n, 3) from the eye meet the tray, (n, 3), and which of its planes they meet, (n,)."""
    points, normals = TRAY[:, :3], TRAY[:, 3:]
    slope = rays @ normals.T                                                        # (n, 5)
    distance = np.where(slope < -1e-6, ((points - EYE) * normals).sum(1) / np.minimum(slope, -1e-6), np.inf)
    distance = distance.clip(max=10)
    return EYE + rays * distance.min(1, keepdims=True), distance.argmin(1)


_CENTRES = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 2) + 0.5
_RAYS = _directions(_CENTRES)
_GROUND, _PLANE = _bowl(_RAYS)


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise (size, size), about -1 to 1, with `cells` bumps a side."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2))
    at = np.linspace(0, cells, size)
    low = at.astype(int)
    part = at - low
    part = part * part * (3 - 2 * part)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


class Scene:
    """The look of one episode: the painted tray and the light; renders what stands in it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.gain = rng.uniform(0.94, 1.06)
        self.glare = rng.uniform(0, 1)
        self.warmth = rng.uniform(-1, 1)
        self.tray = self._paint(rng)                                                # (4096, 3)
        self.grain = rng.normal(0, 0.003, (SIZE, SIZE, 3))

    def _paint(self, rng: np.random.Generator) -> np.ndarray:
        n = 4                                                                       # samples a pixel side
        at = (np.arange(SIZE * n) + 0.5) / n
        pixels = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
        column, row = pixels.T
        where, plane = _bowl(_directions(pixels))
        wood = np.array([0.84, 0.76, 0.62]) + self.warmth * np.array([0.01, -0.01, -0.05])
        colour = np.tile(wood, (len(pixels), 1))
        grain = _noise(rng, 48, 512)
        u = ((where[:, 0] - 0.2) * 120).astype(int) % 512
        v = ((where[:, 1] + 0.6) * 500).astype(int) % 512
        colour += 0.035 * grain[u, v][:, None]
        height = where[:, 2] - FLOOR
        bright = np.ones(len(pixels))
        side = (plane == WEST) | (plane == EAST)
        bright[side] = 0.92 + 0.5 * height[side]
        colour *= bright[:, None]
        front = plane == FRONT
        board = np.array([0.88, 0.83, 0.74]) * (1 - self.glare) + np.array([0.94, 0.95, 0.98]) * self.glare
        colour[front] = board + 0.02 * grain[u, v][front, None]
        back = plane == BACK
        white = np.clip(height / 0.05, 0, 1)[:, None]
        colour[back] = (colour * (1 - white) + np.array([1.02, 1.0, 0.95]) * white)[back]
        outside = side & (height > 0.16)
        colour[outside] = np.array([0.62, 0.68, 0.74])
        colour[row > 58] = np.array([0.55, 0.50, 0.40])
        colour[row > 60] = np.array([0.30, 0.20, 0.10])
        colour[row < 2] *= 0.5
        return colour.reshape(SIZE, n, SIZE, n, 3).mean((1, 3)).reshape(-1, 3)

    def render(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The camera's frame, uint8 (64, 64, 3)."""
        geom, distance, normal = _cast(model, data, EYE, _RAYS)
        shade = self._shadow(model, data)
        picture = self.tray * shade[:, None]
        seen = geom >= 0
        picture[seen] = self._surface(model, data, geom[seen], EYE + _RAYS[seen] * distance[seen, None],
                                      normal[seen], _RAYS[seen])
        edge = np.flatnonzero(_differs(geom.reshape(SIZE, SIZE)))
        if len(edge):
            n = len(_SUBSAMPLES)
            rays = _directions((_CENTRES[edge, None] + _SUBSAMPLES).reshape(-1, 2))
            geom, distance, normal = _cast(model, data, EYE, rays)
            colour = np.repeat((self.tray * shade[:, None])[edge], n, axis=0)
            seen = geom >= 0
            colour[seen] = self._surface(model, data, geom[seen], EYE + rays[seen] * distance[seen, None],
                                         normal[seen], rays[seen])
            picture[edge] = colour.reshape(len(edge), n, 3).mean(1)
        picture = picture.reshape(SIZE, SIZE, 3) * self.gain
        picture = _blur(picture, 0.12) + self.grain
        picture[0], picture[:, 0] = 0, 0                                            # as every real frame has it
        return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def _surface(self, model, data, geom, points, normal, rays) -> np.ndarray:
        """Colours (n, 3) of points on geoms."""
        local = np.einsum("nij,ni->nj", data.geom_xmat[geom].reshape(-1, 3, 3), points - data.geom_xpos[geom])
        pattern = model.geom_user[geom, 0]
        first, second = model.geom_rgba[geom, :3].astype(float), model.geom_user[geom, 1:4]
        unit = local / model.geom_rbound[geom, None]
        mix = np.zeros(len(geom))
        mix = np.where(pattern == STRIPES, np.sin(unit[:, 0] * 9) > 0.2, mix)
        mix = np.where(pattern == SPOTS, np.sin(unit * 6 + 1).prod(1) > 0.25, mix)
        mix = np.where(pattern == FUR, 0.5 + 0.5 * np.sin(unit @ [17, 13, 19]), mix)
        mix = np.where(pattern == HALVES, unit[:, 2] < 0, mix)
        colour = first + (second - first) * mix[:, None]
        light = 0.55 + 0.25 * normal[:, 2] + 0.4 * (normal @ _TO_SUN).clip(0)
        half = _TO_SUN - rays
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        gloss = model.geom_user[geom, 4] * (normal * half).sum(1).clip(0) ** 24
        return colour * light[:, None] + gloss[:, None]

    def _shadow(self, model, data) -> np.ndarray:
        """Light that reaches each point of the tray, (4096,), 1 where nothing is in its way."""
        across = _GROUND - SUN
        reach = np.linalg.norm(across, axis=1)
        geom, distance, _ = _cast(model, data, SUN, across / reach[:, None])
        lit = ((geom < 0) | (distance > reach)).astype(float).reshape(SIZE, SIZE)
        for _ in range(3):
            lit = _blur(lit, 0.25)
        return 0.72 + 0.28 * lit.ravel()


def _cast(model, data, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Geom (n,), -1 for none, distance (n,) and normal (n, 3) of what rays (n, 3) hit first."""
    n = len(rays)
    geom, distance, normal = np.full(n, -1, np.int32), np.zeros(n), np.zeros(3 * n)
    groups = np.zeros(6, np.uint8)
    groups[VISIBLE] = 1
    mujoco.mj_multiRay(model, data, origin, rays.ravel(), groups, True, -1, geom, distance, normal, n, 10.0)
    return geom, distance, normal.reshape(n, 3)


def _differs(ids: np.ndarray) -> np.ndarray:
    """Where one of the four neighbours is not the same."""
    edge = np.zeros(ids.shape, bool)
    for axis in (0, 1):
        change = np.diff(ids, axis=axis) != 0
        first, last = ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
        if axis == 0:
            first, last = first[::-1], last[::-1]
        edge[first] |= change
        edge[last] |= change
    return edge.ravel()


def _blur(image: np.ndarray, share: float) -> np.ndarray:
    """Each pixel gives `share` of itself to either neighbour, in rows and in columns."""
    for axis in (0, 1):
        padded = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
        count = image.shape[axis]
        image = ((1 - 2 * share) * image + share * padded.take(range(count), axis)
                 + share * padded.take(range(2, count + 2), axis))
    return image
