"""A simulated robot that pushes toys about, written in the lab's folder tree.

The stand-in for BAIR where that is not at hand: an arm that MuJoCo moves through a tray of free bodies, seen
by the camera of `lab5.scene`. Sequence i of a split depends on (seed, split, i) alone, so a set is the same
whatever the number of processes, and what a kill interrupted goes on to the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import mujoco
import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from lab5 import scene
from lab5.files import write_text
from lab5.processes import each
from lab5.scene import Scene
from lab5.sources import SIMULATION, SPLITS, write_sequence

VERSION = 3                                     # of the simulator; another makes other frames from a seed
SHARD = 256                                     # sequences in a traj_A_to_B folder
REACH = 0.066                                   # m, the largest dx or dy of an action
LOW, HIGH = np.array([0.43, -0.31, 0.19]), np.array([0.86, 0.23, 0.32])      # where the end-effector may be
REST, LIFTED = 0.20, 0.32                       # m, height of the end-effector when it pushes and when it is up
SUBSTEPS, TIMESTEP = 16, 0.006                  # physics steps a frame, seconds each

# The world -----------------------------------------------------------------------------------------------

_COLOURS = {
    "black": (0.05, 0.045, 0.04), "soot": (0.085, 0.07, 0.06), "slate": (0.22, 0.24, 0.28), "grey": (0.42, 0.43, 0.44),
    "silver": (0.74, 0.75, 0.78), "white": (0.93, 0.93, 0.93), "cream": (0.86, 0.82, 0.68), "brown": (0.25, 0.17, 0.09),
    "tan": (0.55, 0.40, 0.24), "red": (0.74, 0.22, 0.12), "maroon": (0.50, 0.06, 0.08), "orange": (0.88, 0.40, 0.14),
    "yellow": (0.93, 0.74, 0.15), "olive": (0.56, 0.58, 0.42), "green": (0.42, 0.80, 0.10), "teal": (0.10, 0.45, 0.50),
    "blue": (0.08, 0.43, 0.70), "purple": (0.24, 0.12, 0.36)}

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
    "turtle": """sphere 3.5 | 0 0 1 | 0 0 0 | green
                 ellipsoid 4.3 3.9 1.6 | 0 0 -1.4 | 0 0 0 | orange
                 sphere 1.4 | 4.6 0 -1 | 0 0 0 | olive""",
    "ball": """sphere 3.4 | 0 0 0 | 0 0 0 | green spots olive
               capsule 0.7 1.4 | 0 0 3.8 | 0 0 0 | brown""",
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
    "hand": """box 1.2 2.2 0.8 | 0 0 7.4 | 0 0 0 | soot
               cylinder 2.5 2.1 | 0 0 9.8 | 0 0 0 | maroon
               capsule 3.4 2.4 | 0 0 14.6 | 0 0 0 | soot
               box 2 2.4 2.2 | 0 4 15 | 0 0 0 | soot
               box 1.6 1 1.2 | 0.8 5.6 17.6 | 0 0 0 | slate
               cylinder 4.6 2.2 | 0 0 20 | 0 0 0 | maroon""",
    "finger": "capsule 0.9 3.7 | 0 0 2.6 | 0 0 0 | soot",
    "thumb": "capsule 0.9 3.7 | 0 0 2.6 | 0 0 0 | soot",
    "forearm": "capsule 5 18 | 0 0 0 | 0 0 0 | soot",
    "upper arm": "capsule 6 32 | 0 0 0 | 0 0 0 | maroon",
}
_SHOULDER, _HAND, _FOREARM, _UPPER_ARM = np.array([0.0, -0.05, 0.74]), 0.21, 0.36, 0.64      # m; the links' lengths
_OPEN, _CLOSED = 0.013, 0.007                   # m from the middle to a finger


def _geoms(lines: str, scale: float = 1.0, touches: bool = True) -> str:
    """MuJoCo's XML for a body of `_TOYS` or `_ARM`."""
    xml = []
    for line in lines.splitlines():
        (kind, *size), place, angles, (colour, *rest) = (part.split() for part in line.split("|"))
        pattern, second = rest or ("plain", colour)
        size, place = (_words(round(float(number) * scale / 100, 5) for number in part) for part in (size, place))
        gloss = 0.06 if pattern == "fur" else 0.22
        xml.append(f'<geom type="{kind}" size="{size}" pos="{place}" euler="{_words(angles)}" group="{scene.VISIBLE}" '
                   f'rgba="{_words(_COLOURS[colour])} 1" contype="{touches:d}" conaffinity="{touches:d}" '
                   f'user="{scene.PATTERNS.index(pattern)} {_words(_COLOURS[second])} {gloss}"/>')
    return "".join(xml)


def _words(numbers: Iterable) -> str:
    return " ".join(map(str, numbers))


def _world(rng: np.random.Generator) -> mujoco.MjModel:
    """Tray, arm, and 8 to 10 toys in three loose heaps."""
    bodies = []
    for plane in scene.TRAY:
        mujoco.mju_quatZ2Vec(turn := np.zeros(4), plane[3:])
        bodies.append(f'<geom type="plane" size="1 1 .1" pos="{_words(plane[:3])}" quat="{_words(turn)}"/>')
    for name, lines in _ARM.items():
        bodies.append(f'<body name="{name}" mocap="true">{_geoms(lines, touches="arm" not in name)}</body>')
    heaps = np.column_stack([0.40 + 0.36 * rng.beta(1, 1.6, 3), rng.uniform(-0.27, 0.17, 3)])
    for count, toy in enumerate(rng.permutation(list(_TOYS))[:rng.integers(8, 11)]):
        x, y = heaps[count % 3] + rng.normal(0, 0.08, 2)
        bodies.append(f'<body pos="{x} {y} {0.22 + 0.05 * count}" euler="0 0 {rng.uniform(0, 360)}"><freejoint/>'
                      f'{_geoms(_TOYS[toy], rng.uniform(1.0, 1.2))}</body>')
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <size nuser_geom="5"/>
          <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="10" impratio="10" cone="elliptic"
                  sleep_tolerance=".005">
            <flag sleep="enable"/>
          </option>
          <default><geom density="200" friction="1 .01 .003" condim="6" solref=".015 1"/></default>
          <worldbody>{"".join(bodies)}</worldbody>
        </mujoco>""")
    for body in np.flatnonzero(model.body_dofnum):                  # soft toys do not roll on
        dof = model.body_dofadr[body]
        model.dof_damping[dof:dof + 3] = 3 * model.body_mass[body]
        model.dof_damping[dof + 3:dof + 6] = 4 * model.body_inertia[body].mean()
    return model


# The robot -----------------------------------------------------------------------------------------------

class Robot:
    """The arm, its tray of toys and its camera.

    What is seen of the arm follows from its position and its gripper; what becomes of the toys, from all it did.

    Args:
        seed: a seed, or a numpy generator such as `sequence_rng` gives: it decides the toys, the light, and where
            the arm begins.
    """

    def __init__(self, seed: int | np.random.Generator) -> None:
        rng = np.random.default_rng(seed)
        self._scene = Scene(rng)
        self._model = _world(rng)
        self._data = mujoco.MjData(self._model)
        self._position = np.array([*rng.uniform(LOW[:2] + 0.05, HIGH[:2] - 0.05), REST])
        self._lift, self._grip = 0, 0.0
        self._pose(self._position + [0, 0, 0.4], self._grip)
        mujoco.mj_step(self._model, self._data, 150)                # the toys come to rest
        for above in (0.3, 0.2, 0.1, 0.0):                          # faster, it would fling them out
            self._reach(self._position + [0, 0, above], self._grip)

    @property
    def position(self) -> np.ndarray:
        """The end-effector, the point between the fingertips: x, y, z (3,) in metres."""
        return self._position.copy()

    def frame(self) -> np.ndarray:
        """What the camera sees, uint8 (64, 64, 3)."""
        mujoco.mj_kinematics(self._model, self._data)
        return self._scene.render(self._model, self._data)

    def step(self, action: Iterable[float]) -> None:
        """Carry out one action for the time of one frame.

        Args:
            action: (4,): dx and dy in metres, of which half is covered; for how many steps the hand is lifted,
                this one included; 1 to close the gripper, 0 to open it.
        """
        dx, dy, lift, grip = map(float, action)
        self._lift = max(self._lift, round(lift))
        height = LIFTED if self._lift else REST
        self._lift = max(self._lift - 1, 0)
        move = np.array([dx / 2, dy / 2, 0.3 * (height - self._position[2])])
        self._position, self._grip = (self._position + move).clip(LOW, HIGH), grip
        self._reach(self._position, grip)

    def _reach(self, tip: np.ndarray, grip: float) -> None:
        """Move the arm to a pose in a straight line, in the time of one frame; toys in the way are pushed."""
        start = self._data.mocap_pos.copy()
        self._pose(tip, grip)
        end = self._data.mocap_pos.copy()
        for substep in range(1, SUBSTEPS + 1):
            self._data.mocap_pos = start + substep / SUBSTEPS * (end - start)
            mujoco.mj_step(self._model, self._data)

    def _pose(self, tip: np.ndarray, grip: float) -> None:
        """Set the arm where its fingertips are at `tip`: the hand hangs down, and two links reach to it."""
        wrist = tip + [0, 0, _HAND]
        reach = np.linalg.norm(wrist - _SHOULDER)
        axis = (wrist - _SHOULDER) / reach
        up = np.array([0, 0, 1]) - axis[2] * axis
        along = (_UPPER_ARM ** 2 - _FOREARM ** 2 + reach ** 2) / (2 * reach)        # the law of cosines
        aloft = np.sqrt(max(_UPPER_ARM ** 2 - along ** 2, 0))
        elbow = _SHOULDER + along * axis + aloft * up / np.linalg.norm(up)
        aside = np.array([0, _OPEN + (_CLOSED - _OPEN) * grip, 0])
        self._data.mocap_pos = [tip, tip - aside, tip + aside, (wrist + elbow) / 2, (elbow + _SHOULDER) / 2]
        for body, link in ((3, elbow - wrist), (4, elbow - _SHOULDER)):
            mujoco.mju_quatZ2Vec(self._data.mocap_quat[body], link / np.linalg.norm(link))


def draw_action(rng: np.random.Generator, position: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """A random action (4,) like BAIR's robot's, to be held for two steps from a position (3,).

    It tends to go on as the action `before` did, and turns back from the edge of its reach.
    """
    move = rng.normal(0, 0.036, 2) if before is None else 0.75 * before[:2] + rng.normal(0, 0.025, 2)
    move = move.clip(-REACH, REACH)
    leaves = (position[:2] + move != np.clip(position[:2] + move, LOW[:2], HIGH[:2]))
    return np.array([*np.where(leaves, -move, move), rng.choice([0, 1, 3], p=[0.65, 0.1, 0.25]), rng.random() < 0.25])


def sequence_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one sequence: `Robot(sequence_rng(...))` is the robot of that sequence at its start."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def episode(seed: int, split: str, index: int, length: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3) uint8, actions (T, 4) and positions (T, 3) of one sequence of T = length frames.

    Row t of the actions leads from frame t to frame t + 1; row t of the positions is the end-effector at frame t.
    """
    rng = sequence_rng(seed, split, index)
    robot, action = Robot(rng), None
    frames, actions, positions = [], [], []
    for t in range(length):
        if t % 2 == 0:
            action = draw_action(rng, robot.position, action)
        frames.append(robot.frame())
        actions.append(action)
        positions.append(robot.position)
        robot.step(action)
    return np.stack(frames), np.stack(actions), np.stack(positions)


# The tree ------------------------------------------------------------------------------------------------

def simulate(root: str | Path, train: int, validate: int, test: int, length: int = 30, seed: int = 1,
             workers: int | None = None, progress: bool = True) -> None:
    """Write a simulated set into ``root/processed_data``; what is there already stays as it is.

    A killed call goes on where it stopped, and a call for more sequences adds them.

    Args:
        train, validate, test: sequences of each split.
        length: frames of a sequence.
        workers: processes; None: one a core; 1: this one alone.
    Raises:
        ValueError: the folder holds another set, or real data; or a count is negative.
        OSError: the set cannot be written.
    """
    counts = dict(zip(SPLITS, (train, validate, test), strict=True))
    if min(counts.values()) < 0 or length < 1:
        raise ValueError(f"{counts} sequences of {length} frames cannot be made; counts are 0 or more, a length 1")
    home = Path(os.path.abspath(Path(root).expanduser())) / "processed_data"
    record = {"seed": seed, "length": length, "simulator": VERSION, "mujoco": mujoco.__version__}
    try:
        _refuse_other(home, record)
        if _begun(home, counts) and not _missing(home, counts):
            return
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".simulation.lock"):               # of several processes one writes, the others wait
            _refuse_other(home, record)
            _begin(home, record, counts)
            missing = _missing(home, counts)
            with tqdm(total=len(missing), desc="the robot moves", unit="seq", disable=not progress) as bar:
                for _ in each(partial(_write, home, seed, length), missing, workers):
                    bar.update()
    except OSError as error:
        raise OSError(f"{home}: the simulated set cannot be written ({error}); make room or the folder writable and "
                      "start again, and it goes on from here, or name another folder") from error


def _read_record(home: Path) -> dict:
    path = home / SIMULATION
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: is no record of a simulation ({error}); remove {home}, or name another folder"
                         ) from error


def _refuse_other(home: Path, record: dict) -> None:
    """Raise ValueError where a folder holds anything but the set of this record."""
    found = _read_record(home)
    if found:
        differences = [f"{name} {found.get(name)}, not {value}" for name, value in record.items()
                       if found.get(name) != value]
        if differences:
            raise ValueError(f"{home} holds a simulated set with {'; '.join(differences)}: name another folder, or "
                             "remove this one")
    elif home.is_dir() and any(not entry.name.startswith(".") for entry in home.iterdir()):
        raise ValueError(f"{home} holds data that was not simulated: name another folder for the simulated set")


def _begun(home: Path, counts: dict[str, int]) -> bool:
    """Whether the record names at least so many sequences."""
    planned = _read_record(home).get("sequences", {})
    return all(planned.get(split, -1) >= count for split, count in counts.items())


def _begin(home: Path, record: dict, counts: dict[str, int]) -> None:
    """Write the record before the first sequence: whoever reads the set must know it as simulated throughout."""
    if not _begun(home, counts):
        planned = _read_record(home).get("sequences", {})
        sequences = {split: max(count, planned.get(split, 0)) for split, count in counts.items()}
        write_text(home / SIMULATION, json.dumps({**record, "sequences": sequences}, indent=1) + "\n")


def _folder(home: Path, split: str, index: int) -> Path:
    first = index - index % SHARD
    return home / split / f"traj_{first}_to_{first + SHARD - 1}.tfrecords" / str(index - first)


def _missing(home: Path, counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(split, index) for split, count in counts.items() for index in range(count)
            if not _folder(home, split, index).is_dir()]


def _write(home: Path, seed: int, length: int, sequence: tuple[str, int]) -> None:
    frames, actions, positions = episode(seed, *sequence, length)
    write_sequence(_folder(home, *sequence), frames, np.hstack([actions, positions]), "%.8f")
