"""Two processes that train one model: the numbers of one, each sequence once, one writer, and no loss when one dies."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lab5 import checkpoint, training
from lab5.config import preset
from lab5.data import training_loader
from lab5.training import read_history

SETTINGS = ("precision=float32", "batch_size=4", "validate_every=2", "epochs=4", "norm_freeze=0", "tf_hold=0.0",
            "tf_end=0.9")


def command(run, data, processes, *settings):
    chosen = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *torchrun, "-m", *["--"] * bool(torchrun), "lab5.cli", "train", "--preset",
            "smoke", "--run", str(run), "--data", str(data), *chosen]


def train(run, data, processes, *settings):
    result = subprocess.run(command(run, data, processes, *settings), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def close(run, other):
    """Two runs have the same losses: batch norms use their saved averages, so only the order of sums differs."""
    for name in ("mse", "loss", "kl", "psnr"):
        values, expected = ([record[name] for record in read_history(folder) if record[name] is not None]
                            for folder in (run, other))
        assert values == pytest.approx(expected, rel=1e-5), name


@pytest.fixture(scope="module")
def single(tiny_root, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    train(run, tiny_root, 1)
    return run


@pytest.mark.parametrize("settings", [(), ("reconstruction=calibrated", "hierarchical=true")])
def test_two_processes_train_the_model_that_one_trains(settings, single, tiny_root, tmp_path):
    other = single
    if settings:
        other = tmp_path / "one"
        train(other, tiny_root, 1, *settings)
    printed = train(tmp_path / "two", tiny_root, 2, *settings)
    close(tmp_path / "two", other)
    assert printed.count("best validation PSNR") == 1           # one process reports


def test_where_norms_are_not_frozen_two_processes_train_and_end_too(tiny_root, tmp_path):
    train(tmp_path / "run", tiny_root, 2, "norm_freeze=1")
    assert len(read_history(tmp_path / "run")) == 4


def interrupted(run, data):
    """Kill one of two processes when the second epoch is saved; returns the command's status."""
    job = subprocess.Popen(command(run, data, 2), stderr=subprocess.DEVNULL)
    while len(read_history(run)) < 2 and job.poll() is None:
        time.sleep(0.02)
    os.kill(workers(job.pid)[-1], signal.SIGKILL)
    return job.wait(timeout=600)


def workers(parent):
    """Process ids of the training processes under the launcher."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    return [int(pid) for pid, ppid in map(str.split, lines) if int(ppid) == parent]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_ends_the_job_and_any_number_resumes_it(processes, single, tiny_root, tmp_path):
    assert interrupted(tmp_path / "run", tiny_root) != 0
    train(tmp_path / "run", tiny_root, processes)
    close(tmp_path / "run", single)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_at_one_step_which_is_saved(number, tiny_root, tmp_path):
    """The terminal signals every process, `kill` only the launcher; both within a long epoch."""
    run = tmp_path / "run"
    job = subprocess.Popen(command(run, tiny_root, 2, "epochs=1", "batches_per_epoch=400"), stderr=subprocess.PIPE,
                           text=True, start_new_session=True)
    for line in job.stderr:
        if re.search(r"\b[1-9]\d*/400", line):                  # the progress bar
            break
    (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
    _, errors = job.communicate(timeout=600)
    assert job.returncode != 0, errors
    assert 0 < checkpoint.load_model(run / "last.safetensors")[1]["within"]["steps"] < 400


def test_every_sequence_goes_to_one_process_and_once_per_pass(tiny_packs, monkeypatch):
    pack, config = tiny_packs["train"], preset("smoke", batch_size=4)           # 8 sequences: a pass is two steps
    monkeypatch.setattr(training.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(training.dist, "get_world_size", lambda: 2)
    given = []
    for rank in (0, 1):
        monkeypatch.setattr(training.dist, "get_rank", lambda rank=rank: rank)
        loader = training_loader(pack, config, range(4), training._share(4))
        given.append([batch.index.tolist() for batch in loader])
    together = [a + b for a, b in zip(*given, strict=True)]
    assert together == [batch.index.tolist() for batch in training_loader(pack, config, range(4))]
    assert sorted(together[0] + together[1]) == list(range(8))
    with pytest.raises(ValueError, match="batch of 5 sequences cannot be shared equally by 2 processes"):
        training._share(5)
