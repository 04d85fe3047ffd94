"""Berkeley's TFRecords become packs that hold what was recorded, or are refused with the file and the record."""

import struct
import threading

import numpy as np
import pytest

from lab5.data import DataError, open_pack
from lab5.formats import bair
from lab5.formats.tree import check, open_or_pack, pack_tree

LENGTH = 3                                      # frames of a sequence here; Berkeley's have 30
FILES = {"train/traj_10_to_11": 2, "train/traj_0_to_3": 4, "train/traj_256_to_258": 3, "test/traj_0_to_2": 3}
SPLITS = {"train": ["train/traj_0_to_3", "train/traj_10_to_11"], "validate": ["train/traj_256_to_258"],
          "test": ["test/traj_0_to_2"]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bair, "LENGTH", LENGTH)
    monkeypatch.setattr(bair, "VALIDATE", "train/traj_256_to_258.tfrecords")


# ---- an independent writer, from the format's description; TensorFlow's own files were read the same ----

def frame(file, number, t):
    seed = list(f"{file} {number} {t}".encode())
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def condition(number, t):
    return np.array([0.1 * number, -1 / 3, 1e-7 * t, 1, 0.74033183 + t, -0.24701567, 0.2], np.float32)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def floats(values):
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


def features(file, number, length=LENGTH):
    made = {"0/other": field(3, field(1, b"\x01"))}
    for t in range(length):
        made[f"{t}/image_aux1/encoded"] = field(1, field(1, frame(file, number, t).tobytes()))
        made[f"{t}/action"], made[f"{t}/endeffector_pos"] = map(floats, np.split(condition(number, t), [4]))
    return made


def record(made):
    example = field(1, b"".join(field(1, field(1, name.encode()) + field(2, made[name])) for name in sorted(made)))
    return struct.pack("<Q", len(example)) + b"sum1" + example + b"sum2"         # the checksums are not compared


def write(folder, files, length=LENGTH):
    for file, count in files.items():
        path = folder / "softmotion30_44k" / f"{file}.tfrecords"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(record(features(file, number, length)) for number in range(count)))
    return folder


@pytest.fixture(scope="module")
def berkeley(tmp_path_factory):
    return write(tmp_path_factory.mktemp("berkeley"), FILES)


def test_packs_hold_what_was_recorded(berkeley):
    pack_tree(berkeley, progress=False)
    for split, files in SPLITS.items():
        pack = open_pack(berkeley, split)
        where = [(file, number) for file in files for number in range(FILES[file])]
        assert pack.names == [f"{file.split('/')[1]}.tfrecords/{number}" for file, number in where]
        for index, (file, number) in enumerate(where):
            np.testing.assert_array_equal(pack.frames[index], [frame(file, number, t) for t in range(LENGTH)])
            np.testing.assert_array_equal(pack.conditions[index], [condition(number, t) for t in range(LENGTH)])
        assert not pack.simulated
    lines, problems = check(berkeley, progress=False)
    assert problems == [] and lines[0].startswith("train: 6 sequences of 3 frames, with actions and positions, packed")


def test_berkeleys_own_sequences_have_thirty_frames(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert bair.VALIDATE == "train/traj_256_to_511.tfrecords"
    write(tmp_path, {"test/traj_0_to_0": 1}, length=30)
    assert open_or_pack(tmp_path, "test", progress=False).frames.shape == (1, 30, 64, 64, 3)
    for packing in (pack_tree, lambda root: open_or_pack(root, "train")):
        with pytest.raises(DataError, match="holds no traj_A_to_B.tfrecords for (train|validate); extract"):
            packing(tmp_path)


@pytest.mark.parametrize("changes, says", [
    ({"1/image_aux1/encoded": field(1, field(1, b"\x89PNG"))}, "cannot reshape array of size 4"),
    ({"1/action": floats([1, 2, 3])}, r"cannot reshape array of size 3 into shape \(4,\)"),
    ({"0/endeffector_pos": floats([1, float("nan"), 3])}, "NaN or infinity"),
    ({"1/action": b"\x08\x01"}, "not a tf.train.Example"),
    ({"1/action": None}, "KeyError: b'1/action'"),
])
def test_a_record_that_lacks_something_is_refused(tmp_path, changes, says):
    made = [features("test/traj_0_to_2", number) for number in range(3)]
    made[1] = {name: value for name, value in (made[1] | changes).items() if value is not None}
    path = write(tmp_path, {"test/traj_0_to_2": 0}) / "softmotion30_44k/test/traj_0_to_2.tfrecords"
    path.write_bytes(b"".join(map(record, made)))
    before = {*threading.enumerate()}
    with pytest.raises(DataError, match=f"traj_0_to_2.tfrecords: record 1: .*{says}.*extract it again") as error:
        open_or_pack(tmp_path, "test", progress=False)
    assert {*threading.enumerate()} <= before, error            # the threads that read have ended
    assert not (tmp_path / "packed/test").exists()


@pytest.mark.parametrize("end", [0, 5, 12, 1000, -20, -1, "a record more", "a record less"])
def test_a_file_that_is_cut_off_or_holds_another_number_of_records_is_refused(berkeley, tmp_path, end):
    whole = (berkeley / "softmotion30_44k/test/traj_0_to_2.tfrecords").read_bytes()
    size = len(whole) // 3
    folder = tmp_path / "softmotion30_44k/test"
    folder.mkdir(parents=True)
    (folder / "traj_0_to_2.tfrecords").write_bytes(
        {"a record more": whole + whole[:size], "a record less": whole[:-size]}.get(end) or whole[:end])
    with pytest.raises(DataError, match="traj_0_to_2.tfrecords: record [0-2]: .*holds 3 records.*extract it again"):
        open_or_pack(tmp_path, "test", progress=False)
