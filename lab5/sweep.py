"""One change at a time: runs that differ from a reference in a single choice, and how far their scores differ.

A choice is a group of options, each a few changed settings. The option that changes nothing is the reference
run itself, so every group contains it. Runs lie in ``RUN/variants``, named by their configuration: an option
that two groups share is trained once, and a sweep that was cut off goes on where it stopped.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

from lab5.config import Config
from lab5.workbook import Workbook, cores

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
PROTOCOLS = ("sampled", "mean")


@dataclass(frozen=True)
class Result:
    """What one option scored: (seeds, sequences) average PSNR in dB of each test sequence, prior sample and mean."""

    group: str
    option: str
    run: Workbook                               # of the first seed
    sampled: np.ndarray
    mean: np.ndarray
    kl: list[float]                             # nats a frame in the last epoch, a seed each
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


def budget(config: Config, share: float = 0.1) -> dict[str, int]:
    """Settings of a run that is `share` as long and is scored at its end only."""
    epochs = max(1, round(share * config.epochs))
    return {"epochs": epochs, "validate_every": epochs}


def sweep(book: Workbook, groups: dict[str, Options], share: float = 0.1, seeds: int = 1) -> list[Result]:
    """Train and score every option of every group under seeds 1 .. `seeds`, each run `share` as long as the main one.

    Runs that are finished are read back, others go on; on a CPU, as many at a time as there are cores, since two
    runs of one thread each get further than two threads do on one run. A progress bar counts runs.
    """
    short = budget(book.config, share)
    options = [(group, option, [book.variant(**{**short, **changes, "seed": seed}) for seed in range(1, seeds + 1)])
               for group, choices in groups.items() for option, changes in choices.items()]
    _train(list({variant.run: variant for _, _, variants in options for variant in variants}.values()))
    reference = book.variant(**short, seed=1).config
    return [_result(group, option, variants, variants[0].config == reference) for group, option, variants in options]


def _train(variants: list[Workbook]) -> None:
    """Train and score runs, side by side on a CPU."""
    for split in ("train", "validate", "test"):                 # before several processes ask for it at once
        variants[0].pack(split)
    at_once = 1 if torch.cuda.is_available() else min(cores(), len(variants))
    with tqdm(total=len(variants), desc="sweep", unit="run") as bar:
        if at_once == 1:
            for variant in variants:
                _run(variant)
                bar.update()
            return
        with ProcessPoolExecutor(at_once, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            for done in as_completed([pool.submit(_run, variant) for variant in variants]):
                done.result()
                bar.update()


def _run(variant: Workbook) -> None:
    variant.train(progress=False)
    variant.evaluation(protocols=PROTOCOLS)


def _result(group: str, option: str, variants: list[Workbook], is_reference: bool) -> Result:
    scores = [variant.evaluation(protocols=PROTOCOLS) for variant in variants]
    sampled, mean = (np.stack([score.psnr[protocol].mean(axis=1) for score in scores]) for protocol in PROTOCOLS)
    return Result(group, option, variants[0], sampled, mean, [v.history()[-1]["kl"] for v in variants], is_reference)
