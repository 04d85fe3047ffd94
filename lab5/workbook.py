"""What a notebook opens: the configuration, the data, the run folder with its model and scores, and the figures.

Every notebook begins with `book = open_book(preset, run, data)` and so works alone and in the chain: what
an earlier notebook made is found in the run folder, what is missing is made where that takes minutes, and
otherwise the error says which notebook to run.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from lab5 import checkpoint, figures
from lab5.config import Config, preset
from lab5.data import Pack, open_pack
from lab5.evaluation import Evaluation, choose_device, choose_precision, evaluate
from lab5.model import CVAE
from lab5.simulator import simulate
from lab5.training import Record, read_history, train

PROJECT = Path(__file__).resolve().parents[1]
TRAINED_ON_DEMAND = ("smoke", "quick")          # presets that a later notebook trains by itself
SIMULATION_SEED = 1                             # the simulated set is one, whatever the training's seed


class NotYet(RuntimeError):
    """Something that an earlier notebook makes is not there; says which to run."""


def open_book(preset_name: str, run: str = "", data: str = "") -> Workbook:
    """Open a run folder for a notebook or a command.

    Args:
        preset_name: smoke, quick, standard or full. A run folder that has a configuration keeps its own.
        run: the run folder; empty: ``runs/<preset>`` in the project. Relative paths start at the project.
        data: the folder that holds ``processed_data``; empty: the one the run was trained on, else the simulated robot.
    Raises:
        ValueError: unknown preset, or a configuration that cannot be read.
    """
    config = preset(preset_name)
    folder = PROJECT / (run or f"runs/{preset_name}")
    if (folder / "config.json").exists():
        config = Config.load(folder / "config.json")
    return Workbook(config, folder, _data_root(config, folder, data))


def _data_root(config: Config, run: Path, data: str) -> Path:
    recorded = run / "data.json"
    if data:
        return PROJECT / data
    if recorded.exists():
        return Path(json.loads(recorded.read_text(encoding="utf-8"))["root"])
    return simulated_root(config)


def simulated_root(config: Config) -> Path:
    """Where the simulated robot's set for this configuration lies."""
    return PROJECT / "data" / f"simulated-{config.sim_train}-{config.sim_validate}-{config.sim_test}"


@dataclass(frozen=True)
class Workbook:
    """One run folder, its configuration and its data."""

    config: Config
    run: Path
    data: Path

    # ---- data ----

    def pack(self, split: str) -> Pack:
        """A split of the data, packed; the simulated robot moves first if it has not yet."""
        if self.data == simulated_root(self.config):
            config = self.config
            simulate(self.data, config.sim_train, config.sim_validate, config.sim_test, seed=SIMULATION_SEED)
        return open_pack(self.data, split)

    @property
    def data_name(self) -> str:
        """What results are to be called: on the simulated robot, or on a real data set."""
        return "the simulated robot" if self.pack("test").simulated else f"the data in {self.data.name}"

    # ---- the model ----

    def train(self, on_epoch=None) -> list[Record]:
        """Train, go on with a run that was cut off, or just read the history of a finished one."""
        history = read_history(self.run)
        if len(history) == self.config.epochs and (self.run / "best.safetensors").exists():
            return history
        train_pack, validate_pack = self.pack("train"), self.pack("validate")
        checkpoint.write_atomically(self.run / "data.json", lambda path: path.write_text(
            json.dumps({"root": str(self.data), "train": train_pack.fingerprint}) + "\n", encoding="utf-8"))
        return train(self.config, train_pack, validate_pack, self.run, on_epoch=on_epoch)

    def history(self) -> list[Record]:
        """The finished run's history. Presets of minutes are trained on the spot; else NotYet is raised."""
        if len(read_history(self.run)) < self.config.epochs and self.config.preset not in TRAINED_ON_DEMAND:
            raise NotYet(f"{self.run} holds no finished training; run notebook 04, or `lab5 train --preset "
                         f"{self.config.preset} --run {self.run}`, and open this notebook again")
        return self.train()

    def model(self) -> CVAE:
        """The run's best weights, ready to predict."""
        self.history()
        model, _ = checkpoint.load_model(self.run / "best.safetensors")
        return model.to(choose_device())

    def evaluation(self, split: str = "test") -> Evaluation:
        """Scores of the best weights on a whole split; computed once and kept in the run folder."""
        folder = self.run / "evaluation" / split
        pack, model = self.pack(split), self.model()
        weights = checkpoint.digest(self.run / "best.safetensors")
        if (folder / "steps.npz").exists():
            found = Evaluation.load(folder)
            if (found.facts["weights"], found.facts["data"]) == (weights, pack.fingerprint):
                return found
        found = evaluate(model, pack, weights=weights)
        found.save(folder)
        return found

    def variant(self, name: str, **changes) -> Workbook:
        """A run beside this one, on the same data, with some settings changed."""
        return Workbook(self.config.replace(**changes), self.run / "variants" / name, self.data)

    # ---- what the report shows ----

    def show(self, figure: Figure, name: str, caption: str) -> None:
        """Export a figure as PDF and PNG under its name, and show it with its caption."""
        _, png = figures.save(figure, self.run / "figures", name)
        width = round(96 * figure.get_figwidth() * 1.15)
        display(Image(data=png.read_bytes(), width=width, alt=caption), Markdown(f"*{caption}*"))

    def say(self, text: str) -> None:
        """Show a sentence whose numbers were computed."""
        display(Markdown(text))

    def provenance(self) -> str:
        """Run, configuration, seed, data, machine and versions in one line, to stand under a result."""
        device = choose_device()
        pack = self.pack("test")
        source = "simulated robot" if pack.simulated else f"data set in {self.data.name}"
        return (f"Run `{self.run.name}`, configuration `{self.config.hash}` (preset {self.config.preset}), "
                f"seed {self.config.seed}; {source}, test split `{pack.fingerprint}` of {len(pack)} sequences; "
                f"{machine()}, {choose_precision(self.config.precision, device)}; "
                f"torch {version('torch')}, lab5 {version('lab5')}, Python {platform.python_version()}.")


def machine() -> str:
    """The machine in words: processor, cores, and the accelerator if there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines()
                     if line.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
