"""The batches that are drawn from a packed split, and the door to all that is about data.

A batch is one slice of the pack's memory map, and a set larger than memory is read page by page. Axes on disk are
(N, T, H, W, C) for N sequences of T frames; a batch has the model's order, (T, B, C, H, W).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lab5.packs import Pack, check, open_pack, pack, sequences, summary
from lab5.sources import SPLITS, TABLES, DataError, Problem

__all__ = ["SPLITS", "TABLES", "Batch", "DataError", "Pack", "Problem", "Windows", "check", "condition_statistics",
           "evaluation_loader", "open_pack", "pack", "sequences", "summary", "to_video", "training_loader"]

LEAST_STD = 1e-3                                # a column that varies less counts as constant


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of B sequences. In memory the frames' channels come last, so `flatten(0, 1)` copies nothing."""

    frames: torch.Tensor                        # (T, B, C, H, W) uint8
    condition: torch.Tensor                     # (T, B, D) float32
    index: torch.Tensor                         # (B,) int64, which sequences of the split

    def pin_memory(self) -> Batch:
        """What the loader calls where a GPU waits: from pinned memory a copy to it need not wait in turn."""
        return Batch(self.frames.pin_memory(), self.condition.pin_memory(), self.index)


class Windows(Dataset):
    """Windows of `length` frames, one of each sequence of a pack.

    Without a seed the first frames (evaluation). With one a random window, which depends on nothing but
    (seed, pass, index): not on the worker that draws it, nor on what was drawn before.

    Raises DataError when the sequences are shorter than a window.
    """

    def __init__(self, pack: Pack, length: int, seed: int | None = None) -> None:
        if not 1 <= length <= pack.frames.shape[1]:
            raise DataError(f"{pack.name}: windows of {length} frames (n_past + n_future) cannot be cut from sequences "
                            f"of {pack.frames.shape[1]}; choose n_past and n_future to fit")
        self.pack, self.length, self.seed = pack, length, seed

    def __len__(self) -> int:
        return len(self.pack)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """The window of sequence `index` in a pass, `key` being index or (index, pass), as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """The windows of several keys, in their order.

        Raises IndexError outside 0 .. N-1, and DataError where the disk has changed a frame since it was packed.
        """
        pairs = [key if isinstance(key, tuple) else (key, 0) for key in keys]
        index = np.array([index for index, _ in pairs], dtype=np.int64)
        if ((index < 0) | (index >= len(self))).any():
            raise IndexError(f"{self.pack.name}: sequences {index.tolist()} asked for, there are 0 to {len(self) - 1}")
        times = np.array([self._start(*pair) for pair in pairs]) + np.arange(self.length)[:, None]     # (T, B)
        frames, conditions = self.pack.read(index, times)                                       # (T, B, ...)
        return Batch(torch.from_numpy(frames).permute(0, 1, 4, 2, 3), torch.from_numpy(conditions),
                     torch.from_numpy(index))

    def _start(self, index: int, pass_: int) -> int:
        if self.seed is None:
            return 0
        room = self.pack.frames.shape[1] - self.length + 1
        return int(np.random.default_rng((self.seed, pass_, index + 1)).integers(room))     # + 1: 0 is the order's


@dataclass(frozen=True)
class _TrainingKeys:
    """The keys of each step's batch: a cut through endless passes, each in an order from (seed, pass) alone."""

    count: int
    batch_size: int
    seed: int
    steps: range
    share: slice                                # of each batch, this process's

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        @lru_cache(maxsize=1)
        def order(pass_: int) -> list[int]:
            return np.random.default_rng((self.seed, pass_)).permutation(self.count).tolist()

        for step in self.steps:
            positions = (divmod(step * self.batch_size + b, self.count) for b in range(self.batch_size)[self.share])
            yield [(order(pass_)[place], pass_) for pass_, place in positions]


def training_loader(pack: Pack, length: int, batch_size: int, seed: int, start_step: int, stop_step: int,
                    workers: int = 0, share: slice = slice(None)) -> DataLoader:
    """The batches of steps start_step .. stop_step-1 of an endless stream of passes over the split.

    `share` is the part of each batch that is wanted, where several processes train on one.

    Each pass visits every sequence once. A batch depends on the seed and its step alone, so a run that
    goes on at step s, with any number of workers, sees what an unbroken one sees.
    """
    keys = _TrainingKeys(len(pack), batch_size, seed, range(start_step, stop_step), share)
    return _loader(Windows(pack, length, seed), keys, workers)


def evaluation_loader(pack: Pack, length: int, batch_size: int, limit: int | None = None,
                      workers: int = 0) -> DataLoader:
    """The first frames of every sequence, once and in order; of the first `limit` sequences if that is given.

    The last batch may be smaller.
    """
    order = range(len(pack))[:limit]
    keys = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    return _loader(Windows(pack, length), keys, workers)


def _loader(windows: Windows, keys, workers: int) -> DataLoader:
    # its own generator: a loader that is made anew on resuming must not move torch's global random state
    return DataLoader(windows, batch_sampler=keys, num_workers=workers, collate_fn=_as_it_is,
                      generator=torch.Generator(), pin_memory=torch.cuda.is_available(),
                      worker_init_fn=_let_the_parent_stop)


def _let_the_parent_stop(worker: int) -> None:
    """A terminal's Ctrl-C reaches every process; the training needs its loaders until its step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames of any shape as float32 in [0, 1]. Raises TypeError on another type, lest it divides twice."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}, expected torch.uint8")
    return frames.to(torch.float32) / 255


def condition_statistics(pack: Pack) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float32 of the conditions, the latter at least `LEAST_STD`.

    Raises DataError where the disk has changed one since it was packed.
    """
    rows = pack.all_conditions().astype(np.float64)                                             # (N, T, D)
    return rows.mean(axis=(0, 1)).astype(np.float32), rows.std(axis=(0, 1)).clip(LEAST_STD).astype(np.float32)
