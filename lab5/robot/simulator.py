"""A simulated robot that pushes toys, as a data set in the lab's tree, where BAIR is not at hand.

MuJoCo moves an arm through a tray of free bodies (toys.xml), and the camera of `lab5.robot.scene` looks at them.
Sequence i of a split depends on (seed, split, i) only: neither the number of processes nor a kill changes a set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lab5.files import SIMULATION, SPLITS, TABLES, DataError, each, home, lock, write_text
from lab5.robot.scene import TRAY, Scene

VERSION = 4                                     # of the simulator; increase it where frames of a seed change
SHARD = 256                                     # sequences in a traj_A_to_B folder
REACH = 0.066                                   # m, the largest dx or dy of an action
LOW, HIGH = np.array([0.43, -0.31, 0.19]), np.array([0.86, 0.23, 0.32])      # limits of the end-effector
REST, LIFTED = 0.20, 0.32                       # m, height of the end-effector when it pushes and when it is lifted
SUBSTEPS = 16                                   # physics steps per frame
RHYTHM = (0.2, 0.8)                             # shares of an action's way in the two frames that it holds for
_SHOULDER, _HAND, _FOREARM, _UPPER_ARM = np.array([0.0, -0.05, 0.74]), 0.21, 0.36, 0.64      # m; the links' lengths
_OPEN, _CLOSED = 0.013, 0.007                   # m from the middle to a finger


def _world(rng: np.random.Generator) -> mujoco.MjModel:
    """Tray, arm, and 8 to 10 of the toys in three loose heaps."""
    xml = ElementTree.parse(Path(__file__).with_name("toys.xml")).getroot()
    world = xml.find("worldbody")
    toys = {body.get("name"): body for body in world if not body.get("mocap")}
    world[:] = [body for body in world if body.get("mocap")]
    for x, y, z, *normal in TRAY:
        ElementTree.SubElement(world, "geom", type="plane", size="1 1 .1", group="0", pos=_text([x, y, z]),
                               zaxis=_text(normal))
    heaps = np.column_stack([0.40 + 0.36 * rng.beta(1, 1.6, 3), rng.uniform(-0.27, 0.17, 3)])
    for count, name in enumerate(rng.permutation(list(toys))[:rng.integers(8, 11)]):
        x, y = heaps[count % 3] + rng.normal(0, 0.08, 2)
        toys[name].attrib.update(pos=_text([x, y, 0.22 + 0.05 * count]), euler=_text([0, 0, rng.uniform(0, 360)]))
        scale = rng.uniform(1.0, 1.2)
        for geom in toys[name].iter("geom"):
            for key in geom.attrib.keys() & {"size", "pos"}:
                geom.set(key, _text(round(float(number) * scale, 5) for number in geom.get(key).split()))
        world.append(toys[name])
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(xml, encoding="unicode"))
    for body in np.flatnonzero(model.body_dofnum):              # soft toys stop rolling
        dof = model.body_dofadr[body]
        model.dof_damping[dof:dof + 3] = 3 * model.body_mass[body]
        model.dof_damping[dof + 3:dof + 6] = 4 * model.body_inertia[body].mean()
    return model


def _text(numbers: Iterable[float]) -> str:
    return " ".join(map(str, numbers))


class Robot:
    """The arm, its tray of toys and its camera. A seed or generator decides toys, light, and the first position."""

    def __init__(self, seed: int | np.random.Generator) -> None:
        rng = np.random.default_rng(seed)
        self._scene = Scene(rng)
        self._model = _world(rng)
        self._data = mujoco.MjData(self._model)
        self._position = np.array([*rng.uniform(LOW[:2] + 0.05, HIGH[:2] - 0.05), REST])
        self._lift = 0                                          # steps for which the hand stays lifted
        self._steps = 0                                         # steps so far: an action begins at an even one
        self._pose(self._position + [0, 0, 0.4], grip=0)
        mujoco.mj_step(self._model, self._data, 150)            # the toys come to rest
        for above in (0.3, 0.2, 0.1, 0.0):                      # slowly, or it would throw toys out of the tray
            self._reach(self._position + [0, 0, above], grip=0)

    @property
    def position(self) -> np.ndarray:
        """The end-effector, the point between the fingertips: x, y, z (3,) in metres."""
        return self._position.copy()

    def frame(self) -> np.ndarray:
        """What the camera sees, uint8 (64, 64, 3)."""
        mujoco.mj_kinematics(self._model, self._data)
        return self._scene.render(self._model, self._data)

    def step(self, action: Iterable[float]) -> None:
        """Carry out one action (4,), for the time of one frame.

        The action: dx and dy in metres, of which a share is covered, as `RHYTHM` says; the number of steps for which
        the hand is lifted, this one included; 1 to close the gripper, 0 to open it.
        """
        dx, dy, lift, grip = map(float, action)
        self._lift = max(self._lift, round(lift))
        height = LIFTED if self._lift else REST
        self._lift = max(self._lift - 1, 0)
        share = RHYTHM[self._steps % 2]
        self._steps += 1
        move = share * np.array([dx, dy, 0.6 * (height - self._position[2])])
        self._position = (self._position + move).clip(LOW, HIGH)
        self._reach(self._position, grip)

    def _reach(self, tip: np.ndarray, grip: float) -> None:
        """Move the arm to a pose in a straight line, in the time of one frame; it pushes toys out of the way."""
        start = self._data.mocap_pos.copy()
        self._pose(tip, grip)
        end = self._data.mocap_pos.copy()
        for substep in range(1, SUBSTEPS + 1):
            self._data.mocap_pos = start + substep / SUBSTEPS * (end - start)
            mujoco.mj_step(self._model, self._data)

    def _pose(self, tip: np.ndarray, grip: float) -> None:
        """Set the arm so that its fingertips are at `tip`: the hand points down, inverse kinematics place two links."""
        wrist = tip + [0, 0, _HAND]
        reach = np.linalg.norm(wrist - _SHOULDER)
        axis = (wrist - _SHOULDER) / reach
        up = np.array([0, 0, 1]) - axis[2] * axis
        along = (_UPPER_ARM ** 2 - _FOREARM ** 2 + reach ** 2) / (2 * reach)        # the law of cosines
        above = np.sqrt(max(_UPPER_ARM ** 2 - along ** 2, 0))
        elbow = _SHOULDER + along * axis + above * up / np.linalg.norm(up)
        aside = np.array([0, _OPEN + (_CLOSED - _OPEN) * grip, 0])
        self._data.mocap_pos = [tip, tip - aside, tip + aside, (wrist + elbow) / 2, (elbow + _SHOULDER) / 2]
        for body, link in ((3, elbow - wrist), (4, elbow - _SHOULDER)):
            mujoco.mju_quatZ2Vec(self._data.mocap_quat[body], link / np.linalg.norm(link))


def draw_action(rng: np.random.Generator, position: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """A random action (4,) from a position (3,): like the one `before`, but back from the end-effector's limits."""
    move = rng.normal(0, 0.036, 2) if before is None else 0.75 * before[:2] + rng.normal(0, 0.025, 2)
    move = move.clip(-REACH, REACH)
    leaves = position[:2] + move != np.clip(position[:2] + move, LOW[:2], HIGH[:2])
    return np.array([*np.where(leaves, -move, move), rng.choice([0, 1, 3], p=[0.65, 0.1, 0.25]), rng.random() < 0.25])


def sequence_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one sequence: `Robot(sequence_rng(...))` is its robot at the first frame."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def episode(seed: int, split: str, index: int, length: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, 7), actions beside positions, of one sequence of T = length.

    Row t: the action leads from frame t to frame t + 1; the position is the end-effector's at frame t.
    """
    rng = sequence_rng(seed, split, index)
    robot, action, frames, conditions = Robot(rng), None, [], []
    for t in range(length):
        if t % 2 == 0:
            action = draw_action(rng, robot.position, action)
        frames.append(robot.frame())
        conditions.append([*action, *robot.position])
        robot.step(action)
    return np.stack(frames), np.array(conditions)


def simulate(root: str | Path, train: int, validate: int, test: int, length: int = 30, seed: int = 1,
             workers: int | None = None, progress: bool = True) -> None:
    """Write a simulated set into ``root/processed_data``; sequences that are there stay as they are.

    `train`, `validate` and `test` are numbers of sequences, of `length` frames; `workers` is that of processes (None:
    one per core). The same call resumes after a kill, and a call for more sequences adds them. The many arguments are
    a set's. Raises DataError where the folder holds another set, or real data, and OSError where it cannot be written.
    """
    tree, counts = home(root) / "processed_data", dict(zip(SPLITS, (train, validate, test), strict=True))
    record = {"seed": seed, "length": length, "simulator": VERSION, "mujoco": mujoco.__version__}
    try:
        _refuse_other(tree, record)
        missing = [(split, index) for split, count in counts.items() for index in range(count)
                   if not _folder(tree, split, index).is_dir()]
        if not missing:
            return
        with lock(tree / ".simulation.lock"):                   # of several processes one writes, the others wait
            # the record comes first: also a part of a set must be known as simulated
            write_text(tree / SIMULATION, json.dumps(record, indent=1) + "\n")
            done = each(partial(_write, tree, seed, length), missing, workers)
            for _ in tqdm(done, "simulating", len(missing), unit="seq", disable=not progress):
                pass
    except OSError as error:
        raise OSError(f"{tree}: the simulated set cannot be written ({error}). Free some disk space or make the folder "
                      "writable, and the same command resumes; or choose another folder") from error


def _refuse_other(tree: Path, record: dict) -> None:
    """Raise DataError where a folder holds anything but the set of this record."""
    path = tree / SIMULATION
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else record
    if found != record:
        raise DataError(f"{path}: found {found}, expected {record}; choose another folder, or remove {tree}")
    if not path.exists() and any(tree.glob("[!.]*")):
        raise DataError(f"{tree}: holds data that were not simulated; choose another folder for the simulated set")


def _folder(tree: Path, split: str, index: int) -> Path:
    first = index - index % SHARD
    return tree / split / f"traj_{first}_to_{first + SHARD - 1}.tfrecords" / str(index - first)


def _write(tree: Path, seed: int, length: int, sequence: tuple[str, int]) -> None:
    """Write a sequence (split, index), unless it is there. A folder of the right name is whole: it is renamed last."""
    folder = _folder(tree, *sequence)
    if folder.is_dir():                                         # another process has written it meanwhile
        return
    frames, conditions = episode(seed, *sequence, length)
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)                    # left by a killed call
    aside.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(aside / f"{t}.png", compress_level=1)
    for table, columns in zip(TABLES, np.split(conditions, [4], axis=1), strict=True):
        np.savetxt(aside / table, columns, fmt="%.8f", delimiter=",")
    os.replace(aside, folder)
