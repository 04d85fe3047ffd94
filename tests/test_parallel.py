"""Two processes that train one model: the numbers of one, each sequence once, one writer, and no loss when one dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from multiprocessing import active_children

import pytest
from conftest import wait_until

from lab5 import processes, training
from lab5.config import Config, preset
from lab5.training import read_history

SETTINGS = ("precision=float32", "batch_size=4", "validate_every=2", "epochs=4", "norm_freeze=0", "tf_hold=0.0",
            "tf_end=0.9")


def command(run, data, size, *settings, torchrun=False):
    """Train in `size` processes, which the command starts by itself, or torchrun does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m", "--", "lab5.cli"]
    options = [part for setting in (*SETTINGS, f"processes={size}", *settings) for part in ("--set", setting)]
    return [sys.executable, *(launcher if torchrun else ["-m", "lab5.cli"]), "train", "--preset", "smoke",
            "--run", str(run), "--data", str(data), *options]


def train(run, data, size, *settings, torchrun=False):
    result = subprocess.run(command(run, data, size, *settings, torchrun=torchrun), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def close(run, other):
    """Two runs have the same losses: batch norms use their saved averages, so only the order of sums differs."""
    for name in ("mse", "loss", "kl", "psnr"):
        values, expected = ([record[name] for record in read_history(folder) if record[name] is not None]
                            for folder in (run, other))
        assert values == pytest.approx(expected, rel=1e-4 if name == "kl" else 1e-5), name


@pytest.mark.parametrize("torchrun, settings", [
    (True, ("reconstruction=calibrated", "hierarchical=true")), (False, ())])
def test_two_processes_train_the_model_that_one_trains(tiny_root, tmp_path, torchrun, settings):
    """With the calibrated variance, which is that of the whole batch, and with the lab's objective."""
    train(tmp_path / "one", tiny_root, 1, *settings)
    printed = train(tmp_path / "two", tiny_root, 2, *settings, torchrun=torchrun)
    close(tmp_path / "two", tmp_path / "one")
    assert printed.count("best validation PSNR") == 1           # one process reports


def children(parent):
    """Process ids of the training processes that another one started."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    return [int(pid) for pid, ppid in map(str.split, lines) if int(ppid) == parent]


def test_a_killed_process_ends_the_job_and_any_number_resumes_it(tiny_root, tmp_path):
    job = subprocess.Popen(command(tmp_path / "killed", tiny_root, 2), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(read_history(tmp_path / "killed")) > 1, job)
    os.kill(children(job.pid)[-1], signal.SIGKILL)
    errors = job.communicate(timeout=600)[1]
    assert "one of 2 training processes ended: process 0 terminated with signal SIGKILL" in errors, errors
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    train(tmp_path / "killed", tiny_root, 2, torchrun=True)
    train(tmp_path / "alone", tiny_root, 1)
    train(tmp_path / "unbroken", tiny_root, 1)
    close(tmp_path / "killed", tmp_path / "unbroken")
    close(tmp_path / "alone", tmp_path / "unbroken")


@pytest.mark.parametrize("send, number, torchrun", [
    (os.kill, signal.SIGKILL, False), (os.kill, signal.SIGKILL, True), (os.kill, signal.SIGTERM, True),
    (os.killpg, signal.SIGINT, False)])                         # a terminal's Ctrl-C reaches all processes
def test_a_signal_to_the_first_process_ends_all(send, number, torchrun, tiny_root, tmp_path):
    job = subprocess.Popen(command(tmp_path / "run", tiny_root, 2, "epochs=500", torchrun=torchrun),
                           stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(read_history(tmp_path / "run")) > 1, job)
    assert children(job.pid)
    send(job.pid, number)
    _, errors = job.communicate(timeout=60)                     # until none holds the other end
    assert job.returncode != 0 and len(read_history(tmp_path / "run")) < 500, errors
    if number == signal.SIGINT:
        assert job.returncode == 130 and "the same command resumes" in errors, errors
        assert "Traceback" not in errors and "Warning" not in errors, errors


def test_a_stop_after_an_epoch_ends_the_other_processes(tiny_packs, tmp_path):
    config = preset("smoke", processes=2, batch_size=4, epochs=500)
    history = training.train(config, tiny_packs["train"], tiny_packs["validate"], tmp_path, progress=False,
                             on_epoch=lambda history, model: len(history) == 2)
    assert len(history) == 2 and not active_children()


def test_what_another_process_raises_is_told():
    with pytest.raises(RuntimeError, match="JSONDecodeError: Expecting"), processes.companions(2, json.loads, "{"):
        processes.dist.barrier()


def test_a_long_run_has_a_process_for_each_core_and_keeps_their_number(tiny_packs, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda config, *rest: config.processes)
    monkeypatch.setattr(processes, "companions", lambda size, *rest: nullcontext())
    for size, cores, batch_size, steps in ((2, 2, 4, 200), (1, 2, 4, 199), (1, 4, 3, 200), (3, 4, 6, 200),
                                           (3, 2, 6, 200)):     # at last, a run of another machine
        monkeypatch.setattr(training, "cores", lambda cores=cores: cores)
        config = preset("smoke", batch_size=batch_size, epochs=1, batches_per_epoch=steps)
        run = tmp_path / config.hash
        assert training.train(config, tiny_packs["train"], tiny_packs["validate"], run) == size
        assert Config.load(run / "config.json").processes == size


def test_a_batch_that_cannot_be_shared_equally_is_refused(monkeypatch):
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="batch of 5 sequences cannot be shared equally by 2 processes"):
        processes.share(5)
