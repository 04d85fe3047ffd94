"""Two processes that train one model: the numbers of one, each sequence once, one writer, and no loss when one dies."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import wait_until

from lab5 import checkpoint, training
from lab5.config import preset
from lab5.data import training_loader
from lab5.training import read_history

SETTINGS = ("precision=float32", "batch_size=4", "validate_every=2", "epochs=4", "norm_freeze=0", "tf_hold=0.0",
            "tf_end=0.9")


def command(run, data, processes, *settings):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--", "lab5.cli"]
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [sys.executable, *(torchrun if processes > 1 else ["-m", "lab5.cli"]), "train", "--preset", "smoke",
            "--run", str(run), "--data", str(data), *options]


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


def test_two_processes_train_the_model_that_one_trains(tiny_root, tmp_path):
    """With the calibrated variance, which is that of the whole batch; the next test trains with the lab's objective."""
    settings = "reconstruction=calibrated", "hierarchical=true"
    train(tmp_path / "one", tiny_root, 1, *settings)
    printed = train(tmp_path / "two", tiny_root, 2, *settings)
    close(tmp_path / "two", tmp_path / "one")
    assert printed.count("best validation PSNR") == 1           # one process reports


def workers(parent):
    """Process ids of the training processes under the launcher."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    return [int(pid) for pid, ppid in map(str.split, lines) if int(ppid) == parent]


def test_a_killed_process_ends_the_job_and_any_number_resumes_it(tiny_root, tmp_path):
    job = subprocess.Popen(command(tmp_path / "killed", tiny_root, 2), stderr=subprocess.DEVNULL)
    wait_until(lambda: len(read_history(tmp_path / "killed")) > 1, job)
    os.kill(workers(job.pid)[-1], signal.SIGKILL)
    assert job.wait(timeout=600) != 0
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    train(tmp_path / "killed", tiny_root, 2)
    train(tmp_path / "alone", tiny_root, 1)
    train(tmp_path / "unbroken", tiny_root, 1)
    close(tmp_path / "killed", tmp_path / "unbroken")
    close(tmp_path / "alone", tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_at_one_step_which_is_saved(number, tiny_root, tmp_path):
    """The terminal signals every process, `kill` only the launcher; both within a long epoch. No norm is frozen."""
    run = tmp_path / "run"
    job = subprocess.Popen(command(run, tiny_root, 2, "epochs=1", "batches_per_epoch=400", "norm_freeze=1"),
                           stderr=subprocess.PIPE, text=True, start_new_session=True)
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
