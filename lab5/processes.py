"""Several processes that train one model: joined by `torchrun`, or started by `companions` on one machine's cores.

Each computes its share of every batch; the first one, of rank 0, writes and reports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import RLock
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn
from tqdm.auto import tqdm

from lab5.files import end_with

PATIENCE = timedelta(hours=2)                   # the others wait while the first validates


def join() -> int:
    """Join the processes that `torchrun` has started, if any; returns this one's rank."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        end_with(os.getppid())                                  # a torchrun that is killed leaves its processes
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return rank()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(batch_size: int) -> slice:
    """Which sequences of a batch are this process's. Raises ValueError unless all get equally many."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    if batch_size % size:
        raise ValueError(f"a batch of {batch_size} sequences cannot be shared equally by {size} processes; choose a "
                         f"batch_size that {size} divides, or another number of processes")
    part = batch_size // size
    return slice(rank() * part, (rank() + 1) * part)


def mean(value: torch.Tensor) -> torch.Tensor:
    """The average over all processes, whose gradient is that of this process's value: DDP averages gradients too."""
    if not dist.is_initialized():
        return value
    average = value.detach().clone()
    dist.all_reduce(average)
    return average / dist.get_world_size() + (value - value.detach())


@contextmanager
def companions(size: int, task: Callable, *arguments: Any) -> Iterator[None]:
    """Join `size` processes: this one, and others that call `task(*arguments)`. They share this one's threads.

    The others end with this process, however it ends. Raises RuntimeError where one of them ended before.
    """
    threads = torch.get_num_threads()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    others = spawn(_join_and_call, (size, store.port, task, arguments), size - 1, join=False)
    try:
        _join(store, 0, size)
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError:                     # not a lost connection
            raise
        try:
            others.join(timeout=5)
        except ProcessException as problem:
            what = str(problem).rstrip().rpartition("\n")[2]    # the last line of its traceback
            raise RuntimeError(f"one of {size} training processes ended: {what}. The same command resumes from the "
                               "last checkpoint; where memory ran out, --set processes=1 needs less") from problem
        raise
    finally:
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()
        for other in others.processes:
            other.join(timeout=1)                               # it has ended, unless this one ended before it
            other.terminate()
            other.join()


def _join(store: dist.Store, number: int, size: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=PATIENCE)


def _join_and_call(index: int, size: int, port: int, task: Callable, arguments: tuple) -> None:
    tqdm.set_lock(RLock())                                      # a lock of all processes would outlive this one
    _join(dist.TCPStore("127.0.0.1", port, size, is_master=False), index + 1, size)
    try:
        task(*arguments)
    finally:
        dist.destroy_process_group()                            # so that nobody waits for this one
