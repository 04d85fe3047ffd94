"""Writing packs: sequences from any source into the two arrays that `lab5.data` maps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lab5.data import FORMAT, FRAME_SIZE
from lab5.files import DataError, file_sha, lock
from lab5.formats.layout import SIMULATION

Arrays = tuple[np.ndarray, np.ndarray]          # frames (T, 64, 64, 3) uint8, conditions (T, D) float32


def write_pack(root: Path, split: str, names: list[str], sequences: Iterable[Arrays], shape: tuple[int, int], *,
               progress: bool = True, regenerate: bool = True) -> None:
    """Write ``root/packed/split`` under another name and rename it when it is whole.

    All that a pack is goes in here, hence the number of arguments. `sequences` yields the frames and conditions of
    each of `names`, of `shape` (T, D). A pack that is there is replaced if `regenerate`. Raises DataError where
    `sequences` does, or the folder is full or cannot be written.
    """
    folder, (T, D) = root / "packed", shape
    aside, needed = folder / f".{split}.tmp", len(names) * T * (FRAME_SIZE ** 2 * 3 + 4 * D)
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
                (aside / "new").mkdir(parents=True)
                shas = _write_arrays(aside / "new", (len(names), *shape), tqdm(
                    sequences, f"packing {split}", len(names), unit="seq", disable=not progress))
                simulated = (root / "processed_data" / SIMULATION).exists()
                record = {"format": FORMAT, "simulated": simulated, **shas, "names": names}
                (aside / "new/pack.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                if (folder / split).exists():
                    os.replace(folder / split, aside / "old")
                os.replace(aside / "new", folder / split)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} failed ({error.strerror or error}). Free some space or make the "
                        "folder writable. If nothing can be written beside the data, link processed_data into a "
                        "folder of your own and name that") from error


def _write_arrays(folder: Path, shape: tuple[int, int, int], sequences: Iterable[Arrays]) -> dict[str, str]:
    """Write sequences one after another into two .npy files of `shape` (N, T, D); returns their SHA-256s.

    A memory map would be shorter, but writing to one kills the process where the disk is full.
    """
    N, T, D = shape
    with open(folder / "frames.npy", "wb") as frames, open(folder / "conditions.npy", "wb") as conditions:
        for file, kind, size in ((frames, "|u1", (FRAME_SIZE, FRAME_SIZE, 3)), (conditions, "<f4", (D,))):
            header = {"descr": kind, "fortran_order": False, "shape": (N, T, *size)}
            np.lib.format.write_array_header_1_0(file, header)
        for pixels, numbers in sequences:
            frames.write(pixels.tobytes())
            conditions.write(numbers.astype("<f4").tobytes())
        for file in (frames, conditions):
            file.flush()
            os.fsync(file.fileno())
    return {f"{name}_sha256": file_sha(folder / f"{name}.npy") for name in ("frames", "conditions")}
