"""One change at a time: runs that differ from a reference in a single choice, and how far their scores differ.

A choice is a group of options, each a few changed settings. The option without a change is the reference run itself.
Runs are in ``RUN/variants``, named by their configuration: an option of two groups is trained once, and a sweep that
was interrupted resumes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

from lab5.config import Config
from lab5.files import each, write_atomically
from lab5.workbook.run import Run
from lab5.workbook.show import PROJECT, machine, table

Options = dict[str, dict]                       # what a reader sees -> the settings that it changes

EXTRAS = ("learned_prior", "conditional_convolution", "hierarchical", "aligned")
NONE, ALL_FOUR = dict.fromkeys(EXTRAS, False), dict.fromkeys(EXTRAS, True)
ONE = {name.replace("_", " "): {**NONE, name: True} for name in EXTRAS}
CORE: dict[str, Options] = {
    "KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"},
                    "cyclical": {"kl_schedule": "cyclical"}},
    "Teacher forcing": {"always": {"tf_start": 1.0, "tf_min": 1.0}, "never": {"tf_start": 0.0, "tf_min": 0.0},
                        "decayed": {"tf_start": 1.0, "tf_min": 0.0}},
    "Extras": {"none": NONE, "conditional convolution": ONE["conditional convolution"], "all four": ALL_FOUR},
}
FULL: dict[str, Options] = {
    "KL schedule": CORE["KL schedule"],
    "Teacher forcing": CORE["Teacher forcing"],
    "Learning rate": {f"{lr:g}": {"lr": lr} for lr in (1e-3, 3e-3, 1e-2)},
    "Condition": {"step t-1": {"condition": "previous"}, "step t": {"condition": "target"},
                  "both": {"condition": "both"}, "none": {"condition": "none"}},
    "Skips from": {"the last context frame": {"skip": "context"}, "the one before": {"skip": "early"},
                   "the newest frame": {"skip": "latest"}},
    "Reconstruction": {"MSE, β = 0.0001": {"beta": 1e-4}, "MSE, β = 1": {"beta": 1.0},
                       "calibrated": {"reconstruction": "calibrated"}},
    "Extras": {"none": NONE, **ONE, "all four": ALL_FOUR},
}
SWEEPS = {"core": CORE, "extras": {"Extras": FULL["Extras"]}, "full": FULL}
PROTOCOLS = ("prior_sample", "prior_mean")
RECORDED = PROJECT / "figures"                  # sweep_full.csv and sweep_extras.csv, written by `lab5 sweep`
FACTS = ("sequences", "data", "machine")        # training sequences of a run, data_sha of the test split, machine
COLUMNS = ("choice", "option", "reference", "seed", "configuration", "psnr_sampled", "psnr_mean", "kl", "seconds",
           *FACTS)


@dataclass(frozen=True)
class Result:
    """One option's scores under each seed: average PSNR in dB of each test sequence."""

    group: str
    option: str
    is_reference: bool
    prior_sample: np.ndarray                    # (seeds, sequences), z sampled from the prior: the graded protocol
    prior_mean: np.ndarray                      # (seeds, sequences), z the prior's mean
    kl: np.ndarray                              # (seeds,), nats per frame in the last epoch
    seconds: np.ndarray                         # (seeds,), of training
    runs: tuple[Run, ...] = ()                  # one for each seed; none where the result was read from a file


@dataclass(frozen=True)
class Sweep:
    """All results of a sweep, with the gain of each option over the reference and its interval."""

    results: list[Result]
    facts: dict[str, str]                       # the values of `FACTS`

    @cached_property
    def reference(self) -> Result:
        """The run without a change."""
        return next(result for result in self.results if result.is_reference)

    @cached_property
    def different(self) -> list[Result]:
        """Every option, the reference once."""
        return [self.reference, *(result for result in self.results if not result.is_reference)]

    @cached_property
    def noise(self) -> tuple[float, int]:
        """Standard deviation in dB of a run's score by chance, and its degrees of freedom; (NaN, 0) for one seed.

        The residual of a two-way layout of options and seeds (randomised blocks; Fisher 1935), pooled over all
        options, since two or three seeds of one option say little about their spread.
        """
        scores = np.array([result.prior_sample.mean(axis=1) for result in self.different])     # (options, seeds)
        freedom = (scores.shape[0] - 1) * (scores.shape[1] - 1)
        rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
        return (float(np.sqrt((rest ** 2).sum() / freedom)), freedom) if freedom else (float("nan"), 0)

    def gain(self, result: Result, other: Result | None = None) -> tuple[float, float]:
        """The gain of one option over another (the reference) in dB, and the half-width of its 95% interval.

        Paired: the same sequences and seeds on both sides. With several seeds the interval is that of the training's
        chance (`noise`); with one, only that of the choice of test sequences.
        """
        gain = result.prior_sample - (other or self.reference).prior_sample
        spread, freedom = self.noise
        if freedom:
            half = stats.t.ppf(0.975, freedom) * spread * np.sqrt(2 / len(gain))
        else:                                                   # NaN where a file keeps only the average
            half = stats.t.ppf(0.975, gain.size - 1) * stats.sem(gain[0])
        return float(gain.mean()), float(half)

    def effects(self) -> list[dict]:
        """Records for `figures.effects`."""
        gains = [(None, 0.0) if r.is_reference else self.gain(r) for r in self.results]
        return [{"group": r.group, "setting": r.option, "gain": gain, "half": half}
                for r, (gain, half) in zip(self.results, gains, strict=True)]

    def table(self) -> str:
        """Every option, its scores and its gain over the reference, as a Markdown table."""
        rows = []
        for r in self.results:
            gain, half = self.gain(r)
            rows.append((r.group, r.option, f"{r.prior_sample.mean():.2f}", f"{r.prior_mean.mean():.2f}",
                         "reference" if r.is_reference else signed(gain, half), "yes" if abs(gain) > half else "",
                         f"{r.kl.mean():.2g}", f"{r.seconds.mean():.0f}"))
        return table("choice", "option", "sample [dB]", "mean [dB]", "gain of the sample", "clear", "KL [nats]",
                     "time [s]", rows=rows)

    def write(self, path: Path) -> None:
        """A CSV line for every option and seed, with the configuration's hash and the facts."""
        rows = [(r.group, r.option, int(r.is_reference), run.config.seed, run.config.hash, f"{sample:.4f}",
                 f"{mean:.4f}", f"{kl:.6g}", f"{seconds:.0f}", *self.facts.values())
                for r in self.results for run, sample, mean, kl, seconds in zip(
                    r.runs, r.prior_sample.mean(axis=1), r.prior_mean.mean(axis=1), r.kl, r.seconds, strict=True)]

        def save(part: Path) -> None:
            with open(part, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])

        write_atomically(path, save)

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """What `write` wrote; of each seed the average over sequences."""
        with open(path, newline="", encoding="utf-8") as file:
            lines, results = list(csv.DictReader(file)), []
        for (group, option), found in groupby(lines, key=lambda line: (line["choice"], line["option"])):
            seeds = list(found)
            sample, mean, kl, seconds = (np.array([float(line[name]) for line in seeds])
                                         for name in ("psnr_sampled", "psnr_mean", "kl", "seconds"))
            results.append(Result(group, option, seeds[0]["reference"] == "1", sample[:, None], mean[:, None], kl,
                                  seconds))
        return cls(results, {name: lines[0][name] for name in FACTS})


def signed(gain: float, half: float) -> str:
    """A difference in dB and the half-width of its interval, where that is known."""
    return f"{gain:+.2f}".replace("-", "−") + ("" if np.isnan(half) else f" ± {half:.2f}") + " dB"


def budget(config: Config, share: float = 0.1) -> dict[str, int]:
    """Settings of a run that is `share` as long and is scored only at its end."""
    epochs = max(1, round(share * config.epochs))
    return {"epochs": epochs, "validate_every": epochs}


def sweep(lab: Run, groups: dict[str, Options], share: float = 0.1, seeds: int = 1) -> Sweep:
    """Train and score every option of every group under seeds 1 .. `seeds`, each run `share` as long as the main one.

    Finished runs are read, others resume. On a CPU as many train at a time as there are cores, with one thread each:
    two such runs finish sooner than one after the other with two threads.
    """
    lab.refuse_only_weights()
    short = budget(lab.config, share)
    options = [(group, option, [lab.variant(**short | changes, seed=seed) for seed in range(1, seeds + 1)])
               for group, choices in groups.items() for option, changes in choices.items()]
    variants = list({variant.folder: variant for _, _, of_option in options for variant in of_option}.values())
    for variant in variants:
        variant.prepare()
    at_once = 1 if torch.cuda.is_available() else None
    done = each(_train, variants, at_once, partial(torch.set_num_threads, 1))
    for _ in tqdm(done, "sweep", len(variants), unit="run"):
        pass
    reference = lab.config.replace(**short, seed=1)
    facts = {"sequences": str(reference.steps * reference.batch_size), "data": lab.pack("test").data_sha,
             "machine": f"{machine()}, {lab.facts()['precision']}"}
    return Sweep([Result(group, option, of_option[0].config.hash == reference.hash,
                         *map(np.array, zip(*map(_scores, of_option), strict=True)), tuple(of_option))
                  for group, option, of_option in options], facts)


def _train(variant: Run) -> None:
    variant.train(progress=False)
    variant.evaluation(protocols=PROTOCOLS, progress=False)


def _scores(variant: Run) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A run's PSNR of every sequence by both protocols, the KL of its last epoch, and its seconds."""
    history, psnr = variant.history(), variant.evaluation(protocols=PROTOCOLS).psnr
    return (psnr["prior_sample"].mean(axis=1), psnr["prior_mean"].mean(axis=1), history[-1]["kl"],
            sum(record["seconds"] for record in history))
