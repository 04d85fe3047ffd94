"""Work spread over processes, none of which outlives the one that started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def each(task: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None,
         begin: Callable[[], object] | None = None) -> Iterator[Result]:
    """Do a task on every item, in so many processes; yields the results as they come.

    Args:
        workers: None: one a core; 1: this process alone.
        begin: called first in every process that is started.
    Raises:
        RuntimeError: a process was killed. An error of the task comes as it is.
    """
    workers = min(workers or cores(), len(items))
    if workers < 2:
        yield from map(task, items)
        return
    waiting = iter(items)
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (begin,)) as pool:      # safe beside CUDA
            running = {pool.submit(task, item) for item in islice(waiting, workers)}    # what queues up would be done
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(task, item) for item in islice(waiting, 1)}
    except BrokenProcessPool as error:
        raise RuntimeError(f"one of {workers} processes was killed, perhaps for want of memory; what is done stays, "
                           "and the same command goes on from there") from error


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(begin: Callable[[], object] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin()


def _end_with_parent() -> None:
    """End this process when its parent is gone, as SIGTERM does: a training saves itself first, if that takes a minute.

    A second one ends what has caught the first, such as a task that could not say on a closed pipe that it stops.
    """
    wait_for([parent_process().sentinel])
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
