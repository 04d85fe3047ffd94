"""Berkeley's softmotion30_44k, extracted from its tar and read without TensorFlow.

A TFRecord file is a sequence of records: uint64 length, its checksum, the data, their checksum, all little-endian
(tensorflow/core/lib/io/record_writer.h). The data are a serialized tf.train.Example, a map from names to values:
``t/image_aux1/encoded`` (raw RGB bytes), ``t/action``, ``t/endeffector_pos``. The checksums of single records are not
compared; `sha256sum` compares that of the whole archive (docs/data.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lab5.data import FRAME_SIZE
from lab5.files import DataError

LENGTH = 30                                     # frames of a sequence
VALIDATE = "train/traj_256_to_511.tfrecords"    # the file of Berkeley's training split that the lab validates on
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)\.tfrecords")
Arrays = tuple[np.ndarray, np.ndarray]          # frames (T, 64, 64, 3) uint8, conditions (T, D) float32


def sequences(folder: Path, split: str) -> dict[str, Callable[[], Arrays]]:
    """What reads each of a split's sequences, by its name, such as traj_0_to_255.tfrecords/0, in their order.

    `folder` holds Berkeley's train and test. Raises DataError where it has no file for the split.
    """
    splits = {path: "validate" if path == folder / VALIDATE else path.parent.name
              for path in folder.glob("*/*") if NAME.fullmatch(path.name)}
    ranges = {path: [int(number) for number in NAME.fullmatch(path.name).groups()]
              for path in splits if splits[path] == split}
    if not ranges:
        raise DataError(f"{folder}: holds no traj_A_to_B.tfrecords for {split}; extract Berkeley's archive again")
    return {f"{path.name}/{number}": partial(read_sequence, path, number, last - first + 1)
            for path, (first, last) in sorted(ranges.items(), key=lambda item: item[1])
            for number in range(last - first + 1)}


def read_sequence(path: Path, number: int, count: int) -> Arrays:
    """The sequence of one of a file's `count` records. Raises DataError where it is cut off or broken."""
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            for _ in range(number + 1):
                size = int.from_bytes(file.read(12)[:8], "little")              # length and its checksum
                start, after = file.tell(), file.tell() + size + 4              # data and their checksum
                file.seek(min(after, end))
            if after > end or number == count - 1 and after < end:
                raise ValueError(f"by the file's name it holds {count} records, which does not fit its size")
            file.seek(start)
            return _decode(file.read(size))
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
