"""Whatever is wrong with what comes in: an error that names the file or setting, the value and the way out.

Damaged trees are in `test_data.py`, Berkeley's records in `test_bair.py`, the template's files in `test_template.py`,
notebooks and the student's details in `test_document.py`.
"""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from conftest import seeded_model
from safetensors import safe_open
from safetensors.torch import save_file
from test_data import write_tree

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.cli import main
from lab5.config import Config, preset
from lab5.data import DataError, open_pack
from lab5.evaluation import Evaluation
from lab5.formats.tree import pack_tree
from lab5.training import NUMBERS, read_history
from lab5.workbook.run import open_run

DECLARED = (ValueError, OSError, DataError, CheckpointError)    # not what json and others derive of them
CONFIG = preset("smoke", precision="float32")
NAN, DEEP = float("nan"), "[" * 100_000


# ---- sound inputs: each is made in an empty folder, and what is returned is damaged and read ----

def sound_pack(folder):
    """A pack whose sequences are gone."""
    pack_tree(write_tree(folder, 4), progress=False)
    shutil.rmtree(folder / "processed_data")
    return folder / "packed" / "test"


def sound_config(folder):
    (folder / "config.json").write_text(CONFIG.to_json())
    return folder / "config.json"


def sound_run(folder):
    return {"preset_name": "smoke", "run": folder / "run", "data": write_tree(folder, 1)}


def sound_history(folder):
    lines = [json.dumps(dict.fromkeys(NUMBERS, epoch) | {"epoch": epoch, "psnr": None}) for epoch in (1, 2)]
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "history.jsonl"


def sound_weights(folder):
    checkpoint.save(folder / "best.safetensors", seeded_model(CONFIG), epoch=1)
    return folder / "best.safetensors"


def trained():
    """A model and its optimizer after a step."""
    model = seeded_model(CONFIG)
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return model, optimizer


def sound_checkpoint(folder):
    checkpoint.save(folder / "last.safetensors", *trained(), epoch=1)
    return folder / "last.safetensors"


def sound_scores(folder):
    scores = {"prior_sample": np.ones((2, 3))}
    Evaluation(scores, scores, ["a", "b"], {}).save(folder)
    return folder / "scores.json"


KINDS = {                                       # a sound input, its reader, and what every message names
    "pack": (sound_pack, lambda packed: open_pack(packed.parent.parent, "test"), ("packed/test", "regenerates it")),
    "config": (sound_config, Config.load, ("config.json", "choose another run folder")),
    "run": (sound_run, lambda given: open_run(**given).pack("train"), ()),
    "history": (sound_history, lambda path: read_history(path.parent), ("history.jsonl", "Restore the file")),
    "weights": (sound_weights, checkpoint.load_model, ("best.safetensors", "Delete it")),
    "checkpoint": (sound_checkpoint, lambda path: checkpoint.restore(path, *trained()), ("last.safetensors",)),
    "scores": (sound_scores, lambda path: Evaluation.load(path.parent), ("scores.json", "evaluate again")),
}


def text(content):
    return lambda path: path.write_text(content)


def content(change):
    """Other bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def settings(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def parameters(**changes):
    return lambda given: given.update(changes)


def run_holds(name, words):
    """A file in the notebook's run folder."""
    def do(given):
        given["run"].mkdir()
        (given["run"] / name).write_text(words)
        given["data"] = ""
    return do


def record(**changes):
    """The first epoch's record with other values."""
    return content(lambda lines: json.dumps(json.loads(lines.splitlines()[0]) | changes).encode() + b"\n")


def forged(change):
    """A checkpoint with something changed, as a stranger can make it."""
    def do(path):
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        change(tensors, metadata)
        save_file(tensors, path, metadata)
    return do


def tensor(name, value):
    return forged(lambda tensors, metadata: tensors.update({name: value}))


def asks_for(**changes):
    """A checkpoint whose configuration is another."""
    return forged(lambda tensors, metadata: metadata.update(
        config=json.dumps(json.loads(metadata["config"]) | changes)))


def says(**words):
    return forged(lambda tensors, metadata: metadata.update(words))


MEAN, PIXELS = "model.condition_mean", "model.decoder.to_pixels.bias"
ROWS = [                                        # kind, damage, words of the message
    ("pack", lambda packed: (packed / "frames.npy").unlink(), "FileNotFoundError"),
    ("pack", lambda packed: text(DEEP)(packed / "pack.json"), "RecursionError"),
    ("pack", lambda packed: settings(names=["0"])(packed / "pack.json"), "expected ((1, 5, 64, 64, 3), (1, 5))"),
    ("pack", lambda packed: content(lambda found: found[:-1])(packed / "frames.npy"), "ValueError"),

    ("config", text("[1]"), "an object"), ("config", text(DEEP), "recursion"),
    ("config", content(lambda found: found[:90]), "column"), ("config", content(lambda found: b"\xff" + found), "xff"),
    ("config", settings(epochs=0, lr=-1.0), "2 validation errors"),
    ("config", settings(batchsize=1), "batchsize\n  Extra inputs are not permitted"),
    ("config", settings(epochs="many"), "epochs\n  Input should be a valid integer"),
    ("config", settings(condition=["both"]), "condition\n  Input should be 'previous', 'target', 'both'"),
    ("config", settings(lr=NAN), "lr\n  Input should be a finite number"),
    ("config", settings(width=10**30), "width\n"), ("config", settings(seed=2**70), "input_value=1180591"),

    ("run", parameters(preset_name="slow"),
     "unknown preset 'slow'; the presets are: smoke, quick, standard, action_free, full"),
    ("run", parameters(preset_name=["smoke"]), "preset = ['smoke']: Input should be a valid string"),
    ("run", parameters(run=1.5), "run = 1.5: Input"), ("run", parameters(data=None), "data = None: Input"),
    ("run", parameters(sequence=1.5), "sequence = 1.5: Input"),
    ("run", parameters(sequence="abc"), "sequence = 'abc': Input"),
    ("run", parameters(steps=3), "steps = 3: Extra inputs"),
    ("run", lambda given: given["run"].touch(), "is a file; name a folder"),
    ("run", lambda given: given.update(data=given["data"] / "there"), "there is no such folder"),
    ("run", parameters(data=2026), "2026/processed_data"),
    ("run", run_holds("config.json", "{"), "config.json"), ("run", run_holds("data.json", '{"root'), "data.json"),
    ("run", run_holds("data.json", '{"root": "."}'), "'train'"),
    ("run", run_holds("best.safetensors", "PK"), "best.safetensors: damaged"),

    ("history", content(lambda found: found[:-9]), "JSONDecodeError"), ("history", text("7\n"), "TypeError"),
    ("history", record(loss=None), "'loss': None"), ("history", record(psnr=[20.0]), "'psnr': [20.0]"),
    ("history", content(lambda found: found[found.index(b"\n") + 1:]), "line 1 is {'loss': 2"),
    ("history", content(lambda found: b"\xff\xfe" + found), "Error"), ("history", text(DEEP), "RecursionError"),

    ("weights", text("version https://git-lfs.github.com/spec/v1"), "damaged"),
    ("weights", content(lambda found: found[:-5]), "damaged"),
    ("weights", content(lambda found: struct.pack("<Q", 2**62) + found[8:]), "damaged"),
    ("weights", lambda path: save_file({MEAN: torch.zeros(7)}, path, {"config": "{}"}), "KeyError: 'facts'"),
    ("weights", says(facts="[1]"), "not a checkpoint"), ("weights", says(config="7"), "an object"),
    ("weights", says(facts=DEEP), "RecursionError"), ("weights", asks_for(surprise=1), "surprise\n"),
    ("weights", asks_for(rnn_size=4096, g_dim=4096, width=4096, prior_layers=64, learned_prior=True), "does not fit"),
    #                                                           terabytes, which are not allocated
    ("weights", asks_for(predictor_layers=3), 'Missing key(s) in state_dict: "frame_predictor.lstm.weight_ih_l2"'),
    ("weights", tensor(MEAN, torch.tensor(1.0)), "size mismatch for condition_mean"),
    ("weights", tensor("model.extra", torch.zeros(2)), 'Unexpected key(s) in state_dict: "extra"'),
    ("weights", tensor(PIXELS, torch.full((3,), NAN)), "model.decoder.to_pixels.bias holds NaN or infinity"),

    ("checkpoint", lambda path: path.unlink(), "there is no such checkpoint; notebook 04 or `lab5 train` makes it"),
    ("checkpoint", asks_for(lr=0.5), "lr: 0.001 here, 0.5 there"),
    ("checkpoint", tensor(MEAN, torch.zeros(3)), "size mismatch for condition_mean"),

    ("scores", lambda path: path.write_text('{"names": ["a"], "facts": [1]}'), "not a saved evaluation"),
    ("scores", content(lambda found: found[:-50]), "not a saved evaluation"),
]


@pytest.mark.parametrize("kind, damage, words", ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_refused_by_name_with_its_value_and_a_way_out(kind, damage, words, tmp_path):
    make, read, named = KINDS[kind]
    damage(given := make(tmp_path))
    with pytest.raises(DECLARED) as error:
        read(given)
    message = str(error.value)
    assert type(error.value) in DECLARED
    assert [part for part in (*named, words) if part not in message] == [], message


@pytest.mark.parametrize("command, status, words", [
    ("train --preset slow", 2, "invalid choice: 'slow' (choose from"),
    ("train --preset smoke --set lr=banana", 1, "input_value='banana'"),
    ("train --preset smoke --set lr", 1, "input_value=''"),
    ("train --preset smoke --set =1", 1, "Extra inputs are not permitted"),
    ("evaluate --preset smoke --run nowhere", 1, "holds no finished training"),
    ("simulate set --train -1", 2, "--train: '-1' is not a whole number of 0 or more"),
    ("sweep extras --seeds 0", 2, "--seeds: '0' is not a whole number of 1 or more"),
    ("sweep extras --share long", 2, "--share: invalid float value: 'long'"),
    ("check nowhere", 1, "there is no such folder"), ("pack nowhere", 1, "there is no such folder"),
    ("convert nowhere.pth", 1, "nowhere.pth: is not the template's model (FileNotFoundError"),
    ("report --preset smoke --run run --only 99", 1, "no notebook begins with '99'; there are 00_"),
    ("report --preset smoke --run run --pdf", 1, "holds no finished training"),
    ("submit --preset smoke --run run", 1, "holds no finished training"),
])
def test_a_command_that_cannot_be_done_says_why_in_one_message(command, status, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(command.split())
    except SystemExit as stop:                                  # argparse's own
        found = stop.code
    printed = "".join(capsys.readouterr())
    assert found == status and words in printed and "Traceback" not in printed, printed
