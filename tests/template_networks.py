"""The networks of the course's template, written anew in any width, with the structure and names of the real ones."""

import sys
from argparse import Namespace
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

W, G, Z, HIDDEN, PAST, FRAMES, BATCH = 4, 16, 6, 12, 3, 7, 2    # 3 context frames, so that early is not the first


class vgg_layer(nn.Sequential):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))


def block(*channels):
    return nn.Sequential(*(vgg_layer(*pair) for pair in pairwise(channels)))


class vgg_encoder(nn.Module):
    def __init__(self, dim=G, w=W):
        super().__init__()
        self.c1, self.c2 = block(3, w, w), block(w, 2 * w, 2 * w)
        self.c3, self.c4 = block(2 * w, 4 * w, 4 * w, 4 * w), block(4 * w, 8 * w, 8 * w, 8 * w)
        self.c5 = nn.Sequential(nn.Conv2d(8 * w, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())
        self.mp = nn.MaxPool2d(2, 2)

    def forward(self, x):
        skips = []
        for convolve in (self.c1, self.c2, self.c3, self.c4):
            skips.append(convolve(x))
            x = self.mp(skips[-1])
        return self.c5(x).flatten(1), skips


class vgg_decoder(nn.Module):
    def __init__(self, dim=G, w=W):
        super().__init__()
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(dim, 8 * w, 4, 1, 0), nn.BatchNorm2d(8 * w), nn.LeakyReLU(0.2))
        self.upc2, self.upc3 = block(16 * w, 8 * w, 8 * w, 4 * w), block(8 * w, 4 * w, 4 * w, 2 * w)
        self.upc4 = block(4 * w, 2 * w, w)
        self.upc5 = nn.Sequential(vgg_layer(2 * w, w), nn.ConvTranspose2d(w, 3, 3, 1, 1), nn.Sigmoid())
        self.up = nn.UpsamplingNearest2d(scale_factor=2)

    def forward(self, g, skips):
        x = self.upc1(g[:, :, None, None])
        for convolve, skip in zip((self.upc2, self.upc3, self.upc4, self.upc5), reversed(skips), strict=True):
            x = convolve(torch.cat([self.up(x), skip], 1))
        return x


class lstm(nn.Module):
    def __init__(self, n_in, n_out=G, layers=2, norm=True):
        super().__init__()
        self.embed = nn.Linear(n_in, HIDDEN)
        self.lstm = nn.ModuleList([nn.LSTMCell(HIDDEN, HIDDEN) for _ in range(layers)])
        self.output = nn.Sequential(nn.Linear(HIDDEN, n_out), *[nn.BatchNorm1d(n_out)][:norm], nn.Tanh())
        self.hidden = [None] * layers

    def run(self, inputs):
        h = self.embed(inputs)
        for layer, cell in enumerate(self.lstm):
            self.hidden[layer] = cell(h, self.hidden[layer])
            h = self.hidden[layer][0]
        return h

    def forward(self, inputs):
        return self.output(self.run(inputs))


class gaussian_lstm(lstm):
    def __init__(self, n_in=G, n_out=Z, layers=1):
        super().__init__(n_in, n_out, layers)
        del self.output
        self.mu_net, self.logvar_net = nn.Linear(HIDDEN, n_out), nn.Linear(HIDDEN, n_out)

    def forward(self, inputs, noise):
        h = self.run(inputs)
        return self.mu_net(h) + noise * self.logvar_net(h).mul(0.5).exp()


CLASSES = {"models.vgg_64": (vgg_layer, vgg_encoder, vgg_decoder), "models.lstm": (lstm, gaussian_lstm)}
for _module, _classes in CLASSES.items():
    for _class in _classes:
        _class.__module__ = _module


def template(conditioned=7, posterior_conditioned=0, learned_prior=False, norm=True, name="args") -> dict:
    """What the template's training saves, its batch norms as after a training."""
    torch.manual_seed(0)
    saved = {"encoder": vgg_encoder(), "decoder": vgg_decoder(), "posterior": gaussian_lstm(G + posterior_conditioned),
             "frame_predictor": lstm(G + Z + conditioned, norm=norm)}
    saved |= {"prior": gaussian_lstm(layers=2)} if learned_prior else {}
    with torch.no_grad():
        for norm in (module for network in saved.values() for module in network.modules()):
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.05, 0.5)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.2)
    args = Namespace(n_past=PAST, n_future=FRAMES - PAST, last_frame_skip=False, optimizer=torch.optim.Adam)
    return {key: network.eval() for key, network in saved.items()} | {name: args, "last_epoch": np.float64(3)}


def written(path, saved):
    """Save, where the template's modules can be imported."""
    modules = {name: SimpleNamespace(**{each.__name__: each for each in classes}) for name, classes in CLASSES.items()}
    with patch.dict(sys.modules, {"models": ModuleType("models"), **modules}):
        torch.save(saved, path)
    return path


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
