"""Every speed that the workbook claims, measured beside the plain way of doing it, in one run: `make bench`.

Both sides of a comparison take turns, and the fastest of their turns counts: what else runs on the machine slows
some turns down and speeds none up. Rates are for this machine; ratios travel better.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.reference import Reference
from lab5 import metrics
from lab5.config import Config, preset
from lab5.data import Pack, training_loader
from lab5.evaluation import autocast, choose_device, choose_precision, evaluate
from lab5.files import cores, tune_malloc
from lab5.formats.tree import open_or_pack
from lab5.model import CVAE, negative_elbo
from lab5.robot.simulator import simulate
from lab5.training import read_history
from lab5.workbook.show import machine, table

Row = tuple[str, float, float, str]             # what, the plain way's rate, the package's, the unit


def fastest(*turns: Callable[[], object], repeats: int = 3) -> list[float]:
    """Seconds that each turn takes at best, taking turns; one round to warm up."""
    best = [float("inf")] * len(turns)
    for round_ in range(repeats + 1):
        for index, turn in enumerate(turns):
            started = time.perf_counter()
            turn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[index] = min(best[index], time.perf_counter() - started) if round_ else float("inf")
    return best


def training_steps(config: Config, forced: bool, repeats: int) -> Row:
    """Whole optimizer steps: forward, backward, clipping, Adam."""
    device = choose_device()
    torch.manual_seed(1)
    model = CVAE(config, 7).to(device, memory_format=torch.channels_last).train()
    plain = Reference.like(model).to(device)
    batch = (torch.rand(config.length, config.batch_size, 3, 64, 64, device=device),
             torch.randn(config.length, config.batch_size, 7, device=device),
             torch.randn(config.length - 1, config.batch_size, config.z_dim, device=device),
             [forced] * (config.length - 1))
    precision = choose_precision(config.precision, device)
    fast_optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=config.lr)

    def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def fast() -> None:
        with autocast(precision, device):
            terms = model.elbo_terms(*batch)
        step(model, fast_optimizer, negative_elbo(config, terms, 1.0))

    def slow() -> None:
        mse, kl = plain(*batch)
        step(plain, plain_optimizer, mse + config.beta * kl)

    before, after = fastest(slow, fast, repeats=repeats)
    name = f"training step, width {config.width}, {config.batch_size} × {config.length} frames, {precision}, "
    return (name + ("with" if forced else "without") + " teacher forcing",
            config.batch_size / before, config.batch_size / after, "sequences/s")


def multiplying(size: int = 2048) -> Row:
    """Square matrix products in float32 and in bfloat16: how much of a ratio the processor itself has to give."""
    device = choose_device()
    plain = torch.rand(size, size, device=device)
    half = plain.bfloat16()
    before, after = fastest(lambda: plain @ plain, lambda: half @ half, repeats=20)
    gigaflop = 2 * size ** 3 / 1e9
    return f"matrix product of {size}, float32 and bfloat16", gigaflop / before, gigaflop / after, "GFLOP/s"


def reading(root: Path, pack: Pack, config: Config) -> Row:
    """Batches of windows: decoded from the PNG tree as the lab's loader does, and from the pack."""
    from PIL import Image

    folders = sorted((root / "processed_data" / "train").glob("*/*"))
    count = config.batch_size * 4

    def from_tree() -> None:
        for folder in (folders * count)[:count]:
            np.stack([np.asarray(Image.open(folder / f"{t}.png")) for t in range(config.length)])
            [np.loadtxt(folder / f"{name}.csv", delimiter=",")[:config.length]
             for name in ("actions", "endeffector_positions")]

    def from_pack() -> None:
        for _ in training_loader(pack, config, range(4)):
            pass

    before, after = fastest(from_tree, from_pack)
    return "reading training windows, one process", count / before, count / after, "sequences/s"


def scoring(sequences: int = 256, frames: int = 10) -> Row:
    """The lab's PSNR: an image and a channel at a time, and all at once."""
    generator = torch.Generator().manual_seed(1)
    truth, prediction = (torch.rand(frames, sequences, 3, 64, 64, generator=generator) for _ in range(2))

    def one_by_one() -> float:
        scores = []
        for b in range(sequences):
            for t in range(frames):
                channels = [10 * np.log10(1 / np.mean((truth[t, b, c].numpy() - prediction[t, b, c].numpy()) ** 2))
                            for c in range(3)]
                scores.append(np.mean(channels))
        return float(np.mean(scores))

    def at_once() -> float:
        return metrics.psnr(prediction, truth).mean().item()

    assert abs(one_by_one() - at_once()) < 1e-3
    before, after = fastest(one_by_one, at_once)
    return f"PSNR of {sequences} sequences", sequences / before, sequences / after, "sequences/s"


def best_of(root: Path, config: Config, samples: int = 100) -> tuple[float, float]:
    """Best of N in one pass: sequences scored a second, and by how many MB more it takes than one sample does.

    In a process of its own, since what a process took at most is never taken back.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_best_of, root, config, samples).result()


def _best_of(root: Path, config: Config, samples: int) -> tuple[float, float]:
    pack = open_or_pack(root, "test", progress=False)
    model = CVAE(config, 7).to(choose_device()).eval()
    evaluate(model, pack, protocols=("best_of_n",), best_of=1, progress=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    evaluate(model, pack, protocols=("best_of_n",), best_of=samples, progress=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return len(pack) / (time.perf_counter() - started), grown / 1024


def simulating(count: int = 16) -> Row:
    """Frames of the simulated robot, written as PNGs: one process, and one a core."""
    seconds = []
    for workers in (1, cores()):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            simulate(folder, count, 1, 1, workers=workers, progress=False)
            seconds.append(time.perf_counter() - started)
    frames = 30 * (count + 2)
    return f"simulating: 1 and {cores()} processes", frames / seconds[0], frames / seconds[1], "frames/s"


def training_runs(root: Path, config: Config, at_once: int) -> Row:
    """Whole runs without teacher forcing, several at once: each in one process with all threads, and in one per core.

    The rate is that of each run's second epoch.
    """
    rates = []
    for processes in (1, cores()):
        with tempfile.TemporaryDirectory() as folder:
            runs = [Path(folder, str(number)) for number in range(at_once)]
            settings = f"processes={processes}", "tf_start=0", "epochs=2", "batches_per_epoch=16", "validate_every=2"
            options = [part for setting in settings for part in ("--set", setting)]
            command = [sys.executable, "-m", "lab5.cli", "train", "--preset", config.preset, "--data", root, *options]
            jobs = [subprocess.Popen([*command, "--run", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    for run in runs]
            for job in jobs:
                job.wait()
            rates.append(np.mean([read_history(run)[-1]["sequences_per_second"] for run in runs]))
    what = f"{at_once} training runs at once" if at_once > 1 else "a training run"
    return f"{what}, width {config.width}: all threads in one process, one per process", *rates, "sequences/s each"


def report(rows: list[Row]) -> str:
    return table("what", "plain", "here", "", "ratio", rows=[
        (what, f"{plain:,.3g}", f"{here:,.3g}", unit, f"**{here / plain:.1f}**") for what, plain, here, unit in rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="of the model (default: 64, full)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    tune_malloc()                                               # as training and evaluation do
    full, quick = preset("full", width=options.width), preset("quick")
    rows = [multiplying()] if choose_precision("auto", choose_device()) == "bfloat16" else []
    rows += [training_steps(full, forced, options.repeats) for forced in (True, False)]
    rows += [training_steps(quick, forced, options.repeats) for forced in (True, False)]
    with tempfile.TemporaryDirectory() as folder:
        simulate(folder, 48, 4, 16, progress=False)
        rows.append(reading(Path(folder), open_or_pack(folder, "train", progress=False), full))
        rows += [training_runs(Path(folder), quick, at_once) for at_once in (1, 2)]
        rate, grown = best_of(Path(folder), quick)
    rows += [scoring(), simulating()]
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{report(rows)}\n\n"
          f"Best of 100 samples, width {quick.width}: {rate:.2g} sequences/s (PSNR and SSIM), {grown:.0f} MB more "
          "memory than one sample takes.")
