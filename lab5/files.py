"""Files that are there whole or not at all, a data set's folder, processes that end with their parent, and memory.

Nothing here imports torch, so that the simulator's processes start fast.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

SPLITS = ("train", "validate", "test")          # of a data set


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was found, and the way out."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then rename the result to `path`. Raises OSError that names the path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error.strerror or error}); what was there before is untouched. "
                      "Free some disk space, make the folder writable, or choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file's text, as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def home(root: str | Path) -> Path:
    """The folder that holds ``processed_data`` and ``packed``; `root` may also be ``processed_data`` itself."""
    root = Path(root).expanduser().absolute()                   # links are kept: a pack lies beside the link
    return root.parent if root.name == "processed_data" else root


def file_sha(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(task: Callable, items: Sequence, workers: int | None = None, begin: Callable | None = None) -> Iterator:
    """Apply `task` to every item in several processes, which end when this one does; yields the results in order.

    Args:
        workers: number of processes; None: one per core; 1: this process alone.
        begin: called first in every process that is started.
    Raises:
        RuntimeError: a process was killed. An exception of the task is raised unchanged.
    """
    workers = min(workers or cores(), len(items))
    if workers < 2:
        yield from map(task, items)
        return
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (begin,)) as pool:      # safe beside CUDA
            yield from pool.map(task, items)
    except BrokenProcessPool as error:
        raise RuntimeError(f"one of {workers} processes was killed, perhaps because memory ran out. Finished work is "
                           "kept: the same command resumes from it") from error


def _begin(begin: Callable | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


@functools.cache
def tune_malloc() -> None:
    """Let the C library (glibc) keep freed memory for the next batch, instead of returning it to the system.

    By default every large tensor is mapped anew and cleared page by page, which on two cores took more time than the
    arithmetic of an evaluation (`benchmarks/README.md`).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3             # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
