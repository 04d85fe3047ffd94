"""What training and evaluation cost as the work grows, one axis at a time: `python -m benchmarks.scaling`.

Every point runs in a process of its own, so that its peak memory is its own; the arithmetic is counted, not
estimated. The points go to `scaling.csv`, which `scaling.png` is drawn from.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.measures import fastest
from lab5.config import Config, preset
from lab5.evaluation import autocast, choose_device, choose_precision, evaluate
from lab5.files import cores, tune_malloc
from lab5.formats.tree import open_or_pack
from lab5.model import CVAE, negative_elbo
from lab5.robot.simulator import simulate
from lab5.training import read_history
from lab5.workbook import figures
from lab5.workbook.show import machine

HERE = Path(__file__).parent
COLUMNS = ("axis", "value", "teacher_forcing", "sequences_per_second", "gflop_per_sequence", "peak_mb")
AXES = {                                        # what grows, and what the point is one of
    "batch": ("batch size", (2, 4, 8, 16, 32, 64)),
    "frames": ("frames of a window", (4, 8, 12, 20, 30)),
    "width": ("width of the model", (4, 8, 16, 32, 64)),
    "samples": ("samples, best of N", (1, 3, 10, 30, 100)),
    "processes": ("processes, one thread each", (1, 2)),
}
Point = dict[str, str]


def alone(function, *arguments):
    """The result of a function that runs in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def training(config: Config, forced: bool) -> tuple[float, float, float]:
    """Sequences a second of forward and backward passes, GFLOP a sequence, and the peak memory in MB."""
    tune_malloc()
    device = choose_device()
    precision = choose_precision(config.precision, device)
    model = CVAE(config, 7).to(device, memory_format=torch.channels_last).train()
    B, T = config.batch_size, config.length
    batch = (torch.rand(T, B, 3, 64, 64, device=device), torch.randn(T, B, 7, device=device),
             torch.randn(T - 1, B, config.z_dim, device=device), [forced] * (T - 1))

    def step() -> None:
        with autocast(precision, device):
            terms = model.elbo_terms(*batch)
        negative_elbo(config, terms, 1.0).backward()
        model.zero_grad(set_to_none=True)

    seconds, = fastest(step, repeats=3)
    with FlopCounterMode(display=False) as counted:
        step()
    return B / seconds, counted.get_total_flops() / B / 1e9, peak()


def best_of(root: Path, config: Config, samples: int) -> tuple[float, float, float]:
    """Sequences a second of an evaluation, PSNR and SSIM included, and the peak memory in MB."""
    pack, model = open_or_pack(root, "test", progress=False), CVAE(config, 7).to(choose_device()).eval()
    evaluate(model, pack, protocols=("best_of_n",), best_of=1, progress=False)
    started = time.perf_counter()
    evaluate(model, pack, protocols=("best_of_n",), best_of=samples, progress=False)
    return len(pack) / (time.perf_counter() - started), float("nan"), peak()


def together(root: Path, processes: int, epochs: int = 3) -> tuple[float, float, float]:
    """Sequences a second of training in several processes: the fastest epoch after the first."""
    with tempfile.TemporaryDirectory() as run, mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        settings = (f"epochs={epochs}", "batches_per_epoch=40", "validate_every=100", "validate_sequences=1")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
                   "-m", "--", "lab5.cli", "train", "--preset", "quick", "--data", str(root), "--run", run]
        subprocess.run([*command, *(part for setting in settings for part in ("--set", setting))], check=True)
        rates = [record["sequences_per_second"] for record in read_history(Path(run))]
    return max(rates[1:]), float("nan"), float("nan")


def peak() -> float:
    """Most memory that this process ever held, in MB: the accelerator's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(root: Path) -> Iterator[Point]:
    """All points, each as soon as it is measured."""
    quick = preset("quick")
    changes = {"batch": lambda v: {"batch_size": v}, "frames": lambda v: {"n_future": v - 2},
               "width": lambda v: {"width": v}}

    def point(axis: str, value: int, forced: bool | str, measured: tuple[float, float, float]) -> Point:
        cells = axis, str(value), str(forced), *(f"{number:.4g}" for number in measured)
        return dict(zip(COLUMNS, cells, strict=True))

    todo = [(axis, value) for axis, (_, values) in AXES.items() for value in values]
    for axis, value in tqdm(todo, unit="point"):
        if axis in changes:
            for forced in (True, False):
                yield point(axis, value, forced, alone(training, quick.replace(**changes[axis](value)), forced))
        elif axis == "samples":
            yield point(axis, value, "", alone(best_of, root, quick, value))
        elif value <= cores():
            yield point(axis, value, "", together(root, value))


@figures.styled
def draw(points: list[Point]) -> Figure:
    """A panel an axis, and one of the memory that they take."""
    figure = Figure(figsize=(figures.WIDTH, 4.1), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, (axis, (label, values)) in zip(panels, AXES.items(), strict=False):
        mine = [point for point in points if point["axis"] == axis]
        for forced, colour, name in (("True", figures.NAVY, "teacher forcing"), ("False", figures.VERMILION, "none"),
                                     ("", figures.TEAL, "")):
            line = [(float(p["value"]), float(p["sequences_per_second"])) for p in mine
                    if p["teacher_forcing"] == forced]
            if line:
                axes.plot(*zip(*line, strict=True), "o-", color=colour, label=name)
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="sequences/s")
        axes.set_xticks([float(p) for p in values], values)
        axes.minorticks_off()
        axes.margins(y=0.25)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    memory = figure.axes[5]
    for axis, colour in (("batch", figures.NAVY), ("frames", figures.TEAL), ("width", figures.VERMILION),
                         ("samples", figures.MAUVE)):
        mine = [p for p in points if p["axis"] == axis and p["teacher_forcing"] != "True"]
        first = float(mine[0]["value"])
        memory.plot([float(p["value"]) / first for p in mine], [float(p["peak_mb"]) / 1024 for p in mine], "o-",
                    color=colour, label=AXES[axis][0])
    memory.set(xscale="log", xlabel="times the least value", ylabel="peak memory [GiB]", ylim=(0, None))
    memory.set_xticks([1, 3, 10, 30, 100], [1, 3, 10, 30, 100])
    memory.minorticks_off()
    memory.legend(loc="lower right", fontsize=6, labelspacing=0.3, borderpad=0)
    figure.axes[0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE, help="folder for scaling.csv and scaling.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        simulate(root, 64, 1, 16, progress=False)
        with open(options.to / "scaling.csv", "w", newline="", buffering=1) as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(measure(Path(root)))
    with open(options.to / "scaling.csv", newline="") as file:
        points = list(csv.DictReader(file))
    (options.to / "scaling.png").write_bytes(figures.render(draw(points), "png"))
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads: "
          f"{options.to / 'scaling.csv'}, {options.to / 'scaling.png'}")


if __name__ == "__main__":
    main()
