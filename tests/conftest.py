"""What the tests share: a small simulated set, and the real BAIR sample where there is one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"                 # before torch, here and in all that is started from here
signal.signal(signal.SIGINT, signal.default_int_handler)        # acts, also where the tests run in the background

import pytest
import torch
from safetensors.torch import load_file

from lab5.config import preset
from lab5.formats.tree import open_or_pack
from lab5.model import CVAE
from lab5.robot.simulator import simulate
from lab5.workbook.run import Run

BAIR_SAMPLE = Path(os.environ.get("LAB5_BAIR_SAMPLE", Path(__file__).parents[2] / "shared" / "bair_sample"))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> Path:
    """A simulated set of the smoke preset's size."""
    root = tmp_path_factory.mktemp("tiny")
    config = preset("smoke")
    simulate(root, config.sim_train, config.sim_validate, config.sim_test, workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def tiny_packs(tiny_root):
    return {split: open_or_pack(tiny_root, split, progress=False) for split in ("train", "validate", "test")}


@pytest.fixture(scope="session")
def trained(tiny_root, tmp_path_factory) -> Run:
    """A finished run, to be read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    lab = Run(preset("smoke", precision="float32", kl_schedule="cyclical"), folder, tiny_root)
    lab.train(progress=False)
    return lab


@pytest.fixture(scope="session")
def bair_root() -> Path:
    if not BAIR_SAMPLE.is_dir():
        pytest.skip(f"no real BAIR sequences in {BAIR_SAMPLE}; name their folder in LAB5_BAIR_SAMPLE")
    return BAIR_SAMPLE


def begin(code, *arguments):
    """Python code in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def start(*arguments):
    """The command `lab5` in a process of its own."""
    return begin("import sys; from lab5.cli import main; sys.exit(main())", *arguments)


def finish(process):
    """What a command prints, until the last of the processes that it started has ended too."""
    printed, _ = process.communicate(timeout=1200)
    return printed


def wait_until(true, process):
    """Wait while a process makes something true, or until it ends."""
    while not true() and process.poll() is None:
        time.sleep(0.01)


def contents(root: Path) -> dict[str, bytes]:
    """Every file that is no lock and not hidden, by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)}


def weights(run: Path) -> bytes:
    """The bytes of the run's last weights and optimizer state."""
    tensors = load_file(run / "last.safetensors")
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


@pytest.fixture
def config():
    return preset("smoke", precision="float32")


def seeded_model(config, condition_width: int = 7) -> CVAE:
    """A model with random weights whose batch norms have seen data, so that every input changes its output."""
    torch.manual_seed(0)
    model = CVAE(config, condition_width).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None                              # the average of all batches seen
    with torch.no_grad():
        for forced in (True, False):
            model.elbo_terms(*random_batch(config, condition_width=condition_width), [forced] * (config.length - 1))
    return model.eval()


def random_batch(config, batch: int = 3, condition_width: int = 7):
    """frames (T, B, 3, 64, 64), condition (T, B, D), noise (T-1, B, noise_size)."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(config.length, batch, 3, 64, 64, generator=generator)
    condition = torch.randn(config.length, batch, condition_width, generator=generator)
    noise = torch.randn(config.length - 1, batch, CVAE(config, 0).noise_size, generator=generator)
    return frames, condition, noise
