"""Processes that are killed at random moments: the same command resumes to what an unbroken one ends with."""

import csv
import json
import os
import random
import time

import pytest
from conftest import begin, contents, finish, wait_until, weights
from test_training import exact

from lab5 import files
from lab5.config import preset
from lab5.robot.simulator import simulate
from lab5.training import read_history
from lab5.workbook import sweep
from lab5.workbook.run import Run

KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from tqdm import tqdm
from lab5 import cli, training

tqdm.monitor_interval = 0                                       # its thread may hold a lock that a fork would keep
folder, command = Path(sys.argv[1]), sys.argv[2:]
chance, kills, epochs, runs = random.Random(1), 0, [], 0
for name in ("imports", "unbroken"):
    begun = time.monotonic()
    assert cli.main([*command, "--run", str(folder / name)]) == 0
whole = time.monotonic() - begun
while kills < 12 or status:                                     # a run is killed on its way until it is finished
    run = folder / f"killed-{runs}"
    life = os.fork()                                            # which spares it the imports
    if not life:
        os._exit(cli.main([*command, "--run", str(run)]))
    if kills < 12:
        time.sleep(chance.uniform(0, 0.6 * whole))
        os.kill(life, signal.SIGKILL)
    status = os.waitpid(life, 0)[1]
    kills += status == signal.SIGKILL
    epochs.append(len(training.read_history(run)))
    runs += status == 0
print(json.dumps({"kills": kills, "epochs": epochs, "runs": runs, "whole": whole}))
"""


def test_a_killed_process_resumes_to_the_same_weights(tiny_root, tmp_path):
    """SIGKILL at twelve random moments, started again each time with the same command."""
    settings = ["precision=float32", "epochs=6", "batches_per_epoch=4", "validate_every=3", "n_future=1"]
    command = ["train", "--preset", "smoke", "--data", tiny_root, *(a for s in settings for a in ("--set", s))]
    process = begin(KILLS, tmp_path, *command)
    found = json.loads(finish(process).splitlines()[-1])
    assert found["kills"] >= 12 and len({*found["epochs"]}) > 2       # here and there
    for run in range(found["runs"]):
        assert weights(tmp_path / f"killed-{run}") == weights(tmp_path / "unbroken")
        assert exact(read_history(tmp_path / f"killed-{run}")) == exact(read_history(tmp_path / "unbroken"))


SIMULATE = "import sys; from lab5.robot.simulator import simulate; simulate(sys.argv[1], 14, 0, 0, 8, workers=2)"


def test_a_killed_simulation_leaves_no_process_and_resumes_to_the_same_bytes(tmp_path):
    split, chance, seen = tmp_path / "killed" / "processed_data" / "train", random.Random(0), set()
    for _ in range(3):
        there, process = len(list(split.glob("*/[0-9]*"))), begin(SIMULATE, tmp_path / "killed")
        wait_until(lambda there=there: len(list(split.glob("*/[0-9]*"))) > there, process)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        finish(process)
        seen.add(len(list(split.glob("*/[0-9]*"))))
    assert len(seen) > 1                                        # it was killed here and there
    finish(begin(SIMULATE, tmp_path / "killed"))
    simulate(tmp_path / "whole", 14, 0, 0, length=8, workers=1, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_killed_worker_is_told_with_the_way_out():
    with pytest.raises(RuntimeError, match="one of 2 processes was killed.*the same command resumes"):
        list(files.each(os._exit, [1, 1], 2))


GROUPS = {"Teacher forcing": {"always": {"tf_min": 1.0}, "never": {"tf_start": 0.0}}, "Extras": {"none": {}}}
SWEEP = f"""
import sys
from pathlib import Path
from lab5 import config
from lab5.workbook import sweep
from lab5.workbook.run import Run
lab = Run(config.preset("smoke", precision="float32", epochs=8, n_future=1), *map(Path, sys.argv[1:]))
sweep.write(lab.folder / "sweep.csv", sweep.sweep(lab, {GROUPS}, share=1.0, seeds=1))
"""


def test_a_killed_sweep_leaves_no_process_and_resumes_to_the_same_table(tiny_root, tmp_path, monkeypatch):
    def scores(name):
        with open(tmp_path / name / "sweep.csv") as file:
            return [line | {"seconds": None} for line in csv.DictReader(file)]

    def scored():
        return [*tmp_path.glob("killed/variants/*/evaluation/test/scores.json")]

    process = begin(SWEEP, tmp_path / "killed", tiny_root)
    wait_until(scored, process)                                 # another of the three has not begun, or is on its way
    process.kill()
    finish(process)
    done = {path: path.read_bytes() for path in scored()}
    assert done and not (tmp_path / "killed" / "sweep.csv").exists()
    printed = finish(begin(SWEEP, tmp_path / "killed", tiny_root))
    assert "Error" not in printed, printed
    assert {path: path.read_bytes() for path in done} == done
    monkeypatch.setattr(sweep, "each", lambda task, items, *_: map(task, items))
    lab = Run(preset("smoke", precision="float32", epochs=8, n_future=1), tmp_path / "whole", tiny_root)
    sweep.write(tmp_path / "whole" / "sweep.csv", sweep.sweep(lab, GROUPS, share=1.0, seeds=1))
    assert scores("killed") == scores("whole")
