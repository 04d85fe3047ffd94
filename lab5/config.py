"""One flat configuration for a run: every setting in one place, with its unit and its meaning.

A `Config` is saved as ``config.json`` beside every run's checkpoints, and everything is rebuilt from it alone. It is a
pydantic model: a value of the wrong type, a value outside its range and an unknown name are refused (a ValueError).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(gt=0, le=4096)]
Layers = Annotated[int, Field(gt=0, le=64)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

# Settings of the machine: not in the hash, and free to change on resuming, which changes results by rounding only (of
# `processes`: and by the statistics of batch norms that are not frozen)
MACHINE_FIELDS = frozenset({"preset", "precision", "processes", "best_of"})


class Config(BaseModel):
    """Settings of one run. Defaults are the lab's own (preset `full`), except where those were wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    preset: str = "full"                # the preset it started from; names the run folder

    # Video: the first n_past frames are given, the next n_future are predicted
    n_past: Annotated[int, Field(ge=2, le=4096)] = 2        # context frames; from two on there is a motion to continue
    n_future: Size = 10                 # predicted frames
    condition: Literal["previous", "target", "both", "none"] = "both"
    #   whose action and position the step t-1 -> t is conditioned on: t-1's, t's, or both; "none": action-free

    even_starts: bool = True            # training windows begin at even frames, as BAIR's actions do, and as in testing

    # Model (SVG's sizes: Denton & Fergus 2018, appendix)
    width: Size = 64                    # channels of the first convolution; 64 is VGG-64, 22 M parameters
    g_dim: Size = 128                   # features of one frame, g(t) and h(t)
    z_dim: Size = 64                    # latent variable z(t)
    rnn_size: Size = 256                # hidden units of each LSTM
    predictor_layers: Layers = 2        # LSTM layers of the frame predictor
    posterior_layers: Layers = 1        # LSTM layers of the posterior
    residual: bool = False              # an LSTM's input is added to its output: z is used much sooner
    condition_dim: Size = 32            # the embedded condition
    skip: Literal["context", "latest", "early"] = "context"
    #   skips from the last context frame; from the newest available frame (SVG's option); or from the context
    #   frame before the last, which is what the course's template did by mistake

    # The extras, each a component of its own (notebook 03)
    learned_prior: bool = False         # an LSTM over the past instead of N(0, I) (Denton & Fergus 2018)
    prior_layers: Layers = 1            # its LSTM layers
    conditional_convolution: bool = False   # the condition scales and shifts every convolution (Choi et al. 2019)
    hierarchical: bool = False          # latent maps at 8x8 and 16x16 below z(t)
    z_channels: Layers = 4              # channels of each
    aligned: bool = False               # skips are warped to where they belong at each step

    # Objective: reconstruction + kl_weight(t) * KL, on either of two scales
    reconstruction: Literal["mse", "calibrated"] = "mse"
    #   mse: pixel-mean squared error + beta * kl_weight * KL, the lab's;
    #   calibrated: Gaussian log-likelihood of the optimal variance (sigma-VAE), where a weight of 1 is the ELBO
    beta: Annotated[float, Field(ge=0)] = 1e-4      # with mse, what a KL weight of 1 stands for; SVG's value on BAIR
    kl_schedule: Literal["monotonic", "cyclical", "constant", "zero"] = "monotonic"
    kl_cycles: Count = 3                # cycles of the cyclical schedule
    kl_ramp: Share = 0.5                # share of a cycle (monotonic: of the run) spent rising from 0 to 1

    # Teacher forcing: the ratio is the probability that a step is given the true previous frame
    tf_start: Share = 1.0               # ratio at the beginning
    tf_hold: Share = 0.3                # share of the run before it begins to fall
    tf_end: Share = 0.8                 # share of the run at which it has reached the lower bound
    tf_min: Share = 0.0                 # lower bound
    tf_coin: Literal["batch", "step"] = "batch"     # one draw for the whole batch (the lab), or one for each step

    # Optimization
    epochs: Count = 300
    batches_per_epoch: Count = 600
    batch_size: Annotated[int, Field(ge=2, le=4096)] = 12   # two are the least that a batch norm can train on
    lr: Annotated[float, Field(gt=0)] = 2e-3                # peak learning rate (Adam)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    lr_warmup: Share = 0.02             # share of the run spent rising to the peak
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9        # Adam's first-moment decay
    norm_freeze: Share = 1.0            # share of the run after which batch norms keep their statistics; 1: never
    #   steps fed with predictions are normalised one by one, so the statistics of training differ from the running
    #   averages that testing uses; frozen, they are the same, and the weights adapt to them
    grad_clip: Annotated[float, Field(ge=0)] = 1.0          # largest norm of the whole gradient; 0: no clipping
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2 ** 32)] = 1       # what numpy and torch both accept
    processes: Annotated[int, Field(ge=0, le=64)] = 0       # on a CPU; 0: one per core, in a long run

    # Evaluation
    validate_every: Count = 5           # epochs between two scorings of the validation split
    validate_sequences: Count = 256     # sequences of it that are scored
    best_of: Annotated[int, Field(ge=2, le=10_000)] = 10    # samples for the protocols that draw N

    # The simulated robot, used where no data set is given: sequences in each split
    sim_train: Count = 2048
    sim_validate: Count = 256
    sim_test: Count = 256

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
        """Eight hex digits that identify what decides the result: all settings but `MACHINE_FIELDS`."""
        return hashlib.sha256(self.model_dump_json(exclude=MACHINE_FIELDS).encode()).hexdigest()[:8]

    def differences(self, other: Config) -> list[str]:
        """The settings that decide the result and differ, as "lr: 0.001 here, 0.002 there"."""
        mine, theirs = self.model_dump(exclude=MACHINE_FIELDS), other.model_dump(exclude=MACHINE_FIELDS)
        return [f"{name}: {mine[name]!r} here, {theirs[name]!r} there" for name in mine if mine[name] != theirs[name]]

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed. Raises ValueError on a name or value that is not allowed."""
        return Config(**{**self.model_dump(), **changes})

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a ``config.json``. Raises ValueError that names the file when it is not one."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: correct it, or choose another run folder; {error}") from error


PRESETS: dict[str, Config] = {
    # seconds: every line of the workbook runs, nothing is learned
    "smoke": Config(
        preset="smoke", width=4, g_dim=16, z_dim=4, rnn_size=16, condition_dim=8, epochs=2, batches_per_epoch=3,
        batch_size=2, lr=1e-3, validate_every=1, validate_sequences=4, best_of=2,
        sim_train=8, sim_validate=4, sim_test=4),
    # minutes on 2 cores: a model that is clearly better than the baselines
    "quick": Config(
        preset="quick", width=8, g_dim=96, z_dim=16, rnn_size=128, conditional_convolution=True, epochs=28,
        batches_per_epoch=54, batch_size=8, lr=3e-3, norm_freeze=0.15, tf_hold=0.1, tf_end=0.5, validate_every=2,
        validate_sequences=32, sim_train=576, sim_validate=32, sim_test=64),
    # an hour or more of one core: the recorded run, with the extra that helps most
    "standard": Config(
        preset="standard", width=16, conditional_convolution=True, epochs=45, batches_per_epoch=100, batch_size=8,
        lr=3e-3, norm_freeze=0.15, tf_hold=0.1, tf_end=0.5, validate_every=2, validate_sequences=64, sim_train=4096),
    # the same effort on SVG's own task, where the action is not told and z has to say what happens
    "action_free": Config(
        preset="action_free", condition="none", reconstruction="calibrated", learned_prior=True, residual=True,
        width=16, z_dim=16, kl_ramp=0.1, epochs=40, batches_per_epoch=100, batch_size=8, lr=3e-3, norm_freeze=0.15,
        tf_hold=0.1, tf_end=0.5, validate_every=2, validate_sequences=64, sim_train=4096),
    # the lab's own schedule on BAIR: 300 epochs of 600 batches of 12
    "full": Config(),
}


def preset(name: str, **changes: Any) -> Config:
    """The named preset with some settings changed. Raises ValueError on an unknown preset or setting."""
    if name not in list(PRESETS):               # a list, so that an unhashable name is refused too
        raise ValueError(f"unknown preset {name!r}; the presets are: {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
