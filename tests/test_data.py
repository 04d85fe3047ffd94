"""The tree is read as it is, packed once, and every batch is what its index and step say."""

import errno
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lab5 import data, packs, sources
from lab5.data import DataError, Windows, evaluation_loader, open_pack, training_loader

LENGTH = 5                                      # frames of the sequences below
ACTIONS, POSITIONS = "actions.csv", "endeffector_positions.csv"
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def frame(sequence, t):
    """A frame that tells which it is: its first pixel is (sequence, t, 7), the rest a texture of its own."""
    pixels = np.random.default_rng((sequence, t)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    pixels[0, 0] = sequence, t, 7
    return pixels


def condition(sequence, t):
    return [sequence, t, 0.25, -1.5, 10 + sequence, 20 + t, 0.125]


def write_sequence(folder, sequence, length=LENGTH, tables=True):
    folder.mkdir(parents=True)
    for t in range(length):
        Image.fromarray(frame(sequence, t)).save(folder / f"{t}.png")
    if tables:
        rows = [condition(sequence, t) for t in range(length)]
        for name, columns in ((ACTIONS, slice(4)), (POSITIONS, slice(4, 7))):
            (folder / name).write_text("".join(",".join(map(str, row[columns])) + "\n" for row in rows))


def write_tree(root, count=4, splits=data.SPLITS, shard="traj_0_to_255.tfrecords", first=0, **sequence):
    """The lab's tree with `count` sequences in each split; returns its root."""
    for split in splits:
        for number in range(count):
            write_sequence(root / "processed_data" / split / shard / str(first + number), number, **sequence)
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "bair")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A split of 11 sequences, packed: not a multiple of any batch size below."""
    return open_pack(write_tree(tmp_path_factory.mktemp("packed"), 11, ["test"]), "test", progress=False)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(packs, "BLOCK", 2)


def first_sequence(root, split="train"):
    return root / "processed_data" / split / "traj_0_to_255.tfrecords" / "0"


# The tree ------------------------------------------------------------------------------------------------

def test_sequences_come_in_numeric_order(tmp_path):
    for name in ("traj_256_to_511/2", "traj_1000_to_1255/0", "traj_0_to_255/10", "traj_0_to_255/9"):
        (tmp_path / "processed_data/train" / name).mkdir(parents=True)
    names = [f"{path.parent.name}/{path.name}" for path in data.sequences(tmp_path, "train")]
    assert names == ["traj_0_to_255/9", "traj_0_to_255/10", "traj_256_to_511/2", "traj_1000_to_1255/0"]


def test_the_root_may_be_given_at_either_level(tree):
    assert data.sequences(tree, "test") == data.sequences(tree / "processed_data", "test")
    assert data.summary(tree / "processed_data") == {"train": 4, "validate": 4, "test": 4}
    open_pack(tree / "processed_data", "test", progress=False)
    assert (tree / "packed" / "test.frames.npy").exists()


def test_a_missing_split_is_refused_with_what_is_there_instead(tree):
    with pytest.raises(DataError, match=r"processed_data/valid: .*there is: test, train, validate.*lab5 simulate"):
        data.sequences(tree, "valid")


def test_a_missing_tree_is_refused_with_what_is_there_instead(tmp_path):
    (tmp_path / "holidays").mkdir()
    for refused in (lambda: data.sequences(tmp_path, "test"), lambda: open_pack(tmp_path, "test"),
                    lambda: data.pack(tmp_path)):
        with pytest.raises(DataError, match="there is: holidays.*lab5 simulate"):
            refused()
    assert data.summary(tmp_path) == {"train": 0, "validate": 0, "test": 0}


def test_a_sound_tree_has_no_problems(tree):
    (first_sequence(tree) / ".DS_Store").touch()
    (tree / "processed_data" / "train" / ".ipynb_checkpoints").mkdir()
    assert data.check(tree, progress=False) == []


# Each kind of damage done to train's sequence 0 of a sound tree, where it is reported, and in what words
Damage = namedtuple("Damage", "name do where says")


def save_as(mode, size=(64, 64)):
    return lambda folder: Image.new(mode, size).save(folder / "2.png")


def edit(table, change):
    def do(folder):
        lines = (folder / table).read_text().splitlines()
        (folder / table).write_text("\n".join(change(lines)) + "\n")
    return do


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


DAMAGES = [
    Damage("frame missing", lambda f: (f / "3.png").unlink(), ".", "holds 4 frames, expected 5.*missing: 3.png; not"),
    Damage("frame too many", lambda f: shutil.copy(f / "0.png", f / "5.png"), ".", "6 frames.*not expected: 5.png"),
    Damage("frame misnamed", lambda f: (f / "3.png").rename(f / "03.png"), ".", "missing: 3.png; not expected: 03.png"),
    Damage("no frames", lambda f: [(f / f"{t}.png").unlink() for t in range(LENGTH)], ".", "holds 0 frames"),
    Damage("wrong size", save_as("RGB", (128, 96)), "2.png", "128x96 RGB, expected 64x64 RGB"),
    Damage("grey", save_as("L"), "2.png", "64x64 L, expected 64x64 RGB"),
    Damage("RGBA", save_as("RGBA"), "2.png", "64x64 RGBA, expected 64x64 RGB"),
    Damage("palette", save_as("P"), "2.png", "64x64 P, expected 64x64 RGB"),
    Damage("truncated", cut("2.png", 200), "2.png", "cannot be read as a PNG"),
    Damage("empty file", cut("2.png", 0), "2.png", "cannot be read as a PNG"),
    Damage("not a PNG", lambda f: Image.new("RGB", (64, 64)).save(f / "2.png", "JPEG"), "2.png", "cannot be read as"),
    Damage("a folder", lambda f: ((f / "2.png").unlink(), (f / "2.png").mkdir()), "2.png", "cannot be read .Is a dir"),
    Damage("one table", lambda f: (f / ACTIONS).unlink(), ACTIONS, "is missing"),
    Damage("other table", lambda f: (f / POSITIONS).unlink(), POSITIONS, "is missing"),
    Damage("short table", edit(ACTIONS, lambda rows: rows[:-1]), ACTIONS, "has 4 rows, expected 5"),
    Damage("long table", edit(ACTIONS, lambda rows: rows + rows[:2]), ACTIONS, "has 7 rows, expected 5"),
    Damage("empty table", cut(ACTIONS, 0), ACTIONS, "has 0 rows, expected 5"),
    Damage("table header", edit(ACTIONS, lambda rows: ["a,b,c,d", *rows[1:]]), ACTIONS, "'a', expected numbers"),
    Damage("columns", edit(POSITIONS, lambda rows: [*rows[:2], "1,2", *rows[3:]]),
           POSITIONS, "row 2 has 2 columns, expected 3"),
    Damage("separator", edit(ACTIONS, lambda rows: [row.replace(",", ";") for row in rows]), ACTIONS,
           "row 0 has 1 columns, expected 4"),
    Damage("empty field", edit(ACTIONS, lambda rows: ["1,2,,4", *rows[1:]]), ACTIONS, "'', expected numbers"),
    Damage("NaN", edit(ACTIONS, lambda rows: [*rows[:4], "1,2,nan,4"]), ACTIONS, "row 4 holds 1, 2, nan, 4"),
    Damage("infinity", edit(ACTIONS, lambda rows: [rows[0], "1,inf,3,4", *rows[2:]]), ACTIONS, "row 1 holds"),
    Damage("overflow", edit(ACTIONS, lambda rows: ["1,2,3,4e39", *rows[1:]]), ACTIONS, "row 0 holds 1, 2, 3, 4e39"),
    Damage("not text", lambda f: (f / ACTIONS).write_bytes(b"\xff\xfe,1,2,3\n" * 5), ACTIONS, "expected numbers"),
    Damage("duplicate", lambda f: shutil.copytree(f, f.parent.parent / "traj_0_to_255" / "00"), ".",
           "same number as .*traj_0_to_255/00"),
    Damage("stray folder", lambda f: (f.parent.parent / "traj_0").mkdir(), "../../traj_0", "is not a sequence"),
    Damage("empty split", lambda f: shutil.rmtree(f.parent), "../..", "holds no sequences"),
    Damage("missing split", lambda f: shutil.rmtree(f.parent.parent), "../..", "there is no such folder"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_check_finds_each_kind_of_damage(tree, damage):
    folder = first_sequence(tree)
    damage.do(folder)
    (problem,) = data.check(tree, progress=False)
    assert problem.path == Path(os.path.normpath(folder / damage.where))
    assert re.search(damage.says, problem.message)
    assert str(problem) == f"{problem.path}: {problem.message}"


def test_a_spreadsheets_marks_are_no_damage(tree):
    table = first_sequence(tree) / ACTIONS
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert data.check(tree, progress=False) == []
    assert open_pack(tree, "train", progress=False).conditions[0, 0].tolist() == condition(0, 0)


def test_a_gap_is_found_in_a_split_of_one_sequence(tmp_path):
    root = write_tree(tmp_path, 1)
    (first_sequence(root) / "4.png").rename(first_sequence(root) / "20261124.png")
    (problem,) = data.check(root, progress=False)
    assert "missing: 4.png; not expected: 20261124.png" in problem.message


def test_check_names_a_sequence_unlike_the_others(tmp_path):
    root = write_tree(tmp_path, 3, ["train"])
    shard = first_sequence(root).parent
    write_sequence(shard / "3", 3, length=3)
    write_sequence(shard / "4", 4, tables=False)
    found = [(problem.path, problem.message) for problem in data.check(root, progress=False)]
    assert [(path.relative_to(shard).as_posix(), message.split(",")[0]) for path, message in found[:5]] == [
        ("3", "holds 3 frames"), ("3/actions.csv", "has 3 rows"), ("3/endeffector_positions.csv", "has 3 rows"),
        ("4/actions.csv", "is missing"), ("4/endeffector_positions.csv", "is missing")]
    assert [path.name for path, _ in found[5:]] == ["validate", "test"]


def test_check_names_tables_where_the_others_have_none(tmp_path):
    root = write_tree(tmp_path, 3, tables=False)
    (first_sequence(root) / ACTIONS).write_text("1,2,3,4\n" * LENGTH)
    (problem,) = data.check(root, progress=False)
    assert problem.path.name == "actions.csv" and "most of the split has no tables" in problem.message


def test_check_reports_all_damage_at_once(tree):
    for damage in DAMAGES[4:6]:
        damage.do(first_sequence(tree, "train"))
        damage.do(first_sequence(tree, "test"))
    (first_sequence(tree) / "3.png").unlink()
    cut(ACTIONS, 3)(first_sequence(tree))
    assert [(p.path.parent.parents[1].name if p.path.suffix else "folder", p.path.name)
            for p in data.check(tree, progress=False)] == [
        ("folder", "0"), ("train", "2.png"), ("train", "actions.csv"), ("test", "2.png")]


def test_a_missing_tree_is_a_problem_of_every_split(tmp_path):
    assert [problem.path.name for problem in data.check(tmp_path / "nowhere", progress=False)] == list(data.SPLITS)


# Packing -------------------------------------------------------------------------------------------------

def test_the_pack_holds_the_pictures_and_tables(tree):
    pack = open_pack(tree, "train", progress=False)
    assert (len(pack), pack.condition_dim, pack.simulated) == (4, 7, False)
    assert pack.names == [f"traj_0_to_255.tfrecords/{n}" for n in range(4)]
    for n in range(4):
        np.testing.assert_array_equal(pack.frames[n], [frame(n, t) for t in range(LENGTH)])
        np.testing.assert_array_equal(pack.conditions[n], [condition(n, t) for t in range(LENGTH)])
    assert (pack.frames.dtype, pack.conditions.dtype) == (np.uint8, np.float32)
    assert isinstance(pack.frames, np.memmap) and not pack.frames.flags.writeable


def test_svgs_layout_is_read_without_conditions(tmp_path):
    root = write_tree(tmp_path, 12, ["test"], shard="traj_0_to_255", first=1, tables=False)
    pack = open_pack(root, "test", progress=False)
    assert pack.names == [f"traj_0_to_255/{n}" for n in range(1, 13)]
    assert (pack.conditions.shape, pack.condition_dim) == ((12, LENGTH, 0), 0)
    np.testing.assert_array_equal(pack.frames[:, 0, 0, 0, 0], np.arange(12))
    (batch,) = evaluation_loader(pack, LENGTH, 12)
    assert batch.condition.shape == (LENGTH, 12, 0)
    assert [statistic.shape for statistic in data.condition_statistics(pack)] == [(0,), (0,)]


def test_pack_packs_every_split_that_is_there(tmp_path):
    root = write_tree(tmp_path, 2, ["train", "test"])
    data.pack(root, progress=False)
    assert sorted(path.name for path in (root / "packed").glob("*.npy")) == [
        f"{split}.{name}.npy" for split in ("test", "train") for name in ("conditions", "crc", "frames")]


def test_the_simulated_robot_is_marked(tree):
    (tree / "processed_data" / "simulation.json").write_text("{}")
    assert open_pack(tree, "test", progress=False).simulated


def test_an_open_pack_is_not_packed_again(tree, capsys):
    open_pack(tree, "test", progress=False)
    assert "not there yet" in capsys.readouterr().out
    before = (tree / "packed" / "test.frames.npy").stat().st_mtime_ns
    open_pack(tree, "test", progress=False)
    assert (tree / "packed" / "test.frames.npy").stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", [
    lambda folder: Image.fromarray(frame(99, 0)).save(folder / "0.png"),
    lambda folder: (folder / ACTIONS).write_text("9,9,9,9\n" * LENGTH),
    lambda folder: write_sequence(folder.parent / "4", 4)], ids=["frame", "table", "sequence"])
def test_a_changed_tree_is_packed_again_and_says_so(tree, change, capsys):
    old = open_pack(tree, "train", progress=False)
    capsys.readouterr()
    change(first_sequence(tree))
    new = open_pack(tree, "train", progress=False)
    assert "have changed since they were packed" in capsys.readouterr().out
    assert new.fingerprint != old.fingerprint
    assert old.frames[0, 0, 0, 0].tolist() == [0, 0, 7]         # who has the old one open keeps it whole


def test_the_fingerprint_is_that_of_the_content(tree, tmp_path):
    pack = open_pack(tree, "test", progress=False)
    shutil.copytree(tree / "processed_data", tmp_path / "copy" / "processed_data")
    assert re.fullmatch("[0-9a-f]{12}", pack.fingerprint)
    assert open_pack(tmp_path / "copy", "test", progress=False).fingerprint == pack.fingerprint
    other = open_pack(write_tree(tmp_path / "other", 3, ["test"]), "test", progress=False)
    assert other.fingerprint != pack.fingerprint


def test_the_pack_alone_is_enough(tree):
    before = open_pack(tree, "test", progress=False)
    shutil.rmtree(tree / "processed_data")
    after = open_pack(tree, "test", progress=False)
    assert (after.names, after.fingerprint) == (before.names, before.fingerprint)
    np.testing.assert_array_equal(after.frames, before.frames)
    with pytest.raises(DataError, match="processed_data/train: there is no such folder.*train.json: is not there yet"):
        open_pack(tree, "train", progress=False)


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def interrupt_after(monkeypatch, count, stop):
    """Let `count` sequences be read, then call `stop`."""
    read, calls = sources.Tree.read, iter(range(10 ** 6))

    def interrupted(*args):
        if next(calls) >= count:
            stop()
        return read(*args)
    monkeypatch.setattr(sources.Tree, "read", interrupted)


def raise_killed():
    raise Killed


@pytest.mark.parametrize("survivors", [0, 1, 3, 5, 8])
def test_an_interrupted_packing_goes_on_to_the_same_end(tmp_path, monkeypatch, small_blocks, capsys, survivors):
    whole = open_pack(write_tree(tmp_path / "whole", 9, ["test"]), "test", progress=False)
    root = write_tree(tmp_path / "broken", 9, ["test"])
    monkeypatch.setattr(packs, "READERS", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt_after(patch, survivors, raise_killed)
        open_pack(root, "test", progress=False)
    capsys.readouterr()
    reads, read = [], sources.Tree.read
    monkeypatch.setattr(sources.Tree, "read", lambda *args: reads.append(args[-1]) or read(*args))
    pack = open_pack(root, "test", progress=False)
    done = survivors // 2 * 2                                   # blocks of two
    assert reads == [f"traj_0_to_255.tfrecords/{n}" for n in range(done, 9)]
    assert f"goes on after {done} of 9" in capsys.readouterr().out
    assert pack.fingerprint == whole.fingerprint
    for name in ("test.frames.npy", "test.conditions.npy", "test.crc.npy"):
        assert (root / "packed" / name).read_bytes() == (tmp_path / "whole" / "packed" / name).read_bytes()


def pack_and_die(root):
    packs.BLOCK = packs.READERS = 1
    interrupt_after(pytest.MonkeyPatch(), 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    open_pack(root, "test", progress=False)


def test_a_killed_process_leaves_nothing_that_is_taken_for_complete(tmp_path, capsys):
    root = write_tree(tmp_path, 5, ["test"])
    process = multiprocessing.get_context("fork").Process(target=pack_and_die, args=[root])
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match=r"only 3 of 5 sequences are packed"):
        packs._open(root / "packed", "test")
    pack = open_pack(root, "test", progress=False)
    assert "goes on after 3 of 5" in capsys.readouterr().out
    np.testing.assert_array_equal(pack.frames, [[frame(n, t) for t in range(LENGTH)] for n in range(5)])


def pack_and_log(root, log, start):
    read = sources.Tree.read

    def logged(tree, survey, name):
        with open(log, "a") as file:
            file.write(f"{name.rpartition('/')[2]}\n")
        return read(tree, survey, name)
    sources.Tree.read = logged
    start.wait(60)
    data.pack(root, progress=False)


def test_of_processes_that_pack_at_once_one_does_the_work(tmp_path):
    root, log, context = write_tree(tmp_path, 30, ["test"]), tmp_path / "log", multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=pack_and_log, args=[root, log, start]) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(30))
    assert open_pack(root, "test", progress=False).frames[:, 1, 0, 0, :2].tolist() == [[n, 1] for n in range(30)]


def rewrite(**changes):
    """A manifest with other values, and a checksum that is right."""
    def do(packed):
        path = packed / "test.json"
        record = json.loads(path.read_text()) | changes
        del record["crc"]
        path.write_text(json.dumps(record | {"crc": packs._seal(record)}))
    return do


RUINS = {
    "manifest torn": cut("test.json", 40),
    "manifest empty": cut("test.json", 0),
    "manifest a list": lambda packed: (packed / "test.json").write_text("[]"),
    "manifest binary": lambda packed: (packed / "test.json").write_bytes(b"\xff\x00"),
    "more done than there is": rewrite(done=99),
    "wrong type": rewrite(done="4"),
    "no names": rewrite(names=None),
    "other format": rewrite(format=0),
    "other fields": rewrite(surprise=1),
    "other length": rewrite(length=4),
    "array short": cut("test.frames.npy", 5000),
    "array's header short": cut("test.frames.npy", 60),
    "array empty": cut("test.frames.npy", 0),
    "array gone": lambda packed: (packed / "test.conditions.npy").unlink(),
    "array long": lambda packed: open(packed / "test.frames.npy", "ab").write(b"more"),
    "array of other shape": lambda packed: np.save(packed / "test.conditions.npy", np.zeros((4, 5, 6), np.float32)),
    "array of other type": lambda packed: np.save(packed / "test.conditions.npy", np.zeros((4, 5, 7))),
}


@pytest.mark.parametrize("ruin", RUINS.values(), ids=RUINS)
def test_a_damaged_pack_is_packed_again_and_says_why(tree, ruin, capsys):
    whole = open_pack(tree, "test", progress=False).fingerprint
    ruin(tree / "packed")
    capsys.readouterr()
    with pytest.raises(DataError):
        packs._open(tree / "packed", "test")
    pack = open_pack(tree, "test", progress=False)
    assert re.search(r"test\.(json|frames\.npy|conditions\.npy): (cannot be used|is not there).*; packing test",
                     capsys.readouterr().out)
    assert pack.fingerprint == whole
    np.testing.assert_array_equal(pack.frames[:, 0, 0, 0, 0], np.arange(4))


def flip(packed, name, offset, split="test"):
    """Flip one bit of a pack's array, so far from its end, where a disk would."""
    with open(packed / f"{split}.{name}.npy", "r+b") as file:
        file.seek(offset, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(offset, os.SEEK_END)
        file.write(bytes([byte ^ 16]))


FLIPS = {"frames": -(64 * 64 * 3) - 5, "conditions": -28 - 3, "crc": -4 - 2}        # all of the last but one frame


@pytest.mark.parametrize("name", FLIPS)
def test_a_bit_flipped_on_the_disk_is_never_trained_on(tree, name, capsys):
    whole = open_pack(tree, "test", progress=False)
    expected = whole.frames[:].copy()
    flip(tree / "packed", name, FLIPS[name])
    pack = open_pack(tree, "test", progress=False)
    says = r"test.frames.npy: traj_0_to_255.tfrecords/3, frame 3: not the bytes.*`lab5 pack .*bair` makes it anew"
    for workers in (0, 1):
        with pytest.raises(DataError, match=says):
            list(training_loader(pack, LENGTH, 4, seed=1, start_step=0, stop_step=1, workers=workers))
    assert Windows(pack, LENGTH).__getitems__([0, 1, 2]).frames.shape == (LENGTH, 3, 3, 64, 64)    # the rest is sound
    assert len(Windows(pack, 3)[3].index) == 1
    (problem,) = data.check(tree, progress=False)
    assert re.search(says, str(problem))
    capsys.readouterr()
    data.pack(tree, progress=False)
    assert re.search("frame 3: not the bytes.*packing test", capsys.readouterr().out)
    np.testing.assert_array_equal(open_pack(tree, "test", progress=False).frames, expected)
    assert data.check(tree, progress=False) == []


def test_a_mean_is_not_taken_of_damaged_conditions(tree):
    pack = open_pack(tree, "test", progress=False)
    data.condition_statistics(pack)
    flip(tree / "packed", "conditions", -1)
    with pytest.raises(DataError, match="test.conditions.npy: not the numbers that were packed.*lab5 pack"):
        data.condition_statistics(open_pack(tree, "test", progress=False))
    flip(tree / "packed", "conditions", -1)                     # and back; now the checksum itself
    rewrite(conditions_crc=pack.conditions_crc ^ 1)(tree / "packed")
    (problem,) = data.check(tree, progress=False)
    assert "not the numbers that were packed" in problem.message
    data.pack(tree, progress=False)
    data.condition_statistics(open_pack(tree, "test", progress=False))


def test_a_damaged_pack_without_sequences_has_to_be_imported_again(tree):
    data.pack(tree, progress=False)
    shutil.rmtree(tree / "processed_data")
    data.pack(tree, progress=False)                             # sound: nothing to do
    assert data.check(tree, progress=False) == []
    assert data.summary(tree) == {"train": 4, "validate": 4, "test": 4}
    flip(tree / "packed", "frames", -1)
    with pytest.raises(DataError, match=r"3, frame 4: not the bytes(.|\n)*lab5 import SOURCE"):
        data.pack(tree, progress=False)
    (problem,) = data.check(tree, progress=False)
    assert "frame 4" in problem.message
    rewrite(done=2)(tree / "packed")
    with pytest.raises(DataError, match=r"only 2 of 4 sequences are packed.*lab5 import SOURCE"):
        data.pack(tree, progress=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["frames", "conditions", "crc"]), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_an_array_is_found(packed, tmp_path, name, place, bit):
    arrays = {each: np.array(getattr(packed, each)) for each in FLIPS}
    flat = arrays[name].view(np.uint8).reshape(-1)
    flat[int(place * (len(flat) - 1))] ^= 1 << bit
    for each, array in arrays.items():
        np.save(tmp_path / f"test.{each}.npy", array)
    shutil.copy(Path(packed.frames.filename).with_name("test.json"), tmp_path)
    with pytest.raises(DataError, match="not the bytes that were packed"):
        Windows(packs._open(tmp_path, "test"), LENGTH).__getitems__(range(11))


def test_broken_data_is_refused_with_the_first_problems_and_their_number(tmp_path):
    root = write_tree(tmp_path, 8, ["train"])
    for number in range(1, 8):
        cut("2.png", 100)(first_sequence(root).parent / str(number))
    with pytest.raises(DataError) as refusal:
        data.pack(root, progress=False)
    message = str(refusal.value)
    assert all(f"/{number}/2.png: cannot be read as a PNG" in message for number in range(1, 6))
    assert "and 2 more" in message and f"lab5 check {root}" in message
    with pytest.raises(DataError, match="only 0 of 8"):
        packs._open(root / "packed", "train")


def test_a_repaired_tree_packs(tree):
    frames = first_sequence(tree) / "2.png"
    whole = frames.read_bytes()
    cut("2.png", 100)(first_sequence(tree))
    with pytest.raises(DataError):
        open_pack(tree, "train", progress=False)
    frames.write_bytes(whole)
    assert open_pack(tree, "train", progress=False).frames[0, 2, 0, 0].tolist() == [0, 2, 7]


def test_a_full_disk_is_refused_in_numbers(tree, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000))
    with pytest.raises(DataError, match=r"packed: packing test takes 0\.000 GB, but 0\.000 GB are free"):
        open_pack(tree, "test", progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(4 * LENGTH * (64 * 64 * 3 + 7 * 4 + 4)))
    open_pack(tree, "test", progress=False)                     # exactly enough


def test_a_disk_that_fills_up_while_packing_is_refused(tree, monkeypatch):
    def full(file_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left.*make room"):
        patch.setattr(os, "fsync", full)
        open_pack(tree, "test", progress=False)
    assert len(open_pack(tree, "test", progress=False)) == 4


def test_a_folder_that_cannot_be_written_is_refused(tree):
    (tree / "packed").write_text("in the way")
    with pytest.raises(DataError, match="packed: packing test stopped.*make the folder writable"):
        open_pack(tree, "test", progress=False)


def test_a_pack_travels_by_name_not_by_content(packed):
    parcel = pickle.dumps(packed)
    assert len(parcel) < 1000
    np.testing.assert_array_equal(pickle.loads(parcel).frames, packed.frames)


# Batches -------------------------------------------------------------------------------------------------

def stream(loader):
    """What each batch holds: which sequences, and which frames of them."""
    return [(batch.index.tolist(), batch.frames[:, :, 1, 0, 0].tolist()) for batch in loader]


def test_a_batch_holds_what_its_index_says(packed):
    batch = Windows(packed, 3, seed=5).__getitems__([(4, 0), (9, 2), (4, 7), 0])
    assert batch.index.tolist() == [4, 9, 4, 0] and batch.index.dtype == torch.int64
    for b, number in enumerate(batch.index.tolist()):
        start = int(batch.frames[0, b, 1, 0, 0])
        expected = [frame(number, t) for t in range(start, start + 3)]
        np.testing.assert_array_equal(batch.frames[:, b].permute(0, 2, 3, 1), expected)
        np.testing.assert_array_equal(batch.condition[:, b], [condition(number, t) for t in range(start, start + 3)])


def test_a_batchs_frames_flatten_without_a_copy_and_are_channels_last(packed):
    frames = Windows(packed, 3).__getitems__([0, 1]).frames
    assert (frames.shape, frames.dtype) == ((3, 2, 3, 64, 64), torch.uint8)
    flat = frames.flatten(0, 1)
    assert flat.data_ptr() == frames.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)
    assert data.to_video(flat).is_contiguous(memory_format=torch.channels_last)


def test_a_single_item_is_a_batch_of_one(packed):
    windows = Windows(packed, 3)
    assert len(windows) == 11
    assert windows[10].index.tolist() == [10] and windows[(10, 3)].frames.shape == (3, 1, 3, 64, 64)
    for outside in (11, -1, (11, 0)):
        with pytest.raises(IndexError, match="there are 0 to 10"):
            windows[outside]


def test_a_window_longer_than_the_sequences_is_refused(packed):
    with pytest.raises(DataError, match="test: windows of 6 frames .* sequences of 5"):
        training_loader(packed, 6, 2, seed=1, start_step=0, stop_step=1)


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_evaluation_reads_each_sequence_once_in_order_from_its_first_frame(packed, workers):
    loader = evaluation_loader(packed, 3, 4, workers=workers)
    batches = list(loader)
    assert [len(batch.index) for batch in batches] == [4, 4, 3] and len(loader) == 3
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(11))
    read = torch.cat([batch.frames for batch in batches], dim=1)[:, :, :2, 0, 0]                # (T, N, 2)
    assert read.transpose(0, 1).tolist() == [[[n, t] for t in range(3)] for n in range(11)]


@pytest.mark.parametrize("limit, expected", [(None, 11), (5, 5), (4, 4), (1, 1), (99, 11)])
def test_evaluation_stops_at_the_limit(packed, limit, expected):
    indices = torch.cat([batch.index for batch in evaluation_loader(packed, 3, 4, limit)])
    assert indices.tolist() == list(range(expected))


@pytest.mark.parametrize("batch_size", [3, 4, 11, 25])
def test_each_training_pass_visits_every_sequence_once_in_another_order(packed, batch_size):
    order = [i for indices, _ in stream(training_loader(packed, 3, batch_size, 1, 0, 44)) for i in indices]
    assert len(order) == 44 * batch_size
    passes = [tuple(order[first:first + 11]) for first in range(0, 44, 11)]
    assert all(sorted(one) == list(range(11)) for one in passes)
    assert len(set(passes)) == 4


def test_the_training_stream_is_the_same_for_any_workers_and_differs_between_seeds(packed):
    alone = stream(training_loader(packed, 3, 4, 1, 0, 12))
    assert stream(training_loader(packed, 3, 4, 1, 0, 12, workers=2)) == alone
    assert stream(training_loader(packed, 3, 4, 2, 0, 12)) != alone


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_stream_goes_on_where_it_was(packed, workers):
    whole = stream(training_loader(packed, 3, 4, 1, 0, 12))
    resumed = training_loader(packed, 3, 4, 1, 7, 12, workers=workers)
    assert len(resumed) == 5 and stream(resumed) == whole[7:]


def test_loaders_leave_torchs_random_state_alone(packed):
    before = torch.get_rng_state()
    stream(training_loader(packed, 3, 4, 1, 0, 2))
    stream(evaluation_loader(packed, 3, 4, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_windows_are_unbroken_and_reach_every_start(packed):
    starts = Counter()
    for _, frames in stream(training_loader(packed, 3, 11, 1, 0, 30)):
        for window in zip(*frames, strict=True):
            assert list(window) == list(range(window[0], window[0] + 3))
            starts[window[0]] += 1
    assert set(starts) == {0, 1, 2} and min(starts.values()) > 70          # of 330: evenly


def test_a_random_window_depends_on_seed_pass_and_index_alone(packed):
    def starts(seed, pass_):
        return Windows(packed, 2, seed).__getitems__([(n, pass_) for n in range(11)]).frames[0, :, 1, 0, 0].tolist()
    assert starts(1, 0) == starts(1, 0)
    assert len({tuple(starts(seed, pass_)) for seed in (1, 2) for pass_ in (0, 1, 2)}) == 6
    assert len(set(starts(1, 0))) > 1
    assert [int(Windows(packed, 2, 1)[(n, 2)].frames[0, 0, 1, 0, 0]) for n in range(11)] == starts(1, 2)


def test_to_video_maps_bytes_onto_the_unit_interval_once():
    video = data.to_video(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert video.dtype == torch.float32 and video.tolist() == pytest.approx([0, 0.2, 1])
    with pytest.raises(TypeError, match="float32, expected torch.uint8"):
        data.to_video(video)


def test_condition_statistics_normalise_and_survive_constant_columns(packed):
    mean, std = data.condition_statistics(packed)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (7,)
    rows = np.array([condition(n, t) for n in range(11) for t in range(LENGTH)])
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, np.maximum(rows.std(0), data.LEAST_STD), rtol=1e-6)
    normalised = (packed.conditions - mean) / std
    assert np.isfinite(normalised).all() and np.abs(normalised[..., [2, 3, 6]]).max() == 0


# The real thing ------------------------------------------------------------------------------------------

def test_a_real_bair_sequence_is_read_as_it_is(bair_root, tmp_path):
    shutil.copytree(bair_root / "processed_data", tmp_path / "processed_data")
    assert {problem.path.name for problem in data.check(tmp_path, progress=False)} == {"train", "validate"}
    pack = open_pack(tmp_path, "test", progress=False)
    folder = tmp_path / "processed_data" / "test" / pack.names[0]
    assert pack.frames.shape == (1, 30, 64, 64, 3) and pack.names == ["traj_0_to_255.tfrecords/0"]
    np.testing.assert_array_equal(pack.frames[0], [np.array(Image.open(folder / f"{t}.png")) for t in range(30)])
    tables = [np.loadtxt(folder / name, delimiter=",") for name in (ACTIONS, POSITIONS)]
    np.testing.assert_allclose(pack.conditions[0], np.hstack(tables), rtol=1e-6)
    (batch,) = evaluation_loader(pack, 12, 12)
    held, future = data.to_video(batch.frames[1]), data.to_video(batch.frames[2:])
    assert 11 < -10 * torch.log10((future - held).square().mean()) < 25    # dB, as BAIR's hold-last-frame is


def test_a_set_larger_than_memory_is_read_a_window_at_a_time(tmp_path):
    """A pack of a tebibyte, all of it a hole in the disk: what is read is what is asked for."""
    def hole(name, dtype, *shape):
        return np.lib.format.open_memmap(tmp_path / f"train.{name}.npy", mode="w+", dtype=dtype, shape=shape)

    N = 2**40 // (30 * 64 * 64 * 3)
    try:
        frames, conditions = hole("frames", np.uint8, N, 30, 64, 64, 3), hole("conditions", np.float32, N, 30, 7)
        crc = hole("crc", np.uint32, N, 30)
    except OSError as error:
        pytest.skip(f"no files with holes of this size here: {error}")
    frames[-1], conditions[-1] = 7, 0.5
    pack = data.Pack("train", frames, conditions, crc, ["hole"] * N, "", True, 0)
    loader = training_loader(pack, 12, 8, seed=1, start_step=10**5, stop_step=10**5 + 1)
    for n in [0, N // 2, N - 1, *(index for keys in loader.batch_sampler for index, _ in keys)]:
        crc[n] = packs._checksums(frames[n], conditions[n])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last = Windows(pack, 12).__getitems__([0, N // 2, N - 1])
    batch = next(iter(loader))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert last.frames[:, 2].eq(7).all() and last.frames[:, :2].eq(0).all() and batch.frames.shape[:2] == (12, 8)
    assert grown < 300, f"{grown:.0f} MB for a few windows"
