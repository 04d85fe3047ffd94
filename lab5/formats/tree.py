"""The lab's tree of PNGs, and SVG's: read, written, packed and checked.

    processed_data/<split>/traj_A_to_B.tfrecords/N/{0..29}.png, actions.csv, endeffector_positions.csv

SVG's own conversion has no ``.tfrecords``, N from 1, no tables, and no ``validate``. Files and folders whose names
begin with a dot are ignored.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from lab5.data import FRAME_SIZE, SPLITS, DataError, Pack, file_sha, home, open_pack
from lab5.formats.packing import Arrays, in_order, write_pack

TABLES = {"actions.csv": 4, "endeffector_positions.csv": 3}     # columns of each; side by side they are a condition
SIMULATION = "simulation.json"                  # in processed_data, written by the simulator
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
        there = ", ".join(sorted(path.name for path in tree.iterdir())) if tree.is_dir() else "no such folder"
        raise DataError(f"{folder}: there is no such folder (in {tree}: {there or 'nothing'}). Name the folder that "
                        f"holds processed_data/{split}, or make a simulated set with `lab5 simulate`")
    found = [path for shard in _folders(folder) for path in _folders(shard)]
    named = {path: NAME.fullmatch(path.relative_to(folder).as_posix()) for path in found}
    if wrong := [path for path, match in named.items() if not match]:
        raise DataError(f"{wrong[0]}: is not a sequence, a folder traj_A_to_B.tfrecords/N; rename or remove it")
    order = {path: tuple(map(int, match.groups())) for path, match in named.items()}
    found.sort(key=order.get)
    for a, b in pairwise(found):
        if order[a] == order[b]:
            raise DataError(f"{b}: has the same number as {a}; remove one of them")
    if shared and split != "test":
        found = [path for path in found if path.parent.name.startswith(VALIDATION_SHARD) == (split == "validate")]
    if not found:
        raise DataError(f"{folder}: holds no sequences traj_A_to_B.tfrecords/N for {split}. Name another folder, or "
                        f"add a {tree / split}")
    return found


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder; files, and what begins with a dot, are ignored. Raises DataError for a dangling link."""
    entries = [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    if dangling := [path for path in entries if path.is_symlink() and not path.exists()]:
        raise DataError(f"{dangling[0]}: is a link to nothing; restore what it points to, or remove it")
    return sorted(path for path in entries if path.is_dir())


def tree_shape(folder: Path) -> tuple[int, int]:
    """(T, D): frames of a sequence, and numbers of its condition: 7, or 0 for a sequence without tables.

    Raises DataError that names the files which are there instead.
    """
    names = _files(folder)
    length = sum(bool(re.fullmatch(r"[0-9]+\.png", name)) for name in names)
    tables = [name for name in names if name.lower().endswith(".csv")]
    if not length:
        raise DataError(f"{folder}: holds no frames 0.png, 1.png, ...; it holds {', '.join(names[:6]) or 'nothing'}. "
                        "Convert other pictures to PNG, and mind capital letters")
    if tables and not set(TABLES) <= set(tables):
        raise DataError(f"{folder}: holds {', '.join(tables)}, expected {' and '.join(TABLES)}, or no table at all for "
                        "an action-free set. Rename or restore them; capital letters count")
    return length, sum(TABLES.values()) if tables else 0


def _files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))      # macOS writes ._0.png


def read_sequence(folder: Path, length: int, condition_dim: int) -> Arrays:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of a sequence of the tree.

    Raises DataError that names the file, unless it has this length and, for D > 0, both tables.
    """
    expected, names = {f"{t}.png" for t in range(length)}, set(_files(folder))
    missing, extra = sorted(expected - names), sorted(n for n in names - expected if n.lower().endswith(".png"))
    if missing or extra:
        raise DataError(f"{folder}: expected the frames 0.png to {length - 1}.png; missing: "
                        f"{', '.join(missing[:5]) or 'none'}; not expected: {', '.join(extra[:5]) or 'none'}. "
                        "Extract the sequence again or remove it")
    if tree_shape(folder)[1] != condition_dim:
        raise DataError(f"{folder}: has {'no ' if condition_dim else ''}tables, unlike the first sequence of the "
                        "split. Restore or remove them")
    frames = np.stack([_read_frame(folder / f"{t}.png") for t in range(length)])
    tables = [_read_table(folder / table, length, columns) for table, columns in TABLES.items() if condition_dim]
    return frames, np.hstack([np.empty((length, 0), np.float32), *tables])


def _read_frame(path: Path) -> np.ndarray:
    """A PNG as (64, 64, 3) uint8; one of another size is not decoded."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            found = (image.width, image.height, image.mode, content[24])        # bits per number: Pillow makes 8 of 16
            image.verify()                                                      # checksums, which decoding ignores
        if found != (FRAME_SIZE, FRAME_SIZE, "RGB", 8):
            raise ValueError("found {}x{} {} of {} bits".format(*found))
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception as error:                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"{path}: cannot be read as an 8-bit RGB PNG of {FRAME_SIZE}x{FRAME_SIZE} ({error}). Extract "
                        "it again, convert it, or remove its sequence") from error


def _read_table(path: Path, rows: int, columns: int) -> np.ndarray:
    """A csv without a header as (rows, columns) float32, all finite."""
    try:
        text = path.read_text(encoding="utf-8-sig")             # -sig: spreadsheets put a mark in front
        with np.errstate(over="ignore"):                        # too large becomes infinite, and is refused below
            table = np.array([line.split(",") for line in text.rstrip().splitlines()], np.float64).astype(np.float32)
        if "_" in text or table.shape != (rows, columns) or not np.isfinite(table).all():
            raise ValueError(f"shape {table.shape}, {np.count_nonzero(~np.isfinite(table))} numbers not finite")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: expected {rows} rows of {columns} finite numbers, one row per frame, no header "
                        f"({error}). Extract it again or remove its sequence") from error
    return table


def write_sequence(folder: Path, frames: np.ndarray, conditions: np.ndarray, number: str = "%.9g") -> None:
    """Write a sequence of the tree under another name, then rename it, so that a folder of its name is whole.

    Args:
        frames: (T, 64, 64, 3) uint8.
        conditions: (T, 7), or (T, 0) for no tables.
        number: format of the tables' numbers.
    """
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)                    # left by a killed call
    aside.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(aside / f"{t}.png", compress_level=1)
    if conditions.shape[1]:
        ends = np.cumsum(list(TABLES.values()))[:-1]
        for table, columns in zip(TABLES, np.split(conditions, ends, axis=1), strict=True):
            np.savetxt(aside / table, columns, fmt=number, delimiter=",")
    os.replace(aside, folder)


def open_or_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack; the tree is read only if there is none, which is then written. Raises DataError."""
    if not (home(root) / "packed" / split).is_dir():
        _pack_split(root, split, progress, regenerate=False)
    return open_pack(root, split)


def pack_tree(root: str | Path, progress: bool = True) -> None:
    """Regenerate the packs of all splits of a tree. Raises DataError, on a missing split before any is packed."""
    for split in SPLITS:
        sequences(root, split)
    for split in SPLITS:
        _pack_split(root, split, progress, regenerate=True)


def _pack_split(root: str | Path, split: str, progress: bool, regenerate: bool) -> None:
    tree, found = home(root) / "processed_data", sequences(root, split)
    length, condition_dim = tree_shape(found[0])
    folders = {path.relative_to(tree / path.parts[len(tree.parts)]).as_posix(): path for path in found}
    write_pack(home(root), split, list(folders), lambda name: read_sequence(folders[name], length, condition_dim),
               length=length, condition_dim=condition_dim, simulated=(tree / SIMULATION).exists(), progress=progress,
               regenerate=regenerate)


def check(root: str | Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all files of a data set and compare the tree with the pack, and the pack with its SHA-256s.

    Returns:
        a line for each split, which says how many sequences and frames there are and whether with actions and
        positions; and all problems, each naming its file.
    """
    lines, problems, tree = [], [], home(root) / "processed_data"
    for split in SPLITS:
        folder, found, pack = home(root) / "packed" / split, [], None
        try:
            pack = open_pack(root, split) if folder.is_dir() else None
            if pack is None or tree.is_dir():
                found = sequences(root, split)
        except DataError as error:
            problems.append(str(error))
        damaged = _damaged_arrays(folder) if pack is not None else []
        shape = (pack.frames.shape[1], pack.condition_dim) if pack is not None else None
        if found:
            try:
                shape = tree_shape(found[0])
                task = partial(_problem, shape=shape, pack=pack)
                problems += filter(None, in_order(task, found, f"checking {split}", progress))
            except DataError as error:
                problems.append(str(error))
        count = len(found) or (len(pack) if pack is not None else 0)
        if pack is not None and found and len(pack) != len(found):
            damaged.append(f"{folder}: holds {len(pack)} sequences, the tree {len(found)}")
        problems += [f"{problem}. `lab5 pack` regenerates it" for problem in damaged]
        with_tables = "with actions and positions" if shape and shape[1] else "without actions and positions"
        lines.append(f"{split}: {count:,} sequences" + (f" of {shape[0]} frames, {with_tables}" if shape else "")
                     + ("" if pack is None else f", packed as {pack.data_sha}"))
    return lines, problems


def _damaged_arrays(folder: Path) -> list[str]:
    record = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
    return [f"{folder / name}.npy: is not what was packed, by its SHA-256" for name in ("frames", "conditions")
            if file_sha(folder / f"{name}.npy") != record[f"{name}_sha256"]]


def _problem(folder: Path, shape: tuple[int, int], pack: Pack | None) -> str:
    """What is wrong with a sequence of the tree, or differs from its pack; empty if nothing is."""
    try:
        arrays = read_sequence(folder, *shape)
    except DataError as error:
        return str(error)
    if pack is None:
        return ""
    name = f"{folder.parent.name}/{folder.name}"
    if name not in pack.names:
        return f"{folder}: is not in the pack. `lab5 pack` regenerates it"
    index = pack.names.index(name)
    packed = pack.frames[index], pack.conditions[index]
    same = all(np.array_equal(a, b) for a, b in zip(arrays, packed, strict=True))
    return "" if same else f"{folder}: has changed since it was packed. `lab5 pack` regenerates the pack"
