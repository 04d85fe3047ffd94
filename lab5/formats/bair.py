"""Berkeley's softmotion30_44k, extracted from its tar and read without TensorFlow.

A TFRecord file is a sequence of records: uint64 length, its checksum, the data, their checksum, all little-endian
(tensorflow/core/lib/io/record_writer.h). The data are a serialized tf.train.Example, a map from names to values:
``t/image_aux1/encoded`` (raw RGB bytes), ``t/action``, ``t/endeffector_pos``. The checksums of single records are not
compared; `sha256sum` compares that of the whole archive (docs/data.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab5.data import FRAME_SIZE
from lab5.files import DataError

LENGTH = 30                                     # frames of a sequence
VALIDATE = "traj_256_to_511.tfrecords"          # the file of Berkeley's training split that the lab validates on
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)\.tfrecords")
Arrays = tuple[np.ndarray, np.ndarray]          # frames (T, 64, 64, 3) uint8, conditions (T, D) float32


def sequences(folder: Path, split: str) -> tuple[list[str], Iterator[Arrays]]:
    """Names, such as traj_0_to_255.tfrecords/0, and content of a split's sequences, by their number.

    `folder` holds Berkeley's train and test. Raises DataError where it has no file for the split, and the iterator
    where one is cut off or broken; it names the file and the record.
    """
    paths = [path for path in folder.glob("test/*" if split == "test" else "train/*") if NAME.fullmatch(path.name)
             and (split == "test" or (path.name == VALIDATE) == (split == "validate"))]
    if not paths:
        raise DataError(f"{folder}: holds no traj_A_to_B.tfrecords for {split}; extract Berkeley's archive again")
    paths.sort(key=lambda path: int(NAME.fullmatch(path.name)[1]))
    return ([f"{path.name}/{number}" for path in paths for number in range(_count(path))],
            (arrays for path in paths for arrays in _read(path)))


def _count(path: Path) -> int:
    """How many sequences a file holds, by its name."""
    first, last = map(int, NAME.fullmatch(path.name).groups())
    return last - first + 1


def _read(path: Path) -> Iterator[Arrays]:
    """The file's sequences, as many as its name says. Raises DataError with the number of the first broken record."""
    number, count = 0, _count(path)
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            for number in range(count):
                size = int.from_bytes(file.read(12)[:8], "little")              # length and its checksum
                after = file.tell() + size + 4                                  # data and their checksum
                if after > end or number == count - 1 and after < end:
                    raise ValueError(f"by the file's name it holds {count} records, which does not fit its size")
                yield _decode(file.read(size))
                file.seek(after)
    except (ValueError, LookupError, OSError) as error:
        raise DataError(f"{path}: record {number}: {type(error).__name__}: {error}; extract it again, or download the "
                        "archive again") from error


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
