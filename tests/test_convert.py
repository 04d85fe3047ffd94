"""Checkpoints of the course's template: what they predict is kept, and nothing in them is ever run.

The template's modules are written here from its description, in any width; the prediction loop is the template's.
"""

import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

import numpy as np
import papermill
import pytest
import torch
from torch import nn

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.cli import main
from lab5.convert import convert, save
from lab5.report import find_notebooks
from lab5.training import branch

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")     # of the template's classes, here

W, G, Z, HIDDEN, FRAMES, BATCH = 4, 16, 6, 12, 7, 2             # 3 context frames, so that the LSTMs warm up
PAST = 3


class vgg_layer(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))

    def forward(self, x):
        return self.main(x)


class vgg_encoder(nn.Module):
    def __init__(self, dim, w=W):
        super().__init__()
        self.c1 = nn.Sequential(vgg_layer(3, w), vgg_layer(w, w))
        self.c2 = nn.Sequential(vgg_layer(w, 2 * w), vgg_layer(2 * w, 2 * w))
        self.c3 = nn.Sequential(vgg_layer(2 * w, 4 * w), vgg_layer(4 * w, 4 * w), vgg_layer(4 * w, 4 * w))
        self.c4 = nn.Sequential(vgg_layer(4 * w, 8 * w), vgg_layer(8 * w, 8 * w), vgg_layer(8 * w, 8 * w))
        self.c5 = nn.Sequential(nn.Conv2d(8 * w, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())
        self.mp = nn.MaxPool2d(kernel_size=2, stride=2, padding=0)
        self.dim = dim

    def forward(self, x):
        h1 = self.c1(x)
        h2 = self.c2(self.mp(h1))
        h3 = self.c3(self.mp(h2))
        h4 = self.c4(self.mp(h3))
        return self.c5(self.mp(h4)).view(-1, self.dim), [h1, h2, h3, h4]


class vgg_decoder(nn.Module):
    def __init__(self, dim, w=W):
        super().__init__()
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * w, 4, 1, 0), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2))
        self.upc2 = nn.Sequential(vgg_layer(16 * w, 8 * w), vgg_layer(8 * w, 8 * w), vgg_layer(8 * w, 4 * w))
        self.upc3 = nn.Sequential(vgg_layer(8 * w, 4 * w), vgg_layer(4 * w, 4 * w), vgg_layer(4 * w, 2 * w))
        self.upc4 = nn.Sequential(vgg_layer(4 * w, 2 * w), vgg_layer(2 * w, w))
        self.upc5 = nn.Sequential(vgg_layer(2 * w, w), nn.ConvTranspose2d(w, 3, 3, 1, 1), nn.Sigmoid())
        self.up = nn.UpsamplingNearest2d(scale_factor=2)
        self.dim = dim

    def forward(self, vec_and_skip):
        vec, skip = vec_and_skip
        d = self.upc1(vec.view(-1, self.dim, 1, 1))
        for upc, seen in zip((self.upc2, self.upc3, self.upc4, self.upc5), reversed(skip), strict=True):
            d = upc(torch.cat([self.up(d), seen], 1))
        return d


class lstm(nn.Module):
    def __init__(self, n_in, n_out, hidden=HIDDEN, layers=2):
        super().__init__()
        self.hidden_size, self.n_layers, self.device = hidden, layers, torch.device("cpu")
        self.embed = nn.Linear(n_in, hidden)
        self.lstm = nn.ModuleList([nn.LSTMCell(hidden, hidden) for _ in range(layers)])
        self.output = nn.Sequential(nn.Linear(hidden, n_out), nn.Tanh())
        self.hidden = self.init_hidden()

    def init_hidden(self):
        return [(torch.zeros(BATCH, self.hidden_size), torch.zeros(BATCH, self.hidden_size))
                for _ in range(self.n_layers)]

    def run(self, inputs):
        h_in = self.embed(inputs)
        for i in range(self.n_layers):
            self.hidden[i] = self.lstm[i](h_in, self.hidden[i])
            h_in = self.hidden[i][0]
        return h_in

    def forward(self, inputs):
        return self.output(self.run(inputs))


class gaussian_lstm(lstm):
    def __init__(self, n_in, n_out, hidden=HIDDEN, layers=1):
        super().__init__(n_in, n_out, hidden, layers)
        del self.output
        self.mu_net, self.logvar_net = nn.Linear(hidden, n_out), nn.Linear(hidden, n_out)

    def forward(self, inputs, noise):
        h = self.run(inputs)
        mu, logvar = self.mu_net(h), self.logvar_net(h)
        return noise * logvar.mul(0.5).exp() + mu


HOMES = {"models.vgg_64": (vgg_layer, vgg_encoder, vgg_decoder), "models.lstm": (lstm, gaussian_lstm)}
for home, classes in HOMES.items():
    for template_class in classes:
        template_class.__module__ = home


@contextmanager
def template_at_work():
    """The modules `models.vgg_64` and `models.lstm` are there, as in the folder that a checkpoint is saved from."""
    there = {"models": ModuleType("models")}
    for home, classes in HOMES.items():
        there[home] = ModuleType(home)
        vars(there[home]).update({template_class.__name__: template_class for template_class in classes})
    with patch.dict(sys.modules, there):
        yield


def template(predictor_told: int = 7, posterior_told: int = 0, learned_prior: bool = False) -> dict:
    """Networks with random weights and statistics, and what the template saves beside them."""
    torch.manual_seed(0)
    saved = {"encoder": vgg_encoder(G), "decoder": vgg_decoder(G),
             "frame_predictor": lstm(G + Z + predictor_told, G),
             "posterior": gaussian_lstm(G + posterior_told, Z)}
    if learned_prior:
        saved["prior"] = gaussian_lstm(G, Z, layers=2)
    with torch.no_grad():
        for module in (module for network in saved.values() for module in network.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.05, 0.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    args = Namespace(n_past=PAST, n_future=FRAMES - PAST, g_dim=G, z_dim=Z, rnn_size=HIDDEN, predictor_rnn_layers=2,
                     lr=0.002, last_frame_skip=False, optimizer=torch.optim.Adam, cuda=True)
    return {name: network.eval() for name, network in saved.items()} | {
        "args": args, "last_epoch": 3, "best_psnr": np.float64(25.5)}


def written(path, saved, **options):
    with template_at_work():
        torch.save(saved, path, **options)
    return path


@pytest.fixture
def model_pth(tmp_path):
    return written(tmp_path / "model.pth", template())


def batch():
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(FRAMES, BATCH, 3, 64, 64, generator=generator),
            torch.randn(FRAMES, BATCH, 7, generator=generator), torch.randn(FRAMES - 1, BATCH, Z, generator=generator))


@torch.no_grad()
def predicted_by_template(saved: dict, frames, cond, noise, told="previous", order="hzc", skip_from="context"):
    """The template's `pred`, with the noise given; `skip_from` early is its own `i < n_past`."""
    for name in {"frame_predictor", "posterior", "prior"} & saved.keys():
        saved[name].hidden = saved[name].init_hidden()

    def with_condition(network, i, **values):
        wide = network.embed.in_features == sum(value.shape[1] for value in values.values()) + 7
        values["c"] = cond[i - 1 if told == "previous" else i] if wide else cond[i][:, :0]
        return torch.cat([values[name] for name in order if name in values], 1)

    x_in, predictions = frames[0], []
    for i in range(1, FRAMES):
        h, new_skip = saved["encoder"](x_in)
        if skip_from == "latest" or i < PAST + (skip_from == "context"):
            skip = new_skip
        z_t = noise[i - 1]
        if "prior" in saved:
            z_t = saved["prior"](with_condition(saved["prior"], i, h=h), noise[i - 1])
        if i < PAST:
            h_target = saved["encoder"](frames[i])[0]
            z_t = saved["posterior"](with_condition(saved["posterior"], i, h=h_target), noise[i - 1])
        g = saved["frame_predictor"](with_condition(saved["frame_predictor"], i, h=h, z=z_t))
        x_in = frames[i]
        if i >= PAST:
            x_in = saved["decoder"]([g, skip])
            predictions.append(x_in)
    return torch.stack(predictions)


@torch.no_grad()
def predicted(model, frames, cond, noise):
    return model.predict(frames[:PAST], cond, noise)


@pytest.mark.parametrize("networks, options", [
    ({}, {}),
    ({}, {"condition": "target"}),
    ({"posterior_told": 7}, {"order": "hcz"}),
    ({"posterior_told": 7}, {"order": "chz"}),
    ({"predictor_told": 0, "posterior_told": 7}, {}),
    ({"predictor_told": 0}, {}),                                # SVG-FP
    ({"predictor_told": 0, "learned_prior": True}, {}),         # SVG-LP
    ({"learned_prior": True}, {"skip": "early"}),
    ({}, {"skip": "latest"}),
], ids=str)
def test_predictions_are_those_of_the_template(tmp_path, networks, options):
    saved = template(**networks)
    model = convert(written(tmp_path / "model.pth", saved), **options).model
    expected = predicted_by_template(saved, *batch(), options.get("condition", "previous"),
                                     options.get("order", "hzc"), options.get("skip", "context"))
    torch.testing.assert_close(predicted(model, *batch()), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("wrong", [{"condition": "target"}, {"order": "hcz"}, {"skip": "early"}, {"skip": "latest"}],
                         ids=str)
def test_what_the_file_does_not_say_matters(model_pth, wrong):
    right = predicted(convert(model_pth).model, *batch())
    assert (predicted(convert(model_pth, **wrong).model, *batch()) - right).abs().max() > 1e-4


def test_a_model_without_condition_predicts_on_data_with_and_without_tables(tmp_path):
    model = convert(written(tmp_path / "model.pth", template(predictor_told=0))).model
    frames, cond, noise = batch()
    assert torch.equal(predicted(model, frames, cond, noise), predicted(model, frames, cond[..., :0], noise))


def test_the_skips_that_args_ask_for_are_used(tmp_path):
    saved = template()
    saved["args"].last_frame_skip = True
    assert convert(written(tmp_path / "model.pth", saved)).model.config.skip == "latest"


def test_shapes_count_more_than_args_and_what_is_missing_is_said(tmp_path):
    saved = template()
    saved["args"] = Namespace(n_past=PAST, g_dim=Z, z_dim=G)
    converted = convert(written(tmp_path / "model.pth", saved))
    config = converted.model.config
    assert (config.g_dim, config.z_dim, config.n_past, config.n_future) == (G, Z, PAST, 10)
    assert converted.notes == ["args say g_dim 6, the weights 16: the weights count",
                               "args say z_dim 16, the weights 6: the weights count",
                               "args do not say n_future: 10 is assumed"]


def test_state_dicts_in_the_place_of_modules_will_do(tmp_path, model_pth):
    saved = {name: value.state_dict() if isinstance(value, nn.Module) else value for name, value in template().items()}
    torch.save(saved, tmp_path / "states.pth")
    assert torch.equal(predicted(convert(tmp_path / "states.pth").model, *batch()),
                       predicted(convert(model_pth).model, *batch()))


def test_the_command_makes_a_run_that_is_scored_and_never_replaced(model_pth, tiny_root, tmp_path, capsys):
    run = tmp_path / "model_lab5"
    assert main(["convert-checkpoint", str(model_pth)]) == 0
    assert f"lab5 evaluate --run {run}" in capsys.readouterr().out
    assert main(["evaluate", "--run", str(run), "--data", str(tiny_root)]) == 0
    assert "prior sample (graded)" in capsys.readouterr().out
    assert main(["convert-checkpoint", str(model_pth)]) == 1
    assert "not empty; name another folder" in capsys.readouterr().err
    assert main(["convert-checkpoint", str(model_pth), str(tmp_path / "other"), "--order", "chz"]) == 0


@pytest.mark.parametrize("number", ["05", "06", "07", "08", "09"])
def test_the_notebooks_open_on_converted_weights_or_say_what_is_missing(number, model_pth, tiny_root, tmp_path):
    """Curves and sweeps need a training, of which the template's file tells nothing; the others show what is there."""
    folder = save(convert(model_pth), tmp_path / "run").parent
    parameters = {"preset": "smoke", "run": str(folder), "data": str(tiny_root)}
    (notebook,) = find_notebooks([number])

    def execute():
        papermill.execute_notebook(notebook, tmp_path / notebook.name, parameters, progress_bar=False,
                                   kernel_name="python3", cwd=notebook.parent)

    if number in ("06", "07", "09"):
        execute()
    else:
        with pytest.raises(papermill.PapermillExecutionError, match="no history of their training. Notebooks 06, 07"):
            execute()


def test_a_training_may_go_on_from_converted_weights(model_pth, tmp_path):
    save(convert(model_pth), tmp_path / "run")
    branch(tmp_path / "run", tmp_path / "tuned", lr=1e-4)
    model, _ = checkpoint.load_model(tmp_path / "tuned" / "last.safetensors")
    assert torch.equal(predicted(model, *batch()), predicted(convert(model_pth).model, *batch()))


# ---- what must not run ----

class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {                                     # each would leave a file at `mark`
    "os.system": lambda mark: Payload(os.system, f"echo > {mark}"),
    "eval": lambda mark: Payload(eval, f"open({str(mark)!r}, 'w').close()"),
    "exec": lambda mark: Payload(exec, f"open({str(mark)!r}, 'w').close()"),
    "open": lambda mark: Payload(open, str(mark), "w"),
    "subprocess": lambda mark: Payload(subprocess.call, ["touch", str(mark)]),
    "torch": lambda mark: Payload(torch.save, 1, str(mark)),
    "numpy": lambda mark: Payload(np.savetxt, str(mark), [1]),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_payload_is_refused_and_does_not_run(tmp_path, attack, legacy, capsys):
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    payload = ATTACKS[attack](mark)
    pickle.loads(pickle.dumps(payload))
    assert mark.exists()                                        # elsewhere it would have run
    mark.unlink()
    written(path, template() | {"epoch": payload}, _use_new_zipfile_serialization=not legacy)
    assert main(["convert-checkpoint", str(path)]) == 1
    function, printed = payload.call[0], capsys.readouterr().err
    module = {"subprocess": "commands"}.get(function.__module__, function.__module__)       # as Python 2 named it
    expected = "a bare pickle" if legacy else f"names {module}.{function.__qualname__}, which"
    assert f"{path}: {expected}" in printed and "Traceback" not in printed
    assert not mark.exists() and not (tmp_path / "model_lab5").exists()


def test_no_module_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    """And a class of the student's own is not called, whatever arguments the file has for it."""
    (tmp_path / "students_own.py").write_text("from pathlib import Path\n"
                                              "def run(where):\n    Path(where).touch()\n"
                                              "run(Path(__file__).with_name('imported'))\n")
    monkeypatch.syspath_prepend(tmp_path)
    import students_own
    written(tmp_path / "model.pth", template() | {"epoch": Payload(students_own.run, str(tmp_path / "called"))})
    (tmp_path / "imported").unlink()
    del sys.modules["students_own"]
    convert(tmp_path / "model.pth")
    assert "students_own" not in sys.modules and "models.lstm" not in sys.modules
    assert not (tmp_path / "imported").exists() and not (tmp_path / "called").exists()


def test_nothing_is_extracted_from_a_zip_with_names_that_lead_out_of_it(model_pth, tmp_path):
    with zipfile.ZipFile(model_pth, "a") as archive:
        archive.writestr("../escaped", b"x")
        archive.writestr(str(tmp_path / "absolute"), b"x")
    before = set(tmp_path.parent.rglob("*"))
    try:
        convert(model_pth)
    except CheckpointError as error:
        assert str(model_pth) in str(error)
    assert set(tmp_path.parent.rglob("*")) == before


# ---- what cannot be converted ----

def altered(change):
    """A template's checkpoint with something changed in it."""
    def write(path):
        saved = template()
        change(saved)
        written(path, saved)
    return write


def cut_off(path):
    written(path, template())
    path.write_bytes(path.read_bytes()[:20_000])


def garbled(at):
    """A checkpoint with a few bytes changed: those of the pickle are at its beginning, weights in its middle."""
    def write(path):
        content = bytearray(written(path, template()).read_bytes())
        start = int(at * len(content)) + 300
        content[start:start + 4] = bytes(byte ^ 255 for byte in content[start:start + 4])
        path.write_bytes(content)
    return write


MISTAKES = {
    "no file": (lambda path: None, "there is no such file"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "begins with b'vers', expected a zip file"),
    "empty": (lambda path: path.write_bytes(b""), "begins with b''"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"encoder": 1})), "a bare pickle"),
    "legacy": (lambda path: written(path, template(), _use_new_zipfile_serialization=False), "save it again where"),
    "cut off": (cut_off, "damaged, cut off, or not a checkpoint"),
    "a damaged pickle": (garbled(at=0), "data.pkl is not what was written"),
    "a damaged weight": (garbled(at=0.5), "is not what was written"),
    "other zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "not a checkpoint of torch.save"),
    "protocol 4": (lambda path: written(path, template(), pickle_protocol=4), "not a checkpoint of torch.save"),
    "state dict": (lambda path: torch.save(vgg_encoder(G).state_dict(), path), "has no encoder, decoder, frame_pred"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "found Tensor"),
    "a network missing": (altered(lambda saved: saved.pop("decoder")), "has no decoder; found ['args', 'best_psnr'"),
    "a number for a network": (altered(lambda saved: saved.update(decoder=3)), "decoder holds no weights"),
    "settings for a network": (altered(lambda saved: saved.update(posterior=saved["args"])), "posterior holds no weig"),
    "another encoder": (altered(lambda saved: saved.update(encoder=lstm(3, 4))), "encoder has no weight c5.0.weight"),
    "another width": (altered(lambda saved: saved.update(decoder=vgg_decoder(G, 2 * W))),
                      "decoder.upc1.0.weight has shape (16, 64, 4, 4), expected shape (16, 32, 4, 4)"),
    "a layer missing": (altered(lambda saved: delattr(saved["encoder"], "c4")),
                        "encoder.c4.0.main.0.weight is missing, expected shape (32, 16, 3, 3)"),
    "a layer more": (altered(lambda saved: setattr(saved["decoder"], "extra", nn.Linear(2, 2))),
                     "decoder has more than the template's: extra.bias, extra.weight"),
    "another condition": (altered(lambda saved: saved.update(frame_predictor=lstm(G + Z + 5, G))),
                          "frame_predictor 5; expected 0 or the 7 numbers"),
    "another hidden size": (altered(lambda saved: saved.update(posterior=gaussian_lstm(G, Z, hidden=5))),
                            "posterior.embed.weight has shape (5, 16), expected shape (12, 16)"),
    "NaN": (altered(lambda saved: nn.init.constant_(saved["decoder"].upc5[1].bias, float("nan"))),
            "decoder.upc5.1.bias holds NaN or infinity"),
    "gigantic shape": (altered(lambda saved: saved.update(encoder={"c5.0.weight": torch.zeros(1).expand(10**12)})),
                       "encoder holds no weights"),
    "no frames": (altered(lambda saved: setattr(saved["args"], "n_past", 0)), "n_past is 0, but must be above 0"),
    "words for frames": (altered(lambda saved: setattr(saved["args"], "n_past", "two")), "n_past is 'two'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_error_that_names_the_file(tmp_path, mistake):
    write, words = MISTAKES[mistake]
    write(tmp_path / "model.pth")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "model.pth")
    assert str(error.value).startswith(str(tmp_path / "model.pth")) and words in str(error.value)
