"""What a notebook opens: a run folder with its configuration, data, model and scores.

Every notebook begins with ``lab = open_run(preset, run, data)`` and so works alone and after the others. Loading never
trains: where nothing is trained yet, the error says what to run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from lab5 import checkpoint, evaluation
from lab5.config import Config, preset
from lab5.data import Pack, Windows
from lab5.evaluation import PROTOCOLS, Evaluation, choose_device, choose_precision, evaluate, predict, prior_noise
from lab5.files import SPLITS, expand, home, lock, write_text
from lab5.formats.tree import open_or_pack
from lab5.model import CVAE
from lab5.robot.simulator import simulate
from lab5.training import OnEpoch, Record, read_history, train
from lab5.workbook.show import PROJECT, machine, say

RECORDED = PROJECT / "recorded" / "told"        # the run that comes with the workbook; beside it, "action_free"
SIMULATION_SEED = 1                             # of the simulated set, independent of the training's seed


class NotYet(RuntimeError):
    """Nothing is trained in the run folder yet; says what to run."""


class Parameters(BaseModel, extra="forbid", strict=True):
    """What a notebook's first cell sets. Papermill passes a folder's digits as a number."""

    preset: str
    run: str | int | Path
    data: str | int | Path
    sequence: int = 0


def open_run(preset_name: str, run: str = "", data: str = "", recorded: bool = False, **others: object) -> Run:
    """Open a run folder for a notebook or a command. Raises ValueError on a parameter that cannot be used.

    Args:
        preset_name: one of `config.PRESETS`. A run folder that has a configuration keeps its own.
        run: the run folder; empty: ``runs/<preset>`` in the project. Relative paths start at the project.
        data: the folder that holds ``processed_data``; empty: the one the run was trained on, else the simulated robot.
        recorded: open the recorded run where neither is named and nothing is trained yet, and say so.
        others: a notebook's further parameters, which are only checked.
    """
    try:
        Parameters(preset=preset_name, run=run, data=data, **others)
    except ValidationError as error:
        wrong = (f"{found['loc'][0]} = {found['input']!r}: {found['msg']}" for found in error.errors())
        raise ValueError("; ".join(wrong)) from error
    config, folder = preset(preset_name), PROJECT / expand(run or f"runs/{preset_name}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder for the run")
    if recorded and RECORDED.exists() and not (run or data or (folder / "history.jsonl").exists()):
        folder = copy_recorded("told")
        say(f"*Nothing is trained in `runs/{preset_name}` yet, so this is the recorded run: the weights that come with "
            "the workbook, from an hour of training on the simulated robot. Notebook 04 trains your own.*")
    if (folder / "config.json").exists():
        config = Config.load(folder / "config.json")
    elif (folder / "best.safetensors").exists():                # weights trained elsewhere hold their configuration
        config = checkpoint.load_model(folder / "best.safetensors")[0].config
    data = data or _trained_on(folder)[0]
    return Run(config, folder, PROJECT / expand(data) if data else simulated_root(config))


def copy_recorded(name: str) -> Path:
    """A working copy of a recorded run, so that new figures and scores leave the original unchanged."""
    recorded, folder, best = RECORDED.with_name(name), PROJECT / "runs" / "recorded" / name, "best.safetensors"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{name}.lock")):               # of several notebooks one copies, the others wait
        if not (folder / best).exists() or checkpoint.weights_sha(folder / best) != checkpoint.weights_sha(
                recorded / best):
            shutil.rmtree(folder, ignore_errors=True)
            aside = folder.with_name(f".{name}.{os.getpid()}")
            shutil.copytree(recorded, aside).rename(folder)
    return folder


def recorded_run(name: str, sequences: int = 16) -> Run:
    """A recorded run, "told" or "action_free", on its first test sequences only, which are simulated in seconds."""
    folder = copy_recorded(name)
    config = Config.load(folder / "config.json").replace(sim_test=sequences)
    return Run(config, folder, simulated_root(config))


def _trained_on(run: Path) -> tuple[str, str]:
    """The data of a run, from ``data.json``: their folder, and the training split's data_sha. Empty before training."""
    path = run / "data.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"root": "", "train": ""}
        return str(known["root"]), str(known["train"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: does not say which data the run learns from ({type(error).__name__}: {error}); "
                         "delete it and name the data folder") from error


def _write_or_match_data(run: Path, data: Path, sha: str) -> None:
    """Write ``data.json``. Raises ValueError where the run's training began with other data."""
    root, train_sha = _trained_on(run)
    if read_history(run) and train_sha not in ("", sha):
        raise ValueError(f"{run}: was trained on the data in {root} ({train_sha}), not on those in {data} ({sha}). "
                         "Name that folder, or choose another run folder")
    place = data.relative_to(PROJECT) if data.is_relative_to(PROJECT) else data         # the project may move
    write_text(run / "data.json", json.dumps({"root": place.as_posix(), "train": sha}) + "\n")


def simulated_root(config: Config) -> Path:
    """The folder of the simulated robot's set for this configuration."""
    return PROJECT / "data" / f"simulated-{config.sim_train}-{config.sim_validate}-{config.sim_test}"


@dataclass(frozen=True)
class Run:
    """One run folder, its configuration and its data."""

    config: Config
    folder: Path
    data: Path                                  # holds processed_data or packed

    def pack(self, split: str) -> Pack:
        """Open a split's pack. The simulated robot's sequences are simulated first where they do not exist yet."""
        if self.data == simulated_root(self.config) and not (home(self.data) / "packed" / split).exists():
            counts = {name: getattr(self.config, f"sim_{name}") * (name == split) for name in SPLITS}
            simulate(self.data, **counts, seed=SIMULATION_SEED)
        return open_or_pack(self.data, split)

    def prepare(self) -> dict[str, Pack]:
        """Open all splits, so that a long simulation or data that do not fit are noticed first. Raises DataError."""
        packs = {split: self.pack(split) for split in SPLITS}
        for pack in packs.values():
            evaluation.require_fit(self.config, packs["train"].condition_dim, pack)
        return packs

    @property
    def data_name(self) -> str:
        """The name of the data in a result: the simulated robot, or a data set."""
        return "the simulated robot" if self.pack("test").simulated else f"the data in {self.data.name}"

    def train(self, on_epoch: OnEpoch | None = None, progress: bool = True) -> list[Record]:
        """Train, or resume a run that was interrupted; of a finished run, read the history.

        `on_epoch` is called with history and model after each epoch, and ends the training by returning True. Raises
        NotYet where it would replace weights that were trained elsewhere, and what `training.train` raises.
        """
        if self.only_weights or self.finished:
            return self.history()
        packs = self.prepare()
        _write_or_match_data(self.folder, self.data, packs["train"].data_sha)
        return train(self.config, packs["train"], packs["validate"], self.folder, progress=progress, on_epoch=on_epoch)

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.folder / "best.safetensors").exists() and len(read_history(self.folder)) >= self.config.epochs

    @property
    def only_weights(self) -> bool:
        """Whether the weights were trained elsewhere: they can be scored, and have no history."""
        return (self.folder / "best.safetensors").exists() and not any(
            (self.folder / name).exists() for name in ("history.jsonl", "last.safetensors"))

    def history(self) -> list[Record]:
        """The finished run's history. Raises NotYet where the training is not finished, or was elsewhere."""
        if self.only_weights:
            raise NotYet(f"{self.folder} holds weights that were trained elsewhere (best.safetensors) and no history. "
                         "Notebooks 06, 07 and 09 and `lab5 evaluate` show and score their predictions. To train, for "
                         "curves (05) or to compare settings (08), choose another folder")
        if not self.finished:
            raise NotYet(f"{self.folder} holds no finished training. Run notebook 04, or `lab5 train --preset "
                         f"{self.config.preset} --run {self.folder}`, and open this notebook again")
        return read_history(self.folder)

    def model(self) -> CVAE:
        """The finished run's best weights, in evaluation mode. Raises NotYet where the training is not finished."""
        if not self.only_weights:
            self.history()
        return checkpoint.load_model(self.folder / "best.safetensors")[0].to(choose_device())

    def evaluation(self, split: str = "test", protocols: tuple[str, ...] = tuple(PROTOCOLS), progress: bool = True,
                   **other: int) -> Evaluation:
        """Scores of the best weights on a whole split; computed once and kept in the run folder.

        `other` are `n_future`, `best_of` and `limit` of `evaluate`; such scores have a folder of their own.
        """
        name = "-".join([split, *(f"{name}{value}" for name, value in sorted(other.items()))])
        folder, model, pack = self.folder / "evaluation" / name, self.model(), self.pack(split)
        weights = checkpoint.weights_sha(self.folder / "best.safetensors")
        if (folder / "scores.json").exists():
            found = Evaluation.load(folder)
            same = (found.facts.get("weights"), found.facts.get("data")) == (weights, pack.data_sha)
            if same and set(protocols) <= set(found.psnr):
                return found
        found = evaluate(model, pack, protocols=protocols, progress=progress, weights=weights, **other)
        found.save(folder)
        return found

    def samples(self, index: int, count: int, split: str = "test", model: CVAE | None = None) -> torch.Tensor:
        """One sequence's future, sampled: float32 (n_future, count, C, H, W) in [0, 1]; the graded sample is first.

        Predicted by `model`; by default with the run's best weights.
        """
        model, pack = model or self.model(), self.pack(split)
        if not 0 <= index < len(pack):
            raise ValueError(f"there is no sequence {index} in {split}: they are 0 to {len(pack) - 1}")
        batch, steps = Windows(pack, model.config.length).__getitems__([index] * count), model.config.length - 1
        noise = [prior_noise(len(pack), steps, model.noise_size, 1, number)[:, [index]] for number in range(count)]
        return predict(model, batch.frames, batch.condition, torch.cat(noise, dim=1)).cpu()

    def videos(self, index: int, samples: int = 1, split: str = "test",
               model: CVAE | None = None) -> dict[str, np.ndarray]:
        """One sequence and its `samples`, for figures: uint8 (T, H, W, C) each, context frames included.

        "truth", then "prediction" (the sample that is graded) and "sample 2", "sample 3", ...
        """
        futures = self.samples(index, samples, split, model).unbind(dim=1)
        truth = as_pictures(Windows(self.pack(split), self.config.length)[index].frames[:, 0])
        return {"truth": truth, **{f"sample {number}" if number > 1 else "prediction": np.concatenate(
            [truth[:self.config.n_past], as_pictures(future)]) for number, future in enumerate(futures, 1)}}

    def variant(self, **changes) -> Run:
        """A run inside this run's folder, on the same data, with some settings changed; equal settings are one run."""
        config = self.config.replace(**changes)
        return Run(config, self.folder / "variants" / config.hash, self.data)

    def facts(self) -> dict[str, str]:
        """What a result depends on: the run, its configuration and data, the machine, and versions."""
        pack = self.pack("test")
        return {"run": self.folder.name, "configuration": self.config.hash, "preset": self.config.preset,
                "seed": str(self.config.seed), "data": self.data_name, "test split": pack.data_sha,
                "test sequences": str(len(pack)), "machine": machine(),
                "precision": choose_precision(self.config.precision, choose_device()),
                "torch": version("torch"), "lab5": version("lab5"), "Python": platform.python_version()}


def as_pictures(frames: torch.Tensor) -> np.ndarray:
    """Frames (T, C, H, W), uint8 or in [0, 1], as uint8 pictures (T, H, W, C)."""
    if frames.is_floating_point():
        frames = (frames * 255).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 1).cpu().numpy()
