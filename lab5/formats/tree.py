"""The lab's tree of PNGs, and SVG's: read, packed and checked.

    processed_data/<split>/traj_A_to_B.tfrecords/N/{0..29}.png, actions.csv, endeffector_positions.csv

SVG's own conversion has no ``.tfrecords``, N from 1, no tables, and no ``validate``. Files and folders whose names
begin with a dot are ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lab5.data import FRAME_SIZE, Pack, open_pack
from lab5.files import SPLITS, DataError, cores, file_sha, home
from lab5.formats.layout import SIMULATION, TABLES
from lab5.formats.packing import Arrays, write_pack

VALIDATION_SHARD = "traj_256_to_511"            # of Berkeley's training files, the lab's validation split
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)(?:\.tfrecords)?/([0-9]+)")        # of a sequence
LOOKS_LIKE_CONTENT = re.compile(r"png|jpe?g|csv|action|effector", re.IGNORECASE)
BLOCK = 256                                     # sequences that are read ahead
STALE = "`lab5 pack` regenerates it"


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


def _in_order(task: Callable, folders: dict[str, Path]) -> Iterator:
    """Apply a task to every folder, by a pool of threads; yields the results in order."""
    paths = list(folders.values())
    with ThreadPoolExecutor(min(8, cores())) as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(task, paths[start:start + BLOCK])


def open_or_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack; the tree is read only if there is none, which is then written. Raises DataError."""
    if not (home(root) / "packed" / split).is_dir():
        if split == "train" and not (home(root) / "processed_data" / SIMULATION).exists():
            sequences(root, "validate")                         # training needs both: refused before packing
        _pack_split(root, split, progress, regenerate=False)
    return open_pack(root, split)


def pack_tree(root: str | Path, progress: bool = True) -> None:
    """Regenerate the packs of all splits of a tree. Raises DataError, on a missing split before any is packed."""
    for split in SPLITS:
        sequences(root, split)
    for split in SPLITS:
        _pack_split(root, split, progress, regenerate=True)


def _pack_split(root: str | Path, split: str, progress: bool, regenerate: bool) -> None:
    folders = sequences(root, split)
    shape = tree_shape(folders)
    write_pack(home(root), split, list(folders), _in_order(lambda folder: read_sequence(folder, *shape), folders),
               shape, progress=progress, regenerate=regenerate)


def check(root: str | Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all files of a data set; compare the tree with the packs, and the packs with their SHA-256s.

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
    """The line of a split, whose problems are appended. Raises DataError where its pack or tree cannot be opened."""
    folder, packed, sha = home(root) / "packed" / split, {}, ""
    if folder.is_dir():
        pack = open_pack(root, split)
        packed = dict(zip(pack.names, zip(pack.frames, pack.conditions, strict=True), strict=True))
        names, shape, sha = packed.keys(), (pack.frames.shape[1], pack.condition_dim), f", packed as {pack.data_sha}"
        record = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        problems += [f"{path}: is not what was packed, by its SHA-256. {STALE}"
                     for path in (folder / "frames.npy", folder / "conditions.npy")
                     if file_sha(path) != record[f"{path.stem}_sha256"]]
    if not packed or (home(root) / "processed_data").is_dir():
        folders = sequences(root, split)
        names, shape = folders.keys(), tree_shape(folders)
        done = _in_order(partial(_problem, shape=shape, packed=packed), folders)
        problems += filter(None, tqdm(done, f"checking {split}", len(folders), unit="seq", disable=not progress))
        if gone := [name for name in packed if name not in folders]:
            problems.append(f"{folder}: holds {gone[0]}, which the tree does not. {STALE}")
    return (f"{len(names):,} sequences of {shape[0]} frames, {'with' if shape[1] else 'without'} actions and positions"
            f"{sha}")


def _problem(folder: Path, shape: tuple[int, int], packed: dict[str, Arrays]) -> str:
    """What is wrong with a sequence of the tree, or differs from its pack; empty if nothing is."""
    try:
        arrays = read_sequence(folder, *shape)
    except DataError as error:
        return str(error)
    same = not packed or all(map(np.array_equal, arrays, packed.get("/".join(folder.parts[-2:]), ((), ()))))
    return "" if same else f"{folder}: was changed or added since the split was packed. {STALE}"
