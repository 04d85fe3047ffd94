"""What changes during a run, as pure functions of progress (0 at the first step, 1 at the last).

Each takes the configuration and a number or an array of progress and returns the same shape.
"""

from __future__ import annotations

import numpy as np

from lab5.config import Config


def kl_weight(config: Config, progress):
    """Weight of the KL term, in [0, 1].

    monotonic: a linear ramp over the first `kl_ramp` of the run, then 1 (Bowman et al. 2016 use a logistic one);
    cyclical: the same in each of `kl_cycles` equal cycles, back to 0 at each start (Fu et al. 2019);
    constant: always 1; zero: always 0, the handout's first sanity check.
    """
    progress = np.asarray(progress, dtype=float)
    if config.kl_schedule == "zero":
        return np.zeros_like(progress)
    if config.kl_schedule == "constant" or config.kl_ramp == 0:
        return np.ones_like(progress)
    cycles = config.kl_cycles if config.kl_schedule == "cyclical" else 1
    position = np.where(progress < 1, (progress * cycles) % 1.0, 1.0)    # the run ends on the last plateau
    return np.minimum(position / config.kl_ramp, 1.0)


def teacher_forcing_ratio(config: Config, progress):
    """Probability that a step is given the true previous frame, in [tf_min, tf_start].

    It stays at `tf_start` until `tf_hold`, then falls in a line to `tf_min`, reached at `tf_end`.
    (Scheduled sampling: Bengio et al. 2015.) A start below the lower bound stays where it is.
    """
    progress = np.asarray(progress, dtype=float)
    fall = max(config.tf_end - config.tf_hold, 1e-9)
    fallen = np.clip((progress - config.tf_hold) / fall, 0.0, 1.0)
    lower = min(config.tf_min, config.tf_start)
    return config.tf_start + fallen * (lower - config.tf_start)


def learning_rate(config: Config, progress):
    """Adam's step size: a linear warm-up, then constant or half a cosine down to 0."""
    progress = np.asarray(progress, dtype=float)
    warm = np.minimum(progress / config.lr_warmup, 1.0) if config.lr_warmup else np.ones_like(progress)
    if config.lr_schedule == "constant":
        return config.lr * warm
    decay = np.clip((progress - config.lr_warmup) / max(1 - config.lr_warmup, 1e-9), 0.0, 1.0)
    return config.lr * warm * 0.5 * (1 + np.cos(np.pi * decay))
