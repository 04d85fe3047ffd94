"""Real BAIR is read from what was published: right or not at all, whatever has happened to the file."""

import json
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import namedtuple
from contextlib import suppress

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lab5 import packs, sources, tfrecords
from lab5.cli import main
from lab5.data import SPLITS, DataError, open_pack
from lab5.importer import check, find_source, import_set

LENGTH = 3                                      # frames of most sequences below; Berkeley's have 30
FILES = {"train/traj_0_to_3": 4, "train/traj_256_to_258": 3, "test/traj_0_to_2": 3}      # and their records
SPLIT_OF = {"train/traj_0_to_3": "train", "train/traj_256_to_258": "validate", "test/traj_0_to_2": "test"}
CAMERAS = ("aux1", "main")
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(tfrecords, "LENGTH", LENGTH)
    monkeypatch.setattr(tfrecords, "VALIDATE", "traj_256_to_258.tfrecords")


# An independent writer -----------------------------------------------------------------------------------

def frame(file, number, t, camera):
    seed = list(f"{file} {number} {t} {camera}".encode())
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def condition(number, t):
    return np.array([0.1 * number, -1 / 3, 1e-7 * t, 1, 0.74033183 + t, -0.24701567, 0.2], np.float32)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, content):
    """A field of a protocol buffer: its number and wire type 2, the length, the content."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def as_bytes(content):
    return field(1, field(1, content))


def as_floats(numbers):
    return field(2, field(1, struct.pack(f"<{len(numbers)}f", *numbers)))


def features(file, number, length=LENGTH):
    made = {}
    for t in range(length):
        for camera in CAMERAS:
            made[f"{t}/image_{camera}/encoded"] = as_bytes(frame(file, number, t, camera).tobytes())
        made[f"{t}/action"], made[f"{t}/endeffector_pos"] = map(as_floats, np.split(condition(number, t), [4]))
    return made


def example(made):
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, made[name])) for name in sorted(made)))


def masked(content):
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xa282ead8) % 2 ** 32)


def record(content):
    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def write_records(folder, files=FILES, length=LENGTH):
    """softmotion30_44k in a folder; returns that folder."""
    for file, count in files.items():
        path = folder / "softmotion30_44k" / f"{file}.tfrecords"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(record(example(features(file, n, length))) for n in range(count)))
    return folder


def as_tar(folder, path, mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder / "softmotion30_44k", "softmotion30_44k")
    return path


def as_zip(root, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "processed_data").rglob("*.*")):
            if file.is_file() and file.suffix in (".png", ".csv"):
                archive.write(file, prefix + file.relative_to(root).as_posix())
    return path


@pytest.fixture(scope="module")
def berkeley(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("berkeley"))


@pytest.fixture(scope="module")
def tar(berkeley):
    return as_tar(berkeley, berkeley / "softmotion30_44k.tar")


@pytest.fixture
def tree(berkeley, tmp_path):
    import_set(berkeley, tmp_path / "tree", tree=True, progress=False)
    return tmp_path / "tree"


def assert_whole(root, camera="aux1"):
    """The packs hold what was put into the records; returns their fingerprints."""
    for file, split in SPLIT_OF.items():
        pack = open_pack(root, split, progress=False)
        assert pack.names == [f"{file.partition('/')[2]}.tfrecords/{n}" for n in range(FILES[file])]
        for number in range(FILES[file]):
            np.testing.assert_array_equal(pack.frames[number], [frame(file, number, t, camera) for t in range(LENGTH)])
            np.testing.assert_array_equal(pack.conditions[number], [condition(number, t) for t in range(LENGTH)])
        assert not pack.simulated
    return [open_pack(root, split, progress=False).fingerprint for split in SPLITS]


# Sound sources -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("as_tree", [False, True], ids=["pack", "tree"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_import_holds_what_was_put_in(berkeley, tar, tmp_path, kind, as_tree, camera):
    source = {"folder": berkeley, "tar": tar}[kind]
    assert import_set(source, tmp_path, camera, as_tree, progress=False) == {"train": 4, "validate": 3, "test": 3}
    assert_whole(tmp_path, camera)
    assert (tmp_path / "processed_data").exists() == as_tree
    assert check(tmp_path, progress=False) == ({"train": 4, "validate": 3, "test": 3}, [])


def test_each_way_in_ends_with_the_same_fingerprint(berkeley, tar, tree, tmp_path):
    for name, source in {"folder": berkeley, "tar": tar, "copy": tree, "zip": as_zip(tree, tmp_path / "lab.zip"),
                         "deep": as_zip(tree, tmp_path / "deep.zip", "some/where/")}.items():
        import_set(source, tmp_path / name, progress=False)
        assert assert_whole(tmp_path / name) == assert_whole(tree), name


def test_a_zip_becomes_the_tree_again(tree, tmp_path):
    import_set(as_zip(tree, tmp_path / "lab.zip"), tmp_path / "again", tree=True, progress=False)
    assert assert_whole(tmp_path / "again") == assert_whole(tree)


@pytest.mark.parametrize("below", ["", "softmotion30_44k", "softmotion30_44k/train"])
def test_the_folder_may_be_given_at_any_level(berkeley, below):
    assert check(berkeley / below, progress=False) == ({"train": 4, "validate": 3, "test": 3}, [])


def test_berkeleys_own_length_is_thirty(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    write_records(tmp_path, {"test/traj_0_to_0": 1}, length=30)
    assert main(["import", str(tmp_path), str(tmp_path / "bair"), "--camera", "main"]) == 0
    assert "train 0, validate 0, test 1 sequences" in capsys.readouterr().out
    pack = open_pack(tmp_path / "bair", "test")
    np.testing.assert_array_equal(pack.frames[0], [frame("test/traj_0_to_0", 0, t, "main") for t in range(30)])
    assert tfrecords.VALIDATE == "traj_256_to_511.tfrecords"


def test_another_camera_or_source_into_the_same_root_is_recognised(berkeley, tmp_path, capsys):
    other = write_records(tmp_path / "other", FILES | {"test/traj_3_to_3": 1})
    import_set(berkeley, tmp_path / "pack", progress=False)
    before = (tmp_path / "pack/packed/test.frames.npy").stat().st_mtime_ns
    import_set(berkeley, tmp_path / "pack", progress=False)
    assert (tmp_path / "pack/packed/test.frames.npy").stat().st_mtime_ns == before  # nothing to do
    import_set(berkeley, tmp_path / "pack", "main", progress=False)
    assert "have changed since they were packed" in capsys.readouterr().out
    assert_whole(tmp_path / "pack", "main")
    import_set(berkeley, tmp_path / "tree", tree=True, progress=False)
    for source, camera in ((berkeley, "main"), (other, "aux1")):
        with pytest.raises(DataError, match="import.json: .*another source or camera"):
            import_set(source, tmp_path / "tree", camera, tree=True, progress=False)


def test_a_root_with_other_sequences_is_refused(berkeley, tree, tmp_path):
    with pytest.raises(DataError, match="is there already.*import into another folder"):
        import_set(berkeley, tree, progress=False)
    with pytest.raises(DataError, match="is such a tree already"):
        import_set(tree, tmp_path / "copy", tree=True, progress=False)
    (tmp_path / "mine" / "processed_data" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds data that were not imported"):
        import_set(berkeley, tmp_path / "mine", tree=True, progress=False)


@pytest.mark.parametrize("as_tree", [False, True], ids=["pack", "tree"])
def test_a_full_disk_is_refused_before_anything_is_read(berkeley, tmp_path, monkeypatch, as_tree):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1_000))
    monkeypatch.setattr(tfrecords.Records, "read", None)
    with pytest.raises(DataError, match=r"GB are free; make room"):
        import_set(berkeley, tmp_path, tree=as_tree, progress=False)


# Broken sources ------------------------------------------------------------------------------------------

Damage = namedtuple("Damage", "name changes says")
DAMAGES = [
    Damage("a camera gone", {"1/image_aux1/encoded": None}, "has no 1/image_aux1/encoded"),
    Damage("an action gone", {"2/action": None}, "has no 2/action, expected 3 frames"),
    Damage("a PNG", {"1/image_aux1/encoded": as_bytes(b"\x89PNG")}, r"holds \[4\] bytes, expected \[12288\]"),
    Damage("two frames", {"1/image_aux1/encoded": field(1, field(1, bytes(12288)) * 2)}, r"\[12288, 12288\] bytes"),
    Damage("another kind", {"1/action": as_bytes(b"1,2,3,4")}, "1/action is a bytes_list, expected a float_list"),
    Damage("no kind", {"1/action": b""}, "1/action is a None"),
    Damage("three numbers", {"1/action": as_floats([1, 2, 3])}, r"holds \[1.0, 2.0, 3.0\], expected 4 finite"),
    Damage("NaN", {"0/endeffector_pos": as_floats([1, float("nan"), 3])}, "nan, 3.0], expected 3 finite"),
    Damage("infinity", {"0/action": as_floats([1, 2, 3, float("inf")])}, "inf], expected 4 finite"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_bad_record_is_named_and_what_was_packed_stays(tmp_path, monkeypatch, damage, capsys):
    monkeypatch.setattr(packs, "BLOCK", 2)
    made = [features("test/traj_0_to_5", n) for n in range(6)]
    whole = b"".join(record(example(one)) for one in made)
    made[4] = {name: value for name, value in (made[4] | damage.changes).items() if value is not None}
    path = write_records(tmp_path, {"test/traj_0_to_5": 6}) / "softmotion30_44k/test/traj_0_to_5.tfrecords"
    path.write_bytes(b"".join(record(example(one)) for one in made))
    with pytest.raises(DataError, match=f"traj_0_to_5.tfrecords: record 4: .*{damage.says}.*delete it and fetch it"):
        import_set(tmp_path, tmp_path / "bair", progress=False)
    assert json.loads((tmp_path / "bair/packed/test.json").read_text())["done"] == 4
    path.write_bytes(whole)
    import_set(tmp_path, tmp_path / "bair", progress=False)
    assert len(open_pack(tmp_path / "bair", "test")) == 6


def test_a_flipped_bit_stops_an_import_that_goes_on_with_the_file_fetched_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packs, "BLOCK", 2)
    path = write_records(tmp_path, {"test/traj_0_to_5": 6}) / "softmotion30_44k/test/traj_0_to_5.tfrecords"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, len(whole) * 8 * 9 // 10))
    for as_tree in (False, True):
        with pytest.raises(DataError, match=r"record 5: the data's checksum is [0-9a-f]{8}, expected [0-9a-f]{8}"):
            import_set(tmp_path, tmp_path / f"{as_tree}", tree=as_tree, progress=False)
    assert len(list((tmp_path / "True/processed_data/test").glob("*/[0-9]"))) == 5
    path.write_bytes(whole)
    import_set(tmp_path, tmp_path / "False", progress=False)
    import_set(tmp_path, tmp_path / "True", tree=True, progress=False)
    assert "goes on after 4 of 6" in capsys.readouterr().out
    assert open_pack(tmp_path / "True", "test").fingerprint == open_pack(tmp_path / "False", "test").fingerprint


def test_a_length_that_is_wrong_is_noticed_before_anything_is_packed(tmp_path):
    path = write_records(tmp_path, {"test/traj_0_to_2": 3}) / "softmotion30_44k/test/traj_0_to_2.tfrecords"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, len(whole) // 3 * 8 + 2))
    with pytest.raises(DataError, match="record 1: the length's checksum is [0-9a-f]{8}, expected"):
        import_set(tmp_path, tmp_path / "bair", progress=False)
    assert not (tmp_path / "bair").exists()


def test_a_file_cut_between_two_records_is_noticed(berkeley, tmp_path):
    shutil.copytree(berkeley / "softmotion30_44k", tmp_path / "cut")
    path = tmp_path / "cut/train/traj_0_to_3.tfrecords"
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 4 * 3])
    with pytest.raises(DataError, match="traj_0_to_3.tfrecords: record 3: the file ends, .* 4 records; delete it"):
        import_set(tmp_path, tmp_path / "bair", progress=False)


def test_what_is_no_source_is_refused_in_words(berkeley, tar, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nozip.zip").write_bytes(b"PK\x03\x04 and no more")
    shutil.copytree(berkeley / "softmotion30_44k", tmp_path / "two/a")
    shutil.copytree(berkeley / "softmotion30_44k", tmp_path / "two/b")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, says in {"nowhere": "cannot be read", "empty": "neither processed_data nor", "text": "neither a tar nor",
                       "nozip.zip": "cannot be read as a zip", "other.zip": "holds no processed_data/train",
                       as_tar(berkeley, tmp_path / "tar.gz", "w:gz"): "is compressed.*decompress it",
                       "two": "holds 2 sets"}.items():
        with pytest.raises(DataError, match=says):
            import_set(tmp_path / name, tmp_path / "bair", progress=False)
    with pytest.raises(DataError, match="has one camera, aux1"):
        find_source(tmp_path / "other.zip", "main")


def test_names_in_a_zip_lead_nowhere(tree, tmp_path):
    path, root = as_zip(tree, tmp_path / "lab.zip"), tmp_path / "inner" / "bair"
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../x", "/etc/x", f"{tmp_path}/x", "processed_data/test/../../../../x/0.png",
                     "processed_data/test/traj_0_to_2.tfrecords/../../../../../x.png",
                     "processed_data/test/traj_0_to_2.tfrecords/0/../0.png",
                     "processed_data\\test\\traj_0_to_2.tfrecords\\9\\0.png", "__MACOSX/processed_data/test/"
                     "traj_0_to_2.tfrecords/0/._0.png", "processed_data/test/traj_٠_to_2.tfrecords/0/0.png"):
            archive.writestr(name, b"escaped")
    before = {file for file in tmp_path.rglob("*")}
    for as_tree in (False, True):
        import_set(path, root / f"{as_tree}", tree=as_tree, progress=False)
        assert_whole(root / f"{as_tree}")
    assert all(root in file.parents or file in (root, root.parent) for file in set(tmp_path.rglob("*")) - before)
    assert not [file for file in root.rglob("*") if b"escaped" in (file.read_bytes() if file.is_file() else b"")]


def test_a_zip_of_two_sets_is_refused(tree, tmp_path):
    path = as_zip(tree, tmp_path / "lab.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/processed_data/test/traj_0_to_2.tfrecords/0/0.png", b"")
    with pytest.raises(DataError, match=r"or two sets \(\., b/\)"):
        import_set(path, tmp_path / "bair", progress=False)


def test_a_simulated_set_in_a_zip_stays_simulated(tree, tmp_path):
    path = as_zip(tree, tmp_path / "lab.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("processed_data/simulation.json", "{}")
    import_set(path, tmp_path / "bair", progress=False)
    assert open_pack(tmp_path / "bair", "test").simulated
    with pytest.raises(DataError, match="is the simulated robot's"):
        import_set(path, tmp_path / "tree2", tree=True, progress=False)


def test_a_zips_member_that_swells_is_not_unpacked(tree, tmp_path):
    shutil.copytree(tree / "processed_data", tmp_path / "swollen/processed_data")
    shard = tmp_path / "swollen/processed_data/test/traj_0_to_2.tfrecords"
    (shard / "1/actions.csv").write_bytes(b" " * 2 ** 28)
    Image.new("RGB", (9000, 9000)).save(shard / "2/1.png")
    counts, problems = check(as_zip(tmp_path / "swollen", tmp_path / "lab.zip"), progress=False)
    assert [problem.message.split(",")[0] for problem in problems] == ["has more than 1", "is 9000x9000 RGB"]


# Damage of every kind ------------------------------------------------------------------------------------

def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused_or_whole(path, content, root):
    """Import what is left of a file: the outcome must be DataError, or what was in the whole one."""
    path.write_bytes(content)
    shutil.rmtree(root, ignore_errors=True)
    try:
        import_set(path if path.suffix in (".tar", ".zip") else path.parents[2], root, progress=False)
    except DataError as error:
        assert path.name in str(error)
        return "refused"
    assert_whole(root)
    return "whole"


@pytest.fixture
def victims(berkeley, tar, tree, tmp_path):
    """A TFRecord file among sound ones, a tar, a zip: for each kind, where it lies and its bytes."""
    shutil.copytree(berkeley / "softmotion30_44k", tmp_path / "damaged/softmotion30_44k")
    paths = {"record": tmp_path / "damaged/softmotion30_44k/test/traj_0_to_2.tfrecords",
             "tar": shutil.copy(tar, tmp_path / "damaged.tar"), "zip": as_zip(tree, tmp_path / "damaged.zip")}
    return {kind: (path, path.read_bytes()) for kind, path in paths.items()}.get     # no dict: it would be printed


@pytest.mark.parametrize("kind", ["record", "tar", "zip"])
@fuzz
@given(place=st.floats(0, 1), near=st.integers(0, 600), from_end=st.booleans(), cut=st.booleans())
def test_a_cut_or_a_flipped_bit_anywhere_is_refused_or_harmless(victims, tmp_path, kind, place, near, from_end, cut):
    path, whole = victims(kind)
    byte = int(place * (len(whole) - 1)) if near > 300 else near
    byte = len(whole) - 1 - byte if from_end else byte
    refused_or_whole(path, whole[:byte] if cut else flipped(whole, 8 * byte + near % 8), tmp_path / "bair")


def seams(path, whole):
    """Where one part of a file ends and the next begins."""
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            return [place for member in archive for place in (member.offset, member.offset_data)] + [archive.offset]
    if path.suffix == ".zip":
        return [whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x01\x02"), whole.rindex(b"PK\x05\x06")]
    return [number * (len(whole) // 3) for number in range(3)]          # the records are of one length


@pytest.mark.parametrize("kind", ["record", "tar", "zip"])
def test_a_cut_at_a_seam_or_beside_it_is_noticed(victims, tmp_path, kind):
    path, whole = victims(kind)
    for seam in seams(path, whole):
        for cut in (seam - 1, seam, seam + 1, seam + 8, seam + 11, seam + 12, seam + 13):
            if 0 <= cut < len(whole):
                assert refused_or_whole(path, whole[:cut], tmp_path / "bair") == "refused"


@fuzz
@given(content=st.binary(max_size=300), keep=st.integers(0, 200))
def test_random_bytes_are_no_record(victims, tmp_path, content, keep):
    path, whole = victims("record")
    assert refused_or_whole(path, whole[:keep] + content, tmp_path / "bair") == "refused"


@given(content=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_no_example(content):
    with pytest.raises(DataError):
        tfrecords._parse(content, "aux1")


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "0.png"
    Image.fromarray(frame("png", 0, 0, "aux1")).resize((16, 16)).resize((64, 64), Image.NEAREST).save(path)
    return path.read_bytes()


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_mutated_png_is_refused_or_the_same_picture(png, data):
    changed = bytearray(png)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at:at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        pixels = sources.read_frame(bytes(changed))
    except DataError:
        return
    np.testing.assert_array_equal(pixels, sources.read_frame(png))


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_no_picture(png, content, with_head):
    with pytest.raises(DataError):
        sources.read_frame((png[:33] if with_head else b"") + content)


TEXT = st.one_of(st.binary(max_size=200),
                 st.text("0123456789.,-+eEinfa_x \r\n\t\x00\x0c\u2028\ufeff", max_size=80).map(str.encode))


@given(TEXT, st.integers(0, 40))
@settings(max_examples=1000, deadline=None)
def test_a_table_of_anything_is_refused_or_finite(content, keep):
    table = b"0.1,2,-3e-4,1\n" * 3
    try:
        read = sources.read_table(table[:keep] + content + table[keep + len(content):], 3, 4)
    except DataError:
        return
    assert read.shape == (3, 4) and read.dtype == np.float32 and np.isfinite(read).all()


def test_a_picture_of_another_size_is_not_decoded(png, monkeypatch):
    head = png[12:16] + struct.pack(">II", 60_000, 2_000) + png[24:29]
    bomb = png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match="is 60000x2000 RGB"):
        sources.read_frame(bomb)


# Kills ---------------------------------------------------------------------------------------------------

SLOW = f"""
import sys, time
from PIL import Image
from lab5 import packs, sources, tfrecords
from lab5.cli import main
packs.BLOCK, packs.READERS, tfrecords.LENGTH = 2, 2, {LENGTH}
tfrecords.VALIDATE = "traj_256_to_258.tfrecords"
def slow(do):
    def slowly(*args, **options):
        time.sleep(0.01)
        return do(*args, **options)
    return slowly
Image.Image.save = slow(Image.Image.save)
for kind in sources.Tree, tfrecords.Records:
    kind.read = slow(kind.read)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["import", "import --tree", "pack"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, how):
    source = write_records(tmp_path / "source", {"train/traj_0_to_39": 40, "test/traj_0_to_2": 3})
    whole, root = tmp_path / "whole", tmp_path / "broken"
    import_set(source, whole, tree=how != "import", progress=False)
    if how == "pack":
        packs.pack(whole, progress=False)
        shutil.copytree(whole / "processed_data", root / "processed_data")
    arguments = ["pack", root] if how == "pack" else ["import", source, root, *how.split()[1:]]
    command, chance, states = [sys.executable, "-c", SLOW, *map(str, arguments)], random.Random(1), set()
    for _ in range(6):
        before = progress(root)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and progress(root) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        assert process.wait(60) in (-signal.SIGKILL, 0)
        states.add(progress(root))
    assert len(states) > 2                                      # it was killed here and there
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    expected, found = contents(whole), contents(root)
    assert found.keys() == expected.keys()
    assert all(found[name] == content for name, content in expected.items())


def files(folder):
    """All that is neither hidden nor a lock."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def progress(root):
    """How many sequences are packed, and how many are written."""
    packed = 0
    for manifest in root.glob("packed/*.json"):
        with suppress(OSError):                                 # it may have been replaced
            packed += json.loads(manifest.read_text())["done"]
    return packed, len(list(root.glob("processed_data/*/*/[0-9]*")))


def contents(root):
    """The bytes of a set's files by name; of manifests all but the digest of a source, in which dates are."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in files(root)}
    return {name: json.loads(content) | {"source": None} if re.fullmatch(r"packed/\w+\.json", name) else content
            for name, content in found.items()}
