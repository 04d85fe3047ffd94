"""Weights of the template and of SVG predict here what they predict there, and nothing in a file is ever run."""

import datetime
import os
import pickle
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from template_networks import BATCH, FRAMES, PAST, G, Payload, W, Z, lstm, template, vgg_decoder, written
from torch import nn

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.cli import main
from lab5.formats.template import convert

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")     # of the template's classes, here


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def batch():
    generator = torch.Generator().manual_seed(1)
    shapes = (FRAMES, BATCH, 3, 64, 64), (FRAMES, BATCH, 7), (FRAMES - 1, BATCH, Z)
    frames, conditions, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return frames.sigmoid(), 4 * conditions, noise


@torch.no_grad()
def theirs(saved, condition="previous", order="hzc", last_frame_skip=False, limit=PAST):
    """The template's generation loop, in float64, with the noise given; SVG's is the same without the condition."""
    frames, conditions, noise = batch()
    networks = {name: value.double() for name, value in saved.items() if isinstance(value, nn.Module)}

    def run(name, i, *noise, **values):
        n_in = networks[name].embed.in_features
        given = conditions[i - 1 if condition == "previous" else i]
        values["c"] = given if n_in - sum(value.shape[1] for value in values.values()) else given[:, :0]
        return networks[name](torch.cat([values[letter] for letter in order if letter in values], 1), *noise)

    x, predictions = frames[0], []
    for i in range(1, FRAMES):
        h, skips = networks["encoder"](x)
        if last_frame_skip or i < limit:
            skip = skips
        z = run("prior", i, noise[i - 1], h=h) if "prior" in networks else noise[i - 1]
        if i < PAST:
            z = run("posterior", i, noise[i - 1], h=networks["encoder"](frames[i])[0])
        g = run("frame_predictor", i, h=h, z=z)
        x = frames[i]
        if i >= PAST:
            x = networks["decoder"](g, skip)
            predictions.append(x)
    return torch.stack(predictions)


@torch.no_grad()
def ours(path, **options):
    model = convert(path, **options).double()
    frames, conditions, noise = batch()
    return model.predict(frames[:PAST], conditions, noise)


@pytest.mark.parametrize("networks, script, options", [
    ({}, {}, {}),
    ({}, {"condition": "target"}, {"condition": "target"}),
    ({"posterior_conditioned": 7}, {"order": "chz"}, {"order": "chz"}),
    ({"conditioned": 0, "posterior_conditioned": 7, "learned_prior": True}, {"order": "hcz"}, {"order": "hcz"}),
    ({"learned_prior": True}, {"limit": PAST + 1}, {"skip": "context"}),
    ({}, {"last_frame_skip": True}, {"skip": "latest"}),
    ({"conditioned": 0, "norm": False, "name": "opt"}, {}, {}),                                 # SVG-FP
    ({"conditioned": 0, "norm": False, "name": "opt", "learned_prior": True}, {}, {}),          # SVG-LP
], ids=str)
def test_predictions_are_those_of_the_training_script(path, networks, script, options):
    saved = template(**networks)
    written(path, saved)
    torch.testing.assert_close(ours(path, **options), theirs(saved, **script), rtol=0, atol=1e-6)


SETTINGS = {"n_past": PAST, "n_future": 5, "last_frame_skip": True}


@pytest.mark.parametrize("saved, expected", [
    ({"args": SETTINGS}, (PAST, 5, "latest")), ({"opt": Namespace(**SETTINGS)}, (PAST, 5, "latest")),
    ({"args": SimpleNamespace(**SETTINGS)}, (PAST, 5, "latest")), ({}, (2, 10, "early"))])
def test_settings_of_any_kind_are_used(path, saved, expected):
    config = convert(written(path, template(name="other") | saved)).config
    assert (config.n_past, config.n_future, config.skip) == expected


@pytest.mark.parametrize("change", [nn.DataParallel, lambda module: module.state_dict(),
                                    lambda module: nn.DataParallel(module).state_dict()],
                         ids=["DataParallel", "state dict", "module. prefix"])
def test_networks_may_be_wrapped_or_state_dicts(path, tmp_path, change):
    saved = template()
    expected = ours(written(tmp_path / "plain.pth", saved))
    written(path, {name: change(value) if isinstance(value, nn.Module) else value for name, value in saved.items()})
    assert torch.equal(ours(path), expected)


def test_an_optimizer_paths_and_times_in_the_file_do_no_harm(path):
    saved = template()
    optimizer = torch.optim.Adam(saved["encoder"].parameters())
    saved["encoder"].c5[0].weight.grad = torch.ones_like(saved["encoder"].c5[0].weight)
    optimizer.step()                                            # now it has state
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    written(path, saved | {"optimizer": optimizer, "scheduler": scheduler, "where": Path("a/b"),
                           "when": datetime.datetime(2022, 5, 1), "took": datetime.timedelta(1)})
    torch.testing.assert_close(ours(path), theirs(saved), rtol=0, atol=1e-6)


def test_converted_weights_are_a_run_that_is_never_replaced(path, tmp_path, capsys):
    command = ["convert", str(written(path, template())), str(tmp_path / "run")]
    assert main(command) == 0 and "skips early" in capsys.readouterr().out
    model, facts = checkpoint.load_model(tmp_path / "run/best.safetensors")
    frames, conditions, noise = batch()
    assert facts == {"epoch": 0} and torch.equal(model.double().predict(frames[:PAST], conditions, noise), ours(path))
    assert main(command) == 1 and "not empty; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("function, argument", [
    (os.system, "echo > {}"), (bytearray, "{}"), (eval, "open('{}', 'w')"), (np.fromfile, "{}"), (getattr, "{}"),
    (torch.load, "{}")])
def test_callables_are_refused_and_not_called(path, tmp_path, function, argument):
    mark = tmp_path / "mark"
    written(path, template() | {"epoch": Payload(function, argument.format(mark))})
    with pytest.raises(CheckpointError, match=f"{path}: .* names .*{function.__name__}, .* may be an attack"):
        convert(path)
    assert not mark.exists()


def test_no_module_is_imported_and_no_class_called_because_a_file_names_it(path, tmp_path, monkeypatch):
    (tmp_path / "students_own.py").write_text("from pathlib import Path\ndef run(where):\n    Path(where).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import students_own
    written(path, template() | {"epoch": Payload(students_own.run, str(tmp_path / "called"))})
    del sys.modules["students_own"]
    convert(path)
    assert not {"students_own", "models.lstm"} & sys.modules.keys() and not (tmp_path / "called").exists()


def altered(change):
    def write(path):
        saved = template()
        change(saved)
        written(path, saved)
    return write


def garbled(path):
    content = bytearray(written(path, template()).read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def repacked(path):
    with zipfile.ZipFile(written(path, template())) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in content:
            archive.writestr(name, bytes(1 << 20) if name.endswith("/0") else content[name])


def repeated(saved):
    """One number that is seen as a gigabyte."""
    saved["encoder"].c5[0].weight = nn.Parameter(torch.zeros(1).expand(1 << 28))


def wide(saved):
    """A small first layer of a network of a terabyte."""
    saved["encoder"].c1[0].main[0].weight = nn.Parameter(torch.zeros(4096, 3, 3, 3))


MISTAKES = {
    "a bomb": (repacked, "it would be larger unpacked"), "a repeated number": (altered(repeated), "larger than the fi"),
    "a wide layer": (altered(wide), "size mismatch for encoder"),
    "NaN": (altered(lambda saved: saved["encoder"].c5[0].bias.data.fill_(torch.nan)), "c5.0.bias holds NaN"),
    "no file": (lambda path: None, "FileNotFoundError"), "damaged": (garbled, "Bad CRC-32"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"encoder": 1})), "save it again where it was trained"),
    "cut off": (lambda path: path.write_bytes(written(path, template()).read_bytes()[:-9]), "Copy it again"),
    "other zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "what can be converted is a zip"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "is not the template's model (AttributeError"),
    "a network missing": (altered(lambda saved: saved.pop("decoder")), "(KeyError: 'decoder'). Copy it again"),
    "dcgan": (altered(lambda saved: delattr(saved["encoder"], "c4")), "with encoder and decoder (vgg_64)"),
    "another width": (altered(lambda saved: saved.update(decoder=vgg_decoder(G, 2 * W))), "size mismatch for decoder."),
    "a layer more": (altered(lambda saved: setattr(saved["decoder"], "extra", nn.Linear(2, 2))), "decoder.extra."),
    "another condition": (altered(lambda saved: saved.update(frame_predictor=lstm(G + Z + 5))), "size mismatch"),
    "words for frames": (altered(lambda saved: setattr(saved["args"], "n_past", "two")), "n_past"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_error_that_names_the_file(path, mistake):
    write, words = MISTAKES[mistake]
    write(path)
    with pytest.raises(CheckpointError) as error:
        convert(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
