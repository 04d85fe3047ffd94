"""A split's sequences packed into memory-mapped arrays, with a checksum a frame.

A million small PNGs are slow to open, so each split is decoded once, from any source, into ``packed/<split>.*.npy``;
``packed/<split>.json`` says what is in them. Axes on disk are (N, T, H, W, C) for N sequences of T frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import google_crc32c
import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from lab5.files import write_text
from lab5.sources import FRAME_BYTES, FRAME_SIZE, SPLITS, DataError, Problem, Source, Survey, Tree, refusal

FORMAT = 4                                      # of the pack; another number means that it is made anew
BLOCK = 256                                     # sequences between two points from which a killed packing goes on
READERS = min(8, os.cpu_count() or 1)           # threads; decoding a PNG releases the interpreter

Item, Result = TypeVar("Item"), TypeVar("Result")


# A tree and its pack -------------------------------------------------------------------------------------

def sequences(root: str | Path, split: str) -> list[Path]:
    """The split's sequence folders, in the numeric order of (A, B, N) of ``traj_A_to_B.tfrecords/N``.

    Raises DataError when the split is missing or empty, naming what is there instead.
    """
    tree = Tree(root)
    found = tree.survey(split, progress=False)
    if not found.names:
        raise DataError(str(found.problems[-1]))
    return [tree.place / "processed_data" / split / name for name in found.names]


def summary(root: str | Path) -> dict[str, int]:
    """The number of sequences in each split, of its tree or else of its pack; 0 for one that is missing."""
    return {split: _count(Tree(root), split) for split in SPLITS}


def _count(tree: Tree, split: str) -> int:
    with suppress(DataError):
        if not tree.has(split):
            return len(_open(tree.place / "packed", split))
    return len(tree.survey(split, progress=False).names)


def check(root: str | Path, progress: bool = True) -> list[Problem]:
    """Read every file of every split, and its pack, and return all that is wrong; an empty list means a sound set.

    Of a set that was imported, the packs are there alone.
    """
    tree, problems = Tree(root), []
    for split in SPLITS:
        pack = None
        with suppress(DataError):               # a pack that is not whole will be made anew
            pack = _open(tree.place / "packed", split)
        if pack is None or tree.has(split):
            problems += check_sequences(tree, tree.survey(split, progress), progress)
        if pack is not None:
            problems += _damage(pack, progress)
    return problems


def check_sequences(source: Source, survey: Survey, progress: bool = True) -> list[Problem]:
    """Read every sequence of a surveyed split and return all that is wrong."""
    read = each(partial(source.read, survey), survey.names, f"checking {survey.split}", progress)
    return [*survey.problems, *(problem for *_, problems in read for problem in problems)]


def each(task: Callable[[Item], Result], items: Sequence[Item], title: str, progress: bool, done: int = 0
         ) -> Iterator[Result]:
    """Do a task on every item but the first `done`, by a pool of threads; yields the results in order."""
    with (ThreadPoolExecutor(READERS) as pool,
          tqdm(total=len(items), initial=done, desc=title, unit="seq", disable=not progress) as bar):
        for start in range(done, len(items), BLOCK):            # the pool must not run ahead of the disk
            for result in pool.map(task, items[start:start + BLOCK]):
                yield result
                bar.update()


# The pack ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Manifest:
    """What a split holds and how much of it is packed: the content of ``packed/<split>.json``."""

    split: str
    source: str                                 # the survey's digest, which changes with any sequence
    simulated: bool
    length: int                                 # frames of each sequence
    condition_dim: int                          # 7 or, without tables, 0
    names: list[str]                            # the sequences in order, relative to the split
    done: int = 0                               # how many of them are packed for certain
    content: str = ""                           # a digest of those, each chained to the one before
    conditions_crc: int = 0                     # the CRC-32C of their conditions
    format: int = FORMAT

    @classmethod
    def of(cls, survey: Survey) -> _Manifest:
        """The manifest of a pack that is about to begin."""
        return cls(survey.split, survey.digest, survey.simulated, survey.length, survey.condition_dim, survey.names)

    def arrays(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of each packed array, by name."""
        shape = len(self.names), self.length
        return {"frames": (np.uint8, (*shape, FRAME_SIZE, FRAME_SIZE, 3)),
                "conditions": (np.float32, (*shape, self.condition_dim)),
                "crc": (np.uint32, shape)}


@dataclass(frozen=True, eq=False)
class Pack:
    """One split, memory-mapped and read only. It travels to a loader's worker by name, not by content."""

    name: str                                   # the split
    frames: np.ndarray                          # (N, T, 64, 64, 3) uint8
    conditions: np.ndarray                      # (N, T, D) float32, D = 7: action 4, position 3; or 0: action-free
    crc: np.ndarray                             # (N, T) uint32, the CRC-32C of a frame's bytes and its condition's
    names: list[str]                            # such as "traj_0_to_255.tfrecords/0"
    fingerprint: str                            # 12 hex digits of the content, the same on every machine
    simulated: bool                             # the simulated robot, not BAIR
    conditions_crc: int                         # the CRC-32C of all conditions

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def condition_dim(self) -> int:
        """D, the numbers in a frame's condition."""
        return self.conditions.shape[-1]

    def read(self, index: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of frames (..., 64, 64, 3) and conditions (..., D), each compared with its checksum.

        Args:
            index: which sequences, of a shape that broadcasts with that of `times`, which frames of them.
        Raises:
            DataError: the disk has changed one of them since it was packed.
        """
        index, times = np.broadcast_arrays(index, times)
        frames, conditions = np.asarray(self.frames[index, times]), np.asarray(self.conditions[index, times])
        wrong = _checksums(frames, conditions) != self.crc[index, times]
        if wrong.any():
            raise DataError(str(self._damaged(int(index[wrong][0]), times[wrong].tolist())))
        return frames, conditions

    def all_conditions(self) -> np.ndarray:
        """All conditions (N, T, D). Raises DataError where the disk has changed them since they were packed."""
        if not self.conditions_are_whole():
            raise DataError(str(self._damaged_conditions()))
        return self.conditions

    def conditions_are_whole(self) -> bool:
        """Whether the conditions are those that were packed, by the checksum of them all."""
        return google_crc32c.value(self.conditions.tobytes()) == self.conditions_crc

    def _damaged_conditions(self) -> Problem:
        path = Path(self.conditions.filename)
        return Problem(path, "not the numbers that were packed, by their checksum; the disk has damaged them or it. "
                       f"`lab5 pack {path.parent.parent}` makes the pack anew")

    def _damaged(self, index: int, times: list[int]) -> Problem:
        path = Path(self.frames.filename)
        return Problem(path, f"{self.names[index]}, frame {', '.join(map(str, times[:5]))}: not the bytes that were "
                       "packed, by their checksum; the disk has damaged it, its conditions or its checksum. "
                       f"`lab5 pack {path.parent.parent}` makes it anew")

    def __reduce__(self):
        return _open, (Path(self.frames.filename).parent, self.name)


def _checksums(frames: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """The checksum of each frame (..., 64, 64, 3) with its condition (..., D), uint32 (...)."""
    pairs = zip(frames.reshape(-1, FRAME_BYTES), conditions.reshape(frames.size // FRAME_BYTES, -1), strict=True)
    sums = [google_crc32c.extend(google_crc32c.value(frame.tobytes()), row.tobytes()) for frame, row in pairs]
    return np.array(sums, np.uint32).reshape(frames.shape[:-3])


def _damage(pack: Pack, progress: bool) -> list[Problem]:
    """What the disk has done to a pack, a problem for each sequence that is not what was packed."""
    def wrong(number: int) -> list[int]:
        found = _checksums(pack.frames[number], pack.conditions[number])
        return np.flatnonzero(found != pack.crc[number]).tolist()
    damaged = each(wrong, range(len(pack)), f"verifying {pack.name}'s pack", progress)
    problems = [pack._damaged(number, times) for number, times in enumerate(damaged) if times]
    if not problems and not pack.conditions_are_whole():
        problems.append(pack._damaged_conditions())
    return problems


def pack(root: str | Path, progress: bool = True) -> None:
    """Pack every split that is there into ``root/packed``; what is packed, up to date and undamaged stays.

    A packing that was killed goes on where it stopped. Raises DataError on broken data, a full disk or a
    folder that cannot be written, and where a pack is damaged whose sequences are not there.
    """
    tree = Tree(root)
    there = [split for split in SPLITS if tree.has(split)]
    packed = [split for split in SPLITS if split not in there and (tree.place / "packed" / f"{split}.json").exists()]
    for split in packed:
        _verify_alone(tree.place, split, progress)
    for split in there or (SPLITS if not packed else ()):
        pack_split(tree, tree.survey(split, progress), tree.place, progress)


def _verify_alone(home: Path, split: str, progress: bool) -> None:
    """Raise DataError where a pack is damaged that has no sequences beside it."""
    advice = f"Its sequences are not in {home}: import them again with `lab5 import SOURCE {home}`"
    try:
        problems = _damage(_open(home / "packed", split), progress)
    except DataError as error:
        raise DataError(f"{error}. {advice}") from error
    if problems:
        raise refusal(f"{home}: the pack of {split} is damaged:", problems, advice)


def pack_split(source: Source, survey: Survey, home: Path, progress: bool = True) -> None:
    """Make ``home/packed`` hold a surveyed split; a pack that is whole is verified, and made anew if damaged.

    Raises DataError as `pack` does.
    """
    folder, split = home / "packed", survey.split
    with suppress(DataError):
        manifest, _ = _load(folder, split, survey.digest)
        if manifest.done == len(manifest.names) and (damage := _damage(_open(folder, split), progress)):
            print(f"{damage[0]}; packing {split}")
            (folder / f"{split}.json").unlink()
    _refresh(source, survey, home, progress)


def open_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack, after packing it if there is none or the sequences have changed since.

    Where the sequences are gone and the pack is whole, the pack alone is enough. Raises DataError as `pack`
    does, and where there is neither.
    """
    tree = Tree(root)
    survey = tree.survey(split, progress)
    if survey.names:
        _refresh(tree, survey, tree.place, progress)
    try:
        return _open(tree.place / "packed", split)
    except DataError as error:
        raise DataError("; ".join(map(str, [*survey.problems[-1:], error]))) from None


def _open(folder: Path, split: str) -> Pack:
    manifest, arrays = _load(folder, split)
    if manifest.done < len(manifest.names):
        raise DataError(f"{folder / split}.json: only {manifest.done} of {len(manifest.names)} sequences are packed")
    return Pack(split, **arrays, names=manifest.names, fingerprint=manifest.content[:12], simulated=manifest.simulated,
                conditions_crc=manifest.conditions_crc)


def _load(folder: Path, split: str, source: str | None = None) -> tuple[_Manifest, dict[str, np.memmap]]:
    """A pack, whole or only begun. DataError says why it is of no use, or is not of the source of this digest."""
    path, arrays = folder / f"{split}.json", {}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        if record.get("format") != FORMAT:
            raise ValueError(f"of format {record.get('format')}, expected {FORMAT}")
        if record.pop("crc", None) != _seal(record):
            raise ValueError("not what was written, by its checksum")
        manifest = _Manifest(**record)
        if not 0 <= manifest.done <= len(manifest.names):
            raise ValueError(f"{manifest.done} of {len(manifest.names)} sequences are packed")
        if source not in (None, manifest.source):
            raise ValueError("the sequences have changed since they were packed, or are another source's")
        for name, (dtype, shape) in manifest.arrays().items():
            path = folder / f"{split}.{name}.npy"
            array = arrays[name] = np.lib.format.open_memmap(path, mode="r")
            if (array.dtype, array.shape, array.offset + array.nbytes) != (dtype, shape, path.stat().st_size):
                raise ValueError(f"holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}, and no more")
    except FileNotFoundError:
        raise DataError(f"{path}: is not there yet") from None
    except Exception as error:                  # json and numpy have a dozen kinds for damaged files
        raise DataError(f"{path}: cannot be used ({error})") from error
    return manifest, arrays


def _refresh(source: Source, survey: Survey, home: Path, progress: bool) -> None:
    """Make a split's pack match its sequences; a printed line says why there is work to do."""
    folder, split, total = home / "packed", survey.split, len(survey.names)
    if not total:
        raise DataError(str(survey.problems[-1]))
    with suppress(DataError):
        if _load(folder, split, survey.digest)[0].done == total:
            return
    if survey.problems:
        raise _refuse(source, split, survey.problems)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{split}.lock"):            # of several processes one packs, the others wait
            try:
                manifest, _ = _load(folder, split, survey.digest)
                if manifest.done < total:
                    print(f"packing {split} goes on after {manifest.done} of {total} sequences")
            except DataError as reason:
                print(f"{reason}; packing {split}")
                _begin(folder, manifest := _Manifest.of(survey))
            if manifest.done < total:
                _fill(source, survey, manifest, folder, progress)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} stopped ({error}); make the folder writable or make room, and "
                        "start again. Where nothing can be written beside the data, link processed_data into a "
                        "folder of your own and give that") from error


def _refuse(source: Source, split: str, problems: list[Problem]) -> DataError:
    return refusal(f"{source.place}: {split} cannot be packed:", problems,
                   f"See all that is wrong with `lab5 check {source.place}`")


def _begin(folder: Path, manifest: _Manifest) -> None:
    """Make empty arrays and their manifest; the old manifest goes first, so that it never stands beside new data."""
    for name in ("json", *(f"{name}.npy" for name in manifest.arrays())):
        (folder / f"{manifest.split}.{name}").unlink(missing_ok=True)
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in manifest.arrays().values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(f"{folder}: packing {manifest.split} takes {needed / 1e9:.3f} GB, but {free / 1e9:.3f} GB are "
                        "free; make room, or link this folder to a larger disk")
    for name, (dtype, shape) in manifest.arrays().items():
        np.lib.format.open_memmap(folder / f"{manifest.split}.{name}.npy", mode="w+", dtype=dtype, shape=shape)
    _save(folder, manifest)


def _fill(source: Source, survey: Survey, manifest: _Manifest, folder: Path, progress: bool) -> None:
    """Pack the sequences that are not done. Raises DataError on broken ones, after reading on to count them all."""
    problems, total, content, rows_crc = [], len(manifest.names), manifest.content, manifest.conditions_crc
    _, arrays = _load(folder, manifest.split)
    with ExitStack() as stack:
        files = []
        for array in arrays.values():           # written as files: on a full disk a map would kill the process
            files.append(stack.enter_context(open(array.filename, "r+b")))
            files[-1].seek(array.offset + manifest.done * array.nbytes // total)
        read = each(partial(source.read, survey), survey.names, f"packing {manifest.split}", progress, manifest.done)
        for done, (frames, conditions, found) in enumerate(read, manifest.done + 1):
            problems += found
            if problems:
                continue
            parts = [frames.tobytes(), conditions.tobytes()]
            content = hashlib.sha256(b"".join([content.encode(), *parts])).hexdigest()
            rows_crc = google_crc32c.extend(rows_crc, parts[1])
            for file, part in zip(files, [*parts, _checksums(frames, conditions).tobytes()], strict=True):
                file.write(part)
            if done % BLOCK == 0 or done == total:
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
                _save(folder, replace(manifest, done=done, content=content, conditions_crc=rows_crc))
    if problems:
        raise _refuse(source, manifest.split, problems)


def _save(folder: Path, manifest: _Manifest) -> None:
    record = asdict(manifest)
    write_text(folder / f"{manifest.split}.json", json.dumps(record | {"crc": _seal(record)}, indent=1))


def _seal(record: dict) -> int:
    """The CRC-32C of a manifest, which it carries itself."""
    return google_crc32c.value(json.dumps(record).encode())
