"""One change at a time: runs that differ from a reference in a single choice, and how far their scores differ.

A choice is a group of options, each a few changed settings. The option that changes nothing is the reference
run itself, so every group contains it. Runs lie in ``RUN/variants``, named by their configuration: an option
that two groups share is trained once, and a sweep that was cut off goes on where it stopped.
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
from lab5.files import write_atomically, write_text
from lab5.processes import each
from lab5.training import Diverged, read_history
from lab5.workbook import PROJECT, Workbook, machine, table

Options = dict[str, dict]                       # what a reader sees -> the settings that it changes

EXTRAS = ("learned_prior", "conditional_convolution", "hierarchical", "aligned")
ALL_FOUR = dict.fromkeys(EXTRAS, True)
CORE: dict[str, Options] = {
    "KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"},
                    "cyclical": {"kl_schedule": "cyclical"}},
    "Teacher forcing": {"always": {"tf_start": 1.0, "tf_min": 1.0}, "never": {"tf_start": 0.0, "tf_min": 0.0}},
    "Extras": {"none": {}, "all four": ALL_FOUR},
}
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
               "all four": ALL_FOUR},
}
SWEEPS = {"core": CORE, "extras": {"Extras": FULL["Extras"]}, "full": FULL}
PROTOCOLS = ("sampled", "mean")
RECORDED = PROJECT / "figures"              # sweep_full.csv and sweep_extras.csv: what `lab5 sweep` found


@dataclass(frozen=True)
class Result:
    """What one option scored under every seed; "sampled" and "mean" are the average PSNR in dB of test sequences."""

    group: str
    option: str
    is_reference: bool
    sampled: np.ndarray                         # (seeds, sequences), z from the prior: what is graded
    mean: np.ndarray                            # (seeds, sequences), the prior's mean
    kl: np.ndarray                              # (seeds,), nats a frame in the last epoch
    seconds: np.ndarray                         # (seeds,), of training
    runs: tuple[Workbook, ...] = ()             # a seed each; none where the result was read from a file

    @property
    def diverged(self) -> int:
        """How many of its runs have diverged. They have no scores but NaN, and then the option is not compared."""
        return int(np.isnan(self.sampled).any(axis=1).sum())


@dataclass(frozen=True)
class Sweep:
    """All results of a sweep, and what their differences are worth."""

    results: list[Result]
    facts: dict[str, str]                       # sequences a run, data, machine

    @cached_property
    def reference(self) -> Result:
        """The run that nothing was changed in. Raises ValueError where no option is it, or it has diverged."""
        for result in self.results:
            if result.is_reference and not result.diverged:
                return result
        raise ValueError("the reference run has diverged or is none of the compared options: there is nothing to "
                         "compare with; sweep from a configuration that trains, with a lower lr perhaps")

    @cached_property
    def different(self) -> list[Result]:
        """Every option that can be compared, once: the reference stands in every group, but is one."""
        return [self.reference, *(r for r in self.results if not r.is_reference and not r.diverged)]

    def groups(self) -> dict[str, dict[str, Result]]:
        """group -> option -> its result."""
        return {group: {r.option: r for r in self.results if r.group == group}
                for group in dict.fromkeys(r.group for r in self.results)}

    @cached_property
    def noise(self) -> tuple[float, int]:
        """Standard deviation in dB that chance gives a run's score, and its degrees of freedom.

        What the scores leave when every option has its mean and every seed its own (randomised blocks; Fisher
        1935), pooled over all options, since two or three seeds of one say little about their spread.
        (NaN, 0) for a single seed or option.
        """
        if len(self.different) < 2:
            return float("nan"), 0
        scores = np.array([result.sampled.mean(axis=1) for result in self.different])           # (options, seeds)
        freedom = (scores.shape[0] - 1) * (scores.shape[1] - 1)
        if freedom == 0:
            return float("nan"), 0
        rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
        return float(np.sqrt((rest ** 2).sum() / freedom)), freedom

    def gain(self, result: Result, other: Result | None = None) -> tuple[float, float]:
        """What one option gains over another (the reference) in dB, and the half-width of its 95% interval.

        Paired: the same sequences and seeds on both sides. With several seeds the interval holds the chance of
        training (`noise`); with one, only that of which sequences are in the test set.
        """
        gain = result.sampled - (other or self.reference).sampled
        spread, freedom = self.noise
        if freedom:
            return float(gain.mean()), float(stats.t.ppf(0.975, freedom) * spread * np.sqrt(2 / len(gain)))
        if gain.size < 2:                                       # one seed, of which a file keeps the average only
            return float(gain.mean()), float("nan")
        return float(gain.mean()), float(stats.t.ppf(0.975, gain.size - 1) * stats.sem(gain[0]))

    def verdict(self, result: Result, other: Result | None = None) -> str:
        """The gain in words, with its interval, and whether chance can explain it."""
        gain, half = self.gain(result, other)
        return "no difference" if abs(gain) < 0.005 else (
            signed(gain, half) + (" (within the noise)" if abs(gain) <= half else ""))

    def in_words(self) -> dict[str, str]:
        """For every group a sentence: which option came first, by how much over the next, and which came last."""
        sentences = {}
        for group, options in self.groups().items():
            ranked = sorted((r for r in options.values() if not r.diverged), key=lambda r: r.sampled.mean(),
                            reverse=True)
            parts = [f"*{first.option}* comes first with {first.sampled.mean():.2f} dB" for first in ranked[:1]]
            if len(ranked) > 1:
                parts[0] += f", {self.verdict(*ranked[:2])} against *{ranked[1].option}*"
            if len(ranked) > 2:
                last = ranked[-1]
                parts.append(f"*{last.option}* comes last, {self.verdict(last, ranked[0])} against the first")
            parts += [f"*{r.option}* diverged" for r in options.values() if r.diverged]
            sentences[group] = f"{'; '.join(parts)}."
        return sentences

    def effects(self) -> list[dict]:
        """Records for `figures.effects`."""
        compared = [r for r in self.results if not r.diverged]
        gains = [(None, 0.0) if r.is_reference else self.gain(r) for r in compared]
        return [{"group": r.group, "setting": r.option, "gain": gain, "half": half}
                for r, (gain, half) in zip(compared, gains, strict=True)]

    def table(self) -> str:
        """Every option, its scores and its gain over the reference, as a Markdown table."""
        rows = []
        for r in self.results:
            if r.diverged:
                of_all = f" in {r.diverged} of {len(r.sampled)} runs" if len(r.sampled) > 1 else ""
                rows.append((r.group, r.option, f"diverged{of_all}", "", "", "", "", f"{r.seconds.mean():.0f}"))
                continue
            gain, half = self.gain(r)
            rows.append((r.group, r.option, f"{r.sampled.mean():.2f}", f"{r.mean.mean():.2f}",
                         "reference" if r.is_reference else signed(gain, half), "yes" if abs(gain) > half else "",
                         f"{r.kl.mean():.2g}", f"{r.seconds.mean():.0f}"))
        return table("choice", "option", "sample [dB]", "mean [dB]", "gain of the sample", "clear", "KL [nats]",
                     "time [s]", rows=rows)

    def write(self, path: Path) -> None:
        """A CSV line for every option and seed: scores over the whole test set, budget, configuration and facts."""
        def write(part: Path) -> None:
            with open(part, "w", newline="", encoding="utf-8") as file:
                lines = csv.writer(file, lineterminator="\n")
                lines.writerow(COLUMNS)
                for r in self.results:
                    for run, sampled, mean, kl, seconds in zip(r.runs, r.sampled, r.mean, r.kl, r.seconds, strict=True):
                        lines.writerow([
                            r.group, r.option, int(r.is_reference), run.config.seed, run.config.hash,
                            f"{sampled.mean():.4f}", f"{mean.mean():.4f}", f"{kl:.6g}", f"{seconds:.0f}",
                            *self.facts.values()])

        write_atomically(path, write)

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """What `write` wrote, of each seed the average over sequences. Raises ValueError that names another file."""
        try:
            with open(path, newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))
            results = []
            for (group, option), found in groupby(lines, key=lambda line: (line["choice"], line["option"])):
                of_option = list(found)
                sampled, mean, kl, seconds = (np.array([float(line[name]) for line in of_option])
                                              for name in ("psnr_sampled", "psnr_mean", "kl", "seconds"))
                results.append(Result(group, option, of_option[0]["reference"] == "1", sampled[:, None], mean[:, None],
                                      kl, seconds))
            return cls(results, {name: lines[0][name] for name in FACTS})
        except (KeyError, TypeError, ValueError, IndexError, csv.Error) as error:
            raise ValueError(f"{path}: not a table that `lab5 sweep` wrote ({error}); write it again") from error


FACTS = ("sequences", "data", "machine")
COLUMNS = ("choice", "option", "reference", "seed", "configuration", "psnr_sampled", "psnr_mean", "kl", "seconds",
           *FACTS)


def signed(gain: float, half: float) -> str:
    """A difference in dB and the half-width of its interval, where that is known."""
    return f"{gain:+.2f}".replace("-", "−") + ("" if np.isnan(half) else f" ± {half:.2f}") + " dB"


def budget(config: Config, share: float = 0.1) -> dict[str, int]:
    """Settings of a run that is `share` as long and is scored at its end only."""
    epochs = max(1, round(share * config.epochs))
    return {"epochs": epochs, "validate_every": epochs}


def sweep(book: Workbook, groups: dict[str, Options], share: float = 0.1, seeds: int = 1) -> Sweep:
    """Train and score every option of every group under seeds 1 .. `seeds`, each run `share` as long as the main one.

    Runs that are finished are read back, others go on; on a CPU, as many at a time as there are cores, since two
    runs of one thread each get further than two threads do on one run. A progress bar counts runs.
    """
    book.refuse_only_weights()
    short = budget(book.config, share)
    options = [(group, option, [book.variant(**{**short, **changes, "seed": seed}) for seed in range(1, seeds + 1)])
               for group, choices in groups.items() for option, changes in choices.items()]
    _train(list({variant.run: variant for _, _, variants in options for variant in variants}.values()))
    reference = book.variant(**short, seed=1).config
    facts = {"sequences": str(reference.steps * reference.batch_size), "data": book.pack("test").fingerprint,
             "machine": f"{machine()}, {book.facts()['precision']}"}
    return Sweep([_result(group, option, variants, variants[0].config == reference)
                  for group, option, variants in options], facts)


def _train(variants: list[Workbook]) -> None:
    """Train and score runs, side by side on a CPU."""
    variants[0].prepare()
    at_once = 1 if torch.cuda.is_available() else None
    with tqdm(total=len(variants), desc="sweep", unit="run") as bar:
        for _ in each(_run, variants, at_once, partial(torch.set_num_threads, 1)):
            bar.update()


def _run(variant: Workbook) -> None:
    """Train and score a run. That it has diverged is noted beside it, and so found out once."""
    if _note(variant).exists():
        return
    try:
        variant.train(progress=False)
        variant.evaluation(protocols=PROTOCOLS)
    except Diverged as error:
        write_text(_note(variant), f"{error}\n")


def _note(variant: Workbook) -> Path:
    return variant.run / "diverged.txt"


def _result(group: str, option: str, variants: list[Workbook], is_reference: bool) -> Result:
    sampled, mean, kl, seconds = map(np.array, zip(*map(_scores, variants), strict=True))
    return Result(group, option, is_reference, sampled, mean, kl, seconds, tuple(variants))


def _scores(variant: Workbook) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A run's PSNR of every sequence by both protocols, its KL and its seconds; scores are NaN where it diverged."""
    history = read_history(variant.run)
    seconds = sum(record["seconds"] for record in history)
    if _note(variant).exists():
        none = np.full(len(variant.pack("test")), np.nan)
        return none, none, np.nan, seconds
    scores = variant.evaluation(protocols=PROTOCOLS)
    sampled, mean = (scores.psnr[protocol].mean(axis=1) for protocol in PROTOCOLS)
    return sampled, mean, history[-1]["kl"], seconds
