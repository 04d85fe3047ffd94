"""A simulated robot that pushes toys about, written in the lab's folder tree.

The stand-in for BAIR where that is not at hand: an arm that MuJoCo moves through a tray of free bodies, seen
by the camera of `lab5.scene`. Sequence i of a split depends on (seed, split, i) alone, so a set is the same
whatever the number of processes, and what a kill interrupted goes on to the same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path

import mujoco
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lab5 import scene
from lab5.scene import Scene

VERSION = 1                                     # of the simulator; another makes other frames from a seed
SPLITS = ("train", "validate", "test")
FOLDER = 256                                    # sequences in a traj_A_to_B folder
REACH = 0.066                                   # m, the largest dx or dy of an action
LOW, HIGH = np.array([0.43, -0.31, 0.19]), np.array([0.86, 0.23, 0.32])      # where the end-effector may be
REST, LIFTED = 0.20, 0.31                       # m, height of the end-effector when it pushes and when it is up
SUBSTEPS, TIMESTEP = 20, 0.005                  # physics steps a frame, seconds each

# The world -----------------------------------------------------------------------------------------------

_COLOURS = {
    "black": (0.05, 0.045, 0.04), "grey": (0.42, 0.43, 0.44), "silver": (0.74, 0.75, 0.78), "white": (0.93, 0.93, 0.93),
    "cream": (0.86, 0.82, 0.68), "brown": (0.25, 0.17, 0.09), "tan": (0.55, 0.40, 0.24), "red": (0.74, 0.22, 0.12),
    "maroon": (0.40, 0.03, 0.05), "orange": (0.88, 0.40, 0.14), "yellow": (0.93, 0.74, 0.15), "olive": (0.56, 0.58, 0.42),
    "green": (0.42, 0.80, 0.10), "teal": (0.10, 0.45, 0.50), "blue": (0.08, 0.43, 0.70), "purple": (0.24, 0.12, 0.36),
    "soot": (0.055, 0.042, 0.04), "slate": (0.22, 0.24, 0.28)}

# Each toy is one rigid body; a line a geom: kind, size | place (both in cm) | Euler angles in degrees | colour, and a
# pattern with its second colour
_TOYS = {
    "zebra": """ellipsoid 4.6 2.8 2.8 | 0 0 0 | 0 0 0 | white fur grey
                sphere 2.6 | 5 0 1.6 | 0 0 0 | silver fur black
                capsule 1 2.2 | 2.6 2.2 -1.6 | 60 0 0 | silver stripes grey
                capsule 1 2.2 | 2.6 -2.2 -1.6 | -60 0 0 | silver stripes grey
                capsule 1 2.4 | -3 2.2 -1.6 | 60 0 0 | silver stripes grey""",
    "rabbit": """ellipsoid 3.2 3.2 4.2 | 0 0 0 | 0 0 0 | silver fur grey
                 sphere 2.8 | 0 0 5.4 | 0 0 0 | silver fur white
                 capsule 0.9 2.4 | 0 1.5 8.6 | 15 0 0 | silver stripes grey
                 capsule 0.9 2.4 | 0 -1.5 8.6 | -15 0 0 | silver stripes grey""",
    "turtle": """sphere 4 | 0 0 1 | 0 0 0 | green
                 ellipsoid 4.6 4.2 1.6 | 0 0 -1.6 | 0 0 0 | orange
                 sphere 1.5 | 5 0 -1 | 0 0 0 | green""",
    "ball": "sphere 4.4 | 0 0 0 | 0 0 0 | green",
    "drill": """box 5.2 1.8 1.9 | 0 0 0 | 0 0 0 | blue
                box 1.7 3.4 1.8 | 3.4 -3 0 | 0 0 15 | blue
                box 3 0.9 2 | 0.6 2 0 | 0 0 0 | orange
                capsule 1 1.2 | -6 0 0 | 0 90 0 | yellow""",
    "ladle": """ellipsoid 3.2 3 1.4 | 0 0 0 | 0 0 0 | red
                capsule 0.8 3.6 | 6 0 0.2 | 0 88 0 | red""",
    "spoon": """ellipsoid 2.6 2.4 1.4 | 0 0 0 | 0 0 0 | purple
                capsule 0.8 3.4 | 5.2 0 0.2 | 0 88 0 | purple""",
    "bear": """ellipsoid 3 2.6 3.2 | 0 0 0 | 0 0 0 | brown fur tan
               sphere 2.5 | 0 0 4.6 | 0 0 0 | brown fur black
               sphere 1.6 | 2 0 4.6 | 0 0 0 | cream
               capsule 1.1 1.8 | 0 3.2 0.6 | 70 0 0 | brown
               capsule 1.1 1.8 | 0 -3.2 0.6 | -70 0 0 | brown""",
    "cup": """sphere 3.5 | 0 0 0 | 0 0 0 | white
              cylinder 2.4 0.5 | 0 0 -3 | 0 0 0 | tan""",
    "roll": """capsule 2.7 3 | 0 0 0 | 0 90 0 | white stripes brown
               sphere 1.6 | 5.6 0 0 | 0 0 0 | black""",
    "train": """box 5.6 2.2 1.3 | 0 0 0 | 0 0 0 | black
                box 5 1.9 0.9 | 0 0 2.1 | 0 0 0 | green stripes silver
                box 1.6 1.7 1.2 | -3 0 3.6 | 0 0 0 | green""",
    "stone": "ellipsoid 2.4 2.2 2 | 0 0 0 | 0 0 0 | olive",
    "cow": """ellipsoid 4.2 3 2.8 | 0 0 0 | 0 0 0 | white spots black
              sphere 2.2 | 4.6 0 1.2 | 0 0 0 | black
              ellipsoid 1.2 1.6 1.2 | 6.4 0 0.6 | 0 0 0 | cream""",
    "star": """ellipsoid 3 2.6 2.2 | 0 0 0 | 0 0 0 | purple fur black
               sphere 1.3 | 2.4 2 0 | 0 0 0 | purple
               sphere 1.3 | -2.4 2 0 | 0 0 0 | purple""",
    "rattle": """sphere 2.2 | 0 0 0 | 0 0 0 | yellow
                 capsule 0.8 2 | 3.6 0 0 | 0 90 0 | white
                 ellipsoid 2.2 2.2 1.6 | 6.6 0 0 | 0 0 0 | teal stripes red""",
}

# The arm's parts stand on the point between the fingertips; the two links above the hand come from inverse kinematics
_ARM = {
    "hand": """box 1.2 2.4 0.8 | 0 0 7 | 0 0 0 | soot
               cylinder 2.3 1.5 | 0 0 9.2 | 0 0 0 | maroon
               capsule 3 2.4 | 0 0 14.4 | 0 0 0 | soot
               box 2 2.2 2 | 0 3.6 15 | 0 0 0 | soot
               box 1.6 1 1.2 | 0.6 5 17.4 | 0 0 0 | slate
               cylinder 3.9 1.4 | 0 0 19.8 | 0 0 0 | maroon""",
    "finger": "capsule 0.8 3.6 | 0 0 2.6 | 0 0 0 | soot",
    "thumb": "capsule 0.8 3.6 | 0 0 2.6 | 0 0 0 | soot",
    "forearm": "capsule 4.3 18 | 0 0 0 | 0 0 0 | soot",
    "upper arm": "capsule 5.5 32 | 0 0 0 | 0 0 0 | maroon",
}
_SHOULDER, _HAND, _FOREARM, _UPPER_ARM = np.array([0.0, -0.05, 0.74]), 0.21, 0.36, 0.64      # m; the links' lengths
_OPEN, _CLOSED = 0.014, 0.007                   # m from the middle to a finger


def _geoms(lines: str, scale: float = 1.0, collides: bool = True) -> str:
    """MuJoCo's XML of a body's geoms."""
    xml = []
    for line in lines.splitlines():
        (kind, *size), place, angles, (colour, *rest) = (part.split() for part in line.split("|"))
        pattern, second = rest or ("plain", colour)
        size, place = (" ".join(f"{float(number) * scale / 100:.6g}" for number in part) for part in (size, place))
        user = scene.PATTERNS.index(pattern), *_COLOURS[second], 0.06 if pattern == "fur" else 0.22
        xml.append(f'<geom type="{kind}" size="{size}" pos="{place}" euler="{" ".join(angles)}" group="{scene.VISIBLE}" '
                   f'rgba="{_words(_COLOURS[colour])} 1" user="{_words(user)}"{"" if collides else NO_CONTACT}/>')
    return "".join(xml)


NO_CONTACT = ' contype="0" conaffinity="0"'


def _words(numbers) -> str:
    return " ".join(map(str, numbers))


def _world(rng: np.random.Generator) -> mujoco.MjModel:
    """Tray, arm and 6 to 9 toys, which lie far from the camera more often than near it."""
    bodies = []
    for *point, x, y, z in scene.TRAY:
        quat = np.zeros(4)
        mujoco.mju_quatZ2Vec(quat, np.array([x, y, z]))
        bodies.append(f'<geom type="plane" size="1 1 .1" pos="{_words(point)}" quat="{_words(quat)}"/>')
    for name, lines in _ARM.items():
        bodies.append(f'<body name="{name}" mocap="true">{_geoms(lines, collides=name in ("hand", "finger", "thumb"))}</body>')
    toys = list(_TOYS)
    for count, toy in enumerate(rng.permutation(len(toys))[:rng.integers(6, 10)]):
        x, y = 0.33 + 0.45 * rng.beta(1.1, 2), rng.uniform(-0.34, 0.24)
        bodies.append(f'<body pos="{x} {y} {0.22 + 0.05 * count}" euler="0 0 {rng.uniform(0, 360)}"><freejoint/>'
                      f'{_geoms(_TOYS[toys[toy]], rng.uniform(1.05, 1.25))}</body>')
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco><size nuser_geom="5"/><option timestep="{TIMESTEP}" integrator="implicitfast" iterations="20"><flag sleep="enable"/></option>
        <default><geom density="200" friction=".7 .005 .0005" condim="4" solref=".015 1"/></default>
        <worldbody>{"".join(bodies)}</worldbody></mujoco>""")
    for body in np.flatnonzero(model.body_dofnum):                  # soft toys do not roll on
        dof = model.body_dofadr[body]
        model.dof_damping[dof:dof + 3] = 3 * model.body_mass[body]
        model.dof_damping[dof + 3:dof + 6] = 4 * model.body_inertia[body].mean()
    return model


# The robot -----------------------------------------------------------------------------------------------

class Robot:
    """The arm, its tray of toys and its camera.

    Args:
        seed: a seed or a numpy random generator; it decides the toys, the light and where the arm begins.
    """

    def __init__(self, seed: int | tuple[int, ...] | np.random.Generator) -> None:
        rng = np.random.default_rng(seed)
        self._scene = Scene(rng)
        self._model = _world(rng)
        self._data = mujoco.MjData(self._model)
        self._position = np.array([*rng.uniform(LOW[:2], HIGH[:2]), REST])
        self._lift, self._grip = 0, 0.0
        self._pose(np.array([0.6, -0.05, 0.6]), 0.0)                # out of the way while the toys come to rest
        mujoco.mj_step(self._model, self._data, 200)
        self._pose(self._position, self._grip)
        mujoco.mj_step(self._model, self._data, 40)

    @property
    def position(self) -> np.ndarray:
        """The end-effector's position (3,) in metres."""
        return self._position.copy()

    def frame(self) -> np.ndarray:
        """What the camera sees, uint8 (64, 64, 3)."""
        mujoco.mj_kinematics(self._model, self._data)
        return self._scene.render(self._model, self._data)

    def step(self, action: np.ndarray) -> None:
        """Carry out one action for the time of one frame.

        Args:
            action: (4,) dx, dy in metres, of which half is covered; steps that the hand is lifted for; gripper, 0 or 1.
        """
        dx, dy, lift, grip = np.asarray(action, dtype=float)
        self._lift = max(self._lift, round(lift))
        z = self._position[2]
        height = z + 0.5 * ((LIFTED if self._lift else REST) - z)
        self._lift = max(self._lift - 1, 0)
        end = np.clip([self._position[0] + dx / 2, self._position[1] + dy / 2, height], LOW, HIGH)
        start, self._position, self._grip = self._data.mocap_pos.copy(), end, float(grip)
        self._pose(end, self._grip)
        stop = self._data.mocap_pos.copy()
        for part in np.linspace(0, 1, SUBSTEPS + 1)[1:]:
            self._data.mocap_pos = start + part * (stop - start)
            mujoco.mj_step(self._model, self._data)

    def _pose(self, tip: np.ndarray, grip: float) -> None:
        """Put the arm where its fingertips are at `tip`: the hand hangs down, two links reach from the shoulder to it."""
        wrist = tip + [0, 0, _HAND]
        across = wrist - _SHOULDER
        reach = np.linalg.norm(across)
        axis = across / reach
        along = (_UPPER_ARM ** 2 - _FOREARM ** 2 + reach ** 2) / (2 * reach)
        up = np.array([0, 0, 1]) - axis[2] * axis
        bend = np.sqrt(max(_UPPER_ARM ** 2 - along ** 2, 0)) / np.linalg.norm(up)
        elbow = _SHOULDER + along * axis + bend * up
        aside = np.array([0, _OPEN + (_CLOSED - _OPEN) * grip, 0])
        self._data.mocap_pos = [tip, tip - aside, tip + aside, (wrist + elbow) / 2, (elbow + _SHOULDER) / 2]
        for index, link in ((3, elbow - wrist), (4, elbow - _SHOULDER)):
            mujoco.mju_quatZ2Vec(self._data.mocap_quat[index], link / np.linalg.norm(link))


def draw_actions(rng: np.random.Generator, length: int) -> np.ndarray:
    """Actions (length, 4) as BAIR's robot took them at random; each holds for two steps."""
    count = (length + 1) // 2
    actions = np.column_stack([rng.uniform(-REACH, REACH, (count, 2)), rng.choice([0, 1, 3], count, p=[0.65, 0.1, 0.25]),
                               rng.random(count) < 0.25])
    return actions.repeat(2, axis=0)[:length]


def sequence_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one sequence: `Robot(sequence_rng(...))` is the robot of that sequence at its start."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def episode(seed: int, split: str, index: int, length: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3) uint8, actions (T, 4) and positions (T, 3) of one sequence of T = length frames.

    Row t of the actions leads from frame t to frame t + 1; row t of the positions is the end-effector at frame t.
    """
    rng = sequence_rng(seed, split, index)
    robot = Robot(rng)
    actions = draw_actions(rng, length)
    frames, positions = [], []
    for action in actions:
        frames.append(robot.frame())
        positions.append(robot.position)
        robot.step(action)
    return np.stack(frames), actions, np.stack(positions)


# The tree ------------------------------------------------------------------------------------------------

def simulate(root: str | Path, train: int, validate: int, test: int, length: int = 30, seed: int = 1,
             workers: int | None = None, progress: bool = True) -> None:
    """Write a simulated set into ``root/processed_data``; what is there already stays as it is.

    A killed call goes on where it stopped; a call for more sequences adds them.

    Args:
        train, validate, test: sequences of each split.
        length: frames of a sequence.
        workers: processes; None: one a core; 1: this process alone.
    Raises:
        ValueError: the folder holds another set.
        OSError: it cannot be written.
    """
    home = Path(root).expanduser().absolute() / "processed_data"
    counts = dict(zip(SPLITS, (train, validate, test), strict=True))
    try:
        _claim(home, counts, seed, length)
        missing = [(split, index) for split, count in counts.items() for index in _missing(home / split, count)]
        with tqdm(total=len(missing), desc="the robot moves", unit="seq", disable=not progress or not missing) as bar:
            for _ in _work(partial(_write, home, seed, length), missing, workers):
                bar.update()
    except OSError as error:
        raise OSError(f"{home}: the simulated set cannot be written ({error}); make room or name another folder, and "
                      "call again: it goes on from here") from error


def _claim(home: Path, counts: dict[str, int], seed: int, length: int) -> None:
    """Record in ``simulation.json`` what is to be made. Raises ValueError where the folder holds something else."""
    record = home / "simulation.json"
    made = {"seed": seed, "length": length, "simulator": VERSION, "mujoco": mujoco.__version__}
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if differ := [f"{name} {found.get(name)}, not {value}" for name, value in made.items() if found.get(name) != value]:
            raise ValueError(f"{home} holds a simulated set with {'; '.join(differ)}; name another folder, or remove it")
        counts = {split: max(count, found["sequences"][split]) for split, count in counts.items()}
        if counts == found["sequences"]:
            return
    elif home.exists() and any(home.iterdir()):
        raise ValueError(f"{home} holds data that is not simulated; name another folder for the simulated set")
    home.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**made, "sequences": counts}, indent=1) + "\n"
    (home / ".simulation.json").write_text(text, encoding="utf-8")
    os.replace(home / ".simulation.json", record)


def _folder(split: Path, index: int) -> Path:
    first = index // FOLDER * FOLDER
    return split / f"traj_{first}_to_{first + FOLDER - 1}.tfrecords" / str(index - first)


def _missing(split: Path, count: int) -> list[int]:
    return [index for index in range(count) if not _folder(split, index).is_dir()]


def _write(home: Path, seed: int, length: int, sequence: tuple[str, int]) -> None:
    """Write one sequence aside and rename it, so that a folder with its name is whole."""
    split, index = sequence
    frames, actions, positions = episode(seed, split, index, length)
    folder = _folder(home / split, index)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(temporary / f"{t}.png", compress_level=3)
    for name, table in (("actions", actions), ("endeffector_positions", positions)):
        np.savetxt(temporary / f"{name}.csv", table, fmt="%.8f", delimiter=",")
    os.replace(temporary, folder)


def _work(task, items: list, workers: int | None) -> Iterator[None]:
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield from map(task, items)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
