"""Berkeley's softmotion30_44k into packs, read from its TFRecords without TensorFlow, in a folder or in its tar.

A TFRecord file is a sequence of records: uint64 length, its masked CRC-32C, the data, their masked CRC-32C, all
little-endian (tensorflow/core/lib/io/record_writer.h). The data are a serialized tf.train.Example, a map from names to
values: ``t/image_aux1/encoded`` and ``t/image_main/encoded`` (raw RGB bytes), ``t/action``, ``t/endeffector_pos``.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lab5.data import FRAME_SIZE
from lab5.files import SPLITS, DataError, home
from lab5.formats.packing import write_pack

LENGTH = 30                                     # frames of a sequence
NUMBERS = {"action": 4, "endeffector_pos": 3}   # values of each; side by side they are a frame's condition
VALIDATE = "traj_256_to_511.tfrecords"          # the file of Berkeley's training split that the lab validates on
FILE = re.compile(r".*/(train|test)/(traj_([0-9]+)_to_([0-9]+)\.tfrecords)", re.S)


class Part(NamedTuple):
    """A TFRecord file, or the data of one record: a range of bytes of a file, and what error messages call it."""

    where: str
    path: Path
    start: int
    size: int


def import_bair(source: str | Path, root: str | Path, camera: str = "aux1", progress: bool = True) -> dict[str, int]:
    """Write packs of Berkeley's sequences into ``root/packed``; packs that are there are replaced.

    Args:
        source: a folder that holds softmotion30_44k, at any depth, or the uncompressed tar of it.
        camera: whose frames are read: aux1, the lab's, or main.
    Returns:
        the number of sequences in each split, 0 for one that the source lacks.
    Raises:
        DataError: there are no TFRecords, or one is damaged, cut off or incomplete; names the file and the record.
    """
    if (home(root) / "processed_data").exists():
        raise DataError(f"{home(root)}: already holds a data set, processed_data; choose another folder for the packs")
    records: dict[str, dict[str, Part]] = {split: {} for split in SPLITS}
    for file in _files(Path(source).expanduser()):
        split, name = FILE.fullmatch(file.where).group(1, 2)
        split = "validate" if (split, name) == ("train", VALIDATE) else split
        records[split] |= {f"{name}/{number}": record for number, record in enumerate(_records(file))}
    for split in SPLITS:
        if records[split]:
            write_pack(home(root), split, list(records[split]), partial(_read, records[split], camera), length=LENGTH,
                       condition_dim=sum(NUMBERS.values()), progress=progress)
    return {split: len(names) for split, names in records.items()}


def _files(source: Path) -> list[Part]:
    """The TFRecord files of a folder or tar, by their first trajectory. Raises DataError where there are none."""
    try:
        if source.is_dir():
            paths = source.resolve().rglob("*.tfrecords")
            found = [Part(path.as_posix(), path, 0, path.stat().st_size) for path in paths]
        else:
            with tarfile.open(source, "r:") as tar:
                found = [Part(f"{source.as_posix()}/{member.name}", source, member.offset_data, member.size)
                         for member in tar if member.isreg()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{source}: cannot be read as an uncompressed tar ({error}); decompress it, or download it "
                        "again") from error
    found = [part for part in found if FILE.fullmatch(part.where)]
    if not found:
        raise DataError(f"{source}: holds no train/traj_A_to_B.tfrecords and no test/traj_A_to_B.tfrecords; give the "
                        "folder that holds Berkeley's softmotion30_44k, or its tar")
    return sorted(found, key=lambda part: int(FILE.fullmatch(part.where)[3]))


def _records(file: Part) -> list[Part]:
    """Where the data of a file's records lie. Raises DataError if they are not as many as the file's name says."""
    records: list[Part] = []
    first, last = map(int, FILE.fullmatch(file.where).group(3, 4))
    at, end = file.start, file.start + file.size
    with open(file.path, "rb") as stream:
        while at < end:
            record = f"{file.where}: record {len(records)}"
            stream.seek(at)
            size = int.from_bytes(_checked(stream, min(8, end - at), record), "little")
            records.append(Part(record, file.path, at + 12, size))
            at += 12 + size + 4
    if at > end or len(records) != last - first + 1:
        raise _damaged(f"{file.where}: record {len(records) - (at > end)}",
                       f"the file ends here, but its name says that it holds {last - first + 1} records")
    return records


def _checked(stream: BinaryIO, size: int, record: str) -> bytes:
    """Read bytes of a file that are followed by their checksum. Raises DataError if it is another one."""
    content, stored = stream.read(size), stream.read(4)
    crc = crc32c(content)
    found = ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
    if found != stored:
        raise _damaged(record, f"the checksum of {len(content):,} bytes is {found.hex()}, expected {stored.hex()}")
    return content


def _damaged(record: str, reason: object) -> DataError:
    return DataError(f"{record}: {reason}; download the file again")


def _read(records: dict[str, Part], camera: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, 7) float32 of a record. Raises DataError."""
    def value(name: str, kind: int, size: int) -> memoryview:
        found = [(number, content) for number, values in _fields(features.get(name.encode(), memoryview(b"")))
                 for _, content in _fields(values)]
        if [(number, len(content)) for number, content in found] != [(kind, size)]:
            raise ValueError(f"{name} holds {len(found)} values of {sum(len(content) for _, content in found)} bytes, "
                             f"expected one of {size}")
        return found[0][1]

    with open(records[name].path, "rb") as stream:
        stream.seek(records[name].start)
        example = memoryview(_checked(stream, records[name].size, records[name].where))
    try:
        entries = [dict(_fields(entry)) for _, entries in _fields(example) for _, entry in _fields(entries)]
        features = {bytes(entry[1]): entry[2] for entry in entries}     # each a list of kind 1, bytes, or 2, float
        frames = [value(f"{t}/image_{camera}/encoded", 1, FRAME_SIZE * FRAME_SIZE * 3) for t in range(LENGTH)]
        numbers = [value(f"{t}/{name}", 2, 4 * count) for t in range(LENGTH) for name, count in NUMBERS.items()]
        conditions = np.frombuffer(b"".join(numbers), "<f4").reshape(LENGTH, -1)
        if not np.isfinite(conditions).all():
            raise ValueError("its actions or positions hold NaN or infinity")
    except (ValueError, IndexError, KeyError) as error:
        raise _damaged(records[name].where, f"is not one of Berkeley's, {error}") from error
    return np.frombuffer(b"".join(frames), np.uint8).reshape(LENGTH, FRAME_SIZE, FRAME_SIZE, 3), conditions


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of a protocol buffer's fields; those of an Example are length-delimited, wire type 2."""
    at = 0
    while at < len(message):
        header = []                             # key and size: seven bits in each byte, the lowest first
        for _ in range(2):
            end = next(place for place in range(at, at + 10) if message[place] < 128) + 1
            header.append(sum((byte & 127) << 7 * place for place, byte in enumerate(message[at:end])))
            at = end
        key, size = header
        if key & 7 != 2 or at + size > len(message):
            raise ValueError("the data are not a tf.train.Example")
        yield key >> 3, message[at:at + size]
        at += size


_BITS = np.arange(32, dtype=np.uint32)
_TABLE = np.arange(256, dtype=np.uint32)
for _ in range(8):
    _TABLE = _TABLE >> 1 ^ (_TABLE & 1) * np.uint32(0x82F63B78)


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720) at about 120 MB/s: rows of the data go through the table together and are then combined.

    A CRC is linear: that of two rows is shift(CRC of the left) ^ CRC of the right. The columns of `shift`, what zeros
    as long as a row do to each bit, are had from 32 more rows. Four bytes set the register that zeros left at zero.
    """
    data = b"\x54\x64\x1f\x64" + data
    rows = 1 << (len(data) // 64).bit_length()
    padded = np.frombuffer(bytes(-len(data) % rows) + data, np.uint8).reshape(rows, -1).T
    crcs = np.concatenate([np.zeros(rows, np.uint32), 1 << _BITS])
    for column in np.pad(padded, ((0, 0), (0, 32))):
        crcs = _TABLE[(crcs ^ column) & 255] ^ crcs >> 8
    while len(crcs) > 1 + 32:
        left, right, shift = crcs[:-32:2], crcs[1:-32:2], crcs[-32:]
        shifted = np.bitwise_xor.reduce((np.append(left, shift)[:, None] >> _BITS & 1) * shift, axis=1)
        crcs = np.append(shifted[:-32] ^ right, shifted[-32:])
    return int(crcs[0]) ^ 0xFFFFFFFF
