"""The tree is read as it is, packed once, and every batch is what its index and step say."""

import os
import pickle
import random
import re
import shutil
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import begin
from PIL import Image

from lab5 import data
from lab5.data import DataError, evaluation_loader, open_pack
from lab5.files import SPLITS
from lab5.formats.tree import check, open_or_pack, pack_tree, sequences

LENGTH = 5                                      # frames of the sequences below
ACTIONS, POSITIONS = "actions.csv", "endeffector_positions.csv"
SHARD = "traj_0_to_255.tfrecords"
pytestmark = pytest.mark.filterwarnings("ignore:loadtxt:UserWarning")


def frames_of(sequence):
    """Frames that tell which they are: the first pixel is (sequence, t, 7), the rest a texture of its own."""
    pixels = np.random.default_rng(sequence).integers(0, 256, (LENGTH, 8, 8, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=1).repeat(8, axis=2)
    pixels[:, 0, 0] = [(sequence, t, 7) for t in range(LENGTH)]
    return pixels


def conditions_of(sequence):
    return np.array([[sequence, t, 0.25, -1.5, 10 + sequence, t / 3, 1e-7] for t in range(LENGTH)], np.float32)


def write_tree(root, count=4, splits=SPLITS, shard=SHARD, first=0, columns=7):
    """The lab's tree with `count` sequences in each split, without tables for columns=0; returns its root."""
    for split, number in product(splits, range(count)):
        folder = root / "processed_data" / split / shard / str(first + number)
        folder.mkdir(parents=True)
        for t, frame in enumerate(frames_of(number)):
            Image.fromarray(frame).save(folder / f"{t}.png")
        for table, values in zip((ACTIONS, POSITIONS), np.split(conditions_of(number), [4], axis=1), strict=True):
            if columns:
                np.savetxt(folder / table, values, fmt="%.9g", delimiter=",")
    return root


def first_sequence(root, split="train"):
    return root / "processed_data" / split / SHARD / "0"


@pytest.fixture
def lab(tmp_path):
    return write_tree(tmp_path / "bair")


def test_sequences_come_in_numeric_order_from_either_level_and_what_is_missing_is_named(lab, tmp_path):
    names = [f"traj_{shard}.tfrecords/{n}" for shard in ("0_to_255", "512_to_767", "1000_to_1255") for n in (2, 9, 10)]
    for name in sorted(names):
        (tmp_path / "processed_data/test" / name).mkdir(parents=True)
    for root in (tmp_path, tmp_path / "processed_data"):
        assert sequences(root, "test") == {name: tmp_path / "processed_data/test" / name for name in names}
    with pytest.raises(DataError, match=r"no such folder.*processed_data/test.*lab5 simulate") as refusal:
        open_or_pack(tmp_path / "nowhere", "test")
    assert check(tmp_path / "nowhere")[1][2] == str(refusal.value)


def test_the_pack_holds_exactly_the_pictures_and_tables(lab):
    table = first_sequence(lab, "test") / ACTIONS                       # a spreadsheet's marks are no damage
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    pack = open_or_pack(lab / "processed_data", "test", progress=False)
    assert (len(pack), pack.condition_dim, pack.simulated) == (4, 7, False)
    assert pack.names == [f"{SHARD}/{n}" for n in range(4)]
    np.testing.assert_array_equal(pack.frames, [frames_of(n) for n in range(4)])
    np.testing.assert_array_equal(pack.conditions, [conditions_of(n) for n in range(4)])
    assert (pack.frames.dtype, pack.conditions.dtype) == (np.uint8, np.float32) and not pack.frames.flags.writeable
    (lab / "processed_data" / "simulation.json").write_text("{}")
    shutil.rmtree(lab / "processed_data" / "validate")          # is simulated later
    assert open_or_pack(lab, "train", progress=False).simulated


def test_svgs_layout_takes_the_labs_share_of_train_for_validate_or_is_refused_first(tmp_path):
    for split, shard in (("train", "traj_0_to_255"), ("test", "traj_0_to_255"), ("train", "traj_256_to_511")):
        for refused in (pack_tree, lambda root: open_or_pack(root, "train")):
            with pytest.raises(DataError, match="there is no such folder|holds no .* for validate"):
                refused(tmp_path)
            assert not (tmp_path / "packed").exists()
        write_tree(tmp_path, 11, [split], shard, first=1, columns=0)
    for split, shard in (("train", "traj_0_to_255"), ("validate", "traj_256_to_511"), ("test", "traj_0_to_255")):
        pack = open_or_pack(tmp_path, split, progress=False)
        assert pack.names == [f"{shard}/{n}" for n in range(1, 12)] and pack.conditions.shape == (11, LENGTH, 0)
    (batch,) = evaluation_loader(pack, LENGTH, 12)
    assert batch.condition.shape == (LENGTH, 11, 0) and data.condition_statistics(pack)[1].shape == (0,)
    assert check(tmp_path, progress=False)[1] == []


def test_what_systems_leave_in_folders_is_ignored(lab):
    whole = open_or_pack(lab, "test", progress=False).data_sha
    for folder in (first_sequence(lab, "test"), *first_sequence(lab, "test").parents[:3]):
        for name in ("._0.png", "._actions.csv", ".DS_Store", "Thumbs.db"):
            (folder / name).write_bytes(b"\0\5\26\7")
        (folder / ".ipynb_checkpoints").mkdir()
    pack_tree(lab, progress=False)
    assert open_pack(lab, "test").data_sha == whole
    expected = f"4 sequences of 5 frames, with actions and positions, packed as {whole}"
    assert check(lab, progress=False) == ([f"{split}: {expected}" for split in SPLITS], [])


@pytest.mark.parametrize("kind, rename, says", [
    ("png", lambda path: path.with_suffix(".jpg"), r"missing \['0.png'\], also there \['0.jpg', '1.jpg'"),
    ("png", lambda path: path.with_suffix(".PNG"), r"missing \['0.png'\], also there \['0.PNG', '1.PNG'"),
    ("csv", lambda path: path.with_name(path.name.title()), r"missing \[\], also there \['Actions.Csv', 'End"),
    ("csv", lambda path: path.with_suffix(".csv.txt"), r"missing \[\], also there \['actions.csv.txt', 'end")])
def test_files_by_other_names_are_named_and_never_make_a_set_action_free(lab, kind, rename, says):
    for path in list(lab.rglob(f"*.{kind}")):
        path.rename(rename(path))
    problems = check(lab, progress=False)[1]
    assert len(problems) == 12                                  # of all sequences
    with pytest.raises(DataError, match=f"{SHARD}/0: expected .*actions.csv.*{says}.*capital letters") as refusal:
        pack_tree(lab, progress=False)
    assert str(refusal.value) == problems[0]


def picture(mode, size=(64, 64)):
    return lambda folder: Image.new(mode, size).save(folder / "2.png")


def edit(table, change):
    def do(folder):
        lines = (folder / table).read_text().splitlines()
        (folder / table).write_text("\n".join(change(lines)) + "\n")
    return do


def flip(path, offset):
    whole = bytearray(path.read_bytes())
    whole[offset] ^= 16
    path.write_bytes(whole)


DAMAGES = {                                     # what is done to sequence 0 of train, and what is said of which path
    "frame missing": (lambda f: (f / "3.png").unlink(), "", r"5 frames .*missing \['3.png'\], also there \[\]"),
    "frame too many": (lambda f: shutil.copy(f / "0.png", f / "5.png"), "", r"missing \[\], also there \['5.png'\]"),
    "wrong size": (picture("RGB", (128, 96)), "/2.png", r"PNG of RGB pixels.*\(64, 64, 3\).*shape \(96, 128, 3\)"),
    "grey": (picture("L"), "/2.png", r"PNG of RGB pixels.*shape \(64, 64\), 0 numbers"),
    "flipped bit": (lambda f: flip(f / "2.png", 300), "/2.png", "cannot be read as a PNG"),
    "one table": (lambda f: (f / ACTIONS).unlink(), "", r"both of actions.csv, endeff.*missing \['actions.csv'\]"),
    "torn table": (lambda f: os.truncate(f / ACTIONS, 40), "/actions.csv", r"a row per frame.*\(5, 4\)"),
    "text in a table": (edit(ACTIONS, lambda rows: ["a,b,c,d", *rows[1:]]), "/actions.csv", "no header.*'a'"),
    "NaN": (edit(ACTIONS, lambda rows: [*rows[:4], "1,2,nan,4"]), "/actions.csv", "1 numbers not finite"),
    "overflow": (edit(ACTIONS, lambda rows: ["1,2,3,4e39", *rows[1:]]), "/actions.csv", "1 numbers not finite"),
    "not a sequence": (lambda f: f.with_name("0 copy").mkdir(), " copy", "is not a sequence"),
    "dangling link": (lambda f: (shutil.rmtree(f), f.symlink_to("gone")), "", "missing .*, also there .*or remove it"),
    "empty split": (lambda f: shutil.rmtree(f.parent), "/../..", "holds no sequences"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_each_kind_of_damage_and_packing_refuses_it(lab, damage):
    do, where, says = DAMAGES[damage]
    do(first_sequence(lab))
    (problem,) = check(lab, progress=False)[1]
    assert problem.startswith(os.path.normpath(f"{first_sequence(lab)}{where}") + ": ")
    with pytest.raises(DataError, match=says) as refusal:
        pack_tree(lab, progress=False)
    assert str(refusal.value) == problem and not list(lab.glob("packed/.*"))


CHANGES = {
    "frame": (lambda root: Image.fromarray(frames_of(9)[0]).save(first_sequence(root) / "0.png"), "was changed or"),
    "renamed": (lambda root: first_sequence(root).rename(first_sequence(root).with_name("9")), "was changed or added"),
    "removed": (lambda root: shutil.rmtree(first_sequence(root)), f"holds {SHARD}/0, which is gone"),
    "bit": (lambda root: flip(root / "packed/train/frames.npy", -50_000), "frames.npy.*SHA-256"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_finds_where_tree_and_pack_differ_and_packing_regenerates(lab, change):
    do, says = CHANGES[change]
    pack_tree(lab, progress=False)
    old = open_pack(lab, "train")
    do(lab)
    problems = check(lab, progress=False)[1]
    assert re.search(says, problems[0]) and all("`lab5 pack" in problem for problem in problems)
    pack_tree(lab, progress=False)
    assert check(lab, progress=False)[1] == []
    assert old.frames[0, 0, 0, 0].tolist() == [0, 0, 7]         # who has the old pack open keeps it whole


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in root.glob("packed/[!.]*/*")}


def test_opening_a_pack_touches_no_sequence(lab, tmp_path, monkeypatch):
    before, whole = open_or_pack(lab, "test", progress=False), content(lab)
    assert before.data_sha == open_or_pack(lab, "train", progress=False).data_sha != ""     # the same content
    for path in (lab / "processed_data").rglob("*"):
        os.utime(path, (1, 1))
    root, calls = shutil.copytree(lab, tmp_path / "copy"), []
    with monkeypatch.context() as patch:
        for name in ("stat", "scandir", "listdir", "open"):
            function = getattr(os, name)
            patch.setattr(os, name, lambda *args, _call=function, **kw: calls.append(args[0]) or _call(*args, **kw))
        after = open_or_pack(root, "test")
    assert calls and not [path for path in calls if "processed_data" in str(path)]
    shutil.rmtree(root / "processed_data")
    assert (after.names, after.data_sha, open_or_pack(root, "test").data_sha) == (before.names, *[before.data_sha] * 2)
    assert whole.items() <= content(root).items() and len(check(root, progress=False)[1]) == 1      # no validate
    assert pickle.loads(parcel := pickle.dumps(after)).names == before.names and len(parcel) < 1000


PACK = "import sys; from lab5.formats.tree import *; print(flush=True); open_or_pack(sys.argv[1], 'test')"


def test_killed_at_any_moment_the_next_calls_end_with_the_same_bytes_and_one_of_them_packs(tmp_path):
    root = write_tree(tmp_path, 60, ["test"])
    open_or_pack(root, "test", progress=False)
    whole = content(root)
    for _ in range(4):
        shutil.rmtree(root / "packed/test", ignore_errors=True)
        killed = begin(PACK, root)
        killed.stdout.readline()                                # everything is imported
        time.sleep(random.uniform(0, 0.3))
        killed.kill()
        killed.communicate()
        assert content(root) in ({}, whole)
    shutil.rmtree(root / "packed/test", ignore_errors=True)
    printed = [each.communicate()[0] for each in [begin(PACK, root) for _ in range(3)]]
    assert content(root) == whole and not list(root.glob("packed/.*"))
    assert ["packing test: 100%" in text for text in sorted(printed)] == [False, False, True], printed


def test_a_disk_without_room_is_refused_before_and_while_writing_and_leaves_nothing_half(lab, tmp_path, monkeypatch):
    for module, name, patch, says in (
            (shutil, "disk_usage", lambda path: SimpleNamespace(free=246_319), "needs 0.* GB are free. Free some"),
            (os, "fsync", lambda file: Path("/dev/full").write_text("any"), "No space left.*Free some space")):
        with monkeypatch.context() as context, pytest.raises(DataError, match=f"packed: packing test .*{says}"):
            context.setattr(module, name, patch)
            open_or_pack(lab, "test", progress=False)
        assert {path.name for path in (lab / "packed").iterdir()} <= {"test.lock"}


def test_real_bair_sequences_are_read_as_they_are(bair_root, tmp_path):
    lab, svg = tmp_path / "lab", tmp_path / "svg"
    shutil.copytree(bair_root / "processed_data", lab / "processed_data")
    shutil.copytree(bair_root / "frames_only", svg / "processed_data/test/traj_0_to_255")
    for short in svg.rglob("[78]"):                             # these have 16 frames
        shutil.rmtree(short)
    for root, count, columns in ((lab, 1, 7), (svg, 7, 0)):
        pack, folders = open_or_pack(root, "test", progress=False), sequences(root, "test").values()
        assert (pack.frames.shape, pack.conditions.shape) == ((count, 30, 64, 64, 3), (count, 30, columns))
        pictures = [[np.array(Image.open(folder / f"{t}.png")) for t in range(30)] for folder in folders]
        np.testing.assert_array_equal(pack.frames, pictures)
    tables = np.hstack([np.loadtxt(next(lab.rglob(name)), delimiter=",") for name in (ACTIONS, POSITIONS)])
    np.testing.assert_array_equal(open_pack(lab, "test").conditions[0], tables.astype(np.float32))
