"""Files that are there whole or not at all, a data set's folder, processes that end with their parent, and memory.

Nothing here imports torch, so that the simulator's processes start fast.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context, parent_process
from pathlib import Path

from filelock import FileLock

SPLITS = ("train", "validate", "test")          # of a data set
TABLES = {"actions.csv": 4, "endeffector_positions.csv": 3}     # columns of each; side by side they are a condition
SIMULATION = "simulation.json"                  # in processed_data, written by the simulator


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


def lock(path: Path, timeout: float = -1) -> AbstractContextManager:
    """A lock that is held, and that a killed process releases. Where the drive knows no locks, a warning and none."""
    try:
        return FileLock(path, timeout=timeout).acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(f"{path.parent}: this file system has no locks ({error.strerror}), so nothing keeps a second process "
              "from working here at the same time: start only one", file=sys.stderr)
        return nullcontext()


def expand(path: object) -> Path:
    """A path that may begin with ~. Raises ValueError where there is no such home, or the name is not UTF-8."""
    try:
        expanded = Path(str(path)).expanduser()                 # papermill passes digits as a number
        str(expanded.absolute()).encode()                       # safetensors and Jupyter open no other files
        return expanded
    except (RuntimeError, UnicodeEncodeError) as error:
        raise ValueError(f"{str(path)!a}: cannot be used ({error}). Set HOME where ~ is unknown, or name a folder "
                         "whose path is UTF-8") from error


def home(root: str | Path) -> Path:
    """The folder that holds ``processed_data`` and ``packed``; `root` may also be ``processed_data`` itself."""
    root = expand(root).absolute()                              # links are kept: a pack lies beside the link
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

    `workers` is the number of processes (None: one per core; 1: this one alone); `begin` is called first in each that
    is started. Raises RuntimeError where one was killed, and what the task raises.
    """
    workers = min(workers or cores(), len(items))
    if workers < 2:
        yield from map(task, items)
        return
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (begin,)) as pool:       # safe beside CUDA
            yield from pool.map(task, items)
    except BrokenProcessPool as error:
        raise RuntimeError(f"one of {workers} processes was killed, perhaps because memory ran out. Finished work is "
                           "kept: the same command resumes from it") from error


def _begin(begin: Callable | None) -> None:
    """What a started process does first: it will end with its parent; then `begin`."""
    end_with(parent_process().pid)
    if begin:
        begin()


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that was."""
    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def tune_malloc() -> None:
    """Let the C library (glibc) keep freed memory for the next batch, instead of returning it to the system.

    By default every large tensor is mapped anew and cleared page by page, which on two cores took more time than the
    arithmetic of an evaluation (`benchmarks/README.md`).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3             # malloc.h
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
