"""Berkeley's softmotion30_44k, read from its TFRecords without TensorFlow: in a folder, or in its tar, in place.

A TFRecord file is a row of records: uint64 length, uint32 masked CRC-32C of the length, the data, uint32 masked
CRC-32C of the data, little endian (tensorflow/core/lib/io/record_writer.h). The data of ours is a serialized
tf.train.Example (tensorflow/core/example/example.proto), a map from names to lists: for each frame t
``t/image_aux1/encoded`` and ``t/image_main/encoded`` (raw RGB bytes), ``t/action`` and ``t/endeffector_pos``.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tqdm.auto import tqdm

from lab5.sources import FRAME_BYTES, FRAME_SIZE, DataError, Problem, Read, Survey, in_order

CAMERAS = ("aux1", "main")
LENGTH = 30                                     # frames of a sequence
NUMBERS = {"action": 4, "endeffector_pos": 3}   # numbers of each; side by side they are a condition
VALIDATE = "traj_256_to_511.tfrecords"          # of Berkeley's training files the one that the lab validates on
FILE = re.compile(r"((?:.*/)?)(train|test)/(traj_([0-9]+)_to_([0-9]+)\.tfrecords)", re.S)
DEPTH = 4                                       # folders below the one given, in which train and test are sought
_HEAD, _CRC = struct.Struct("<QI"), struct.Struct("<I")
_ADVICE = "delete it and fetch it anew"


# Files ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Shard:
    """A TFRecord file, which is a part of another file if that is a tar."""

    label: Path                                 # what messages call it by
    path: Path
    start: int
    size: int                                   # bytes

    def open(self, offset: int = 0) -> BinaryIO:
        """The file, so many bytes after the shard's start."""
        file = open(self.path, "rb")
        file.seek(self.start + offset)
        return file


def _find(place: Path) -> dict[str, dict[str, _Shard]]:
    """The shards in a folder or a tar, by train and test and by name. Raises DataError where there are none."""
    found, above = {"train": {}, "test": {}}, set()
    for name, shard in (_in_folder if place.is_dir() else _in_tar)(place):
        if match := FILE.fullmatch(name):
            above.add(match[1])
            found[match[2]][match[3]] = shard
    if len(above) > 1:
        raise DataError(f"{place}: holds {len(above)} sets of TFRecords, in {', '.join(sorted(above)[:5])}; give one")
    if not above:
        raise DataError(f"{place}: holds neither processed_data nor {{train,test}}/traj_A_to_B.tfrecords; give "
                        "Berkeley's softmotion30_44k, its tar, or the lab's zip")
    return found


def _in_folder(place: Path) -> Iterator[tuple[str, _Shard]]:
    place = Path(os.path.abspath(place))
    top = place.parent if place.name in ("train", "test") else place
    for folder, folders, files in os.walk(top):
        if len(Path(folder).relative_to(top).parts) >= DEPTH:
            folders.clear()
        for path in (Path(folder, file) for file in files if file.endswith(".tfrecords")):
            yield path.relative_to(top).as_posix(), _Shard(path, path, 0, path.stat().st_size)


def _in_tar(place: Path) -> Iterator[tuple[str, _Shard]]:
    end = 0
    try:
        with tarfile.open(place, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isreg() and not member.issparse():
                    yield member.name, _Shard(place / member.name, place, member.offset_data, member.size)
        with open(place, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.TarError(f"no end mark at byte {end:,}")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{place}: cannot be read as an uncompressed tar to its end ({error}); decompress it, or "
                        f"{_ADVICE}") from error


# Records -------------------------------------------------------------------------------------------------

def _masked(data: bytes) -> int:
    """TFRecord's checksum: a CRC-32C, turned and shifted so that one over data with checksums in it is of use."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_head(file: BinaryIO, room: int) -> int:
    """The length of the record that begins here, of which `room` bytes are there. Raises DataError."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise DataError(f"the file ends after {len(head)} of {_HEAD.size} bytes of a record's head")
    length, crc = _HEAD.unpack(head)
    if crc != (found := _masked(head[:8])):
        raise DataError(f"the length's checksum is {found:08x}, expected {crc:08x}")
    if _HEAD.size + length + _CRC.size > room:
        raise DataError(f"the record takes {_HEAD.size + length + _CRC.size:,} bytes, and {room:,} are there")
    return length


def _read_record(file: BinaryIO, room: int) -> bytes:
    """The data of the record that begins here. Raises DataError."""
    length = _read_head(file, room)
    data, crc = file.read(length), file.read(_CRC.size)
    if len(data) + len(crc) < length + _CRC.size:
        raise DataError(f"the file ends after {len(data):,} of {length:,} bytes of data")
    if _CRC.unpack(crc)[0] != (found := _masked(data)):
        raise DataError(f"the data's checksum is {found:08x}, expected {_CRC.unpack(crc)[0]:08x}")
    return data


def _example_class() -> type:
    """The message class of tf.train.Example, from a description of its fields."""
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="lab5/example.proto", package="lab5", syntax="proto3")

    def message(into, name: str, *fields: tuple, **options):
        described = into.add(name=name)
        for number, (label, kind, field_name) in enumerate(fields, 1):
            typed = {"type_name": kind, "type": field.TYPE_MESSAGE} if isinstance(kind, str) else {"type": kind}
            described.field.add(name=field_name, number=number, label=label, **typed, **options)
        return described

    message(file.message_type, "BytesList", (many, field.TYPE_BYTES, "value"))
    message(file.message_type, "FloatList", (many, field.TYPE_FLOAT, "value"))
    message(file.message_type, "Int64List", (many, field.TYPE_INT64, "value"))
    message(file.message_type, "Feature", (one, ".lab5.BytesList", "bytes_list"),
            (one, ".lab5.FloatList", "float_list"), (one, ".lab5.Int64List", "int64_list"),
            oneof_index=0).oneof_decl.add(name="kind")
    features = message(file.message_type, "Features", (many, ".lab5.Features.FeatureEntry", "feature"))
    message(features.nested_type, "FeatureEntry", (one, field.TYPE_STRING, "key"),
            (one, ".lab5.Feature", "value")).options.map_entry = True
    message(file.message_type, "Example", (one, ".lab5.Features", "features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("lab5.Example"))


_Example = _example_class()


def _parse(data: bytes, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, 7) float32 of a serialized Example. Raises DataError."""
    try:
        features = _Example.FromString(data).features.feature
    except DecodeError as error:
        raise DataError(f"the data are no tf.train.Example ({error})") from error

    def values(name: str, kind: str):
        if name not in features:                # asking a map for what it lacks would put it in
            raise DataError(f"has no {name}, expected {LENGTH} frames of it")
        if (found := features[name].WhichOneof("kind")) != kind:
            raise DataError(f"{name} is a {found}, expected a {kind}")
        return getattr(features[name], kind).value

    def frame(name: str) -> bytes:
        found, expected = [len(value) for value in values(name, "bytes_list")], [FRAME_BYTES]
        if found != expected:
            raise DataError(f"{name} holds {found} bytes, expected {expected}, a raw {FRAME_SIZE}x{FRAME_SIZE} RGB")
        return features[name].bytes_list.value[0]

    def numbers(name: str, count: int) -> np.ndarray:
        found = np.array(values(name, "float_list"), np.float32)
        if found.shape != (count,) or not np.isfinite(found).all():
            raise DataError(f"{name} holds {found.tolist()}, expected {count} finite numbers")
        return found

    video = b"".join(frame(f"{t}/image_{camera}/encoded") for t in range(LENGTH))
    rows = [np.hstack([numbers(f"{t}/{name}", count) for name, count in NUMBERS.items()]) for t in range(LENGTH)]
    return np.frombuffer(video, np.uint8).reshape(LENGTH, FRAME_SIZE, FRAME_SIZE, 3), np.stack(rows)


# The source ----------------------------------------------------------------------------------------------

class Records:
    """Berkeley's TFRecords as a source: train less the lab's file of validation, that file, and test.

    Args:
        place: a folder that holds softmotion30_44k, at some depth, or the tar of it.
        camera: whose frames are read, aux1 (the lab's) or main.
    Raises:
        DataError: there are none, or the tar is damaged.
    """

    def __init__(self, place: str | Path, camera: str = CAMERAS[0]) -> None:
        self.place, self.camera = Path(place), camera
        self._places: dict[str, dict[str, tuple[_Shard, int]]] = {}

    @cached_property
    def _shards(self) -> dict[str, dict[str, _Shard]]:
        """Each of the lab's splits' shards, by name."""
        found = _find(self.place)
        validate = {name: shard for name, shard in found["train"].items() if name == VALIDATE}
        train = {name: shard for name, shard in found["train"].items() if name != VALIDATE}
        return {"train": train, "validate": validate, "test": found["test"]}

    def survey(self, split: str, progress: bool = True) -> Survey:
        """Count the records and digest their checksums, which stand for their content, without reading that."""
        shards, problems, places = self._shards[split], [], {}
        digest = hashlib.sha256(f"TFRecords, camera {self.camera}, {LENGTH} frames".encode())
        for name in tqdm(sorted(shards), f"looking over {split}", delay=1, leave=False, disable=not progress):
            digest.update(name.encode())
            for number, (offset, seal) in enumerate(self._records(shards[name], problems)):
                places[f"{name}/{number}"] = shards[name], offset
                digest.update(seal)
        self._places[split] = places
        if not shards:
            problems.append(Problem(self.place, f"holds no files of {split}"))
        return Survey(split, bool(shards), in_order(places), digest.hexdigest(), LENGTH, sum(NUMBERS.values()), False,
                      problems)

    def _records(self, shard: _Shard, problems: list[Problem]) -> Iterator[tuple[int, bytes]]:
        """Where each record of a file begins, and its checksum and length; what is wrong goes to the problems."""
        count, offset = 0, 0
        first, last = map(int, FILE.fullmatch(f"train/{shard.label.name}").group(4, 5))
        try:
            with shard.open() as file:
                while offset < shard.size:
                    length = _read_head(file, shard.size - offset)
                    file.seek(length, os.SEEK_CUR)
                    yield offset, struct.pack("<Q", length) + file.read(_CRC.size)
                    offset += _HEAD.size + length + _CRC.size
                    count += 1
            if count != last - first + 1:
                raise DataError(f"the file ends, and its name tells of {last - first + 1} records")
        except (DataError, OSError) as error:
            problems.append(Problem(shard.label, f"record {count}: {error}; {_ADVICE}"))

    def read(self, survey: Survey, name: str) -> Read:
        """Read and check a record; see `Source.read`."""
        shard, offset = self._places[survey.split][name]
        try:
            with shard.open(offset) as file:
                return *_parse(_read_record(file, shard.size - offset), self.camera), []
        except (DataError, OSError) as error:
            number = name.rpartition("/")[2]
            return None, None, [Problem(shard.label, f"record {number}: {error}; {_ADVICE}")]
