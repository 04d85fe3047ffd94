"""Berkeley's softmotion30_44k into packs, read from its TFRecords without TensorFlow, in a folder or in its tar.

A TFRecord file is a sequence of records: uint64 length, its checksum, the data, their checksum, all little-endian
(tensorflow/core/lib/io/record_writer.h). The data are a serialized tf.train.Example, a map from names to values:
``t/image_aux1/encoded`` (raw RGB bytes), ``t/action``, ``t/endeffector_pos``. The checksums of single records are not
compared; `sha256sum` compares that of the whole archive (docs/data.md).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab5.data import FRAME_SIZE
from lab5.files import SPLITS, DataError, expand, home
from lab5.formats.packing import Arrays, write_pack

LENGTH = 30                                     # frames of a sequence
VALIDATE = "traj_256_to_511.tfrecords"          # the file of Berkeley's training split that the lab validates on
FILE = re.compile(r".*/(train|test)/(traj_([0-9]+)_to_([0-9]+)\.tfrecords)", re.S)


class File(NamedTuple):
    """A TFRecord file, which may lie in a tar: `size` bytes of the file `path`, from byte `start`."""

    where: str                                  # what error messages call it
    path: Path
    start: int
    size: int

    @property
    def split(self) -> str:
        split, name = FILE.fullmatch(self.where).group(1, 2)
        return "validate" if (split, name) == ("train", VALIDATE) else split

    @property
    def names(self) -> list[str]:
        """Of its sequences, such as traj_0_to_255.tfrecords/0."""
        name, first, last = FILE.fullmatch(self.where).group(2, 3, 4)
        return [f"{name}/{number}" for number in range(int(last) - int(first) + 1)]


def import_bair(source: str | Path, root: str | Path, progress: bool = True) -> None:
    """Write packs of Berkeley's sequences into ``root/packed``; packs that are there are replaced.

    `source` is a folder that holds softmotion30_44k, at any depth, or the uncompressed tar of it; a split that it lacks
    is not written. Raises DataError where there are no TFRecords, or one is cut off or broken; it names the file and
    the record.
    """
    if (home(root) / "processed_data").exists():
        raise DataError(f"{home(root)}: already holds a data set, processed_data; choose another folder for the packs")
    files = _files(expand(source))
    for split in SPLITS:
        if of_split := [file for file in files if file.split == split]:
            names = [name for file in of_split for name in file.names]
            write_pack(home(root), split, names, (arrays for file in of_split for arrays in _sequences(file)),
                       (LENGTH, 7), progress=progress)


def _files(source: Path) -> list[File]:
    """The TFRecord files of a folder or tar, by their first trajectory. Raises DataError where there are none."""
    try:
        if source.is_dir():
            paths = source.resolve().rglob("*.tfrecords")
            found = [File(path.as_posix(), path, 0, path.stat().st_size) for path in paths]
        else:
            with tarfile.open(source, "r:") as tar:
                found = [File(f"{source.as_posix()}/{member.name}", source, member.offset_data, member.size)
                         for member in tar if member.isreg()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{source}: cannot be read as an uncompressed tar ({error}); decompress it, or download it "
                        "again") from error
    found = [file for file in found if FILE.fullmatch(file.where)]
    if not found:
        raise DataError(f"{source}: holds no train/traj_A_to_B.tfrecords and no test/traj_A_to_B.tfrecords; give the "
                        "folder that holds Berkeley's softmotion30_44k, or its tar")
    return sorted(found, key=lambda file: int(FILE.fullmatch(file.where)[3]))


def _sequences(file: File) -> Iterator[Arrays]:
    """The file's sequences, as many as its name says. Raises DataError with the number of the first broken record."""
    end, count = file.start + file.size, len(file.names)
    with open(file.path, "rb") as stream:
        stream.seek(file.start)
        for number in range(count):
            try:
                size = int.from_bytes(stream.read(12)[:8], "little")            # length and its checksum
                after = stream.tell() + size + 4                                # data and their checksum
                if after > end or number == count - 1 and after < end:
                    raise ValueError(f"by the file's name it holds {count} records, which does not fit its size")
                yield _decode(stream.read(size))
            except (ValueError, IndexError, KeyError) as error:
                raise DataError(f"{file.where}: record {number}: {type(error).__name__}: {error}; download the file "
                                "again") from error
            stream.seek(after)


def _decode(example: bytes) -> Arrays:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, 7) float32 of a tf.train.Example. Raises ValueError or KeyError.

    An Example holds Features, those hold pairs of a name and a Feature, and that holds a list of bytes or of floats.
    """
    pairs = [dict(_fields(pair)) for _, features in _fields(example) for _, pair in _fields(features)]
    lists = {pair[1]: pair[2] for pair in pairs}

    def read(name: str, kind: str, *shape: int) -> np.ndarray:
        keys = [f"{t}/{name}" for t in range(LENGTH)]
        found = [b"".join(value for _, values in _fields(lists[key.encode()]) for _, value in _fields(values))
                 for key in keys]
        return np.stack([np.frombuffer(content, kind).reshape(shape) for content in found])

    frames = read("image_aux1/encoded", "u1", FRAME_SIZE, FRAME_SIZE, 3)
    conditions = np.hstack([read("action", "<f4", 4), read("endeffector_pos", "<f4", 3)])
    if not np.isfinite(conditions).all():
        raise ValueError("its actions or positions hold NaN or infinity")
    return frames, conditions


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of a protocol buffer's fields; those of an Example all have a length (wire type 2)."""
    at = 0
    while at < len(message):
        key, size = message[at], 0
        for digit in range(10):                                 # of base 128, the lowest first
            at += 1
            size += (message[at] & 127) << 7 * digit
            if message[at] < 128:
                break
        at += 1
        if key & 7 != 2 or at + size > len(message):
            raise ValueError("the data are not a tf.train.Example")
        yield key >> 3, message[at:at + size]
        at += size
