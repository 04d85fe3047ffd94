"""Berkeley's TFRecords become packs that hold what was recorded, or are refused with the file and the record."""

import struct
import tarfile

import numpy as np
import pytest

from lab5.data import DataError, open_pack
from lab5.formats import bair
from lab5.formats.bair import import_bair

LENGTH = 3                                      # frames of a sequence here; Berkeley's have 30
FILES = {"train/traj_10_to_11": 2, "train/traj_0_to_3": 4, "train/traj_256_to_258": 3, "test/traj_0_to_2": 3}
SPLITS = {"train": ["train/traj_0_to_3", "train/traj_10_to_11"], "validate": ["train/traj_256_to_258"],
          "test": ["test/traj_0_to_2"]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bair, "LENGTH", LENGTH)
    monkeypatch.setattr(bair, "VALIDATE", "traj_256_to_258.tfrecords")


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


@pytest.fixture(scope="module")
def tar(berkeley):
    with tarfile.open(berkeley / "softmotion30_44k.tar", "w") as archive:
        archive.add(berkeley / "softmotion30_44k", "softmotion30_44k")
    return berkeley / "softmotion30_44k.tar"


def assert_whole(root):
    for split, files in SPLITS.items():
        pack = open_pack(root, split)
        where = [(file, number) for file in files for number in range(FILES[file])]
        assert pack.names == [f"{file.split('/')[1]}.tfrecords/{number}" for file, number in where]
        for index, (file, number) in enumerate(where):
            np.testing.assert_array_equal(pack.frames[index], [frame(file, number, t) for t in range(LENGTH)])
            np.testing.assert_array_equal(pack.conditions[index], [condition(number, t) for t in range(LENGTH)])
        assert not pack.simulated


def test_a_folder_and_a_tar_hold_what_was_recorded(berkeley, tar, tmp_path):
    for source in (berkeley, berkeley / "softmotion30_44k", tar):
        import_bair(source, tmp_path, progress=False)
        assert_whole(tmp_path)


def test_berkeleys_own_sequences_have_thirty_frames(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert bair.VALIDATE == "traj_256_to_511.tfrecords"
    write(tmp_path, {"test/traj_0_to_0": 1}, length=30)
    import_bair(tmp_path, tmp_path / "bair", progress=False)
    assert open_pack(tmp_path / "bair", "test").frames.shape == (1, 30, 64, 64, 3)
    assert not (tmp_path / "bair/packed/train").exists()


@pytest.mark.parametrize("changes, says", [
    ({"1/image_aux1/encoded": b""}, "cannot reshape array of size 0"),
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
    with pytest.raises(DataError, match=f"traj_0_to_2.tfrecords: record 1: .*{says}.*download the file again"):
        import_bair(tmp_path, tmp_path / "bair", progress=False)
    assert not (tmp_path / "bair/packed/test").exists()


@pytest.mark.parametrize("end", [0, 5, 12, 1000, -20, -1, "a record more", "a record less"])
def test_a_file_that_is_cut_off_or_holds_another_number_of_records_is_refused(berkeley, tmp_path, end):
    whole = (berkeley / "softmotion30_44k/test/traj_0_to_2.tfrecords").read_bytes()
    size = len(whole) // 3
    (tmp_path / "test").mkdir()
    (tmp_path / "test/traj_0_to_2.tfrecords").write_bytes(
        {"a record more": whole + whole[:size], "a record less": whole[:-size]}.get(end) or whole[:end])
    with pytest.raises(DataError, match="traj_0_to_2.tfrecords: record [0-2]: .*holds 3 records.*download the file"):
        import_bair(tmp_path, tmp_path / "bair", progress=False)


def test_what_is_no_source_is_refused_in_words(berkeley, tar, tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[:-300_000])
    with tarfile.open(tmp_path / "tar.gz", "w:gz") as archive:
        archive.add(berkeley / "softmotion30_44k", "softmotion30_44k")
    for name, says in {"nowhere": "cannot be read", "text": "as an uncompressed tar", "empty": "holds no",
                       "tar.gz": "decompress it", "cut.tar": "download it again"}.items():
        with pytest.raises(DataError, match=f"{tmp_path / name}: .*{says}"):
            import_bair(tmp_path / name, tmp_path / "bair", progress=False)
    (tmp_path / "bair/processed_data").mkdir(parents=True)
    with pytest.raises(DataError, match="already holds a data set, processed_data; choose another folder"):
        import_bair(berkeley, tmp_path / "bair", progress=False)
