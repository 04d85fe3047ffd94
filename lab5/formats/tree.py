"""The lab's tree of PNGs, and SVG's: read, written, packed and checked.

    processed_data/<split>/traj_A_to_B.tfrecords/N/{0..29}.png, actions.csv, endeffector_positions.csv

SVG's own conversion has no ``.tfrecords``, N from 1, no tables, and no ``validate``. Files and folders whose names
begin with a dot are ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lab5.data import FRAME_SIZE, Pack, open_pack
from lab5.files import SPLITS, DataError, file_sha, home
from lab5.formats.layout import SIMULATION, TABLES
from lab5.formats.packing import Arrays, in_order, write_pack

LOOKS_LIKE_A_TABLE = re.compile("csv|action|effector", re.IGNORECASE)
VALIDATION_SHARD = "traj_256_to_511"            # of Berkeley's training files, the lab's validation split
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)(?:\.tfrecords)?/([0-9]+)")        # of a sequence


def sequences(root: str | Path, split: str) -> list[Path]:
    """The split's sequence folders, in the numeric order of (A, B, N) of ``traj_A_to_B.tfrecords/N``.

    Where a set that was not simulated has no ``validate``, as SVG's conversion, the lab's share of ``train`` stands
    for it. Raises DataError when the split is missing or empty, or a folder in it is not a sequence.
    """
    tree = home(root) / "processed_data"
    folder, shared = tree / split, not (tree / "validate").is_dir() and not (tree / SIMULATION).exists()
    if split == "validate" and shared and (tree / "train").is_dir():
        folder = tree / "train"
    if not folder.is_dir():
        there = ", ".join(_names(tree)) if tree.is_dir() else "no such folder"
        raise DataError(f"{folder}: there is no such folder (in {tree}: {there or 'nothing'}). Name the folder that "
                        f"holds processed_data/{split}, or make a simulated set with `lab5 simulate`")
    numbered: dict[tuple[int, ...], Path] = {}
    for path in (path for shard in _folders(folder) for path in _folders(shard)):
        if not (match := NAME.fullmatch("/".join(path.parts[-2:]))):
            raise DataError(f"{path}: is not a sequence, a folder traj_A_to_B.tfrecords/N; rename or remove it")
        number = tuple(map(int, match.groups()))
        if number in numbered:
            raise DataError(f"{path}: has the same number as {numbered[number]}; remove one of them")
        numbered[number] = path
    found = [numbered[number] for number in sorted(numbered)]
    if shared and split != "test":
        found = [path for path in found if path.parent.name.startswith(VALIDATION_SHARD) == (split == "validate")]
    if not found:
        raise DataError(f"{folder}: holds no sequences traj_A_to_B.tfrecords/N for {split}. Name another folder, or "
                        f"add a {tree / split}")
    return found


def _names(folder: Path) -> list[str]:
    """What a folder holds. macOS writes ._0.png beside 0.png: names that begin with a dot are ignored."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable, or remove it") from error


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder; files are ignored. Raises DataError for a dangling link."""
    paths = [folder / name for name in _names(folder)]
    if dangling := [path for path in paths if not path.exists()]:
        raise DataError(f"{dangling[0]}: is a link to nothing; restore what it points to, or remove it")
    return [path for path in paths if path.is_dir()]


def tree_shape(found: list[Path]) -> tuple[int, int]:
    """(T, D) of most sequences, D = 0 without both tables. DataError names what is there where most lack frames."""
    shapes = Counter()
    for names in map(_names, found):
        length = sum(re.fullmatch(r"[0-9]+\.png", name) is not None for name in names)
        shapes[length, sum(TABLES.values()) if set(TABLES) <= set(names) else 0] += 1
    shape = shapes.most_common(1)[0][0]
    if not shape[0]:
        raise DataError(f"{found[0]}: holds no frames 0.png, 1.png, ...; it holds {', '.join(_names(found[0])[:6])}. "
                        "Convert other pictures to PNG; capital letters count")
    return shape


def read_sequence(folder: Path, length: int, condition_dim: int) -> Arrays:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of a sequence of the tree.

    Raises DataError that names the file, unless it has this length and, for D > 0, both tables.
    """
    names, expected = _names(folder), [f"{t}.png" for t in range(length)]
    missing, others = [n for n in expected if n not in names], [n for n in names if n not in {*expected, *TABLES}]
    if missing or any(name.lower().endswith(".png") for name in others):
        raise DataError(f"{folder}: expected the frames 0.png to {expected[-1]}, as in most sequences of its split; "
                        f"missing: {', '.join(missing[:5]) or 'none'}; also there: {', '.join(others[:5]) or 'none'}. "
                        "Extract the sequence again or remove it")
    tables = [name for name in names if LOOKS_LIKE_A_TABLE.search(name)]
    if not set(TABLES) <= set(tables) if condition_dim else tables:
        raise DataError(f"{folder}: holds the tables {', '.join(tables) or 'none'}, expected {' and '.join(TABLES)} in "
                        "every sequence of a split, or in none. Rename, restore or remove them; capital letters count")
    frames = np.stack([_read_frame(folder / name) for name in expected])
    columns = [_read_table(folder / table, length, width) for table, width in TABLES.items() if condition_dim]
    return frames, np.hstack([np.empty((length, 0), np.float32), *columns])


def _read_frame(path: Path) -> np.ndarray:
    """A PNG as (64, 64, 3) uint8. Read by Pillow: torchvision's `decode_png` ends the process on a damaged one."""
    try:
        Image.open(path, formats=["PNG"]).verify()              # the checksums, which decoding passes over
        with Image.open(path, formats=["PNG"]) as image:
            found = *image.size, image.tile[0][3]               # RGB;16B is 16 bits, of which Pillow makes 8
            if found == (FRAME_SIZE, FRAME_SIZE, "RGB"):
                return np.array(image)
    except Exception as error:                                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"{path}: cannot be read as a PNG ({error}). Extract it again or remove its folder") from error
    raise DataError(f"{path}: is {found[0]}x{found[1]} {found[2]}, expected {FRAME_SIZE}x{FRAME_SIZE} RGB of 8 bits; "
                    "convert it or remove its sequence")


def _read_table(path: Path, rows: int, columns: int) -> np.ndarray:
    """A csv without a header as (rows, columns) float32, all finite."""
    try:
        with np.errstate(over="ignore"):                        # too large becomes infinite, and is refused below
            table = np.loadtxt(path, np.float64, comments=None, delimiter=",", ndmin=2,
                               encoding="utf-8-sig").astype(np.float32)     # -sig: spreadsheets put a mark in front
        if table.shape != (rows, columns) or not np.isfinite(table).all():
            raise ValueError(f"shape {table.shape}, {np.count_nonzero(~np.isfinite(table))} numbers not finite")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: expected {rows} rows of {columns} finite numbers, one row per frame, no header "
                        f"({error}). Extract it again or remove its sequence") from error
    return table


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
    folders = {"/".join(path.parts[-2:]): path for path in sequences(root, split)}
    length, condition_dim = tree_shape(list(folders.values()))
    write_pack(home(root), split, list(folders), lambda name: read_sequence(folders[name], length, condition_dim),
               length=length, condition_dim=condition_dim, progress=progress, regenerate=regenerate,
               simulated=(home(root) / "processed_data" / SIMULATION).exists())


def check(root: str | Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all files of a data set; compare the tree with the packs, and the packs with their SHA-256s.

    Returns a line for each split (sequences, frames, actions and positions), and all problems, each with its file.
    """
    lines, problems = [], []
    for split in SPLITS:
        folder, found, packed, shape, sha = home(root) / "packed" / split, [], {}, (0, 0), ""
        try:
            if folder.is_dir():
                pack = open_pack(root, split)
                packed = dict(zip(pack.names, zip(pack.frames, pack.conditions, strict=True), strict=True))
                shape, sha = (pack.frames.shape[1], pack.condition_dim), f", packed as {pack.data_sha}"
                record = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
                problems += [f"{path}: is not what was packed, by its SHA-256. `lab5 pack` regenerates it"
                             for path in (folder / "frames.npy", folder / "conditions.npy")
                             if file_sha(path) != record[f"{path.stem}_sha256"]]
        except DataError as error:
            problems.append(str(error))
        try:
            if (home(root) / "processed_data").is_dir() or not folder.is_dir():
                found = sequences(root, split)
                shape = tree_shape(found)
                task = partial(_problem, shape=shape, packed=packed)
                problems += filter(None, in_order(task, found, f"checking {split}", progress))
        except DataError as error:
            problems.append(str(error))
        if found and packed and len(found) != len(packed):
            problems.append(f"{folder}: has {len(packed)} sequences, the tree {len(found)}. `lab5 pack` regenerates it")
        lines.append(f"{split}: {len(found or packed):,} sequences of {shape[0]} frames, "
                     f"{'with' if shape[1] else 'without'} actions and positions{sha}")
    return lines, problems


def _problem(folder: Path, shape: tuple[int, int], packed: dict[str, Arrays]) -> str:
    """What is wrong with a sequence of the tree, or differs from its pack; empty if nothing is."""
    try:
        arrays = read_sequence(folder, *shape)
    except DataError as error:
        return str(error)
    same = not packed or all(map(np.array_equal, arrays, packed.get("/".join(folder.parts[-2:]), ((), ()))))
    return "" if same else f"{folder}: was changed or added since the split was packed. `lab5 pack` regenerates it"
