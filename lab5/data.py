"""The data: packs, the windows cut from them, and the batches.

A pack is a split decoded once into two arrays, ``packed/<split>/{frames,conditions}.npy``, memory mapped: a set larger
than memory is read page by page. `lab5.formats` writes packs, from the lab's tree or other layouts. Axes on disk are
(N, T, H, W, C) for N sequences of T frames; a batch has the model's order, (T, B, C, H, W).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_convert

from lab5.config import Config
from lab5.files import DataError, home

FRAME_SIZE = 64                                 # pixels, height and width
ARRAYS = "frames", "conditions"                 # of a pack
LEAST_STD = 1e-3                                # a column that varies less counts as constant


@dataclass(frozen=True, eq=False)
class Pack:
    """One split, memory-mapped and read only. Another process receives its folder, not its content."""

    name: str                                   # the split
    frames: np.ndarray                          # (N, T, 64, 64, 3) uint8
    conditions: np.ndarray                      # (N, T, D) float32, D = 7: action 4, position 3; or 0: action-free
    names: list[str]                            # such as "traj_0_to_255.tfrecords/0"
    data_sha: str                               # 12 hex digits of the content's SHA-256, the same on every machine
    simulated: bool                             # the simulated robot, not BAIR

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def condition_dim(self) -> int:
        """D, the numbers in a frame's condition."""
        return self.conditions.shape[-1]

    def __reduce__(self):
        return _open, (Path(self.frames.filename).parent,)

    def shas(self) -> dict[Path, str]:
        """The SHA-256 that each of its two files had when it was written."""
        folder = Path(self.frames.filename).parent
        record = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        return {folder / f"{name}.npy": record[f"{name}_sha256"] for name in ARRAYS}


def _open(folder: Path) -> Pack:
    try:
        record = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        frames, conditions = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r") for name in ARRAYS)
        names, shas = record["names"], [record[f"{name}_sha256"] for name in ARRAYS]
        found, N, T = (frames.shape, conditions.shape[:2]), len(names), frames.shape[1]
        expected = (N, T, FRAME_SIZE, FRAME_SIZE, 3), (N, T)
        if found != expected:
            raise ValueError(f"shapes {found}, expected {expected}")
    except Exception as error:                  # json and numpy have a dozen kinds for damaged files
        raise DataError(f"{folder}: cannot be used ({type(error).__name__}: {error}). `lab5 pack "
                        f"{folder.parent.parent}` regenerates it") from error
    data_sha = hashlib.sha256("\n".join([*shas, *names]).encode()).hexdigest()[:12]
    return Pack(folder.name, frames, conditions, names, data_sha, bool(record["simulated"]))


def open_pack(root: str | Path, split: str) -> Pack:
    """Open a split's pack, without touching a sequence. Raises DataError where there is none, or a damaged one."""
    folder = home(root) / "packed" / split
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such pack; `lab5 pack {home(root)}` makes it from processed_data")
    return _open(folder)


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of B sequences. In memory the frames' channels come last, so `flatten(0, 1)` copies nothing."""

    frames: torch.Tensor                        # (T, B, C, H, W) uint8
    condition: torch.Tensor                     # (T, B, D) float32
    index: torch.Tensor                         # (B,) int64, which sequences of the split

    def pin_memory(self) -> Batch:
        """Called by the loader where there is a GPU: copies from pinned memory run beside the computation."""
        return Batch(self.frames.pin_memory(), self.condition.pin_memory(), self.index)


class Windows(Dataset):
    """Windows of `length` frames, one of each sequence of a pack; no longer than these (`evaluation.require_fit`).

    Without a seed the first frames (evaluation). With one a random window that depends only on (seed, pass, index),
    not on the worker that draws it, and starts at a multiple of `stride` frames.
    """

    def __init__(self, pack: Pack, length: int, seed: int | None = None, stride: int = 1) -> None:
        self.pack, self.length, self.seed, self.stride = pack, length, seed, stride

    def __len__(self) -> int:
        return len(self.pack)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """The window of one sequence, `key` being index or (index, pass), as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """The windows of several keys, in their order. Raises IndexError where there is no such sequence."""
        pairs = [key if isinstance(key, tuple) else (key, 0) for key in keys]
        index = np.array([index for index, _ in pairs], dtype=np.int64)
        times = np.array([self._start(*pair) for pair in pairs]) + np.arange(self.length)[:, None]      # (T, B)
        frames, conditions = (torch.from_numpy(np.asarray(array[index, times])) for array in (
            self.pack.frames, self.pack.conditions))
        return Batch(frames.permute(0, 1, 4, 2, 3), conditions, torch.from_numpy(index))

    def _start(self, index: int, pass_: int) -> int:
        if self.seed is None:
            return 0
        starts = range(0, self.pack.frames.shape[1] - self.length + 1, self.stride)
        rng = np.random.default_rng((self.seed, pass_, index + 1))              # index + 1, since 0 is the order's
        return starts[rng.integers(len(starts))]


def _training_keys(config: Config, count: int, steps: range, share: slice) -> Iterator[list[tuple[int, int]]]:
    """The keys of each step's batch: consecutive parts of endless passes, each in an order from (seed, pass) alone."""
    @lru_cache(maxsize=1)
    def order(pass_: int) -> list[int]:
        return np.random.default_rng((config.seed, pass_)).permutation(count).tolist()

    for step in steps:
        batch = range(step * config.batch_size, (step + 1) * config.batch_size)
        positions = (divmod(position, count) for position in batch[share])
        yield [(order(pass_)[place], pass_) for pass_, place in positions]


def training_loader(pack: Pack, config: Config, steps: range, share: slice = slice(None)) -> DataLoader:
    """The batches of the given steps of an endless stream of passes over the split, each visiting every sequence once.

    A batch depends on the seed and its step alone, so a run that resumes at step s sees what an unbroken one sees.
    `share` is the part of each batch that is wanted, where several processes share one.
    """
    keys = _training_keys(config, len(pack), steps, share)
    return _loader(Windows(pack, config.length, config.seed, 2 if config.even_starts else 1), keys)


def evaluation_loader(pack: Pack, length: int, batch_size: int, limit: int | None = None) -> DataLoader:
    """The first frames of every sequence (of the first `limit`), once and in order; the last batch may be smaller."""
    order = range(len(pack))[:limit]
    keys = [order[first:first + batch_size] for first in range(0, len(order), batch_size)]
    return _loader(Windows(pack, length), keys)


def _loader(windows: Windows, keys) -> DataLoader:
    """Without loader processes: a batch is copied from a memory map, in milliseconds (`docs/devices.md`)."""
    # a generator of its own: making a loader must not change torch's global random state
    return DataLoader(windows, batch_sampler=keys, collate_fn=default_convert, generator=torch.Generator(),
                      pin_memory=torch.cuda.is_available())


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames of any shape as float32 in [0, 1]. Raises TypeError on another type, so that none divides twice."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}, expected torch.uint8")
    return frames.to(torch.float32) / 255


def condition_statistics(pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) float32 of the conditions, the latter at least `LEAST_STD`."""
    rows = pack.conditions.astype(np.float64)                                                   # (N, T, D)
    mean, std = rows.mean(axis=(0, 1)), rows.std(axis=(0, 1)).clip(LEAST_STD)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))
