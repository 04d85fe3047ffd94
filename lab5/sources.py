"""Where sequences come from: the lab's folder tree, or the zip of it, and how one sequence is read and written.

A source says what a split holds without reading it, and reads one sequence at a time; it may be read by several
threads. Whoever packs or copies sequences takes any source (`lab5.tfrecords` has the third).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

SPLITS = ("train", "validate", "test")
FRAME_SIZE = 64                                 # pixels, height and width
FRAME_BYTES = FRAME_SIZE * FRAME_SIZE * 3
TABLES = {"actions.csv": 4, "endeffector_positions.csv": 3}     # columns of each; side by side they are a condition
SIMULATION = "simulation.json"                  # in processed_data, the simulator's own
LARGEST_FILE = 2 ** 20                          # bytes; a frame or a table has some 10,000, and more is not read
ADVICE = "extract it again or remove its sequence"
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)(?:\.tfrecords)?/([0-9]+)")    # of a sequence

Item = TypeVar("Item")


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or folder: what was found, what was expected, what to do."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was found, and the way out."""


def refusal(title: str, problems: list[Problem], advice: str) -> DataError:
    """An error that lists the first problems and counts the others."""
    lines = [*map(str, problems[:5]), *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])]
    return DataError("\n  ".join([title, *lines]) + f"\n{advice}")


@dataclass(frozen=True)
class Survey:
    """What a split of a source holds, as far as it is known before the sequences are read."""

    split: str
    there: bool                                 # whether the source has such a split
    names: list[str]                            # such as "traj_0_to_255.tfrecords/0", in order
    digest: str                                 # changes with the kind of source and with any sequence
    length: int                                 # frames of each sequence, or of most of them
    condition_dim: int                          # 7 where most of the sequences have tables, else 0
    simulated: bool
    problems: list[Problem]                     # with no names, the last says why


Read = tuple[np.ndarray | None, np.ndarray | None, list[Problem]]


class Source(Protocol):
    """A set of sequences in splits."""

    place: Path                                 # what it is called by

    def survey(self, split: str, progress: bool = True) -> Survey:
        """What a split holds, problems with its names included."""

    def read(self, survey: Survey, name: str) -> Read:
        """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of one sequence, or both None and its problems."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of sequences by the numbers (A, B, N) in them."""
    return sorted(names, key=lambda name: (_numbers(name), name.split("/")))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, NAME.fullmatch(name).groups()))


# Folders of files ----------------------------------------------------------------------------------------

class _Folders(ABC):
    """What the tree and its zip share: a sequence is a folder of PNGs and tables."""

    place: Path
    simulated: bool                             # by the simulated robot, which its folders say

    @abstractmethod
    def has(self, split: str) -> bool:
        """Whether the split is there, if only as an empty folder."""

    @abstractmethod
    def _list(self, split: str) -> tuple[list[str], list[Problem]]:
        """A split's sequences in order, and what is wrong with their names; with none, the last says why."""

    @abstractmethod
    def _stamps(self, split: str, name: str) -> dict[str, tuple]:
        """Of each file of a sequence what changes with it. Raises OSError."""

    @abstractmethod
    def _bytes(self, split: str, name: str, file: str) -> bytes:
        """The content of a file, at most LARGEST_FILE + 1 bytes of it. Raises DataError or OSError."""

    @abstractmethod
    def _path(self, split: str, name: str, file: str = "") -> Path:
        """What a problem calls a sequence or its file by."""

    def survey(self, split: str, progress: bool = True) -> Survey:
        """What the names, sizes and dates of a split's files tell, without opening one."""
        names, problems = self._list(split)
        digest, lengths, tabled = hashlib.sha256(), Counter(), Counter()
        digest.update(f"{type(self).__name__}, simulated: {self.simulated}\n".encode())
        for name in tqdm(names, f"looking over {split}", delay=1, leave=False, unit="seq", disable=not progress):
            files = {}
            with suppress(OSError):             # reading the sequence reports it
                files = self._stamps(split, name)
            digest.update(f"{name} {sorted(files.items())}\n".encode())
            lengths[sum(file.endswith(".png") for file in files)] += 1
            tabled[any(file in TABLES for file in files)] += 1
        length, has_tables = (max(counts, key=counts.get, default=0) for counts in (lengths, tabled))
        condition_dim = sum(TABLES.values()) if has_tables else 0
        return Survey(split, self.has(split), names, digest.hexdigest(), length, condition_dim, self.simulated,
                      problems)

    def read(self, survey: Survey, name: str) -> Read:
        """Read a sequence's files; see `Source.read`."""
        problems, split, length = [], survey.split, survey.length

        def attempt(read: Callable[..., Item], file: str, *expected: int) -> Item | None:
            try:
                return read(self._bytes(split, name, file), *expected)
            except DataError as error:
                problems.append(Problem(self._path(split, name, file), str(error)))
            except OSError as error:
                problems.append(Problem(self._path(split, name, file), f"cannot be read ({error.strerror}); {ADVICE}"))

        names = set()
        try:
            names = set(self._stamps(split, name))
        except OSError as error:
            problems.append(Problem(self._path(split, name), f"cannot be read ({error.strerror}); {ADVICE}"))
        frames, found = [f"{t}.png" for t in range(length)], {file for file in names if file.endswith(".png")}
        missing, extra = [file for file in frames if file not in found], sorted(found.difference(frames))
        if missing or extra or not frames:
            problems.append(Problem(self._path(split, name), f"holds {len(found)} frames, expected {length}, as in "
                                    f"most of the split, from 0.png on; missing: {', '.join(missing[:5]) or 'none'}; "
                                    f"not expected: {', '.join(extra[:5]) or 'none'}; extract it again or remove it"))
        for table in TABLES:
            if survey.condition_dim and table not in names:
                problems.append(Problem(self._path(split, name, table),
                                        "is missing, though most of the split has tables; restore it"))
            elif not survey.condition_dim and table in names:
                problems.append(Problem(self._path(split, name, table),
                                        "is there, though most of the split has no tables; remove it"))
        video = [attempt(read_frame, file) for file in frames if file in found]
        tables = [attempt(read_table, table, length, columns) for table, columns in TABLES.items()
                  if survey.condition_dim and table in names]
        if problems:
            return None, None, problems
        return np.stack(video), np.hstack([np.empty((length, 0), np.float32), *tables]), []


class Tree(_Folders):
    """The lab's folders, ``processed_data/<split>/traj_A_to_B.tfrecords/N/``.

    Args:
        root: the folder that holds ``processed_data``, or ``processed_data`` itself.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(os.path.abspath(Path(root).expanduser()))
        self.place = root.parent if root.name == "processed_data" else root

    @property
    def simulated(self) -> bool:
        """Whether the simulated robot wrote it."""
        return (self.place / "processed_data" / SIMULATION).exists()

    def has(self, split: str) -> bool:
        return self._path(split, "").is_dir()

    def _path(self, split: str, name: str, file: str = "") -> Path:
        return self.place / "processed_data" / split / name / file

    def _stamps(self, split: str, name: str) -> dict[str, tuple]:
        return {entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns)
                for entry in os.scandir(self._path(split, name)) if entry.name.endswith((".png", ".csv"))}

    def _bytes(self, split: str, name: str, file: str) -> bytes:
        with open(self._path(split, name, file), "rb") as opened:
            return opened.read(LARGEST_FILE + 1)

    def _list(self, split: str) -> tuple[list[str], list[Problem]]:
        folder = self._path(split, "")
        advice = f"give the folder that holds processed_data/{split}, or make a simulated set with `lab5 simulate`"
        if not folder.is_dir():
            nearest = next(parent for parent in folder.parents if parent.is_dir())
            there = ", ".join(islice((path.name for path in sorted(nearest.iterdir())), 8)) or "nothing"
            return [], [Problem(folder, f"there is no such folder (in {nearest} there is: {there}); {advice}")]
        names, problems = [], []
        for path in (path for shard in _inside(folder) for path in _inside(shard) or [shard]):
            name = path.relative_to(folder).as_posix()
            if NAME.fullmatch(name) and path.is_dir():
                names.append(name)
            else:
                problems.append(Problem(
                    path, "is not a sequence, a folder traj_A_to_B.tfrecords/N; restore, rename or remove it"))
        names = in_order(names)
        problems += [Problem(folder / b, f"has the same number as {folder / a}; remove one of them")
                     for a, b in pairwise(names) if _numbers(a) == _numbers(b)]
        if not names:
            problems.append(Problem(folder, f"holds no sequences traj_A_to_B.tfrecords/N; {advice}"))
        return names, problems


def _inside(folder: Path) -> list[Path]:
    """Folders in a folder, and what has the name of a sequence's without being one: a file, a link to nothing."""
    entries = os.scandir(folder) if folder.is_dir() else []
    return sorted(Path(entry) for entry in entries if not entry.name.startswith(".")
                  and (entry.is_dir() or re.fullmatch("[0-9]+|traj_.*", entry.name)))


class Zip(_Folders):
    """The lab's package, a zip of ``processed_data`` at any depth, read in place.

    A member counts if its name has the exact form of a sequence's file, and is looked up by nothing else, so that
    what a zip calls its members leads nowhere. Raises DataError where it cannot be opened.
    """

    MEMBER = re.compile(rf"((?:.*/)?)processed_data/({'|'.join(SPLITS)})/({NAME.pattern})/([^/]+\.(?:png|csv))", re.S)

    def __init__(self, path: str | Path) -> None:
        self.place = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.place)
        except Exception as error:              # zipfile has several kinds for damaged files
            raise DataError(f"{self.place}: cannot be read as a zip ({error}); delete it and fetch it anew") from error
        self.simulated = any(f"/{name}".endswith(f"/processed_data/{SIMULATION}") for name in self._zip.namelist())

    @cached_property
    def _members(self) -> dict[str, dict[str, dict[str, zipfile.ZipInfo]]]:
        """Of each split's sequences the files."""
        members, above = {split: defaultdict(dict) for split in SPLITS}, set()
        for info in self._zip.infolist():
            match = self.MEMBER.fullmatch(info.filename)
            if not match or match[1].startswith("__MACOSX/"):       # the Finder's attributes, under the files' names
                continue
            folder, split, name, file = match[1], match[2], match[3], match[match.re.groups]
            above.add(folder)
            if file in members[split][name] or len(above) > 1:
                raise DataError(f"{self.place}: holds {name}/{file} of {split} twice, or two sets ("
                                f"{', '.join(sorted(folder or '.' for folder in above))}); make a zip of one")
            members[split][name][file] = info
        return members

    def has(self, split: str) -> bool:
        return bool(self._members[split])

    def _path(self, split: str, name: str, file: str = "") -> Path:
        return self.place / "processed_data" / split / name / file

    def _list(self, split: str) -> tuple[list[str], list[Problem]]:
        names = in_order(self._members[split])
        problems = [Problem(self._path(split, b), f"has the same number as {a}; make a zip without one of them")
                    for a, b in pairwise(names) if _numbers(a) == _numbers(b)]
        if not names:
            problems.append(Problem(self.place, f"holds no processed_data/{split}/traj_A_to_B.tfrecords/N/*.png"))
        return names, problems

    def _stamps(self, split: str, name: str) -> dict[str, tuple]:
        return {file: (info.file_size, info.CRC) for file, info in self._members[split][name].items()}

    def _bytes(self, split: str, name: str, file: str) -> bytes:
        try:
            with self._zip.open(self._members[split][name][file]) as member:
                return member.read(LARGEST_FILE + 1)
        except Exception as error:              # a dozen kinds, by compression
            raise DataError(f"cannot be unzipped ({error}); delete {self.place} and fetch it anew") from error


# One file ------------------------------------------------------------------------------------------------

def read_frame(content: bytes) -> np.ndarray:
    """One PNG as (64, 64, 3) uint8. DataError says what it is instead; what is of another size is not decoded."""
    expected = f"{FRAME_SIZE}x{FRAME_SIZE} RGB"
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            depth = content[24]                 # bits of a number, in the header; Pillow makes 8 of 16
            found = f"{image.width}x{image.height} {image.mode}" + (f" of {depth} bits" if depth > 8 else "")
            if found == expected:
                pixels = np.asarray(image)
                _verify_chunks(content)
    except Exception as error:                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"cannot be read as a PNG ({error}); {ADVICE}") from error
    if found != expected:
        raise DataError(f"is {found}, expected {expected}; convert it or remove its sequence")
    return pixels


def _verify_chunks(content: bytes) -> None:
    """Compare the checksums of a PNG's chunks, which decoding passes over where they are the pixels'."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        image.verify()


def read_table(content: bytes, rows: int, columns: int) -> np.ndarray:
    """A table without a header as (rows, columns) float32. DataError says what it holds instead."""
    if len(content) > LARGEST_FILE:
        raise DataError(f"has more than {LARGEST_FILE:,} bytes, expected {rows} rows of {columns} numbers; {ADVICE}")
    text = content.decode("utf-8-sig", errors="replace")        # -sig: spreadsheets put a mark in front
    lines = [line.split(",") for line in text.rstrip().splitlines()]
    if len(lines) != rows:
        raise DataError(f"has {len(lines)} rows, expected {rows}, one for each frame; {ADVICE}")
    for row, line in enumerate(lines):
        if len(line) != columns:
            raise DataError(f"row {row} has {len(line)} columns, expected {columns}; {ADVICE}")
    try:
        if "_" in text:                         # which Python passes over in a number
            raise ValueError("holds '_'")
        with np.errstate(over="ignore"):        # too large becomes infinite, and is refused below
            table = np.array(lines, dtype=np.float64).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{error}, expected numbers only; {ADVICE}") from error
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise DataError(f"row {row} holds {', '.join(lines[row])}, expected finite numbers; {ADVICE}")
    return table


def write_sequence(folder: Path, frames: np.ndarray, conditions: np.ndarray, number: str) -> None:
    """Write a sequence into a folder of the tree: aside at first, so that a folder of that name is whole.

    Args:
        frames: (T, 64, 64, 3) uint8.
        conditions: (T, 7), or (T, 0) for no tables.
        number: how the tables' numbers are written, such as "%.8f".
    """
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)                    # a killed call's
    aside.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(aside / f"{t}.png", compress_level=1)
    if conditions.shape[1]:
        ends = np.cumsum(list(TABLES.values()))[:-1]
        for table, columns in zip(TABLES, np.split(conditions, ends, axis=1), strict=True):
            np.savetxt(aside / table, columns, fmt=number, delimiter=",")
    os.replace(aside, folder)
