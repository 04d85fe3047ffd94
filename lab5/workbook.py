"""What a notebook opens: the configuration, the data, the run folder with its model and scores, and the figures.

Every notebook begins with `book = open_book(preset, run, data)` and so works alone and in the chain: what
an earlier notebook made is found in the run folder, what is missing is made where that takes minutes, and
otherwise the error says which notebook to run.
"""

from __future__ import annotations

import base64
import html
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from lab5 import checkpoint, figures, live
from lab5.config import Config, preset
from lab5.data import SPLITS, Pack, Windows, open_pack
from lab5.evaluation import PROTOCOLS, Evaluation, choose_device, choose_precision, evaluate, predict, prior_noise
from lab5.files import write_text
from lab5.model import CVAE
from lab5.processes import cores
from lab5.simulator import simulate
from lab5.training import OnEpoch, Record, alone, claim, read_history, train

PROJECT = Path(__file__).resolve().parents[1]
RECORDED = PROJECT / "recorded" / "standard"    # the run that comes with the workbook
TRAINED_ON_DEMAND = ("smoke", "quick")          # presets that a later notebook trains by itself
GIF_SCALE = 3                                   # four panels fit a notebook's column
SIMULATION_SEED = 1                             # the simulated set is one, whatever the training's seed


class NotYet(RuntimeError):
    """Something that an earlier notebook makes is not there; says which to run."""


def open_book(preset_name: str, run: str = "", data: str = "", recorded: bool = False) -> Workbook:
    """Open a run folder for a notebook or a command.

    Args:
        preset_name: smoke, quick, standard or full. A run folder that has a configuration keeps its own.
        run: the run folder; empty: ``runs/<preset>`` in the project. Relative paths start at the project.
        data: the folder that holds ``processed_data``; empty: the one the run was trained on, else the simulated robot.
        recorded: where neither is named and nothing is trained yet, open the recorded run instead, and say so.
    Raises:
        ValueError: unknown preset, a run that is a file, or a configuration that cannot be read.
    """
    config = preset(preset_name)
    folder = _in_project(run or f"runs/{preset_name}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder for the run")
    if recorded and RECORDED.exists() and not (run or data or (folder / "history.jsonl").exists()):
        folder = recorded_run()
        display(Markdown(f"*Nothing is trained in `runs/{preset_name}` yet, so this is the recorded run: the weights "
                         "that come with the workbook, two hours of training on the simulated robot. Notebook 04 "
                         "trains your own.*"))
    if (folder / "config.json").exists():
        config = Config.load(folder / "config.json")
    elif (folder / "best.safetensors").exists():                # weights from elsewhere bring their configuration
        config = checkpoint.load_model(folder / "best.safetensors")[0].config
    return Workbook(config, folder, _data_root(config, folder, data))


def recorded_run() -> Path:
    """A working copy of the run that comes with the workbook, so that what is made of it leaves the original alone."""
    folder = PROJECT / "runs" / "recorded"
    weights = [checkpoint.digest(home / "best.safetensors") for home in (RECORDED, folder)
               if (home / "best.safetensors").exists()]
    if len(set(weights)) != 1 or len(weights) != 2:
        part = folder.with_name(f".{folder.name}")
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(RECORDED, part)
        part.rename(folder)
    return folder


def _data_root(config: Config, run: Path, data: str) -> Path:
    known = _known_data(run)
    return _in_project(data or known["root"]) if data or known else simulated_root(config)


def _in_project(path: object) -> Path:
    """A path as somebody writes it: from the project or from their home; papermill makes a number of digits."""
    return PROJECT / Path(str(path)).expanduser()


def _known_data(run: Path) -> dict[str, str]:
    """What a run folder notes of its data: "root", its folder, and "train", the fingerprint; empty before training."""
    path = run / "data.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known and not all(isinstance(known[name], str) for name in ("root", "train")):
            raise ValueError(f"found {known}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: does not say which data the run learns from ({error}); delete it and name their "
                         "folder") from error
    return known


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
            simulate(self.data, **{name: getattr(self.config, f"sim_{name}") if name == split else 0
                                   for name in SPLITS}, seed=SIMULATION_SEED)
        return open_pack(self.data, split)

    def prepare(self) -> None:
        """Have all splits simulated and packed now, where progress can be seen and before several processes ask."""
        for split in ("train", "validate", "test"):
            self.pack(split)

    @property
    def data_name(self) -> str:
        """What results are to be called: on the simulated robot, or on a real data set."""
        return "the simulated robot" if self.pack("test").simulated else f"the data in {self.data.name}"

    # ---- the model ----

    def train(self, on_epoch: OnEpoch | None = None, progress: bool = True) -> list[Record]:
        """Train, go on with a run that was cut off, or just read the history of a finished one.

        `on_epoch` is called with history and model after each epoch, and ends the training by returning True; where
        nothing is left to train it is called once, with the best weights.
        Raises NotYet in a folder that holds nothing but weights, which training would overwrite.
        """
        self.refuse_only_weights()
        history = read_history(self.run)
        if len(history) == self.config.epochs and (self.run / "best.safetensors").exists():
            if on_epoch:
                on_epoch(history, self.model())
            return history
        train_pack, validate_pack = self.pack("train"), self.pack("validate")
        self._claim_data(train_pack)
        return train(self.config, train_pack, validate_pack, self.run, progress=progress, on_epoch=on_epoch)

    def _claim_data(self, pack: Pack) -> None:
        """Note which data the run learns from. Raises ValueError where it has begun with other data."""
        known = _known_data(self.run)
        if read_history(self.run) and known.get("train", pack.fingerprint) != pack.fingerprint:
            raise ValueError(f"{self.run}: was trained on the data in {known['root']} ({known['train']}), not on those "
                             f"in {self.data} ({pack.fingerprint}). Name that folder, or choose another run folder")
        root = self.data.relative_to(PROJECT) if self.data.is_relative_to(PROJECT) else self.data     # it may move
        write_text(self.run / "data.json", json.dumps({"root": root.as_posix(), "train": pack.fingerprint}) + "\n")

    def start(self) -> None:
        """Train in a process of its own, which goes on when this kernel, JupyterLab or the connection ends.

        `watch` follows it. Raises training.Busy where another process trains this run, and what `train` raises.
        """
        self.prepare()
        with alone(self.run):
            claim(self.run, self.config)
        log = self.run / "train.log"
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab5.cli", "train", "--preset", self.config.preset, "--run", str(self.run),
                 "--data", str(self.data)], stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=PROJECT,
                start_new_session=True, env=os.environ | {"TQDM_MININTERVAL": "60"})         # a log of bounded length
        self.say(f"Process {process.pid} trains `{self.run.name}`, and needs neither this kernel nor JupyterLab any "
                 f"more. `book.watch()` follows it, here or in another notebook; `kill {process.pid}` stops it, and "
                 f"it saves first. What it says is in `{log.name}` of the run folder.")

    def refuse_only_weights(self) -> None:
        """Raise NotYet in a folder whose weights were trained elsewhere: what needs a training cannot be had there."""
        if self.only_weights:
            raise NotYet(f"{self.run} holds weights from elsewhere (best.safetensors), no history of their training. "
                         "Notebooks 06, 07 and 09 and `lab5 evaluate` show and score what they predict; to train, for "
                         "curves (05) or to compare settings (08), choose another folder")

    @property
    def only_weights(self) -> bool:
        """A folder with a best.safetensors that was trained elsewhere: good for scoring, without history."""
        return (self.run / "best.safetensors").exists() and not any(
            (self.run / name).exists() for name in ("history.jsonl", "last.safetensors"))

    def history(self) -> list[Record]:
        """The finished run's history. Presets of minutes are trained on the spot; else NotYet is raised."""
        self.refuse_only_weights()
        if len(read_history(self.run)) < self.config.epochs and self.config.preset not in TRAINED_ON_DEMAND:
            raise NotYet(f"{self.run} holds no finished training; run notebook 04, or `lab5 train --preset "
                         f"{self.config.preset} --run {self.run}`, and open this notebook again")
        return self.train()

    def model(self) -> CVAE:
        """The run's best weights, ready to predict."""
        if not self.only_weights:
            self.history()
        model, _ = checkpoint.load_model(self.run / "best.safetensors")
        return model.to(choose_device())

    def evaluation(self, split: str = "test", protocols: tuple[str, ...] = tuple(PROTOCOLS)) -> Evaluation:
        """Scores of the best weights on a whole split; computed once and kept in the run folder."""
        folder = self.run / "evaluation" / split
        pack, model = self.pack(split), self.model()
        weights = checkpoint.digest(self.run / "best.safetensors")
        if (folder / "steps.npz").exists():
            found = Evaluation.load(folder)
            if (found.facts.get("weights"), found.facts.get("data")) == (weights, pack.fingerprint) and (
                    set(protocols) <= set(found.psnr)):
                return found
        found = evaluate(model, pack, protocols=protocols, weights=weights)
        found.save(folder)
        return found

    def baseline(self, split: str) -> float:
        """Average PSNR in dB of holding the last context frame over a split."""
        return evaluate(self.model(), self.pack(split), protocols=("hold",), progress=False).average("hold")[0]

    def videos(self, index: int, samples: int = 1, split: str = "test",
               model: CVAE | None = None) -> dict[str, np.ndarray]:
        """One sequence and its predicted futures, for figures: uint8 (T, H, W, C) each, context frames included.

        "truth", then "prediction" (the sample that is graded) and "sample 2", "sample 3", ...
        They are predicted by `model`; by default with the run's best weights.
        """
        model, pack = model or self.model(), self.pack(split)
        config = model.config
        batch = Windows(pack, config.length).__getitems__([index])
        steps = config.length - 1
        noise = torch.cat([prior_noise(len(pack), steps, model.noise_size, seed=1, sample=sample)[:, [index]]
                           for sample in range(samples)], dim=1)
        context = batch.frames[:, 0].permute(0, 2, 3, 1).numpy()
        futures = predict(model, batch.frames.expand(-1, samples, -1, -1, -1),
                          batch.condition.expand(-1, samples, -1), noise)
        futures = (futures * 255).round().to(torch.uint8).permute(1, 0, 3, 4, 2).cpu().numpy()     # (S, T', H, W, C)
        names = ["prediction", *(f"sample {number}" for number in range(2, samples + 1))]
        return {"truth": context} | {name: np.concatenate([context[:config.n_past], future])
                                     for name, future in zip(names, futures, strict=True)}

    def variant(self, **changes) -> Workbook:
        """A run beside this one, on the same data, with some settings changed; equal settings are one run."""
        config = self.config.replace(**changes)
        return Workbook(config, self.run / "variants" / config.hash, self.data)

    # ---- what the report shows ----

    def show(self, figure: Figure, name: str, caption: str) -> None:
        """Export a figure as PDF and PNG under its name, and show it with its caption."""
        _, png = figures.save(figure, self.run / "figures", name)
        width = round(96 * figure.get_figwidth() * 1.15)
        display(Image(data=png.read_bytes(), width=width, alt=caption), metadata={"lab5": {"figure": name}})
        display(Markdown(f"*{caption}*"))

    def show_gif(self, videos: dict[str, np.ndarray], name: str, caption: str) -> None:
        """Export videos side by side as a GIF under a name, and show it with its caption."""
        path = figures.gif(self.run / "figures" / f"{name}.gif", videos, n_past=self.config.n_past, scale=GIF_SCALE)
        encoded = base64.b64encode(path.read_bytes()).decode()
        display({"text/html": f'<img src="data:image/gif;base64,{encoded}" alt="{html.escape(caption)}">',
                 "text/plain": f"(Here {path.name} plays.)"}, raw=True,    # nbconvert and GitHub know no image/gif
                metadata={"lab5": {"figure": path.name}})
        display(Markdown(f"*{caption}*"))

    def live(self) -> live.View:
        """Curves, a prediction and a stop button for a training: ``with book.live() as view: book.train(view)``."""
        return live.View(self.config, self.run, partial(self.videos, 0, split="validate"))

    def watch(self) -> None:
        """Draw the curves of a run that is trained elsewhere, until it is finished or this kernel is interrupted."""
        live.watch(self.run)

    def say(self, text: str) -> None:
        """Show a sentence whose numbers were computed."""
        display(Markdown(text))

    def provenance(self) -> str:
        """Run, configuration, seed, data, machine and versions in one line, to stand under a result."""
        facts = self.facts()
        return (f"Run `{self.run.name}`, configuration `{facts['configuration']}` (preset {facts['preset']}), "
                f"seed {facts['seed']}; {facts['data']}, test split `{facts['test split']}` of "
                f"{facts['test sequences']} sequences; {facts['machine']}, {facts['precision']}; "
                f"torch {facts['torch']}, lab5 {facts['lab5']}, Python {facts['Python']}.")

    def facts(self) -> dict[str, str]:
        """What a result rests on: the run, its configuration and data, the machine, and the versions at work."""
        pack, device = self.pack("test"), choose_device()
        source = "simulated robot" if pack.simulated else f"data set in {self.data.name}"
        return {"run": self.run.name, "configuration": self.config.hash, "preset": self.config.preset,
                "seed": str(self.config.seed), "data": source, "test split": pack.fingerprint,
                "test sequences": str(len(pack)), "machine": machine(),
                "precision": choose_precision(self.config.precision, device), "commit": commit(),
                **{name: version(name) for name in ("torch", "torchvision", "numpy", "matplotlib", "lab5")},
                "Python": platform.python_version()}


def source(*objects: object) -> None:
    """Show the package's own code, so that what a notebook prints is what runs."""
    for item in objects:
        display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(item))}```"))


def table(*columns: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table for `say`: the headings of its columns, then a sequence of cells a row."""
    lines = [[str(cell) for cell in line] for line in (columns, *rows)]
    rule = [":" + "-" * max(2, *map(len, column)) for column in zip(*lines, strict=True)]      # widths on paper
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def check_environment() -> None:
    """Show a line for everything that the workbook needs: [OK] or [FAIL] with the way out."""
    packages = [requirement for requirement in requires("lab5") or [] if "extra ==" not in requirement]
    lines = []
    for requirement in packages:
        name = re.split(r"[<>=!~ ;]", requirement, maxsplit=1)[0]
        try:
            lines.append(f"[OK]   {name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"[FAIL] {requirement} is not installed: pip install '{requirement}'")
    free = shutil.disk_usage(PROJECT).free / 2 ** 30
    lines.append(f"[{'OK' if free > 2 else 'FAIL'}]   {free:.0f} GiB free on the disk of {PROJECT.name}/"
                 + ("" if free > 2 else ": a run and its data need 2; make room"))
    lines.append(f"[OK]   {machine()}; computing in {choose_precision('auto', choose_device())}")
    print("\n".join(lines))


def commit() -> str:
    """The commit of the source at work, marked where files were changed since; empty outside of a repository."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True).stdout.strip()

    if not (PROJECT / ".git").exists() or not shutil.which("git"):
        return ""
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain", "lab5") else "")


def machine() -> str:
    """The machine in words: processor, cores, and the accelerator if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines()
                     if line.startswith("model name")), name)
    return f"{name}, {cores()} cores"
