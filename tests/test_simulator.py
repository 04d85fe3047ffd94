"""The simulated robot: the same bytes from a seed, real BAIR's ranges and difficulty, toys that get pushed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import data, simulator
from lab5.metrics import psnr
from lab5.simulator import HIGH, LOW, REACH, Robot, draw_action, episode, sequence_rng, simulate

LENGTH = 4                                      # frames of the sequences below, where their content is no matter


def files(root: Path) -> dict[str, bytes]:
    """Every file that a reader of the set sees, by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".")}


def dates(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def make(root: Path, train=2, validate=1, test=2, **options) -> Path:
    simulate(root, train, validate, test, **{"length": LENGTH, "workers": 1, "progress": False, **options})
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def episodes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (N, T, 64, 64, 3), actions (N, T, 4) and positions (N, T, 3) of the window that is graded."""
    return tuple(np.stack(part) for part in zip(*(episode(1, "test", index, 12) for index in range(64)), strict=True))


# The tree ------------------------------------------------------------------------------------------------

def test_the_bytes_depend_on_the_seed_and_not_on_the_processes(small, tmp_path):
    assert files(make(tmp_path / "two", workers=2)) == files(small)
    other = files(make(tmp_path / "other", seed=2))
    assert other.keys() == files(small).keys()
    assert not [name for name, content in other.items()
                if name.endswith("/1.png") and content == files(small)[name]]


def test_sequences_differ_within_a_split_and_between_splits(small):
    first = [content for name, content in files(small).items() if name.endswith("/0.png")]
    assert len(first) == len(set(first)) == 5


def test_the_tree_is_what_the_reader_expects(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")
    assert data.check(root, progress=False) == []
    assert data.summary(root) == {"train": 2, "validate": 1, "test": 2}
    pack = data.open_pack(root, "test", progress=False)
    frames, actions, positions = episode(1, "test", 1, LENGTH)
    assert pack.simulated
    assert pack.names == ["traj_0_to_255.tfrecords/0", "traj_0_to_255.tfrecords/1"]
    np.testing.assert_array_equal(pack.frames[1], frames)
    np.testing.assert_allclose(pack.conditions[1], np.hstack([actions, positions]), atol=1e-7)


def test_folders_hold_256_sequences_as_the_labs_do(monkeypatch, tmp_path):
    monkeypatch.setattr(simulator, "episode", lambda *_: (np.zeros((1, 64, 64, 3), np.uint8), *np.zeros((2, 1, 3))))
    make(tmp_path, train=258, validate=0, test=0)
    names = [path.relative_to(tmp_path / "processed_data" / "train").as_posix()
             for path in data.sequences(tmp_path, "train")]
    assert names == [*(f"traj_0_to_255.tfrecords/{n}" for n in range(256)),
                     *(f"traj_256_to_511.tfrecords/{n}" for n in range(2))]


def test_the_record_says_what_made_the_set_and_comes_first(monkeypatch, tmp_path):
    def fail(*_):
        record = json.loads((tmp_path / "processed_data" / "simulation.json").read_text())
        assert record["seed"] == 5 and record["length"] == LENGTH and record["mujoco"] == simulator.mujoco.__version__
        assert record["sequences"] == {"train": 2, "validate": 1, "test": 2}
        raise InterruptedError
    monkeypatch.setattr(simulator, "episode", fail)
    with pytest.raises(OSError):
        make(tmp_path, seed=5)


@pytest.mark.parametrize("smaller", [{}, {"train": 1}, {"test": 0}])
def test_asking_again_changes_nothing(small, smaller):
    before = dates(small)
    make(small, **smaller)
    assert dates(small) == before


def test_more_sequences_are_added_to_those_that_are_there(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")            # keeps the dates
    before = {path: date for path, date in dates(root).items() if path.suffix in (".png", ".csv")}
    make(root, train=3)
    assert data.summary(root) == {"train": 3, "validate": 1, "test": 2}
    assert {path: dates(root)[path] for path in before} == before
    assert files(root) == files(make(tmp_path / "at once", train=3))


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    root = tmp_path / "killed"
    command = f"from lab5.simulator import simulate; simulate({str(root)!r}, 9, 0, 0, length=12, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    split, deadline = root / "processed_data" / "train", time.monotonic() + 60
    while not list(split.glob("*/2")):                          # the third sequence is whole
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [path for path in split.glob("*/*") if not path.name.startswith(".")]
    assert 3 <= len(kept) < 9
    (kept[0].parent / ".8").mkdir(exist_ok=True)                # half a sequence, as a kill may leave it
    (kept[0].parent / ".8" / "99.png").write_bytes(b"half")
    before = {path: date for folder in kept for path, date in dates(folder).items()}
    make(root, 9, 0, 0, length=12)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(root) == files(make(tmp_path / "whole", 9, 0, 0, length=12))


@pytest.mark.parametrize("other, found", [({"seed": 2}, "seed 1, not 2"), ({"length": 5}, f"length {LENGTH}, not 5")])
def test_another_set_in_the_folder_is_refused(small, other, found):
    before = dates(small)
    with pytest.raises(ValueError, match=rf"{re.escape(str(small))}.*{found}.*another folder"):
        make(small, **other)
    assert dates(small) == before


def test_a_set_of_an_older_simulator_is_refused(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")
    record = root / "processed_data" / "simulation.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "simulator": 0}))
    with pytest.raises(ValueError, match="simulator 0"):
        make(root)
    record.write_text("{")
    with pytest.raises(ValueError, match="simulation.json: is no record of a simulation"):
        make(root)


def test_real_data_are_refused(tmp_path):
    (tmp_path / "processed_data" / "train").mkdir(parents=True)
    before = dates(tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*not simulated.*another folder"):
        make(tmp_path)
    assert dates(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"{re.escape(str(tmp_path / 'file'))}.*another folder"):
        make(tmp_path / "file")


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        with pytest.raises(OSError, match=rf"{re.escape(str(tmp_path))}.*{os.strerror(28)}.*make room"):
            make(tmp_path)
    assert files(make(tmp_path)) == files(small)


@pytest.mark.parametrize("wrong", [{"train": -1}, {"length": 0}])
def test_impossible_counts_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="counts are 0 or more"):
        make(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


# The robot -----------------------------------------------------------------------------------------------

def test_actions_and_positions_have_bairs_ranges(episodes):
    _, actions, positions = episodes
    assert 0.06 < np.abs(actions[..., :2]).max() <= REACH
    assert set(np.unique(actions[..., 2])) == {0, 1, 3} and (actions[..., 2] == 0).mean() > 0.5
    assert set(np.unique(actions[..., 3])) == {0, 1}
    assert (positions >= LOW).all() and (positions <= HIGH).all()
    assert (np.ptp(positions.reshape(-1, 3), axis=0) > 0.85 * (HIGH - LOW)).all()


def test_actions_hold_for_two_steps(episodes):
    _, actions, _ = episodes
    np.testing.assert_array_equal(actions[:, 0::2], actions[:, 1::2])
    assert (actions[:, 1:-1:2] != actions[:, 2::2]).any(axis=-1).all()


def test_the_arm_covers_half_of_what_it_is_told_in_each_step(episodes):
    _, actions, positions = episodes
    np.testing.assert_allclose(np.diff(positions[..., :2], axis=1), actions[:, :-1, :2] / 2, atol=1e-12)


def test_the_arm_stops_at_the_edge_of_its_reach():
    robot = Robot(3)
    for _ in range(20):
        robot.step([REACH, -REACH, 0, 0])
    np.testing.assert_allclose(robot.position[:2], [HIGH[0], LOW[1]])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_lift_goes_up_for_its_steps_and_comes_down_again(steps):
    robot = Robot(4)
    heights = [robot.position[2]]
    for t in range(12):
        robot.step([0, 0, steps if t == 0 else 0, 0])
        heights.append(robot.position[2])
    rises = np.diff(heights) > 0
    assert rises[:steps].all() and not rises[steps:].any()
    assert heights[-1] == pytest.approx(heights[0], abs=0.005)


def test_an_action_moves_the_arm_in_the_picture_where_it_says():
    def centre(frame):                                          # of the dark pixels, in the rows that show the hand
        rows, columns = np.nonzero(frame[2:57, 2:].max(axis=-1) < 45)
        return np.array([columns.mean(), rows.max()])

    def shift(action):
        robot = Robot(sequence_rng(1, "test", 0))
        robot._model.geom_group[robot._model.geom_bodyid > 5] = 0       # out of sight with the toys
        robot.step([0.58 - 2 * (robot.position[0] - 0.3), 0, 0, 0])     # to the middle of the tray
        robot.step([0, -2 * (robot.position[1] + 0.04), 0, 0])
        before = centre(robot.frame())
        robot.step(action)
        return centre(robot.frame()) - before

    towards, away = shift([REACH, 0, 0, 0]), shift([-REACH, 0, 0, 0])
    right, left, up = shift([0, REACH, 0, 0]), shift([0, -REACH, 0, 0]), shift([0, 0, 3, 0])
    assert right[0] > 2 and left[0] < -2 and abs(towards[0]) < 1.5
    assert towards[1] >= 1 and away[1] <= -1 and up[1] <= -1


def test_the_gripper_is_seen_to_close():
    frames = []
    for grip in (0, 1):
        robot = Robot(sequence_rng(1, "test", 0))
        robot.step([0, 0, 0, grip])
        frames.append(robot.frame())
    assert 2 < (frames[0] != frames[1]).any(axis=-1).sum() < 400


def test_a_frame_is_the_same_each_time_it_is_taken():
    robot = Robot(6)
    np.testing.assert_array_equal(robot.frame(), robot.frame())


def test_nothing_flickers_when_nothing_moves():
    robot = Robot(7)
    for _ in range(3):
        robot.step([0, 0, 0, 0])
    before = robot.frame().astype(int)
    robot.step([0, 0, 0, 0])
    assert np.abs(robot.frame() - before).mean() < 0.1          # of 255


def test_a_sequences_robot_can_be_driven_again_and_otherwise():
    rng = sequence_rng(1, "test", 2)
    robot = Robot(rng)
    frames, actions, positions = episode(1, "test", 2, 4)
    np.testing.assert_array_equal(robot.frame(), frames[0])
    np.testing.assert_array_equal(draw_action(rng, robot.position), actions[0])
    for t in range(3):
        robot.step(actions[t])
        np.testing.assert_array_equal(robot.frame(), frames[t + 1])
    robot.step([-actions[3, 0], -actions[3, 1], 0, 0])
    assert not np.allclose(robot.position, positions[3])


def test_what_is_pushed_moves_and_what_is_not_stays():
    moved = 0
    for seed in range(12):
        robot = Robot(seed)
        toys = np.flatnonzero(robot._model.body_dofnum)
        target = robot._data.xpos[toys, :2].mean(axis=0)
        before = robot._data.xpos[toys].copy()
        for _ in range(12):                                     # sweep through the middle of the toys
            robot.step([*(2 * (target - robot.position[:2])).clip(-REACH, REACH), 0, 0])
        travelled = np.linalg.norm(robot._data.xpos[toys] - before, axis=1)
        moved += (travelled > 0.02).sum()
        assert (travelled < 0.002).any()
        assert (robot._data.xpos[toys, 2] > simulator.scene.FLOOR - 0.01).all()
    assert moved >= 12


# The picture ---------------------------------------------------------------------------------------------

def test_the_top_row_and_the_left_column_are_black(episodes):
    frames, _, _ = episodes
    assert not frames[:, :, 0].any() and not frames[:, :, :, 0].any()
    assert frames[:, :, 1:, 1:].reshape(-1, 63 * 63 * 3).mean(axis=1).min() > 80


def test_colours_are_bairs_on_average(episodes):
    pixels = episodes[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), (0.63, 0.62, 0.55), atol=0.03)      # measured on real sequences
    np.testing.assert_allclose(pixels.std(axis=0), (0.26, 0.27, 0.29), atol=0.03)


def test_the_difficulty_is_bairs(episodes):
    video = data.to_video(torch.from_numpy(episodes[0])).permute(0, 1, 4, 2, 3)         # (N, T, C, H, W)
    held = psnr(video[:, 1:2].expand(-1, 10, -1, -1, -1), video[:, 2:])
    copied = psnr(video[:, 1:-1], video[:, 2:])
    assert held.mean().item() == pytest.approx(17.9, abs=1)
    assert copied.mean().item() == pytest.approx(24, abs=1)
    assert held[:, -1].mean() < held[:, 0].mean() - 3
