"""Two processes that train one model: the numbers of one, each sequence once, one writer, and no loss when one dies."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lab5 import checkpoint, parallel
from lab5.data import training_loader
from lab5.training import read_history

SETTINGS = ("precision=float32", "batch_size=4", "validate_every=2", "epochs=4", "norm_freeze=0.75", "tf_hold=0.0",
            "tf_end=0.9")


def command(run, data, processes, *settings):
    chosen = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [sys.executable, "-m", "lab5.cli", "train", "--preset", "smoke", "--run", str(run), "--data", str(data),
            "--processes", str(processes), *chosen]


def train(run, data, processes, *settings):
    result = subprocess.run(command(run, data, processes, *settings), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def close(run, other):
    """Two runs have the same losses, to what a few steps of Adam make of sums that are taken in another order."""
    mine, theirs = read_history(run), read_history(other)
    for name, first, all_ in (("mse", 1e-4, 2e-3), ("loss", 1e-4, 2e-3), ("kl", 1e-3, 3e-2), ("psnr", 2e-3, 5e-3)):
        values, expected = ([record[name] for record in history if record[name] is not None]
                            for history in (mine, theirs))
        assert len(values) == len(expected)
        assert values[0] == pytest.approx(expected[0], rel=first), name
        assert values == pytest.approx(expected, rel=all_), name


@pytest.fixture(scope="module")
def alone(tiny_root, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run, tiny_root, 1)
    return run


@pytest.mark.parametrize("settings", [(), ("reconstruction=calibrated", "hierarchical=true")])
def test_two_processes_train_the_model_that_one_trains(settings, alone, tiny_root, tmp_path):
    single = alone
    if settings:
        single = tmp_path / "one"
        train(single, tiny_root, 1, *settings)
    printed = train(tmp_path / "two", tiny_root, 2, *settings)
    close(tmp_path / "two", single)
    assert printed.count("best validation PSNR") == 1           # one process reports


def test_a_run_goes_on_with_another_number_of_processes(alone, tiny_root, tmp_path):
    run = tmp_path / "run"
    interrupted(run, tiny_root, 2)
    train(run, tiny_root, 1)
    close(run, alone)


def interrupted(run, data, processes):
    """Kill one of the processes when the second epoch is on the disk; returns the command's status and errors."""
    job = subprocess.Popen(command(run, data, processes), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_history(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(workers(job.pid)[-1], signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    return job.returncode, errors


def workers(parent):
    """Process ids of the training processes under a launcher."""
    found = []
    for status in subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines():
        pid, ppid, arguments = status.split(maxsplit=2)
        if int(ppid) == parent:
            found += [int(pid)] if "torch.distributed.run" not in arguments else workers(int(pid))
    return found


def test_a_killed_process_ends_the_job_with_a_clear_word_and_a_whole_checkpoint(tiny_root, tmp_path, alone):
    status, errors = interrupted(tmp_path / "run", tiny_root, 2)
    assert status == 1 and "one of the 2 processes ended before its time" in errors
    train(tmp_path / "run", tiny_root, 2)
    close(tmp_path / "run", alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_at_one_step_which_is_saved(number, tiny_root, tmp_path, alone):
    """The terminal signals every process, `kill` only the one that was started; both within a long epoch."""
    run = tmp_path / "run"
    settings = ("epochs=1", "batches_per_epoch=400")
    job = subprocess.Popen(command(run, tiny_root, 2, *settings), stderr=subprocess.PIPE, text=True,
                           start_new_session=True)
    for line in job.stderr:
        if re.search(r"\b[1-9]\d*/400", line):                  # the progress bar
            break
    (os.killpg if number == signal.SIGINT else os.kill)(job.pid, number)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 130 and "the same command goes on from here" in errors, errors
    assert errors.count("stopped within epoch 1") == 1
    within = checkpoint.load_model(run / "last.safetensors")[1]["within"]
    assert 0 < within["steps"] < 400


def test_every_sequence_is_seen_by_one_process_and_once_a_pass(tiny_packs):
    pack = tiny_packs["train"]                                  # 8 sequences: two steps of four are a pass
    seen = [[batch.index.tolist() for batch in training_loader(pack, 12, 4, 1, 0, 4, share=share)]
            for share in (parallel.World(0, 2).share(4), parallel.World(1, 2).share(4))]
    together = [a + b for a, b in zip(*seen, strict=True)]
    assert together == [batch.index.tolist() for batch in training_loader(pack, 12, 4, 1, 0, 4)]
    assert sorted(together[0] + together[1]) == list(range(8))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch of 4 sequences cannot be shared equally by 3 processes"):
        parallel.World(0, 3).share(4)


def test_alone_nothing_is_shared():
    assert parallel.join() == parallel.World(0, 1) and parallel.World().is_first
