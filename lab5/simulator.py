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
from lab5.scene import FUR, HALVES, PLAIN, SPOTS, STRIPES, Scene

VERSION = 1                                     # of the simulator; another makes other frames from a seed
SPLITS = ("train", "validate", "test")
FOLDER = 256                                    # sequences in a traj_A_to_B folder
REACH = 0.066                                   # m, the largest dx or dy of an action
LOW, HIGH = np.array([0.43, -0.31, 0.19]), np.array([0.86, 0.23, 0.32])      # where the end-effector may be
REST, LIFTED = 0.20, 0.31                       # m, height of the end-effector when it pushes and when it is up
SUBSTEPS, TIMESTEP = 20, 0.005                  # physics steps a frame, seconds each

# Toys ----------------------------------------------------------------------------------------------------

GREY, WHITE, BLACK = (0.62, 0.62, 0.6), (0.9, 0.9, 0.88), (0.1, 0.09, 0.09)
GREEN, ORANGE, BLUE = (0.4, 0.8, 0.1), (0.85, 0.4, 0.12), (0.1, 0.42, 0.68)
RED, PURPLE, BROWN, OLIVE = (0.72, 0.16, 0.08), (0.3, 0.14, 0.42), (0.28, 0.17, 0.08), (0.55, 0.58, 0.38)
YELLOW = (0.9, 0.75, 0.15)

# each toy is a rigid body of geoms: kind, size, position, Euler angles, colour, pattern, second colour
_TOYS = [
    [("ellipsoid", ".04 .026 .026", "0 0 0", "0 0 0", WHITE, STRIPES, GREY),
     ("sphere", ".024", ".045 0 .016", "0 0 0", WHITE, STRIPES, GREY),
     ("capsule", ".01 .02", ".025 .02 -.02", "0 0 0", GREY, FUR, WHITE),
     ("capsule", ".01 .02", "-.025 -.02 -.02", "0 0 0", GREY, FUR, WHITE)],
    [("sphere", ".038", "0 0 0", "0 0 0", GREEN, PLAIN, GREEN),
     ("ellipsoid", ".036 .036 .014", "0 0 -.025", "0 0 0", ORANGE, PLAIN, ORANGE)],
    [("box", ".045 .016 .016", "0 0 0", "0 0 0", BLUE, PLAIN, BLUE),
     ("box", ".016 .035 .016", ".03 .03 0", "0 0 .3", BLUE, PLAIN, BLUE),
     ("box", ".018 .012 .018", "0 .016 0", "0 0 0", ORANGE, PLAIN, ORANGE)],
    [("ellipsoid", ".028 .028 .012", "0 0 0", "0 0 0", RED, PLAIN, RED),
     ("capsule", ".008 .03", ".05 0 0", "0 1.57 0", RED, PLAIN, RED)],
    [("ellipsoid", ".022 .022 .018", "0 0 0", "0 0 0", PURPLE, PLAIN, PURPLE),
     ("capsule", ".008 .03", ".045 0 0", "0 1.57 0", PURPLE, PLAIN, PURPLE)],
    [("sphere", ".028", "0 0 0", "0 0 0", BROWN, FUR, BLACK),
     ("sphere", ".022", ".035 0 .01", "0 0 0", BROWN, FUR, WHITE),
     ("capsule", ".01 .02", "0 .03 0", "1.2 0 0", BROWN, PLAIN, BROWN)],
    [("sphere", ".032", "0 0 0", "0 0 0", WHITE, PLAIN, WHITE)],
    [("capsule", ".024 .03", "0 0 0", "0 1.57 0", WHITE, STRIPES, BROWN)],
    [("box", ".05 .02 .014", "0 0 0", "0 0 0", BLACK, STRIPES, GREEN),
     ("box", ".045 .018 .008", "0 0 .018", "0 0 0", GREEN, PLAIN, GREEN)],
    [("sphere", ".022", "0 0 0", "0 0 0", OLIVE, PLAIN, OLIVE)],
    [("ellipsoid", ".034 .026 .024", "0 0 0", "0 0 0", WHITE, SPOTS, BLACK),
     ("sphere", ".02", ".038 0 .01", "0 0 0", BLACK, PLAIN, BLACK)],
    [("ellipsoid", ".026 .026 .02", "0 0 0", "0 0 0", PURPLE, FUR, BLUE)],
]


def _geom(kind, size, place, euler, colour, pattern, second, gloss=0.25) -> str:
    user = " ".join(map(str, (pattern, *second, gloss)))
    return (f'<geom type="{kind}" size="{size}" pos="{place}" euler="{euler}" group="{scene.VISIBLE}" '
            f'rgba="{" ".join(map(str, colour))} 1" user="{user}"/>')


_ARM_BLACK, _ARM_RED = (0.07, 0.05, 0.05), (0.4, 0.04, 0.05)
SHOULDER, HAND, UPPER_LENGTH, FOREARM_LENGTH = np.array([0.0, -0.04, 0.62]), 0.19, 0.55, 0.42

_ARM = f"""
<body name="hand" mocap="true">
  {_geom("cylinder", ".016 .012", "0 0 .058", "0 0 0", _ARM_BLACK, PLAIN, _ARM_BLACK)}
  {_geom("cylinder", ".024 .012", "0 0 .08", "0 0 0", _ARM_RED, PLAIN, _ARM_RED)}
  {_geom("capsule", ".028 .025", "0 0 .125", "0 0 0", _ARM_BLACK, PLAIN, _ARM_BLACK)}
  {_geom("box", ".02 .016 .02", "0 .032 .12", "0 0 0", (0.2, 0.2, 0.22), PLAIN, _ARM_BLACK)}
  {_geom("cylinder", ".042 .012", "0 0 .17", "0 0 0", _ARM_RED, PLAIN, _ARM_RED)}
</body>
<body name="left" mocap="true">{_geom("capsule", ".007 .022", "0 0 .03", "0 0 0", _ARM_BLACK, PLAIN, _ARM_BLACK)}</body>
<body name="right" mocap="true">{_geom("capsule", ".007 .022", "0 0 .03", "0 0 0", _ARM_BLACK, PLAIN, _ARM_BLACK)}</body>
<body name="forearm" mocap="true">
  {_geom("capsule", f".05 {FOREARM_LENGTH / 2}", "0 0 0", "0 0 0", _ARM_BLACK, PLAIN, _ARM_BLACK)}</body>
<body name="upper" mocap="true">
  {_geom("capsule", f".06 {UPPER_LENGTH / 2}", "0 0 0", "0 0 0", _ARM_RED, PLAIN, _ARM_RED)}</body>
"""
_BODIES = ("hand", "left", "right", "forearm", "upper")


def _world(rng: np.random.Generator) -> mujoco.MjModel:
    """Arm, tray and 5 to 9 toys."""
    planes = []
    for x, y, z, *normal in scene.TRAY:
        quat = np.zeros(4)
        mujoco.mju_quatZ2Vec(quat, np.array(normal))
        planes.append(f'<geom type="plane" size="1 1 .1" pos="{x} {y} {z}" quat="{" ".join(map(str, quat))}"/>')
    toys = []
    for kind in rng.permutation(len(_TOYS))[:rng.integers(5, 10)]:
        x = 0.38 + 0.4 * rng.beta(1.2, 2.2)
        y = rng.uniform(-0.29, 0.21)
        geoms = "".join(_geom(*geom) for geom in _TOYS[kind])
        toys.append(f'<body pos="{x} {y} {0.23 + 0.06 * len(toys)}" euler="0 0 {rng.uniform(0, 6.28)}"><freejoint/>{geoms}</body>')
    model = mujoco.MjModel.from_xml_string(f"""
<mujoco><compiler angle="radian"/><size nuser_geom="5"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" iterations="20"/>
<default><geom density="200" friction=".7 .005 .0005" condim="4" solref=".015 1"/></default>
<worldbody>{"".join(planes)}{_ARM}{"".join(toys)}</worldbody></mujoco>""")
    for body in range(1, model.nbody):
        if model.body_dofnum[body]:
            first = model.body_dofadr[body]
            model.dof_damping[first:first + 3] = 3 * model.body_mass[body]
            model.dof_damping[first + 3:first + 6] = 4 * model.body_inertia[body].mean()
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
        self._mocap = [self._model.body(name).mocapid[0] for name in _BODIES]
        self._position = np.array([*rng.uniform(LOW[:2], HIGH[:2]), REST])
        self._lift, self._grip = 0, 0.0
        self._pose(np.array([0.6, -0.04, 0.6]), 0.0)                # out of the way while the toys settle
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
        start, grip_start = self._position, self._grip
        end = np.clip([start[0] + dx / 2, start[1] + dy / 2, height], LOW, HIGH)
        for part in np.linspace(0, 1, SUBSTEPS + 1)[1:]:
            self._pose(start + part * (end - start), grip_start + part * (grip - grip_start))
            mujoco.mj_step(self._model, self._data)
        self._position, self._grip = end, grip

    def _pose(self, tip: np.ndarray, grip: float) -> None:
        """Put the arm where its fingertips are at `tip`; inverse kinematics of two links above the hand."""
        wrist = tip + [0, 0, HAND]
        across = wrist - SHOULDER
        reach = np.linalg.norm(across)
        reach_ = min(reach, UPPER_LENGTH + FOREARM_LENGTH - 1e-6)
        along = (UPPER_LENGTH ** 2 - FOREARM_LENGTH ** 2 + reach_ ** 2) / (2 * reach_)
        axis = across / reach
        up = np.array([0, 0, 1.0]) - axis[2] * axis
        elbow = SHOULDER + along * axis + np.sqrt(max(UPPER_LENGTH ** 2 - along ** 2, 0)) * up / np.linalg.norm(up)
        spread = np.array([0, 0.016 - 0.007 * grip, 0])
        poses = {"hand": (tip, None), "left": (tip - spread, None), "right": (tip + spread, None),
                 "forearm": ((wrist + elbow) / 2, elbow - wrist), "upper": ((elbow + SHOULDER) / 2, elbow - SHOULDER)}
        for index, (place, axis) in zip(self._mocap, poses.values(), strict=True):
            self._data.mocap_pos[index] = place
            if axis is not None:
                mujoco.mju_quatZ2Vec(self._data.mocap_quat[index], axis / np.linalg.norm(axis))


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
