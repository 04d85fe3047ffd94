"""One flat configuration for a run: every choice in one place, with its unit and its meaning.

A `Config` is saved as ``config.json`` beside every run's checkpoints, and the model, the
schedules and the loader are rebuilt from it alone. It knows nothing of torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Config:
    """Settings of one run. Defaults are the lab's own (`full`), where the lab's were right."""

    preset: str = "full"                # the preset it started from; names the run folder

    # Video: the first n_past frames are seen, the next n_future are predicted
    n_past: int = 2                     # context frames
    n_future: int = 10                  # predicted frames
    condition: Literal["previous", "target", "both", "none"] = "both"
    #   which step's action and position the step t-1 -> t is told: t-1, t, or the two; "none": action-free

    # Model (SVG's sizes: Denton & Fergus 2018, appendix)
    width: int = 64                     # channels of the first convolution; 64 is VGG-64, 22 M parameters
    g_dim: int = 128                    # features of one frame, g(t) and h(t)
    z_dim: int = 64                     # latent variable z(t)
    rnn_size: int = 256                 # hidden units of each LSTM
    predictor_layers: int = 2           # LSTM layers of the frame predictor
    posterior_layers: int = 1           # LSTM layers of the posterior
    condition_dim: int = 32             # the embedded condition
    skip: Literal["context", "latest", "early"] = "context"
    #   skips from the last context frame; from the newest frame at hand (SVG's option); or from the context
    #   frame before the last, which is what the course's template did by mistake

    # The extras, each a component of its own (notebook 03)
    learned_prior: bool = False         # an LSTM over the past in place of N(0, I) (Denton & Fergus 2018)
    prior_layers: int = 1               # its LSTM layers
    conditional_convolution: bool = False   # the condition modulates every convolution (Choi et al. 2019)
    hierarchical: bool = False          # latent maps at 8x8 and 16x16 below z(t)
    z_channels: int = 4                 # channels of each
    aligned: bool = False               # skips are moved to where they belong at each step

    # Objective: reconstruction + kl_weight(t) * KL, on either of two scales
    reconstruction: Literal["mse", "calibrated"] = "mse"
    #   mse: pixel-mean squared error + beta * kl_weight * KL, the lab's;
    #   calibrated: Gaussian log-likelihood of the optimal variance (sigma-VAE), where a weight of 1 is the ELBO
    beta: float = 1e-4                  # with mse, what a KL weight of 1 stands for; SVG's value on BAIR
    kl_schedule: Literal["monotonic", "cyclical", "constant", "zero"] = "monotonic"
    kl_cycles: int = 3                  # cycles of the cyclical schedule
    kl_ramp: float = 0.5                # share of a cycle (monotonic: of the run) spent rising from 0 to 1

    # Teacher forcing: the ratio is the probability that a step is given the true previous frame
    tf_start: float = 1.0               # ratio at the beginning
    tf_hold: float = 0.3                # share of the run before it begins to fall
    tf_end: float = 0.8                 # share of the run at which it has reached the lower bound
    tf_min: float = 0.0                 # lower bound
    tf_coin: Literal["batch", "step"] = "batch"    # a coin for the whole batch (the lab), or one for each step

    # Optimization
    epochs: int = 300
    batches_per_epoch: int = 600
    batch_size: int = 12
    lr: float = 2e-3                    # peak learning rate (Adam)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    lr_warmup: float = 0.02             # share of the run spent rising to the peak
    beta1: float = 0.9                  # Adam's first-moment decay
    norm_freeze: float = 1.0            # share of the run after which batch norms keep their statistics; 1: never
    #   steps fed with predictions are normalised one by one, so what a batch norm sees in training differs from
    #   the averages that it uses in testing; frozen, it is the same, and the weights get used to it
    grad_clip: float = 1.0              # largest norm of the whole gradient; 0 switches clipping off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 1
    workers: int = 0                    # loader processes; the packed set is fast enough for 0 on a CPU

    # Evaluation
    validate_every: int = 5             # epochs between two scorings of the validation split
    validate_sequences: int = 256       # sequences of it that are scored
    best_of: int = 10                   # samples for the best-of-N protocol

    # The simulated robot, used where no data set is given: sequences in each split
    sim_train: int = 2048
    sim_validate: int = 256
    sim_test: int = 256

    def __post_init__(self) -> None:
        """Refuse values of the wrong type or outside their range, all of them at once."""
        problems = [*self._type_problems(), *self._range_problems()]
        if problems:
            raise ValueError("this configuration cannot run:\n  " + "\n  ".join(problems))

    def _type_problems(self) -> list[str]:
        problems = []
        for name, hint in get_type_hints(Config).items():
            value, options = getattr(self, name), get_args(hint)
            if options and value not in options:
                problems.append(f"{name} is {value!r}, but must be one of {', '.join(map(repr, options))}")
            elif hint is float and type(value) is int and abs(value) < 2 ** 53:
                object.__setattr__(self, name, float(value))    # 1 and 1.0 are one configuration
            elif not options and type(value) is not hint:
                problems.append(f"{name} is {value!r}, but must be of type {hint.__name__}")
        return problems

    def _range_problems(self) -> list[str]:
        sizes = "width g_dim z_dim rnn_size z_channels condition_dim n_past n_future".split()
        layers = "predictor_layers posterior_layers prior_layers".split()
        positive = sizes + layers + ("kl_cycles epochs batches_per_epoch lr validate_every validate_sequences best_of "
                                     "sim_train sim_validate sim_test").split()
        shares = "kl_ramp tf_start tf_hold tf_end tf_min lr_warmup norm_freeze".split()
        not_negative = "beta grad_clip seed workers".split()

        def outside(names: list[str], fits, words: str) -> list[str]:
            found = [(name, getattr(self, name)) for name in names]
            return [f"{name} is {value!r}, but must be {words}" for name, value in found
                    if isinstance(value, (int, float)) and not fits(value)]

        return (outside(positive, lambda v: 0 < v < float("inf"), "above 0 and finite")
                + outside(shares, lambda v: 0 <= v <= 1, "between 0 and 1")
                + outside(["beta1"], lambda v: 0 <= v < 1, "0 or more and below 1")
                + outside(not_negative, lambda v: 0 <= v < float("inf"), "0 or more and finite")
                + outside(sizes, lambda v: v <= 4096, "at most 4096")           # beyond these no memory would do
                + outside(["n_past"], lambda v: v >= 2, "2 or more, so that there is a motion to go on from")
                + outside(["batch_size"], lambda v: 2 <= v <= 4096, "between 2, the least for a batch norm, and 4096")
                + outside([*layers, "workers"], lambda v: v <= 64, "at most 64")
                + outside(["seed"], lambda v: v < 2 ** 32, "below 2 ** 32"))    # what numpy and torch both take

    @property
    def length(self) -> int:
        """Frames of one training or evaluation window, T."""
        return self.n_past + self.n_future

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.batches_per_epoch

    @property
    def hash(self) -> str:
        """Eight hex digits that stand for these settings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed. Raises ValueError on a name that does not exist."""
        return Config.from_dict({**dataclasses.asdict(self), **changes})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Config:
        """Build from plain values. Raises ValueError that names unknown keys and the nearest known ones."""
        known = [field.name for field in fields(cls)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            near = [f"did you mean {match}?" for key in unknown for match in difflib.get_close_matches(key, known, 1)]
            raise ValueError(" ".join([f"unknown setting {', '.join(unknown)};", *near,
                                       f"the settings are: {', '.join(known)}"]))
        return cls(**settings)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Build from what `to_json` wrote. Raises ValueError when it is not that, RecursionError when nested deeply."""
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError(f"holds a {type(settings).__name__}, expected an object of settings")
        return cls.from_dict(settings)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a ``config.json``. Raises ValueError that names the file when it is not one."""
        path = Path(path)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}. Correct the file, or choose another run folder") from error


PRESETS: dict[str, Config] = {
    # seconds: every line of the workbook runs, nothing is learned
    "smoke": Config(
        preset="smoke", width=4, g_dim=16, z_dim=4, rnn_size=16, condition_dim=8, epochs=2, batches_per_epoch=3,
        batch_size=2, lr=1e-3, validate_every=1, validate_sequences=4, best_of=2,
        sim_train=8, sim_validate=4, sim_test=4),
    # minutes on 2 cores: a model that beats the baselines clearly
    "quick": Config(
        preset="quick", width=8, g_dim=96, z_dim=16, rnn_size=128, epochs=20, batches_per_epoch=54, batch_size=8,
        lr=3e-3, norm_freeze=0.5, tf_start=0.0, validate_every=2, validate_sequences=32,
        sim_train=576, sim_validate=32, sim_test=64),
    # two hours of 2 cores: the recorded run, with the extra that helps most
    "standard": Config(
        preset="standard", width=16, conditional_convolution=True, epochs=60, batches_per_epoch=100, batch_size=8,
        lr=3e-3, norm_freeze=0.5, tf_start=0.0, validate_every=2, validate_sequences=64, sim_train=4096),
    # the lab's own schedule on BAIR: 300 epochs of 600 batches of 12
    "full": Config(),
}


def preset(name: str, **changes: Any) -> Config:
    """The named preset with some settings changed.

    Raises ValueError on an unknown preset or setting, naming the known ones.
    """
    if name not in list(PRESETS):               # which a list may be asked of
        raise ValueError(f"unknown preset {name!r}; the presets are: {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
