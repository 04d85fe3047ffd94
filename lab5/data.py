"""The lab's folder tree, its packed copy on disk, and the batches that are drawn from the copy.

A million small PNGs are slow to open, so each split is decoded once into one memory-mapped array. From
then on a batch is one slice of it, and a set larger than memory is read page by page. Axes on disk are
(N, T, H, W, C) for N sequences of T frames; a batch has the model's order, (T, B, C, H, W).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

SPLITS = ("train", "validate", "test")
FRAME_SIZE = 64                                 # pixels, height and width
TABLES = {"actions.csv": 4, "endeffector_positions.csv": 3}     # columns of each; side by side they are a condition
FORMAT = 1                                      # of the pack; another number means that it is made anew
BLOCK = 256                                     # sequences between two points from which a killed packing goes on
READERS = min(8, os.cpu_count() or 1)           # threads; decoding a PNG releases the interpreter
LEAST_STD = 1e-3                                # a column that varies less counts as constant


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or folder: what was found, what was expected, what to do."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was found, and the way out."""


# The tree ------------------------------------------------------------------------------------------------

def sequences(root: str | Path, split: str) -> list[Path]:
    """The split's sequence folders, in the numeric order of (A, B, N) of ``traj_A_to_B.tfrecords/N``.

    Raises DataError when the split is missing or empty, naming what is there instead.
    """
    found, problems = _list(_home(root), split)
    if not found:
        raise DataError(str(problems[-1]))
    return found


def summary(root: str | Path) -> dict[str, int]:
    """The number of sequences in each split, 0 for one that is missing."""
    return {split: len(_list(_home(root), split)[0]) for split in SPLITS}


def check(root: str | Path, progress: bool = True) -> list[Problem]:
    """Read every file of every split and return all that is wrong; an empty list means a sound set."""
    problems = []
    for split in SPLITS:
        manifest, found = _survey(_home(root), split, progress)
        problems += found
        for _, _, found in _read(_home(root), manifest, progress, "checking"):
            problems += found
    return problems


def _home(root: str | Path) -> Path:
    """The folder that holds ``processed_data`` and ``packed``, given that or ``processed_data`` itself."""
    root = Path(os.path.abspath(Path(root).expanduser()))
    return root.parent if root.name == "processed_data" else root


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list(home: Path, split: str) -> tuple[list[Path], list[Problem]]:
    """A split's sequence folders in order, and what is wrong with their names; with none, the last says why."""
    folder = home / "processed_data" / split
    advice = f"give the folder that holds processed_data/{split}, or make a simulated set with `lab5 simulate`"
    if not folder.is_dir():
        nearest = next(parent for parent in folder.parents if parent.is_dir())
        there = ", ".join(islice((path.name for path in sorted(nearest.iterdir())), 8)) or "nothing"
        return [], [Problem(folder, f"there is no such folder (in {nearest} there is: {there}); {advice}")]
    numbered, problems = [], []
    for path in (path for shard in _folders(folder) for path in _folders(shard) or [shard]):
        name = path.relative_to(folder).as_posix()
        if match := re.fullmatch(r"traj_(\d+)_to_(\d+)(?:\.tfrecords)?/(\d+)", name):
            numbered.append((tuple(map(int, match.groups())), path))
        else:
            problems.append(Problem(path, "is not a sequence traj_A_to_B.tfrecords/N; rename or remove it"))
    numbered.sort()
    problems += [Problem(second, f"has the same number as {first}; remove one of them")
                 for (a, first), (b, second) in pairwise(numbered) if a == b]
    if not numbered:
        problems.append(Problem(folder, f"holds no sequences traj_A_to_B.tfrecords/N; {advice}"))
    return [path for _, path in numbered], problems


@dataclass(frozen=True)
class _Manifest:
    """What a split holds and how much of it is packed: the content of ``packed/<split>.json``."""

    split: str
    tree: str                                   # a digest that changes with any file's name, size or date
    simulated: bool
    length: int                                 # frames of each sequence, or of most of them
    condition_dim: int                          # 7 where most of the sequences have tables, else 0
    names: list[str]                            # the sequences in order, relative to the split
    done: int = 0                               # how many of them are packed for certain
    content: str = ""                           # a digest of those, each chained to the one before
    format: int = FORMAT

    def arrays(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of each packed array, by name."""
        shape = len(self.names), self.length
        return {"frames": (np.uint8, (*shape, FRAME_SIZE, FRAME_SIZE, 3)),
                "conditions": (np.float32, (*shape, self.condition_dim))}


def _survey(home: Path, split: str, progress: bool) -> tuple[_Manifest, list[Problem]]:
    """What the names, sizes and dates of a split's files tell, without opening one."""
    found, problems = _list(home, split)
    folder = home / "processed_data" / split
    simulated = (folder.parent / "simulation.json").exists()
    names = [path.relative_to(folder).as_posix() for path in found]
    digest, lengths, tabled = hashlib.sha256(f"simulated: {simulated}".encode()), Counter(), Counter()
    for name in tqdm(names, f"looking over {split}", delay=1, leave=False, unit="seq", disable=not progress):
        files = []
        with suppress(OSError):                 # reading the sequence reports it
            files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
                           for entry in os.scandir(folder / name) if entry.name.endswith((".png", ".csv")))
        digest.update(f"{name} {files}\n".encode())
        lengths[sum(file.endswith(".png") for file, *_ in files)] += 1
        tabled[any(file in TABLES for file, *_ in files)] += 1
    length, has_tables = (max(counts, key=counts.get, default=0) for counts in (lengths, tabled))
    condition_dim = sum(TABLES.values()) if has_tables else 0
    return _Manifest(split, digest.hexdigest(), simulated, length, condition_dim, names), problems


# One sequence --------------------------------------------------------------------------------------------

_Read = tuple[np.ndarray | None, np.ndarray | None, list[Problem]]


def _read(home: Path, manifest: _Manifest, progress: bool, verb: str) -> Iterator[_Read]:
    """Read the sequences that are not packed, in order, by a pool of threads."""
    folders = [home / "processed_data" / manifest.split / name for name in manifest.names]
    with (ThreadPoolExecutor(READERS) as pool,
          tqdm(total=len(folders), initial=manifest.done, desc=f"{verb} {manifest.split}", unit="seq",
               disable=not progress) as bar):
        for start in range(manifest.done, len(folders), BLOCK):         # the pool must not run ahead of the disk
            read = partial(_read_sequence, length=manifest.length, condition_dim=manifest.condition_dim)
            for result in pool.map(read, folders[start:start + BLOCK]):
                yield result
                bar.update()


def _read_sequence(folder: Path, length: int, condition_dim: int) -> _Read:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of one folder, both None where it has problems."""
    problems = []

    def attempt(read, path: Path, *expected: int) -> np.ndarray | None:
        try:
            return read(path, *expected)
        except (DataError, OSError) as error:
            problems.append(Problem(path, str(error)))

    names = attempt(lambda path: set(os.listdir(path)), folder) or set()
    frames, found = [f"{t}.png" for t in range(length)], {name for name in names if name.endswith(".png")}
    missing, extra = [name for name in frames if name not in found], sorted(found.difference(frames))
    if missing or extra or not frames:
        problems.append(Problem(folder, f"holds {len(found)} frames, expected {length}, as in most of the split, from "
                                f"0.png on; missing: {', '.join(missing[:5]) or 'none'}; not expected: "
                                f"{', '.join(extra[:5]) or 'none'}; extract it again or remove it"))
    for table in TABLES:
        if condition_dim and table not in names:
            problems.append(Problem(folder / table, "is missing, though most of the split has tables; restore it"))
        elif not condition_dim and table in names:
            problems.append(Problem(folder / table, "is there, though most of the split has no tables; remove it"))
    video = [attempt(_read_frame, folder / name) for name in frames if name in found]
    tables = [attempt(_read_table, folder / table, length, columns) for table, columns in TABLES.items()
              if condition_dim and table in names]
    if problems:
        return None, None, problems
    return np.stack(video), np.hstack([np.empty((length, 0), np.float32), *tables]), []


def _read_frame(path: Path) -> np.ndarray:
    """One PNG as (64, 64, 3) uint8. DataError says what it is instead."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels, found = np.asarray(image), f"{image.width}x{image.height} {image.mode}"
    except Exception as error:                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"cannot be read as a PNG ({error}); extract it again or remove its sequence") from error
    if found != (expected := f"{FRAME_SIZE}x{FRAME_SIZE} RGB"):
        raise DataError(f"is {found}, expected {expected}; convert it or remove its sequence")
    return pixels


def _read_table(path: Path, rows: int, columns: int) -> np.ndarray:
    """A table without a header as (rows, columns) float32. DataError says what it holds instead."""
    advice = "extract it again or remove its sequence"
    text = path.read_text(encoding="utf-8-sig", errors="replace")       # -sig: spreadsheets put a mark in front
    lines = [line.split(",") for line in text.rstrip().splitlines()]
    if len(lines) != rows:
        raise DataError(f"has {len(lines)} rows, expected {rows}, one for each frame; {advice}")
    for row, line in enumerate(lines):
        if len(line) != columns:
            raise DataError(f"row {row} has {len(line)} columns, expected {columns}; {advice}")
    try:
        with np.errstate(over="ignore"):        # too large becomes infinite, and is refused below
            table = np.array(lines, dtype=np.float64).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{error}, expected numbers only; {advice}") from error
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise DataError(f"row {row} holds {', '.join(lines[row])}, expected finite numbers; {advice}")
    return table


# The pack ------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Pack:
    """One split, memory-mapped and read only. It travels to a loader's worker by name, not by content."""

    name: str                                   # the split
    frames: np.ndarray                          # (N, T, 64, 64, 3) uint8
    conditions: np.ndarray                      # (N, T, D) float32, D = 7: action 4, position 3; or 0: action-free
    names: list[str]                            # such as "traj_0_to_255.tfrecords/0"
    fingerprint: str                            # 12 hex digits of the content, the same on every machine
    simulated: bool                             # the simulated robot, not BAIR

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def condition_dim(self) -> int:
        """D, the numbers in a frame's condition."""
        return self.conditions.shape[-1]

    def __reduce__(self):
        return _open, (Path(self.frames.filename).parent, self.name)


def pack(root: str | Path, progress: bool = True) -> None:
    """Pack every split that is there into ``root/packed``; what is packed and up to date stays.

    A packing that was killed goes on where it stopped. Raises DataError on broken data, a full disk or a
    folder that cannot be written.
    """
    home = _home(root)
    there = [split for split in SPLITS if (home / "processed_data" / split).is_dir()]
    for split in there or SPLITS:
        _refresh(home, *_survey(home, split, progress), progress)


def open_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack, after packing it if there is none or the sequences have changed since.

    Where the sequences are gone and the pack is whole, the pack alone is enough. Raises DataError as `pack`
    does, and where there is neither.
    """
    home = _home(root)
    manifest, problems = _survey(home, split, progress)
    if manifest.names:
        _refresh(home, manifest, problems, progress)
    try:
        return _open(home / "packed", split)
    except DataError as error:
        raise DataError("; ".join(map(str, [*problems[-1:], error]))) from None


def _open(folder: Path, split: str) -> Pack:
    manifest, arrays = _load(folder, split)
    if manifest.done < len(manifest.names):
        raise DataError(f"{folder / split}.json: only {manifest.done} of {len(manifest.names)} sequences are packed")
    return Pack(split, **arrays, names=manifest.names, fingerprint=manifest.content[:12], simulated=manifest.simulated)


def _load(folder: Path, split: str, tree: str | None = None) -> tuple[_Manifest, dict[str, np.memmap]]:
    """A pack, whole or only begun. DataError says why it is of no use (for this tree, if one is given)."""
    path, arrays = folder / f"{split}.json", {}
    try:
        manifest = _Manifest(**json.loads(path.read_text(encoding="utf-8")))
        if manifest.format != FORMAT or not 0 <= manifest.done <= len(manifest.names):
            raise ValueError(f"of format {manifest.format}, {manifest.done} of {len(manifest.names)} sequences packed")
        if tree not in (None, manifest.tree):
            raise ValueError("the sequences have changed since they were packed")
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


def _refresh(home: Path, manifest: _Manifest, problems: list[Problem], progress: bool) -> None:
    """Make a split's pack match its sequences; a printed line says why there is work to do."""
    folder, split, total = home / "packed", manifest.split, len(manifest.names)
    if not total:
        raise DataError(str(problems[-1]))
    with suppress(DataError):
        if _load(folder, split, manifest.tree)[0].done == total:
            return
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f"{split}.lock"):            # of several processes one packs, the others wait
            try:
                manifest, _ = _load(folder, split, manifest.tree)
                if manifest.done < total:
                    print(f"packing {split} goes on after {manifest.done} of {total} sequences")
            except DataError as reason:
                print(f"{reason}; packing {split}")
                _begin(folder, manifest)
            if manifest.done < total:
                _fill(home, manifest, problems, progress)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} stopped ({error}); make the folder writable or make room, and "
                        "start again. Where nothing can be written beside the data, link processed_data into a "
                        "folder of your own and give that") from error


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


def _fill(home: Path, manifest: _Manifest, problems: list[Problem], progress: bool) -> None:
    """Pack the sequences that are not done. Raises DataError on broken ones, after reading on to count them all."""
    folder, total, content = home / "packed", len(manifest.names), manifest.content
    _, arrays = _load(folder, manifest.split)
    with ExitStack() as stack:
        files = []
        for array in arrays.values():           # written as files: on a full disk a map would kill the process
            files.append(stack.enter_context(open(array.filename, "r+b")))
            files[-1].seek(array.offset + manifest.done * array.nbytes // total)
        for done, (*read, found) in enumerate(_read(home, manifest, progress, "packing"), manifest.done + 1):
            problems = problems + found
            if problems:
                continue
            parts = [part.tobytes() for part in read]
            content = hashlib.sha256(b"".join([content.encode(), *parts])).hexdigest()
            for file, part in zip(files, parts, strict=True):
                file.write(part)
            if done % BLOCK == 0 or done == total:
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
                _save(folder, replace(manifest, done=done, content=content))
    if problems:
        lines = [*map(str, problems[:5]), *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])]
        raise DataError("\n  ".join([f"{home}: {manifest.split} cannot be packed:", *lines])
                        + f"\nSee all that is wrong with `lab5 check {home}`")


def _save(folder: Path, manifest: _Manifest) -> None:
    """Put a manifest in place of the old one in one move, so that a reader finds the one or the other."""
    temporary = folder / f".{manifest.split}.json.tmp"
    temporary.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    os.replace(temporary, folder / f"{manifest.split}.json")


# Batches -------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of B sequences. In memory the frames' channels come last, so `flatten(0, 1)` copies nothing."""

    frames: torch.Tensor                        # (T, B, C, H, W) uint8
    condition: torch.Tensor                     # (T, B, D) float32
    index: torch.Tensor                         # (B,) int64, which sequences of the split

    def pin_memory(self) -> Batch:
        """What the loader calls where a GPU waits: from pinned memory a copy to it need not wait in turn."""
        return Batch(self.frames.pin_memory(), self.condition.pin_memory(), self.index)


class Windows(Dataset):
    """Windows of `length` frames, one of each sequence of a pack.

    Without a seed the first frames (evaluation). With one a random window, which depends on nothing but
    (seed, pass, index): not on the worker that draws it, nor on what was drawn before.

    Raises DataError when the sequences are shorter than a window.
    """

    def __init__(self, pack: Pack, length: int, seed: int | None = None) -> None:
        if not 1 <= length <= pack.frames.shape[1]:
            raise DataError(f"{pack.name}: windows of {length} frames (n_past + n_future) cannot be cut from sequences "
                            f"of {pack.frames.shape[1]}; choose n_past and n_future to fit")
        self.pack, self.length, self.seed = pack, length, seed

    def __len__(self) -> int:
        return len(self.pack)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """The window of sequence `index` in a pass, `key` being index or (index, pass), as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """The windows of several keys, in their order. Raises IndexError outside 0 .. N-1."""
        pairs = [key if isinstance(key, tuple) else (key, 0) for key in keys]
        index = np.array([index for index, _ in pairs], dtype=np.int64)
        if ((index < 0) | (index >= len(self))).any():
            raise IndexError(f"{self.pack.name}: sequences {index.tolist()} asked for, there are 0 to {len(self) - 1}")
        times = np.array([self._start(*pair) for pair in pairs]) + np.arange(self.length)[:, None]     # (T, B)
        frames = torch.from_numpy(np.asarray(self.pack.frames[index, times]))                   # (T, B, H, W, C)
        condition = torch.from_numpy(np.asarray(self.pack.conditions[index, times]))            # (T, B, D)
        return Batch(frames.permute(0, 1, 4, 2, 3), condition, torch.from_numpy(index))

    def _start(self, index: int, pass_: int) -> int:
        if self.seed is None:
            return 0
        room = self.pack.frames.shape[1] - self.length + 1
        return int(np.random.default_rng((self.seed, pass_, index + 1)).integers(room))     # + 1: 0 is the order's


@dataclass(frozen=True)
class _TrainingKeys:
    """The keys of each step's batch: a cut through endless passes, each in an order from (seed, pass) alone."""

    count: int
    batch_size: int
    seed: int
    steps: range
    share: slice                                # of each batch, this process's

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        @lru_cache(maxsize=1)
        def order(pass_: int) -> list[int]:
            return np.random.default_rng((self.seed, pass_)).permutation(self.count).tolist()

        for step in self.steps:
            positions = (divmod(step * self.batch_size + b, self.count) for b in range(self.batch_size)[self.share])
            yield [(order(pass_)[place], pass_) for pass_, place in positions]


def training_loader(pack: Pack, length: int, batch_size: int, seed: int, start_step: int, stop_step: int,
                    workers: int = 0, share: slice = slice(None)) -> DataLoader:
    """The batches of steps start_step .. stop_step-1 of an endless stream of passes over the split.

    `share` is the part of each batch that is wanted, where several processes train on one.

    Each pass visits every sequence once. A batch depends on the seed and its step alone, so a run that
    goes on at step s, with any number of workers, sees what an unbroken one sees.
    """
    keys = _TrainingKeys(len(pack), batch_size, seed, range(start_step, stop_step), share)
    return _loader(Windows(pack, length, seed), keys, workers)


def evaluation_loader(pack: Pack, length: int, batch_size: int, limit: int | None = None,
                      workers: int = 0) -> DataLoader:
    """The first frames of every sequence, once and in order; of the first `limit` sequences if that is given.

    The last batch may be smaller.
    """
    order = range(len(pack))[:limit]
    keys = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    return _loader(Windows(pack, length), keys, workers)


def _loader(windows: Windows, keys, workers: int) -> DataLoader:
    # its own generator: a loader that is made anew on resuming must not move torch's global random state
    return DataLoader(windows, batch_sampler=keys, num_workers=workers, collate_fn=_as_it_is,
                      generator=torch.Generator(), pin_memory=torch.cuda.is_available())


def _as_it_is(batch: Batch) -> Batch:
    return batch


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames of any shape as float32 in [0, 1]. Raises TypeError on another type, lest it divides twice."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}, expected torch.uint8")
    return frames.to(torch.float32) / 255


def condition_statistics(pack: Pack) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float32 of the conditions, the latter at least `LEAST_STD`."""
    rows = np.asarray(pack.conditions, dtype=np.float64)                                        # (N, T, D)
    return rows.mean(axis=(0, 1)).astype(np.float32), rows.std(axis=(0, 1)).clip(LEAST_STD).astype(np.float32)
