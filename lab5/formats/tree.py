"""The lab's tree of PNGs, and SVG's: read, packed and checked. Berkeley's TFRecords are packed from here as well.

    processed_data/<split>/traj_A_to_B.tfrecords/N/{0..29}.png, actions.csv, endeffector_positions.csv

SVG's own conversion has no ``.tfrecords``, N from 1, no tables, and no ``validate``. Files and folders whose names
begin with a dot are ignored.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lab5.data import ARRAYS, FRAME_SIZE, Pack, open_pack
from lab5.files import SIMULATION, SPLITS, TABLES, DataError, cores, file_sha, home, lock
from lab5.formats import bair
from lab5.formats.bair import Arrays

BERKELEY = "softmotion30_44k"                   # the folder of TFRecords
VALIDATION_SHARD = "traj_256_to_511"            # of Berkeley's training files, the lab's validation split
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)(?:\.tfrecords)?/([0-9]+)")        # of a sequence
LOOKS_LIKE_CONTENT = re.compile(r"png|jpe?g|csv|action|effector", re.IGNORECASE)
BLOCK = 256                                     # sequences that are read ahead


# The tree ------------------------------------------------------------------------------------------------

def sequences(root: str | Path, split: str) -> dict[str, Path]:
    """The split's sequence folders by name, in the numeric order of (A, B, N) of ``traj_A_to_B.tfrecords/N``.

    Where a set that was not simulated has no ``validate``, as SVG's conversion, the lab's share of ``train`` stands
    for it. Raises DataError when the split is missing or empty, or a folder in it is not a sequence.
    """
    tree = home(root) / "processed_data"
    shared = not (tree / "validate").is_dir() and not (tree / SIMULATION).exists() and split != "test"
    folder = tree / "train" if shared and (tree / "train").is_dir() else tree / split
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the folder that holds processed_data/{split}, or "
                        "make a simulated set with `lab5 simulate`")
    folders = {"/".join(path.parts[-2:]): path for shard in _content(folder) if not shard.is_file()
               for path in _content(shard) if not path.is_file()}
    if wrong := [path for name, path in folders.items() if not NAME.fullmatch(name)]:
        raise DataError(f"{wrong[0]}: is not a sequence, a folder traj_A_to_B.tfrecords/N; rename or remove it")
    names = sorted(folders, key=lambda name: [int(number) for number in NAME.fullmatch(name).groups()])
    if shared:
        names = [name for name in names if name.startswith(VALIDATION_SHARD) == (split == "validate")]
    if not names:
        raise DataError(f"{folder}: holds no sequences traj_A_to_B.tfrecords/N for {split}. Name another folder, or "
                        f"add a {tree / split}")
    return {name: folders[name] for name in names}


def _content(folder: Path) -> list[Path]:
    """What a folder holds. macOS writes ._0.png beside 0.png: names that begin with a dot are ignored."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError as error:                                    # also a link to nothing
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable, or remove it") from error


def tree_shape(folders: dict[str, Path]) -> tuple[int, int]:
    """(T, D) of most sequences: T frames 0.png, 1.png, ..., at least one, and D = 7, or 0 without both tables."""
    shapes = Counter()
    for folder in folders.values():
        names = {path.name for path in _content(folder)}
        length = sum(re.fullmatch(r"[0-9]+\.png", name) is not None for name in names)
        shapes[max(1, length), sum(TABLES.values()) if names.issuperset(TABLES) else 0] += 1
    return shapes.most_common(1)[0][0]


def read_sequence(folder: Path, length: int, condition_dim: int) -> Arrays:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of a sequence of the tree.

    Raises DataError that names the file, unless it has exactly these frames and, for D > 0, both tables.
    """
    names, tables = {path.name for path in _content(folder)}, TABLES if condition_dim else {}
    frames = [f"{t}.png" for t in range(length)]
    missing = [name for name in (*frames, *tables) if name not in names]
    others = sorted(name for name in names.difference(frames, tables) if LOOKS_LIKE_CONTENT.search(name))
    if missing or others:
        raise DataError(
            f"{folder}: expected {length} frames 0.png, 1.png, ..., and {'both' if tables else 'none'} of "
            f"{', '.join(TABLES)}, as in most sequences of its split; missing {missing[:5]}, also there {others[:5]}. "
            "Rename what has another name (capital letters count), extract the sequence again, or remove it")
    columns = [_read_table(folder / table, length, width) for table, width in tables.items()]
    return (np.stack([_read_frame(folder / name) for name in frames]),
            np.hstack([np.empty((length, 0), np.float32), *columns]))


def _read_frame(path: Path) -> np.ndarray:
    """A PNG as (64, 64, 3) uint8. Read by Pillow: torchvision's `decode_png` ends the process on a damaged one."""
    try:
        Image.open(path, formats=["PNG"]).verify()              # the checksums, which decoding passes over
        frame = np.array(Image.open(path, formats=["PNG"]))
        if frame.shape != (FRAME_SIZE, FRAME_SIZE, 3):
            raise ValueError(f"its shape is {frame.shape}")
    except Exception as error:                                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"{path}: cannot be read as a PNG of {FRAME_SIZE}x{FRAME_SIZE} RGB pixels ({error}). Convert "
                        "it, extract it again, or remove its sequence") from error
    return frame


def _read_table(path: Path, rows: int, columns: int) -> np.ndarray:
    """A csv without a header as (rows, columns) float32, all finite."""
    try:
        table = np.loadtxt(path, np.float32, delimiter=",", ndmin=2,
                           encoding="utf-8-sig")                # -sig: spreadsheets put a mark in front
        if table.shape != (rows, columns) or not np.isfinite(table).all():
            raise ValueError(f"shape {table.shape}, {np.count_nonzero(~np.isfinite(table))} numbers not finite")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: expected {rows} rows of {columns} finite numbers, one row per frame, no header "
                        f"({error}). Extract it again or remove its sequence") from error
    return table


# Packs and their check -----------------------------------------------------------------------------------

class Source(NamedTuple):
    """A split as it is read: each of its sequences, in order, or what is wrong with it."""

    names: list[str]
    shape: tuple[int, int]                      # (T, D)
    content: Iterator[Arrays | DataError]


def _source(root: str | Path, split: str) -> Source:
    """A split of the tree or, where there is none, of Berkeley's TFRecords. Raises DataError where it is missing."""
    if (home(root) / BERKELEY).is_dir() and not (home(root) / "processed_data").exists():
        names, content = bair.sequences(home(root) / BERKELEY, split)
        return Source(names, (bair.LENGTH, 7), content)
    folders = sequences(root, split)
    shape = tree_shape(folders)
    return Source(list(folders), shape, _read_ahead(list(folders.values()), shape))


def _read_ahead(folders: list[Path], shape: tuple[int, int]) -> Iterator[Arrays | DataError]:
    def read(folder: Path) -> Arrays | DataError:
        try:
            return read_sequence(folder, *shape)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(8, cores())) as pool:
        for start in range(0, len(folders), BLOCK):
            yield from pool.map(read, folders[start:start + BLOCK])


def open_or_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack; the data are read only if there is none, which is then written. Raises DataError."""
    if not (home(root) / "packed" / split).is_dir():
        if split == "train" and not (home(root) / "processed_data" / SIMULATION).exists():
            _source(root, "validate")                           # training needs both: refused before packing
        _write_pack(root, split, _source(root, split), progress, regenerate=False)
    return open_pack(root, split)


def pack_tree(root: str | Path, progress: bool = True) -> None:
    """Regenerate the packs of all splits. Raises DataError, on a missing split before any is packed."""
    for split, source in {split: _source(root, split) for split in SPLITS}.items():
        _write_pack(root, split, source, progress, regenerate=True)


def _write_pack(root: str | Path, split: str, source: Source, progress: bool, regenerate: bool) -> None:
    """Write ``packed/split`` under another name and rename it when it is whole; a pack that is there is replaced only
    to `regenerate` it. Raises DataError where a sequence is damaged, or the folder is full or cannot be written.
    """
    folder, (T, D) = home(root) / "packed", source.shape
    aside, needed = folder / f".{split}.tmp", len(source.names) * T * (FRAME_SIZE ** 2 * 3 + 4 * D)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{split}.lock"):                    # of several processes one packs
            if (folder / split).is_dir() and not regenerate:
                return
            shutil.rmtree(aside, ignore_errors=True)            # left by a killed call
            if (free := shutil.disk_usage(folder).free) < needed:
                raise DataError(f"{folder}: packing {split} needs {needed / 1e9:.3f} GB, but {free / 1e9:.3f} GB are "
                                "free. Free some space, or link this folder to a larger disk")
            try:
                aside.mkdir()
                shas = _write_arrays(aside, (len(source.names), T, D), tqdm(
                    source.content, f"packing {split}", len(source.names), unit="seq", disable=not progress))
                record = {"simulated": (home(root) / "processed_data" / SIMULATION).exists(), **shas,
                          "names": source.names}
                (aside / "pack.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                shutil.rmtree(folder / split, ignore_errors=True)
                os.replace(aside, folder / split)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} failed ({error.strerror or error}). Free some space or make the "
                        "folder writable. If nothing can be written beside the data, link processed_data into a "
                        "folder of your own and name that") from error


def _write_arrays(folder: Path, shape: tuple[int, int, int], sequences: Iterable[Arrays | DataError]) -> dict[str, str]:
    """Write sequences one after another into two .npy files of `shape` (N, T, D); returns their SHA-256s.

    A memory map would be shorter, but writing to one kills the process where the disk is full.
    """
    N, T, D = shape
    with open(folder / "frames.npy", "wb") as frames, open(folder / "conditions.npy", "wb") as conditions:
        for file, kind, size in ((frames, "|u1", (FRAME_SIZE, FRAME_SIZE, 3)), (conditions, "<f4", (D,))):
            header = {"descr": kind, "fortran_order": False, "shape": (N, T, *size)}
            np.lib.format.write_array_header_1_0(file, header)
        for sequence in sequences:
            if isinstance(sequence, DataError):
                raise sequence
            frames.write(sequence[0].tobytes())
            conditions.write(sequence[1].astype("<f4").tobytes())
        for file in (frames, conditions):
            file.flush()
            os.fsync(file.fileno())
    return {f"{name}_sha256": file_sha(folder / f"{name}.npy") for name in ARRAYS}


def check(root: str | Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all files of a data set; compare the packs with their SHA-256s and with what they were made from.

    Returns a line for each split (sequences, frames, actions and positions), and all problems, each with its file.
    """
    lines, problems = [], []
    for split in SPLITS:
        try:
            lines.append(f"{split}: {_check_split(root, split, problems, progress)}")
        except DataError as error:
            problems.append(str(error))
    return lines, problems


def _check_split(root: str | Path, split: str, problems: list[str], progress: bool) -> str:
    """The line of a split, whose problems are appended. Raises DataError where its pack or data cannot be opened."""
    folder, stale, packed, note = home(root) / "packed" / split, "`lab5 pack` regenerates it", {}, ""
    if folder.is_dir():
        pack = open_pack(root, split)
        packed = dict(zip(pack.names, zip(pack.frames, pack.conditions, strict=True), strict=True))
        names, shape, note = pack.names, (pack.frames.shape[1], pack.condition_dim), f", packed as {pack.data_sha}"
        problems += [f"{path}: is not what was packed, by its SHA-256. {stale}" for path, sha in pack.shas().items()
                     if file_sha(path) != sha]
    if not packed or (home(root) / "processed_data").is_dir() or (home(root) / BERKELEY).is_dir():
        names, shape, content = _source(root, split)
        bar = tqdm(content, f"checking {split}", len(names), unit="seq", disable=not progress)
        for name, sequence in zip(names, bar, strict=True):
            if isinstance(sequence, DataError):
                problems.append(str(sequence))
            elif packed and not all(map(np.array_equal, sequence, packed.get(name, ((), ())))):
                problems.append(f"{folder}: {name} was changed or added since. {stale}")
        problems += [f"{folder}: holds {name}, which is gone. {stale}" for name in packed.keys() - set(names)]
    return (f"{len(names):,} sequences of {shape[0]} frames, {'with' if shape[1] else 'without'} actions and positions"
            f"{note}")
