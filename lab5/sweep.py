"""One change at a time: runs that differ from a reference in a single choice, and how far their scores differ.

A choice is a group of options, each a few changed settings. The option that changes nothing is the reference
run itself, so every group contains it. Runs lie in ``RUN/variants``, named by their configuration: an option
that two groups share is trained once, and a sweep that was cut off goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from tqdm.auto import tqdm

from lab5.config import Config
from lab5.workbook import Workbook

Options = dict[str, dict]                       # what a reader sees -> the settings that it changes

CORE: dict[str, Options] = {
    "KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"},
                    "cyclical": {"kl_schedule": "cyclical"}},
    "Teacher forcing": {"always": {"tf_start": 1.0, "tf_min": 1.0}, "never": {"tf_start": 0.0, "tf_min": 0.0}},
}
EXTRAS = ("learned_prior", "conditional_convolution", "hierarchical", "aligned")
FULL: dict[str, Options] = {
    "KL schedule": CORE["KL schedule"],
    "Teacher forcing": {**CORE["Teacher forcing"], "decayed": {"tf_start": 1.0, "tf_min": 0.0}},
    "Learning rate": {f"{lr:g}": {"lr": lr} for lr in (1e-3, 3e-3, 1e-2)},
    "Condition": {"step t-1": {"condition": "previous"}, "step t": {"condition": "target"},
                  "both": {"condition": "both"}, "none": {"condition": "none"}},
    "Skips from": {"the last context frame": {"skip": "context"}, "the one before": {"skip": "early"},
                   "the newest frame": {"skip": "latest"}},
    "Reconstruction": {"MSE, β = 0.0001": {"beta": 1e-4}, "MSE, β = 1": {"beta": 1.0},
                       "calibrated": {"reconstruction": "calibrated"}},
    "Extras": {"none": {}, **{name.replace("_", " "): {name: True} for name in EXTRAS},
               "all four": dict.fromkeys(EXTRAS, True)},
}
SWEEPS = {"core": CORE, "full": FULL}


@dataclass(frozen=True)
class Result:
    """What one option scored: (seeds, sequences) average PSNR in dB of each test sequence, prior sample and mean."""

    group: str
    option: str
    config: Config                              # of its first seed
    sampled: np.ndarray
    mean: np.ndarray
    kl: float                                   # nats a frame in the last epoch, averaged over seeds
    is_reference: bool

    def interval(self) -> tuple[float, float]:
        """Mean of the graded PSNR and the half-width of its 95% interval over test sequences."""
        return _mean_and_half(self.sampled.mean(axis=0))

    def difference(self, reference: Result) -> tuple[float, float]:
        """Gain over the reference in dB and the half-width of its 95% interval.

        Paired: the same sequences and seeds on both sides. With three or more seeds the interval is over seeds,
        so that it holds the chance of training; with fewer it is over sequences and holds that of the test set.
        """
        gain = self.sampled - reference.sampled
        return _mean_and_half(gain.mean(axis=1) if len(gain) >= 3 else gain.mean(axis=0))


def _mean_and_half(values: np.ndarray) -> tuple[float, float]:
    """Mean of independent values and the half-width of Student's 95% interval; NaN for a single value."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def sweep(book: Workbook, groups: dict[str, Options], epochs: int, seeds: int = 1) -> list[Result]:
    """Train and score every option of every group for `epochs` epochs under seeds 1 .. `seeds`.

    Finished runs are read back, unfinished ones go on. A progress bar counts runs.
    """
    budget = {"epochs": epochs, "validate_every": epochs}
    reference = book.variant(**budget, seed=1).config
    jobs = [(group, option, {**budget, **changes}) for group, options in groups.items()
            for option, changes in options.items()]
    done: dict[Config, tuple[np.ndarray, np.ndarray, float]] = {}
    results = []
    with tqdm(total=len(jobs) * seeds, desc="sweep", unit="run") as bar:
        for group, option, changes in jobs:
            config = book.variant(**changes, seed=1).config
            bar.set_postfix_str(f"{group}: {option}")
            if config not in done:
                done[config] = _scores([book.variant(**changes, seed=seed) for seed in range(1, seeds + 1)], bar)
            else:
                bar.update(seeds)
            results.append(Result(group, option, config, *done[config], is_reference=config == reference))
    return results


def _scores(variants: list[Workbook], bar: tqdm) -> tuple[np.ndarray, np.ndarray, float]:
    """Train and score one option's runs, a seed each: sampled and mean (seeds, sequences), and the KL."""
    sampled, mean, kl = [], [], []
    for variant in variants:
        kl.append(variant.train(progress=False)[-1]["kl"])
        scores = variant.evaluation(protocols=("sampled", "mean"))
        sampled.append(scores.psnr["sampled"].mean(axis=1))
        mean.append(scores.psnr["mean"].mean(axis=1))
        bar.update()
    return np.stack(sampled), np.stack(mean), float(np.mean(kl))
