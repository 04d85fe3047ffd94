"""Training: it learns, it is the same for a seed, it survives a kill, and it refuses what would end badly."""

import dataclasses
import itertools
import json
import os
import signal
import statistics
import time
from pathlib import Path

import pytest
import torch
from conftest import weights

from lab5 import checkpoint, training
from lab5.config import preset
from lab5.data import DataError
from lab5.model import CVAE
from lab5.training import Diverged, RunLocked, read_history, train
from lab5.workbook.run import Run


def run(config, packs, folder, **options):
    return train(config, packs["train"], packs["validate"], folder, progress=False, **options)


def exact(history):
    """What of a history does not depend on the clock."""
    return [{name: value for name, value in record.items() if "second" not in name} for record in history]


def assert_resumes(config, packs, folder):
    """What was cut off in folder/cut resumes to the history and the weights of an unbroken run."""
    unbroken = run(config, packs, folder / "unbroken")
    assert exact(run(config, packs, folder / "cut")) == exact(unbroken)
    assert weights(folder / "cut") == weights(folder / "unbroken")


def test_every_epoch_leaves_a_complete_record(config, tiny_packs, tmp_path):
    history = run(config.replace(epochs=4, tf_hold=0.0, tf_end=1.0, kl_schedule="zero"), tiny_packs, tmp_path)
    assert history == read_history(tmp_path)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert set(history[0]) == {"epoch", "loss", "mse", "kl", "kl_weight", "teacher_forcing", "lr", "psnr", "bound",
                               "seconds", "sequences_per_second"}
    assert all(5 < record["psnr"] < 30 for record in history)
    assert (tmp_path / "config.json").exists() and (tmp_path / "best.safetensors").exists()
    ratios = [record["teacher_forcing"] for record in history]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 0.8 and ratios[-1] < 0.2
    assert all(record["kl_weight"] == 0 and record["loss"] == pytest.approx(record["mse"]) for record in history)


@pytest.mark.parametrize("coin", ["batch", "step"])
def test_the_same_seed_is_the_same_run_and_another_is_not(coin, config, tiny_packs, tmp_path):
    config = config.replace(tf_start=0.5, tf_coin=coin)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(config.replace(seed=seed), tiny_packs, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_cut_off_between_checkpoint_and_history_resumes_to_the_same_weights(last, config, tiny_packs, tmp_path,
                                                                                 monkeypatch):
    write, config = training.write_history, config.replace(epochs=3)

    def cut(folder, history):
        if len(history) == last:
            raise ZeroDivisionError                             # as a kill does, without saving
        write(folder, history)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training, "write_history", cut)
        run(config, tiny_packs, tmp_path / "cut")
    assert len(read_history(tmp_path / "cut")) == last - 1
    assert_resumes(config, tiny_packs, tmp_path)
    assert len(read_history(tmp_path / "cut")) == 3


@pytest.mark.parametrize("last", [1, 2])
def test_a_run_stopped_after_an_epoch_is_saved_and_resumes_to_the_same_weights(last, config, tiny_packs, tmp_path):
    config = config.replace(epochs=3, validate_every=2, norm_freeze=0.5)
    stopped = run(config, tiny_packs, tmp_path / "cut", on_epoch=lambda history, model: len(history) == last)
    assert stopped == read_history(tmp_path / "cut") and len(stopped) == last
    assert_resumes(config, tiny_packs, tmp_path)
    assert read_history(tmp_path / "cut")[:last] == stopped


@pytest.mark.parametrize("place, name, call", [(CVAE, "elbo_terms", 5), (training, "evaluate", 2)])
def test_an_interrupt_costs_only_the_epoch_that_it_interrupts(place, name, call, config, tiny_packs, tmp_path,
                                                              monkeypatch):
    config = config.replace(epochs=3, norm_freeze=0.5, tf_start=0.5, validate_every=1 if name == "evaluate" else 3)
    original, calls = getattr(place, name), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == call:                                 # in the second epoch
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, name, interrupted)
        run(config, tiny_packs, tmp_path / "cut")
    assert len(read_history(tmp_path / "cut")) == 1
    assert_resumes(config, tiny_packs, tmp_path)


def test_a_finished_run_is_trained_neither_again_nor_with_other_settings(config, tiny_packs, tmp_path):
    run(config, tiny_packs, tmp_path)
    before, seen = weights(tmp_path), []
    run(config, tiny_packs, tmp_path, on_epoch=lambda history, model: seen.append(history))
    assert weights(tmp_path) == before and seen == []
    with pytest.raises(ValueError, match="lr: 0.5 here, 0.001 there"):
        run(config.replace(lr=0.5), tiny_packs, tmp_path)
    (tmp_path / "best.safetensors").replace(tmp_path / "last.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="last.safetensors: holds no history"):
        run(config, tiny_packs, tmp_path)


@pytest.mark.parametrize("kl, message", [(float("nan"), "epoch 2: loss nan.*half the learning rate.*lr=0.0005"),
                                         (1e6, r"epoch 2: .*KL 1e\+06 nats per frame.*half the learning rate")])
def test_a_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(kl, message, config, tiny_packs, tmp_path,
                                                                           monkeypatch):
    terms, calls = CVAE.elbo_terms, itertools.count(1)

    def diverging(*arguments):                                  # from the second epoch on
        found, late = terms(*arguments), next(calls) > config.batches_per_epoch + 1
        return dataclasses.replace(found, kl=found.kl + (kl if late else 0))

    monkeypatch.setattr(CVAE, "elbo_terms", diverging)
    with pytest.raises(Diverged, match=message):
        run(config, tiny_packs, tmp_path)
    saved = checkpoint.load_model(tmp_path / "last.safetensors")[1]["history"]
    assert len(saved) == len(read_history(tmp_path)) == 1


def test_frozen_norms_keep_their_statistics_while_the_weights_learn(config, tiny_packs, tmp_path):
    kept = []

    def keep(history, model):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept.append(([state[name] for name in state if "running" in name],
                     [state[name] for name in state if "convolutions" in name and name.endswith("weight")]))

    run(config.replace(epochs=4, norm_freeze=0.5), tiny_packs, tmp_path, on_epoch=keep)
    moved, learned = ([not all(map(torch.equal, a[part], b[part])) for a, b in itertools.pairwise(kept)]
                      for part in (0, 1))
    assert kept[0][0] and moved == [True, False, False] and learned == [True, True, True]


def test_a_second_training_in_the_same_folder_is_refused(config, tiny_packs, tmp_path):
    refused = []

    def meanwhile(history, model):
        with pytest.raises(RunLocked, match="another process is training this run"):
            run(config, tiny_packs, tmp_path)
        refused.append(len(history))

    run(config, tiny_packs, tmp_path, on_epoch=meanwhile)
    assert refused == [1, 2]
    run(config, tiny_packs, tmp_path)                           # and the folder is free again


def test_the_settings_of_the_machine_may_change_on_resuming(config, tiny_packs, tmp_path):
    run(config, tiny_packs, tmp_path / "unbroken")
    run(config, tiny_packs, tmp_path / "moved", on_epoch=lambda history, model: True)
    run(config.replace(processes=1, best_of=5, preset="other"), tiny_packs, tmp_path / "moved")
    assert weights(tmp_path / "moved") == weights(tmp_path / "unbroken")
    assert json.loads((tmp_path / "moved" / "config.json").read_text())["best_of"] == 5


def test_data_that_do_not_fit_are_refused_before_anything_is_trained(config, tiny_packs, tmp_path):
    with pytest.raises(DataError, match="its sequences have 30 frames, the model's windows 2 . 40"):
        run(config.replace(n_future=40), tiny_packs, tmp_path / "long")
    action_free = dataclasses.replace(tiny_packs["validate"], conditions=tiny_packs["validate"].conditions[..., :0])
    with pytest.raises(DataError, match="0 numbers of action and position, the model is conditioned on 7"):
        train(config, tiny_packs["train"], action_free, tmp_path / "free", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_clock_that_jumps_changes_nothing(tiny_root, tiny_packs, tmp_path, monkeypatch):
    """Back by a day and on by a year, from one look at it to the next, and files from the future."""
    unbroken, lab = (Run(preset("smoke", n_future=1, epochs=4), tmp_path / name, tiny_root) for name in "ab")
    unbroken.train(progress=False)
    clock, jumps = time.time, itertools.cycle([-86_400, 31_536_000])
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))

    def jump(history, model):
        for file in lab.folder.iterdir():
            os.utime(file, times=(clock() + next(jumps),) * 2)
        return len(history) == 2

    begun = time.monotonic()
    lab.train(jump, progress=False)                            # stopped after two epochs
    lab.train(jump, progress=False)
    seconds = time.monotonic() - begun
    assert weights(lab.folder) == weights(unbroken.folder) and exact(lab.history()) == exact(unbroken.history())
    for record in lab.history():
        assert 0 < record["seconds"] < seconds and 0 < record["sequences_per_second"] < 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process holds is read from /proc")
def test_a_long_training_holds_no_more_memory_and_files_at_its_end(tiny_packs, tmp_path):
    """960 steps in 120 epochs, each with a checkpoint, every fifth with a validation."""
    held = []

    def measure(history, model):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        held.append((resident, len(os.listdir("/proc/self/fd"))))

    settings = preset("smoke", precision="float32", width=2, g_dim=4, rnn_size=4, n_future=1, tf_start=0.5, epochs=120,
                      batches_per_epoch=8, validate_every=5)
    train(settings, tiny_packs["train"], tiny_packs["validate"], tmp_path, progress=False, on_epoch=measure)
    early, late = held[30:60], held[90:]
    grown = statistics.median(memory for memory, _ in late) - statistics.median(memory for memory, _ in early)
    assert grown < 5e6, f"{grown / 1e6:.1f} MB more"
    assert {files for _, files in early} == {files for _, files in late} and len({files for _, files in late}) == 1
    assert len(read_history(tmp_path)) == 120
