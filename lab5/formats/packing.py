"""Writing packs: sequences from any source into the two arrays that `lab5.data` maps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from lab5.data import FORMAT, FRAME_SIZE
from lab5.files import DataError, file_sha

BLOCK, READERS = 256, min(8, os.cpu_count() or 1)       # sequences that are read ahead, and threads that read them
Arrays = tuple[np.ndarray, np.ndarray]          # frames (T, 64, 64, 3) uint8, conditions (T, D) float32


def write_pack(root: Path, split: str, names: list[str], read: Callable[[str], Arrays], *, length: int,
               condition_dim: int, simulated: bool = False, progress: bool = True, regenerate: bool = True) -> None:
    """Write ``root/packed/split`` under another name and rename it when it is whole.

    All that a pack is goes in here, hence the number of arguments. `read` is called with the `names` in their order,
    by several threads, and returns frames and conditions, T = `length` and D = `condition_dim`. A pack that is there
    is replaced if `regenerate`. Raises DataError where `read` does, or the folder is full or cannot be written.
    """
    folder, shape = root / "packed", (len(names), length)
    shapes = {"frames": ("|u1", (*shape, FRAME_SIZE, FRAME_SIZE, 3)), "conditions": ("<f4", (*shape, condition_dim))}
    needed = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in shapes.values())
    new, old = (folder / f".{split}.tmp" / name for name in ("new", "old"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{split}.lock"), ExitStack() as cleanup:    # of several processes one packs
            if (folder / split).is_dir() and not regenerate:
                return
            shutil.rmtree(new.parent, ignore_errors=True)       # left by a killed call
            if (free := shutil.disk_usage(folder).free) < needed:
                raise DataError(f"{folder}: packing {split} needs {needed / 1e9:.3f} GB, but {free / 1e9:.3f} GB are "
                                "free. Free some space, or link this folder to a larger disk")
            cleanup.callback(shutil.rmtree, new.parent, ignore_errors=True)
            new.mkdir(parents=True)
            shas = _write_arrays(new, shapes, in_order(read, names, f"packing {split}", progress))
            record = {"format": FORMAT, "simulated": simulated, **shas, "names": names}
            (new / "pack.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
            if (folder / split).exists():
                os.replace(folder / split, old)
            os.replace(new, folder / split)
    except OSError as error:
        raise DataError(f"{folder}: packing {split} failed ({error.strerror or error}). Free some space or make the "
                        "folder writable. If nothing can be written beside the data, link processed_data into a "
                        "folder of your own and name that") from error


def _write_arrays(folder: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], rows: Iterator[Arrays],
                  ) -> dict[str, str]:
    """Write rows one after another into .npy files (a memory map would kill the process on a full disk); SHA-256s."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.npy", "wb+")) for name in shapes]
        for file, (kind, shape) in zip(files, shapes.values(), strict=True):
            np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        for row in rows:
            for file, array in zip(files, row, strict=True):
                file.write(np.ascontiguousarray(array).tobytes())
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return {f"{name}_sha256": file_sha(folder / f"{name}.npy") for name in shapes}


def in_order(task: Callable, items: Sequence, title: str, progress: bool) -> Iterator:
    """Apply a task to every item, by a pool of threads; yields the results in order, under a progress bar."""
    with (ThreadPoolExecutor(READERS) as pool,
          tqdm(total=len(items), desc=title, unit="seq", disable=not progress) as bar):
        for start in range(0, len(items), BLOCK):
            for result in pool.map(task, items[start:start + BLOCK]):
                yield result
                bar.update()
