"""How a sequence is written into the lab's tree; without torch, so that the simulator's processes start fast."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

TABLES = {"actions.csv": 4, "endeffector_positions.csv": 3}     # columns of each; side by side they are a condition
SIMULATION = "simulation.json"                  # in processed_data, written by the simulator


def write_sequence(folder: Path, frames: np.ndarray, conditions: np.ndarray, number: str = "%.9g") -> None:
    """Write frames (T, 64, 64, 3) uint8 and conditions (T, 7), or (T, 0) for no tables, as a sequence of the tree.

    They are written under another name that is changed at the end, so that a folder of the right name is whole.
    """
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)                    # left by a killed call
    aside.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(aside / f"{t}.png", compress_level=1)
    if conditions.shape[1]:
        for table, columns in zip(TABLES, np.split(conditions, [4], axis=1), strict=True):
            np.savetxt(aside / table, columns, fmt=number, delimiter=",")
    os.replace(aside, folder)
