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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from lab5.data import ARRAYS, FRAME_SIZE, Pack, open_pack
from lab5.files import SIMULATION, SPLITS, TABLES, DataError, file_sha, home, lock
from lab5.formats import bair
from lab5.formats.bair import Arrays

BERKELEY = "softmotion30_44k"                   # the folder of TFRecords
VALIDATION_SHARD = "traj_256_to_511"            # of Berkeley's training files, the lab's validation split
NAME = re.compile(r"traj_([0-9]+)_to_([0-9]+)(?:\.tfrecords)?/([0-9]+)")        # of a sequence
LOOKS_LIKE_CONTENT = re.compile(r"png|jpe?g|csv|action|effector", re.IGNORECASE)
BLOCK = 256                                     # sequences that are read ahead

Source = tuple[dict[str, Callable[[], Arrays]], int, int]       # what reads each sequence, by its name; T; D


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
    folders = {"/".join(path.parts[-2:]): path for path in folder.glob("[!.]*/[!.]*") if not path.is_file()}
    if wrong := [path for name, path in sorted(folders.items()) if not NAME.fullmatch(name)]:
        raise DataError(f"{wrong[0]}: is not a sequence, a folder traj_A_to_B.tfrecords/N; rename or remove it")
    names = sorted(folders, key=lambda name: [int(number) for number in NAME.fullmatch(name).groups()])
    if shared:
        names = [name for name in names if name.startswith(VALIDATION_SHARD) == (split == "validate")]
    if not names:
        raise DataError(f"{folder}: holds no sequences traj_A_to_B.tfrecords/N for {split}. Name another folder, or "
                        f"add a {tree / split}")
    return {name: folders[name] for name in names}


def read_sequence(folder: Path, length: int, condition_dim: int) -> Arrays:
    """Frames (T, 64, 64, 3) uint8 and conditions (T, D) float32 of a sequence of the tree.

    Raises DataError that names the file, unless it has exactly these frames and, for D > 0, both tables.
    """
    names, tables = _names(folder), TABLES if condition_dim else {}
    frames = [f"{t}.png" for t in range(length)]
    missing = [name for name in (*frames, *tables) if name not in names]
    others = sorted(name for name in names.difference(frames, tables) if LOOKS_LIKE_CONTENT.search(name))
    if missing or others:
        raise DataError(
            f"{folder}: expected {length} frames 0.png, 1.png, ..., and {'both' if tables else 'none'} of "
            f"{', '.join(TABLES)}, as in most sequences of its split; missing {missing[:5]}, also there {others[:5]}. "
            "Rename what has another name (capital letters count), extract the sequence again, or remove it")
    columns = [_read_file(folder / table, (length, width)) for table, width in tables.items()]
    return (np.stack([_read_file(folder / name, (FRAME_SIZE, FRAME_SIZE, 3)) for name in frames]),
            np.hstack([np.empty((length, 0), np.float32), *columns]))


def _names(folder: Path) -> set[str]:
    """Names of what a folder holds, but those that begin with a dot: macOS writes ._0.png beside 0.png."""
    return {path.name for path in folder.glob("[!.]*")}


def _read_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A frame or a table. Raises DataError unless it can be read and has this shape and finite numbers."""
    kind = "a PNG of RGB pixels" if path.suffix == ".png" else "a table of finite numbers, a row per frame, no header"
    try:
        if path.suffix == ".png":               # torchvision's `decode_png` would end the process on a damaged one
            Image.open(path, formats=["PNG"]).verify()          # the checksums, which decoding passes over
            content = np.array(Image.open(path, formats=["PNG"]))
        else:                                   # -sig: spreadsheets put a mark in front
            content = np.loadtxt(path, np.float32, delimiter=",", ndmin=2, encoding="utf-8-sig")
        if content.shape != shape or not np.isfinite(content).all():
            raise ValueError(f"shape {content.shape}, {np.count_nonzero(~np.isfinite(content))} numbers not finite")
    except Exception as error:                  # Pillow has a dozen kinds for damaged files
        raise DataError(f"{path}: cannot be read as {kind}, of shape {shape} ({error}). Convert it, extract it again, "
                        "or remove its sequence") from error
    return content


# Packs and their check -----------------------------------------------------------------------------------

def _source(root: Path, split: str) -> Source:
    """A split of the tree or, where there is none, of Berkeley's TFRecords. Raises DataError where it is missing.

    T and D are those of most of the tree's sequences: frames 0.png, 1.png, ..., and D = 7, or 0 without both tables.
    """
    if (root / BERKELEY).is_dir() and not (root / "processed_data").exists():
        return bair.sequences(root / BERKELEY, split), bair.LENGTH, 7
    folders, shapes = sequences(root, split), Counter()
    for folder in folders.values():
        names = _names(folder)
        length = sum(name.endswith(".png") for name in names)
        shapes[max(1, length), sum(TABLES.values()) if names.issuperset(TABLES) else 0] += 1
    T, D = shapes.most_common(1)[0][0]
    return {name: partial(read_sequence, folder, T, D) for name, folder in folders.items()}, T, D


def _read_ahead(source: Source, title: str, progress: bool) -> Iterator[Future[Arrays]]:
    """The sequences in order, read by several threads, since files of a network drive are slow to come."""
    reads = list(source[0].values())
    with ThreadPoolExecutor(8) as pool, tqdm(total=len(reads), desc=title, unit="seq", disable=not progress) as bar:
        for start in range(0, len(reads), BLOCK):
            for future in [pool.submit(read) for read in reads[start:start + BLOCK]]:
                yield future
                bar.update()


def open_or_pack(root: str | Path, split: str, progress: bool = True) -> Pack:
    """Open a split's pack; the data are read only if there is none, which is then written. Raises DataError."""
    folder = home(root)
    if not (folder / "packed" / split).is_dir():
        if split == "train" and not (folder / "processed_data" / SIMULATION).exists():
            _source(folder, "validate")                         # training needs both: refused before packing
        _write_pack(folder, split, _source(folder, split), progress, regenerate=False)
    return open_pack(root, split)


def pack_tree(root: str | Path, progress: bool = True) -> None:
    """Regenerate the packs of all splits. Raises DataError, on a missing split before any is packed."""
    for split, source in {split: _source(home(root), split) for split in SPLITS}.items():
        _write_pack(home(root), split, source, progress, regenerate=True)


def _write_pack(root: Path, split: str, source: Source, progress: bool, regenerate: bool) -> None:
    """Write ``packed/split`` under another name and rename it when it is whole; a pack that is there is replaced only
    to `regenerate` it. Raises DataError where a sequence is damaged, or the folder is full or cannot be written.
    """
    (reads, T, D), folder = source, root / "packed"
    aside, needed = folder / f".{split}.tmp", len(reads) * T * (FRAME_SIZE ** 2 * 3 + 4 * D)
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
                # closed here if a sequence is damaged: garbage collection in a starting thread would wait for ever
                with closing(_read_ahead(source, f"packing {split}", progress)) as sequences:
                    _write_arrays(aside, (len(reads), T, D), sequences)
                shas = {f"{name}_sha256": file_sha(aside / f"{name}.npy") for name in ARRAYS}
                record = {"simulated": (root / "processed_data" / SIMULATION).exists(), **shas, "names": list(reads)}
                (aside / "pack.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                shutil.rmtree(folder / split, ignore_errors=True)
                os.replace(aside, folder / split)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} failed ({error.strerror or error}). Free some space or make the "
                        "folder writable. If nothing can be written beside the data, link processed_data into a "
                        "folder of your own and name that") from error


def _write_arrays(folder: Path, shape: tuple[int, int, int], sequences: Iterator[Future[Arrays]]) -> None:
    """Write sequences one after another into two .npy files of `shape` (N, T, D).

    A memory map would be shorter, but writing to one kills the process where the disk is full.
    """
    N, T, D = shape
    with open(folder / "frames.npy", "wb") as frames, open(folder / "conditions.npy", "wb") as conditions:
        for file, kind, size in ((frames, "|u1", (FRAME_SIZE, FRAME_SIZE, 3)), (conditions, "<f4", (D,))):
            header = {"descr": kind, "fortran_order": False, "shape": (N, T, *size)}
            np.lib.format.write_array_header_1_0(file, header)
        for sequence in sequences:
            for file, array in zip((frames, conditions), sequence.result(), strict=True):
                file.write(array.tobytes())
        for file in (frames, conditions):
            file.flush()
            os.fsync(file.fileno())


def check(root: str | Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all files of a data set; compare the packs with their SHA-256s and with what they were made from.

    Returns a line for each split (sequences, frames, actions and positions), and all problems, each with its file.
    """
    lines, problems = [], []
    for split in SPLITS:
        try:
            lines.append(f"{split}: {_check_split(home(root), split, problems, progress)}")
        except DataError as error:
            problems.append(str(error))
    return lines, problems


def _check_split(root: Path, split: str, problems: list[str], progress: bool) -> str:
    """The line of a split, whose problems are appended. Raises DataError where its pack or data cannot be opened."""
    folder, stale, packed, note = root / "packed" / split, "`lab5 pack` regenerates it", {}, ""
    if folder.is_dir():
        pack = open_pack(root, split)
        packed = dict(zip(pack.names, zip(pack.frames, pack.conditions, strict=True), strict=True))
        (N, T), D, note = pack.frames.shape[:2], pack.condition_dim, f", packed as {pack.data_sha}"
        problems += [f"{path}: is not what was packed, by its SHA-256. {stale}" for path, sha in pack.shas().items()
                     if file_sha(path) != sha]
    if not packed or (root / "processed_data").is_dir() or (root / BERKELEY).is_dir():
        reads, T, D = source = _source(root, split)
        N = len(reads)
        for name, sequence in zip(reads, _read_ahead(source, f"checking {split}", progress), strict=True):
            if error := sequence.exception():
                problems.append(str(error))
            elif packed and not all(map(np.array_equal, sequence.result(), packed.get(name, ((), ())))):
                problems.append(f"{folder}: {name} was changed or added since. {stale}")
        problems += [f"{folder}: holds {name}, which is gone. {stale}" for name in packed.keys() - reads.keys()]
    return f"{N:,} sequences of {T} frames, {'with' if D else 'without'} actions and positions{note}"
