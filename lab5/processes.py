"""Several processes that train one model: joined by `torchrun`, or started by `companions` on one machine's cores.

Each computes its share of every batch; the first one, of rank 0, writes and reports.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist

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


def largest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers; in a single process the number itself."""
    if not dist.is_initialized():
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


@contextmanager
def companions(size: int, target: str, *arguments: Any) -> Iterator[None]:
    """Join `size` processes of one thread each: this one, and others that call `target`, "module:function".

    The others end with this process, however it ends. Raises RuntimeError where one of them was killed.
    """
    threads = torch.get_num_threads()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    others = [_start(target, (number, size, store.port, arguments)) for number in range(1, size)]
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=size, timeout=PATIENCE)
        yield
    except RuntimeError as error:
        time.sleep(1)                                           # until a process that was killed is known to be
        if not any(other.poll() for other in others):
            raise
        raise RuntimeError(f"one of {size} training processes was killed, perhaps because memory ran out. The same "
                           "command resumes from the last checkpoint; with --set processes=1 it needs less") from error
    finally:
        torch.set_num_threads(threads)
        for other in others:
            with suppress(OSError):
                other.stdin.close()                             # which ends it, unless it has finished
            other.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


def _start(target: str, message: tuple) -> subprocess.Popen:
    """Start a process that reads `message` and runs `target` for as long as its standard input is open."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from lab5.processes import run_companion; run_companion({target!r})"],
        stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True)                                 # the terminal's Ctrl-C reaches the first one alone
    pickle.dump(message, process.stdin)
    process.stdin.flush()
    return process


def run_companion(target: str) -> None:
    """What a process of `companions` does: join the others and call the target."""
    number, size, port, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=PATIENCE)
    module, _, name = target.partition(":")
    getattr(import_module(module), name)(*arguments)
