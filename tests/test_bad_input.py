"""Whatever is wrong with what comes in: an error that names the file or setting, the value and the way out."""

import json
import os
import shutil
import struct
import zlib
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import seeded_model
from safetensors import safe_open
from safetensors.torch import save_file
from test_data import ACTIONS, edit, first_sequence, rewrite, write_tree

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.cli import main
from lab5.config import Config, preset
from lab5.data import DataError, Windows, open_pack, pack
from lab5.document import Details, Incomplete, read_chapters
from lab5.evaluation import Evaluation
from lab5.training import MEASURES, read_history
from lab5.workbook import open_book

DECLARED = (ValueError, OSError, DataError, CheckpointError, Incomplete)    # not what json and others derive of them
CONFIG = preset("smoke", precision="float32")

Kind = namedtuple("Kind", "make read command", defaults=[None])     # of input: a sound one, its reader, a command on it
Row = namedtuple("Row", "kind name spoil where value way_out")      # what is done to it, and words of the message


# ---- sound inputs: each is made in an empty folder, and what is returned is spoilt and read ----

def sound_tree(folder):
    return write_tree(folder, 2, ["train"])


def sound_pack(folder):
    """A pack whose sequences are gone, so that it cannot be made anew."""
    pack(write_tree(folder, 4, ["test"]), progress=False)
    shutil.rmtree(folder / "processed_data")
    return folder / "packed"


def sound_config(folder):
    (folder / "config.json").write_text(CONFIG.to_json())
    return folder / "config.json"


def sound_book(folder):
    return {"preset_name": "smoke", "run": folder / "run", "data": write_tree(folder, 1, ["train"])}


def sound_history(folder):
    sound_config(folder)
    lines = [json.dumps(dict.fromkeys(MEASURES, epoch) | {"psnr": None}) for epoch in (1, 2)]
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
    checkpoint.save(folder / "last.safetensors", *trained(), history=[])
    return folder / "last.safetensors"


def sound_scores(folder):
    scores = {"sampled": np.ones((2, 3))}
    Evaluation(scores, scores, ["a", "b"], {}).save(folder)
    return folder / "steps.npz"


def sound_details(folder):
    (folder / "report.yaml").write_text('student_id: "1"\n')
    return folder / "report.yaml"


def sound_notebook(folder):
    (folder / "00_a.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    return folder / "00_a.ipynb"


KINDS = {
    "tree": Kind(sound_tree, lambda root: open_pack(root, "train", progress=False), lambda root: ["check", root]),
    "windows": Kind(sound_tree, lambda root: Windows(open_pack(root, "train", progress=False), 12)),
    "pack": Kind(sound_pack, lambda packed: open_pack(packed.parent, "test", progress=False)),
    "config": Kind(sound_config, Config.load, lambda path: ["watch", "--run", path.parent]),
    "book": Kind(sound_book, lambda given: open_book(**given).pack("train")),
    "history": Kind(sound_history, lambda path: read_history(path.parent),
                    lambda path: ["watch", "--run", path.parent]),
    "weights": Kind(sound_weights, checkpoint.load_model, lambda path: ["evaluate", "--run", path.parent]),
    "checkpoint": Kind(sound_checkpoint, lambda path: checkpoint.restore(path, *trained())),
    "scores": Kind(sound_scores, lambda path: Evaluation.load(path.parent)),
    "details": Kind(sound_details, Details.load, lambda path: ["rubric", "--details", path]),
    "notebook": Kind(sound_notebook, lambda path: read_chapters([path])),
}


# ---- ways to spoil them ----

def text(content):
    return lambda path: path.write_text(content)


def content(change):
    """Other bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flip(place):
    """One bit, at a share of the file."""
    def change(found):
        at = int(place * len(found))
        return found[:at] + bytes([found[at] ^ 4]) + found[at + 1:]
    return content(change)


def in_tree(spoil):
    """Something done to the first sequence's folder."""
    return lambda root: spoil(first_sequence(root))


def in_place_of(name, make):
    """Something else under the name of a file or folder."""
    def do(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
    return do


def png(bits, colour, samples):
    """A sound PNG of 64x64, of a kind that Pillow does not write."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header, row = struct.pack(">IIBBBBB", 64, 64, bits, colour, 0, 0, 0), bytes(1 + 64 * samples * bits // 8)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 64)) + chunk(b"IEND", b"")


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
    """A checkpoint with something changed and a checksum that is right, as a stranger can make it."""
    def do(path):
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        change(tensors, metadata)
        save_file(tensors, path, metadata | {"digest": checkpoint._digest(tensors, metadata)})
    return do


def tensor(name, value):
    return forged(lambda tensors, metadata: tensors.update({name: value}))


def asks_for(**changes):
    """A checkpoint whose configuration is another."""
    return forged(lambda tensors, metadata: metadata.update(
        config=json.dumps(json.loads(metadata["config"]) | changes)))


def said(**words):
    return forged(lambda tensors, metadata: metadata.update(words))


def without(name):
    return forged(lambda tensors, metadata: tensors.pop(name))


def unsigned(path):
    save_file({"model.condition_mean": torch.zeros(7)}, path, {"config": "{}"})


NAN, INFINITE, DEEP = float("nan"), float("inf"), "[" * 100_000
ANOTHER_RUN, DELETE, MEAN = "choose another run folder", "delete it, and the run goes on", "model.condition_mean"
SEQUENCE, NO_PACK = "traj_0_to_255.tfrecords", "or make a simulated set with `lab5 simulate`"

ROWS = [
    Row("tree", "split is a file", in_place_of("processed_data/train", text("")), "processed_data/train",
        "there is no such folder", "lab5 simulate"),
    Row("tree", "sequence is a file", in_tree(lambda folder: in_place_of("1", text(""))(folder.parent)),
        f"{SEQUENCE}/1", "is not a sequence", "restore, rename or remove it"),
    Row("tree", "sequence is a dangling link", in_tree(lambda folder: (folder.parent / "2").symlink_to("nowhere")),
        f"{SEQUENCE}/2", "is not a sequence", "restore, rename or remove it"),
    Row("tree", "shard is a file", lambda root: (root / "processed_data/train/traj_256_to_511").touch(),
        "train/traj_256_to_511", "is not a sequence", "restore, rename or remove it"),
    Row("tree", "frame is a dangling link", in_tree(in_place_of("2.png", lambda path: path.symlink_to("nowhere"))),
        f"{SEQUENCE}/0", "No such file", "extract it again or remove"),
    Row("tree", "frame with a flipped bit", in_tree(lambda folder: flip(0.5)(folder / "2.png")), "2.png",
        "cannot be read as a PNG", "extract it again"),
    Row("tree", "frame of 16 bits", in_tree(lambda folder: (folder / "2.png").write_bytes(png(16, 2, 3))), "2.png",
        "64x64 RGB of 16 bits", "convert it"),
    Row("tree", "grey frame of 16 bits", in_tree(lambda folder: (folder / "2.png").write_bytes(png(16, 0, 1))),
        "2.png", "64x64 I;16 of 16 bits, expected 64x64 RGB", "convert it"),
    Row("tree", "frame of a bit", in_tree(lambda folder: (folder / "2.png").write_bytes(png(1, 0, 1))), "2.png",
        "64x64 1, expected 64x64 RGB", "convert it"),
    Row("tree", "frame of a gigapixel", in_tree(lambda folder: (folder / "2.png").write_bytes(
        png(8, 2, 3).replace(struct.pack(">II", 64, 64), struct.pack(">II", 32_000, 32_000)))), "2.png",
        "cannot be read as a PNG", "extract it again"),
    Row("tree", "number with an underscore", in_tree(edit(ACTIONS, lambda rows: ["1_0,2,3,4", *rows[1:]])), ACTIONS,
        "holds '_', expected numbers", "extract it again"),
    Row("tree", "table ends in zeros", in_tree(lambda folder: content(lambda found: found[:-9] + bytes(9))(
        folder / ACTIONS)), ACTIONS, "expected", "extract it again"),
    Row("tree", "table is a folder", in_tree(in_place_of(ACTIONS, lambda path: path.mkdir())), ACTIONS,
        "Is a directory", "extract it again"),
    Row("windows", "too short", lambda root: None, "n_past + n_future",
        "windows of 12 frames (n_past + n_future) cannot be cut from sequences of 5", "choose n_past and n_future"),

    Row("pack", "no manifest", lambda packed: (packed / "test.json").unlink(), "test.json", "is not there", NO_PACK),
    Row("pack", "no array", lambda packed: (packed / "test.crc.npy").unlink(), "test.crc.npy", "is not there", NO_PACK),
    Row("pack", "manifest nested deeply", lambda packed: text(DEEP)(packed / "test.json"), "test.json", "recursion",
        NO_PACK),
    Row("pack", "digit of the manifest", lambda packed: content(
        lambda found: found.replace(b'"length": 5', b'"length": 4'))(packed / "test.json"), "test.json", "checksum",
        NO_PACK),
    Row("pack", "mark of the robot", lambda packed: content(
        lambda found: found.replace(b"false", b"true"))(packed / "test.json"), "test.json", "checksum", NO_PACK),
    Row("pack", "format of another version", rewrite(format=3), "test.json", "of format 3, expected 4", NO_PACK),
    Row("pack", "negative count", rewrite(done=-1), "test.json", "-1 of 4 sequences", NO_PACK),
    Row("pack", "negative length", rewrite(length=-5), "test.frames.npy", "expected uint8 (4, -5, 64, 64, 3)", NO_PACK),
    Row("pack", "absurd length", rewrite(length=10**15), "test.frames.npy", f"expected uint8 (4, {10**15}", NO_PACK),
    Row("pack", "array of objects", lambda packed: np.save(packed / "test.frames.npy", np.array([{}])),
        "test.frames.npy", "dtype", NO_PACK),

    Row("config", "empty", text(""), "config.json", "line 1 column 1", ANOTHER_RUN),
    Row("config", "torn", content(lambda found: found[:90]), "config.json", "column", ANOTHER_RUN),
    Row("config", "a list", text("[1]"), "config.json", "holds a list, expected an object", ANOTHER_RUN),
    Row("config", "nested deeply", text(DEEP), "config.json", "recursion", ANOTHER_RUN),
    Row("config", "not text", content(lambda found: b"\xff" + found), "config.json", "0xff", ANOTHER_RUN),
    Row("config", "unknown key", settings(batchsize=1), "batchsize", "did you mean batch_size?", "the settings are"),
    Row("config", "null", settings(lr=None), "lr", "None", "must be of type float"),
    Row("config", "a word for a number", settings(epochs="many"), "epochs", "'many'", "must be of type int"),
    Row("config", "a list for a number", settings(epochs=[1]), "epochs", "[1]", "must be of type int"),
    Row("config", "a list for a word", settings(condition=["both"]), "condition", "['both']", "must be one of"),
    Row("config", "a word that is none", settings(kl_schedule="cyclic"), "kl_schedule", "'cyclic'", "'cyclical'"),
    Row("config", "a truth for a number", settings(epochs=True), "epochs", "True", "must be of type int"),
    Row("config", "a fraction", settings(batch_size=2.5), "batch_size", "2.5", "must be of type int"),
    Row("config", "zero", settings(epochs=0), "epochs", "0", "must be above 0"),
    Row("config", "a batch of one", settings(batch_size=1), "batch_size", "1", "must be between 2"),
    Row("config", "no motion to go on from", settings(n_past=1), "n_past", "1", "must be 2 or more"),
    Row("config", "negative", settings(beta=-1), "beta", "-1.0", "must be 0 or more"),
    Row("config", "NaN", settings(lr=NAN), "lr", "nan", "must be above 0 and finite"),
    Row("config", "infinity", settings(grad_clip=INFINITE), "grad_clip", "inf", "must be 0 or more and finite"),
    Row("config", "more than a float holds", settings(lr=10**400), "lr", "1000", "must be of type float"),
    Row("config", "share above 1", settings(tf_min=1.5), "tf_min", "1.5", "must be between 0 and 1"),
    Row("config", "no decay", settings(beta1=1), "beta1", "1.0", "below 1"),
    Row("config", "absurd width", settings(width=10**30), "width", f"{10**30}", "must be at most 4096"),
    Row("config", "absurd depth", settings(predictor_layers=10**9), "predictor_layers", f"{10**9}", "at most 64"),
    Row("config", "absurd seed", settings(seed=2**70), "seed", f"{2**70}", "below 2 ** 32"),

    Row("book", "unknown preset", parameters(preset_name="slow"), "preset", "'slow'", "smoke, quick, standard, full"),
    Row("book", "a list for a preset", parameters(preset_name=["smoke"]), "preset", "['smoke']", "smoke, quick"),
    Row("book", "no preset", parameters(preset_name=None), "preset", "None", "smoke, quick"),
    Row("book", "run is a file", lambda given: given["run"].touch(), "run", "is a file", "name a folder"),
    Row("book", "data do not exist", lambda given: given.update(data=given["data"] / "there"), "there/processed_data",
        "there is no such folder", "give the folder that holds"),
    Row("book", "data of digits", parameters(data=2026), "2026/processed_data", "there is no such folder",
        "give the folder that holds"),
    Row("book", "data at home", parameters(data="~/lab5-no-such-folder"), os.path.expanduser("~/lab5-no-such-folder"),
        "there is no such folder", "give the folder that holds"),
    Row("book", "data are a file", lambda given: (given["data"] / "zip").touch() or given.update(
        data=given["data"] / "zip"), "zip/processed_data", "there is no such folder", "give the folder that holds"),
    Row("book", "torn configuration", run_holds("config.json", "{"), "config.json", "column", ANOTHER_RUN),
    Row("book", "torn note of the data", run_holds("data.json", '{"root'), "data.json", "column",
        "delete it and name"),
    Row("book", "a list for a note", run_holds("data.json", "[1]"), "data.json", "does not say", "delete it and name"),
    Row("book", "half a note", run_holds("data.json", '{"root": "."}'), "data.json", "'train'", "delete it and name"),
    Row("book", "a note of numbers", run_holds("data.json", '{"root": 1, "train": 2}'), "data.json", "'root': 1",
        "delete it and name"),
    Row("book", "weights of another program", run_holds("best.safetensors", "PK"), "best.safetensors", "damaged",
        DELETE),

    Row("history", "torn line", content(lambda found: found[:-9]), "history.jsonl, line 2", "column", "delete that"),
    Row("history", "a number", text("7\n"), "history.jsonl, line 1", "epoch is missing", "delete that line"),
    Row("history", "a word for a number", record(kl="low"), "history.jsonl, line 1", "kl is 'low'", "delete that line"),
    Row("history", "nothing for a number", record(loss=None), "history.jsonl, line 1", "loss is None", "delete that"),
    Row("history", "a list for a score", record(psnr=[20.0]), "history.jsonl, line 1", "psnr is [20.0]", "delete that"),
    Row("history", "another epoch's line", record(epoch=3), "history.jsonl, line 1", "epoch is 3", "delete that line"),
    Row("history", "a line lost", content(lambda found: found[found.index(b"\n") + 1:]), "history.jsonl, line 1",
        "epoch is 2", "delete that line"),
    Row("history", "not text", content(lambda found: b"\xff\xfe" + found), "history.jsonl, line 1", "column",
        "delete that line"),
    Row("history", "nested deeply", text(DEEP), "history.jsonl, line 1", "recursion", "delete that line"),

    Row("weights", "empty", text(""), "best.safetensors", "damaged", DELETE),
    Row("weights", "truncated", content(lambda found: found[:-5]), "best.safetensors", "damaged", DELETE),
    Row("weights", "cut in its header", content(lambda found: found[:200]), "best.safetensors", "damaged", DELETE),
    Row("weights", "text", text("version https://git-lfs.github.com/spec/v1"), "best.safetensors", "damaged", DELETE),
    Row("weights", "a pickle", lambda path: torch.save({"a": torch.zeros(3)}, path), "best.safetensors", "damaged",
        DELETE),
    Row("weights", "gigantic header", content(lambda found: struct.pack("<Q", 2**62) + found[8:]), "best.safetensors",
        "damaged", DELETE),
    Row("weights", "header of no JSON", content(lambda found: found[:8] + b"}" + found[9:]), "best.safetensors",
        "damaged", DELETE),
    Row("weights", "flipped bit of a tensor", flip(0.7), "best.safetensors", "checksum", DELETE),
    Row("weights", "no configuration", unsigned, "best.safetensors", "not a checkpoint of this version", DELETE),
    Row("weights", "forged facts", said(facts="[1]"), "best.safetensors", "facts are [1]", DELETE),
    Row("weights", "torn facts", said(facts="{"), "best.safetensors", "column", DELETE),
    Row("weights", "configuration a number", said(config="7"), "best.safetensors", "holds a int", DELETE),
    Row("weights", "configuration nested deeply", said(config=DEEP), "best.safetensors", "recursion", DELETE),
    Row("weights", "unknown setting", asks_for(surprise=1), "best.safetensors", "unknown setting surprise", DELETE),
    Row("weights", "terabytes", asks_for(rnn_size=4096, g_dim=4096, width=4096, prior_layers=64, learned_prior=True),
        "best.safetensors", "expected float32 (4096, 3, 3, 3)", DELETE),
    Row("weights", "absurd size", asks_for(width=10**30), "best.safetensors", "must be at most 4096", DELETE),
    Row("weights", "one layer more", asks_for(predictor_layers=3), "best.safetensors",
        "predictor.lstm.weight_ih_l2 is missing, expected float32 (64, 16)", DELETE),
    Row("weights", "tensor missing", without("model.decoder.to_pixels.bias"), "best.safetensors",
        "decoder.to_pixels.bias is missing, expected float32 (3,)", DELETE),
    Row("weights", "no statistics", without(MEAN), "best.safetensors", "condition_mean is missing", DELETE),
    Row("weights", "statistics a scalar", tensor(MEAN, torch.tensor(1.0)), "best.safetensors",
        "float32 (), expected float32 (1,)", DELETE),
    Row("weights", "tensor too many", tensor("model.extra", torch.zeros(2)), "best.safetensors",
        "extra is float32 (2,), expected nothing of that name", DELETE),
    Row("weights", "wrong shape", tensor("model.decoder.to_pixels.bias", torch.zeros(4)), "best.safetensors",
        "decoder.to_pixels.bias is float32 (4,), expected float32 (3,)", DELETE),
    Row("weights", "wrong type", tensor("model.decoder.to_pixels.bias", torch.zeros(3, dtype=torch.float64)),
        "best.safetensors", "float64 (3,), expected float32 (3,)", DELETE),
    Row("weights", "float8", tensor("model.decoder.to_pixels.bias", torch.zeros(3).to(torch.float8_e4m3fn)),
        "best.safetensors", "float8_e4m3fn (3,), expected float32 (3,)", DELETE),
    Row("weights", "NaN", tensor("model.decoder.to_pixels.bias", torch.full((3,), NAN)), "best.safetensors",
        "model.decoder.to_pixels.bias holds NaN or infinity", DELETE),
    Row("weights", "infinity", tensor(MEAN, torch.full((7,), INFINITE)), "best.safetensors",
        f"{MEAN} holds NaN or infinity", DELETE),

    Row("checkpoint", "a folder", lambda path: path.unlink() or path.mkdir(), "last.safetensors",
        "there is no such checkpoint", "`lab5 train` makes it"),
    Row("checkpoint", "another configuration", asks_for(lr=0.5), "last.safetensors", CONFIG.hash, ANOTHER_RUN),
    Row("checkpoint", "no history", said(facts='{"epoch": 1}'), "last.safetensors", "without the history", DELETE),
    Row("checkpoint", "history a number", said(facts='{"history": 1}'), "last.safetensors", "without the history",
        DELETE),
    Row("checkpoint", "wrong shape", tensor(MEAN, torch.zeros(3)), "last.safetensors",
        "condition_mean is float32 (3,), expected float32 (7,)", DELETE),
    Row("checkpoint", "moments out of range", tensor("optimizer.9999.step", torch.tensor(1.0)), "last.safetensors",
        "9999.step is float32 (), expected nothing of that name", DELETE),
    Row("checkpoint", "moments of a word", tensor("optimizer.all", torch.tensor(1.0)), "last.safetensors",
        "all is float32 (), expected nothing of that name", DELETE),
    Row("checkpoint", "moments of no step", without("optimizer.0.step"), "last.safetensors",
        "0.exp_avg is float32 (4, 3, 3, 3), expected nothing of that name", DELETE),
    Row("checkpoint", "half the moments", without("optimizer.0.exp_avg_sq"), "last.safetensors",
        "0.exp_avg_sq is missing, expected float32 (4, 3, 3, 3)", DELETE),
    Row("checkpoint", "moments of another shape", tensor("optimizer.0.exp_avg", torch.zeros(2)), "last.safetensors",
        "0.exp_avg is float32 (2,), expected float32 (4, 3, 3, 3)", DELETE),

    Row("scores", "names lost", lambda path: np.savez(path, names=["a"], facts="{}", psnr_hold=np.ones((2, 3))),
        "steps.npz", "{2} sequences under 1 names", "evaluate again"),
    Row("scores", "facts a list", lambda path: np.savez(path, names=["a"], facts="[1]"), "steps.npz",
        "not a saved evaluation", "evaluate again"),

    Row("details", "torn", text("name: [a"), "report.yaml", "not readable as YAML", "correct it"),
    Row("details", "unknown key", text("nmae: a"), "report.yaml", "has nmae", "the keys are student_id, name"),
    Row("details", "a list", text("name: [a, b]"), "report.yaml", "must be a text", "not a list"),
    Row("details", "unknown language", text("language: fr"), "report.yaml", "'fr'", "must be en or zh"),
    Row("details", "not text", content(lambda found: b"\xff" + found), "report.yaml", "0xff", "correct it"),

    Row("notebook", "torn", content(lambda found: found[:30]), "00_a.ipynb", "cannot be read as a notebook",
        "`lab5 report` makes it anew"),
    Row("notebook", "a list", text("[]"), "00_a.ipynb", "cannot be read as a notebook", "`lab5 report` makes it anew"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}: {row.name}")
def test_bad_input_is_refused_by_name_with_its_value_and_a_way_out(row, tmp_path, capsys):
    kind = KINDS[row.kind]
    row.spoil(given := kind.make(tmp_path))
    with pytest.raises(DECLARED) as error:
        kind.read(given)
    message = str(error.value)
    assert type(error.value) in DECLARED and [w for w in row[3:] if w not in message] == [], message
    if kind.command:
        assert main([str(argument) for argument in kind.command(given)]) == 1
        printed = "".join(capsys.readouterr())
        assert row.value in printed and "Traceback" not in printed


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"windows"}))
def test_what_is_not_spoilt_is_read(kind, tmp_path):
    KINDS[kind].read(KINDS[kind].make(tmp_path))


@pytest.mark.parametrize("command, status, words", [
    ("train --preset slow", 2, "invalid choice: 'slow' (choose from"),
    ("train --processes 0", 2, "--processes: '0' is not a whole number of 1 or more"),
    ("train --preset smoke --set lr=banana", 1, "lr is 'banana', but must be of type float"),
    ("train --preset smoke --set lr=NaN", 1, "lr is nan, but must be above 0"),
    ("train --preset smoke --set lr=-1", 1, "lr is -1.0, but must be above 0"),
    ("train --preset smoke --set lrr=1", 1, "did you mean lr?"),
    ("train --preset smoke --set lr", 1, "--set lr: expected NAME=VALUE"),
    ("train --preset smoke --set =1", 1, "unknown setting"),
    ("train --preset smoke --set epochs=[1]", 1, "epochs is [1], but must be of type int"),
    ("train --preset smoke --set condition=later", 1, "must be one of 'previous'"),
    ("train --preset smoke --from nowhere", 1, "--from needs --run"),
    ("train --preset smoke --from nowhere --run new", 1, "there is no such checkpoint; notebook 04 or `lab5 train`"),
    ("simulate set --train -1 --validate 0 --test 0", 1, "'train': -1"),
    ("simulate set --length 0", 1, "of 0 frames cannot be made; counts are 0 or more, a length 1"),
    ("simulate set --seed -1", 2, "--seed: '-1' is not a whole number of 0 or more"),
    ("simulate set --workers 0", 2, "--workers: '0' is not a whole number of 1 or more"),
    ("simulate set --train many", 2, "invalid int value: 'many'"),
    ("sweep --seeds 0", 2, "--seeds: '0' is not a whole number of 1 or more"),
    ("sweep --share nan", 2, "--share: 'nan' is not a number above 0 and at most 1"),
    ("check nowhere", 1, "there is no such folder"),
    ("pack nowhere", 1, "there is no such folder"),
    ("import nowhere set", 1, "nowhere: cannot be read"),
    ("convert-checkpoint nowhere.pth", 1, "nowhere.pth: there is no such file"),
    ("report --preset smoke --run run --only 99", 1, "no notebook begins with '99'; there are 00_"),
    ("report --preset smoke --run run --details nowhere.yaml", 1, "nowhere.yaml"),
])
def test_a_command_that_cannot_be_done_says_why_in_one_message(command, status, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        found = main(command.split())
    except SystemExit as stop:                                  # argparse's own
        found = stop.code
    printed = "".join(capsys.readouterr())
    assert found == status and words in printed and "Traceback" not in printed
