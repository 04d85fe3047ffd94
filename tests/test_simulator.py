"""The simulated robot: the same bytes from a seed, real BAIR's ranges and difficulty, toys that are pushed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents
from PIL import Image

from lab5.data import DataError, to_video
from lab5.formats.tree import check, open_or_pack
from lab5.metrics import psnr
from lab5.robot import simulator
from lab5.robot.scene import FLOOR
from lab5.robot.simulator import HIGH, LOW, REACH, Robot, episode, sequence_rng, simulate

LENGTH = 4                                      # frames of a sequence, where its content does not matter


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
    frames, conditions = zip(*(episode(1, "test", index, 12) for index in range(64)), strict=True)
    return np.stack(frames), *np.split(np.stack(conditions), [4], axis=-1)


def test_the_bytes_depend_on_the_seed_and_not_on_the_processes(small, tmp_path):
    assert contents(make(tmp_path / "two", workers=2)) == contents(small)
    other, pictures = contents(make(tmp_path / "other", seed=2)), contents(small)
    pictures = {name: content for name, content in pictures.items() if "png" in name}
    assert all(other[name] != content for name, content in pictures.items())
    assert len(set(pictures.values())) == len(pictures) == 5 * LENGTH           # all sequences of all splits differ


def test_the_tree_is_what_the_reader_expects(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")
    pack = open_or_pack(root, "test", progress=False)
    frames, conditions = episode(1, "test", 1, LENGTH)
    assert pack.simulated and pack.names == ["traj_0_to_255.tfrecords/0", "traj_0_to_255.tfrecords/1"]
    np.testing.assert_array_equal(pack.frames[1], frames)
    np.testing.assert_allclose(pack.conditions[1], conditions, atol=1e-7)
    lines, problems = check(root, progress=False)
    assert not problems and [line.split()[1] for line in lines] == ["2", "1", "2"]


def test_folders_hold_256_sequences_as_the_labs_do():
    for index, folder in ((255, "traj_0_to_255.tfrecords/255"), (256, "traj_256_to_511.tfrecords/0")):
        assert simulator._folder(Path("set"), "train", index) == Path("set/train") / folder


def test_sequences_that_are_there_stay_as_they_are(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")            # keeps the dates
    before = dates(root)
    make(make(root), train=1, test=0)
    assert dates(root) == before
    make(root, train=3)
    assert all(dates(root)[path] == date for path, date in before.items() if path.suffix in (".png", ".csv"))
    assert contents(root) == contents(make(tmp_path / "at once", train=3))


def test_another_set_or_real_data_in_the_folder_are_refused(small, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="simulation.json: found .*'seed': 1.*, expected .*'seed': 2.*another folder"):
        make(small, seed=2)
    with pytest.raises(DataError, match="expected .*'length': 5"):
        make(small, length=5)
    monkeypatch.setattr(simulator, "VERSION", 99)
    with pytest.raises(DataError, match="found .*'simulator': 4, .*expected .*'simulator': 99"):
        make(small)
    (tmp_path / "processed_data" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="processed_data: .*not simulated.*another folder"):
        make(tmp_path)


def test_actions_and_positions_have_bairs_ranges_and_actions_hold_for_two_steps(episodes):
    _, actions, positions = episodes
    assert 0.06 < np.abs(actions[..., :2]).max() <= REACH
    assert set(np.unique(actions[..., 2])) == {0, 1, 3} and (actions[..., 2] == 0).mean() > 0.5
    assert set(np.unique(actions[..., 3])) == {0, 1}
    assert (positions >= LOW).all() and (positions <= HIGH).all()
    assert (np.ptp(positions.reshape(-1, 3), axis=0) > 0.85 * (HIGH - LOW)).all()
    np.testing.assert_array_equal(actions[:, 0::2], actions[:, 1::2])
    assert (actions[:, 1:-1:2] != actions[:, 2::2]).any(axis=-1).all()


def test_the_arm_covers_a_fifth_of_an_action_then_the_rest_and_stops_at_its_limits(episodes):
    _, actions, positions = episodes
    moves = np.diff(positions[..., :2], axis=1)
    np.testing.assert_allclose(moves[:, 0::2], 0.2 * actions[:, 0:-1:2, :2], atol=1e-12)
    np.testing.assert_allclose(moves[:, 1::2], 0.8 * actions[:, 1:-1:2, :2], atol=1e-12)
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


def test_an_action_moves_the_arm_in_the_picture_as_it_says():
    def after(action):                                          # in the middle of the tray
        robot = Robot(sequence_rng(1, "test", 0))
        robot._model.geom_group[robot._model.geom_bodyid > 5] = 0       # hides the toys
        x, y, _ = robot.position
        for move in ([0.59 - x, -0.04 - y, 0, 0], action):      # both frames of each
            robot.step(move)
            robot.step(move)
        return robot.frame()

    def centre(frame):                                          # of the dark pixels, in the rows that show the hand
        rows, columns = np.nonzero(frame[2:57, 2:].max(axis=-1) < 45)
        return np.array([columns.mean(), rows.max()])
    still, closed = after([0, 0, 0, 0]), after([0, 0, 0, 1])
    moves = (REACH, 0, 0, 0), (-REACH, 0, 0, 0), (0, REACH, 0, 0), (0, -REACH, 0, 0), (0, 0, 3, 0)
    towards, away, right, left, up = (centre(after(move)) - centre(still) for move in moves)
    assert right[0] > 2 and left[0] < -2 and abs(towards[0]) < 1.5
    assert towards[1] >= 1 and away[1] <= -1 and up[1] <= -1
    assert 2 < (still != closed).any(axis=-1).sum() < 400


def test_nothing_flickers_when_nothing_moves():
    robot = Robot(7)
    for _ in range(3):
        robot.step([0, 0, 0, 0])
    before = robot.frame().astype(int)
    np.testing.assert_array_equal(robot.frame(), before)
    robot.step([0, 0, 0, 0])
    assert np.abs(robot.frame() - before).mean() < 0.1          # of 255


def test_the_robot_of_a_sequence_can_be_driven_again():
    robot, (frames, conditions) = Robot(sequence_rng(1, "test", 2)), episode(1, "test", 2)
    for frame, row in zip(frames, conditions, strict=True):
        np.testing.assert_array_equal(robot.frame(), frame)
        np.testing.assert_array_equal(robot.position, row[4:])
        robot.step(row[:4])


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
        assert (robot._data.xpos[toys, 2] > FLOOR - 0.01).all()
    assert moved >= 12


def difficulty(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSNR of two baselines on a sequence (T, 64, 64, 3): frame 1 held over frames 2 to 11, (10,), and the previous
    frame copied, from even frames and from odd ones, (2,)."""
    video = to_video(torch.from_numpy(frames)).permute(0, 3, 1, 2)
    copied = psnr(video[:-1], video[1:])
    return psnr(video[1:2].expand(10, -1, -1, -1), video[2:12]).numpy(), np.array([copied[0::2].mean(),
                                                                                  copied[1::2].mean()])


def test_frames_have_bairs_black_edge_colours_and_difficulty(episodes):
    frames, pixels = episodes[0], episodes[0].reshape(-1, 3) / 255
    assert not frames[:, :, 0].any() and not frames[:, :, :, 0].any()
    np.testing.assert_allclose(pixels.mean(axis=0), (0.63, 0.62, 0.55), atol=0.03)      # measured on real sequences
    np.testing.assert_allclose(pixels.std(axis=0), (0.26, 0.27, 0.29), atol=0.03)
    held, copied = (np.mean(values, axis=0) for values in zip(*map(difficulty, frames), strict=True))
    assert held.mean() == pytest.approx(17.9, abs=1)                                    # 45 real sequences
    assert copied.mean() == pytest.approx(24, abs=1)


def test_the_robot_moves_in_bairs_rhythm(episodes, bair_root):
    """An action holds for two frames and is carried out mostly in the second: steps of two kinds, in both."""
    folders = [*bair_root.glob("frames_only/*/"), *bair_root.glob("processed_data/test/*/*/")]
    real = [np.stack([np.array(Image.open(folder / f"{t}.png").convert("RGB")) for t in range(16)])
            for folder in folders]
    (held, copied), (real_held, real_copied) = ([np.mean(values, axis=0) for values in zip(
        *map(difficulty, videos), strict=True)] for videos in (episodes[0], real))
    np.testing.assert_allclose(copied, real_copied, atol=1.2)
    np.testing.assert_allclose(held, real_held, atol=1.2)
    assert copied[0] > copied[1] + 4 and real_copied[0] > real_copied[1] + 4
