"""Faults, each made to happen: kills, full disks, folders that cannot be written, clocks that jump, a long run."""

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import finish, start, wait_until, weights

from lab5 import sweep, workbook
from lab5.config import preset
from lab5.simulator import simulate
from lab5.training import read_history


def exact(run: Path) -> list[dict]:
    """What of a history does not hang on the clock."""
    return [{name: value for name, value in record.items() if "second" not in name} for record in read_history(run)]


# Kills ---------------------------------------------------------------------------------------------------

KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from lab5 import cli, training

folder, saving, command = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
training.SAVE_EVERY, chance, kills, epochs, runs = saving, random.Random(saving), 0, [], 0
begun = time.monotonic()
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


@pytest.mark.parametrize("saving", [0, 600], ids=["saved at every step", "saved at every epoch"])
def test_a_killed_process_goes_on_to_the_same_weights(saving, tiny_root, tmp_path):
    """SIGKILL at twelve random moments, started again each time with the same command."""
    settings = ["precision=float32", "epochs=6", "batches_per_epoch=4", "validate_every=3", "n_future=1"]
    command = ["train", "--preset", "smoke", "--data", tiny_root, *(a for s in settings for a in ("--set", s))]
    process = subprocess.Popen([sys.executable, "-c", KILLS, str(tmp_path), str(saving), *map(str, command)],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = json.loads(finish(process).splitlines()[-1])
    assert found["kills"] >= 12 and len({*found["epochs"]}) > 2       # here and there
    for run in range(found["runs"]):
        assert weights(tmp_path / f"killed-{run}") == weights(tmp_path / "unbroken")
        assert exact(tmp_path / f"killed-{run}") == exact(tmp_path / "unbroken")


def test_a_killed_simulation_leaves_no_process_and_goes_on_to_the_same_bytes(tmp_path):
    """The workers write to the command's output, which ends with the last of them."""
    command = ["simulate", tmp_path / "killed", *"--train 14 --validate 0 --test 0 --length 8 --workers 2".split()]
    split, chance, seen = tmp_path / "killed" / "processed_data" / "train", random.Random(0), set()
    for _ in range(4):
        there, process = len(list(split.glob("*/[0-9]*"))), start(*command)
        wait_until(lambda there=there: len(list(split.glob("*/[0-9]*"))) > there, process)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        finish(process)
        seen.add(len(list(split.glob("*/[0-9]*"))))
    assert len(seen) > 2                                        # it was killed here and there
    assert "14 / 0 / 0 sequences" in finish(start(*command))
    simulate(tmp_path / "whole", 14, 0, 0, length=8, workers=1, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def contents(root: Path) -> dict[str, bytes]:
    """Every file that is no lock and not hidden, by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)}


GROUPS = {"Teacher forcing": {"always": {"tf_min": 1.0}, "never": {"tf_start": 0.0}}, "Extras": {"none": {}}}
SWEEP = f"""
import sys
from pathlib import Path
from lab5 import config, sweep, workbook
book = workbook.Workbook(config.preset("smoke", precision="float32", epochs=8, n_future=1), *map(Path, sys.argv[1:]))
sweep.sweep(book, {GROUPS}, share=1.0).write(book.run / "sweep.csv")
"""


def test_a_killed_sweep_leaves_no_process_and_goes_on_to_the_same_table(tiny_root, tmp_path, monkeypatch):
    def begin(name):
        return subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path / name), str(tiny_root)],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def scores(name):
        with open(tmp_path / name / "sweep.csv") as file:
            return [line | {"seconds": None} for line in csv.DictReader(file)]

    def epochs():
        return [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("killed/variants/*/history.jsonl"))]

    chance, seen = random.Random(0), set()
    for _ in range(2):
        before, process = sum(epochs()), begin("killed")
        wait_until(lambda before=before: sum(epochs()) > before, process)
        time.sleep(chance.uniform(0, 1))
        process.kill()
        finish(process)
        seen.add(sum(epochs()))
    assert len(seen) == 2 and not (tmp_path / "killed" / "sweep.csv").exists()
    done = {path: path.read_bytes() for path in tmp_path.glob("killed/variants/*/evaluation/test/steps.npz")}
    printed = finish(begin("killed"))
    assert "Error" not in printed, printed
    assert {path: path.read_bytes() for path in done} == done
    monkeypatch.setattr(sweep, "each", lambda task, items, *_: map(task, items))
    book = workbook.Workbook(preset("smoke", precision="float32", epochs=8, n_future=1), tmp_path / "whole", tiny_root)
    sweep.sweep(book, GROUPS, share=1.0).write(tmp_path / "whole" / "sweep.csv")
    assert scores("killed") == scores("whole")
