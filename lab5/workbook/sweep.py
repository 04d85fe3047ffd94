"""Runs that differ in one choice: trained under several seeds, and compared with the choice's first option.

Runs are in ``RUN/variants``, named by their configuration: an option of two choices is trained once, and a comparison
that was interrupted resumes.
"""

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

from lab5.files import each, write_text
from lab5.workbook.run import Run
from lab5.workbook.show import PROJECT, machine, table

Choices = dict[str, dict[str, dict]]            # choice -> option -> the settings that it changes; the first: reference
Scores = dict[str, dict[str, np.ndarray]]       # choice -> option -> (seeds,)

EXTRAS = ("learned_prior", "conditional_convolution", "hierarchical", "aligned")
PLAIN = {**dict.fromkeys(EXTRAS, False), "norm_freeze": 0.5}    # as the recorded comparisons were made
TOLD = {**PLAIN, "conditional_convolution": True}
ACTION_FREE = {**PLAIN, "condition": "none", "residual": True, "reconstruction": "calibrated", "learned_prior": True}


def _schedules(task: str, settings: dict) -> Choices:
    """What the handout asks about, one choice at a time; the first option of each is that of the presets."""
    return {
        f"KL weight, {task}": {
            "monotonic": settings,
            "cyclical": {**settings, "kl_schedule": "cyclical"},
            "constant": {**settings, "kl_schedule": "constant"},
            "zero": {**settings, "kl_schedule": "zero"}},
        f"Teacher forcing, {task}": {
            "decayed": settings,
            "always": {**settings, "tf_min": 1.0},
            "never": {**settings, "tf_start": 0.0}},
        f"Learning rate, {task}": {
            "0.003": settings,
            "0.001": {**settings, "lr": 1e-3},
            "0.01": {**settings, "lr": 1e-2}}}


SWEEPS: dict[str, Choices] = {
    "extras": {
        "Told the action": {
            "MSE, β = 0.0001": PLAIN,
            "conditional convolution": TOLD,
            "calibrated": {**PLAIN, "reconstruction": "calibrated"}},
        "Action-free": {
            "calibrated, fixed prior": {**ACTION_FREE, "learned_prior": False},
            "calibrated, learned prior": ACTION_FREE,
            "calibrated, hierarchical": {**ACTION_FREE, "learned_prior": False, "hierarchical": True},
            "calibrated, learned and hierarchical": {**ACTION_FREE, "hierarchical": True},
            "MSE, β = 0.0001": {**PLAIN, "condition": "none", "residual": True},
            "MSE, β = 1": {**PLAIN, "condition": "none", "residual": True, "beta": 1.0}}},      # deterministic
    "schedules": _schedules("told", TOLD) | _schedules("action-free", ACTION_FREE),
}
PROTOCOLS = dict(prior_sample="sample", prior_mean="prior's mean", mean_of_n="average of N", best_of_n="best of N",
                 posterior="posterior", two_samples="two samples", repeat_last="last frame")        # and their headings
COLUMNS = ("choice", "option", "seed", "configuration", *PROTOCOLS, "kl",       # nats per frame, of the posterior
           "seconds", "windows", "data", "machine")     # of the training; data_sha of the test split; and precision
RECORDED = PROJECT / "figures"                  # comparison_extras.csv


def sweep(lab: Run, choices: Choices, share: float, seeds: int) -> list[dict]:
    """Train and score every option under seeds 1 .. `seeds`, each run `share` as long as the main one.

    Returns a record with `COLUMNS` for each run: average PSNR in dB under each protocol, the posterior's KL in nats per
    frame. Finished runs are read, others resume. On a CPU as many train at a time as there are cores, one thread each.
    """
    epochs = max(1, round(share * lab.config.epochs))
    equal = {"epochs": epochs, "validate_every": epochs, "processes": 1}
    runs = [(choice, option, seed, lab.variant(**changes, **equal, seed=seed)) for seed in range(1, seeds + 1)
            for choice, options in choices.items() for option, changes in options.items()]
    variants = list({variant.folder: variant for *_, variant in runs}.values())
    for variant in variants:
        variant.prepare()
    at_once = 1 if torch.cuda.is_available() else None
    for _ in tqdm(each(_train, variants, at_once, partial(torch.set_num_threads, 1)), "runs", len(variants)):
        pass
    return [dict(zip(COLUMNS, (choice, option, seed, variant.config.hash, *_results(variant)), strict=True))
            for choice, option, seed, variant in runs]


def _train(variant: Run) -> None:
    variant.train(progress=False)
    variant.evaluation(protocols=tuple(PROTOCOLS), progress=False)


def _results(variant: Run) -> list:
    """A finished run's values of `COLUMNS`, from the protocols on."""
    scores, config = variant.evaluation(protocols=tuple(PROTOCOLS)), variant.config
    return [*(round(scores.average(protocol)[0], 4) for protocol in PROTOCOLS),
            round(float(scores.rate["kl"].mean()), 4), round(sum(record["seconds"] for record in variant.history())),
            config.steps * config.batch_size, scores.facts["data"], f"{machine()}, {scores.facts['precision']}"]


def write(path: Path, records: list[dict]) -> None:
    """Write records as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def read(path: Path) -> list[dict]:
    """What `write` wrote, numbers as numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        texts = ("choice", "option", "configuration", "data", "machine")
        return [{name: value if name in texts else float(value) for name, value in line.items()}
                for line in csv.DictReader(file)]


def by_option(records: list[dict], column: str) -> Scores:
    """One column of the records: choice -> option -> its value under each seed."""
    found: Scores = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        options = found.setdefault(record["choice"], {})
        options[record["option"]] = np.append(options.get(record["option"], []), record[column])
    return found


def gains(options: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """The gain of every option but the first over the first, and its 95% interval (low, high) for all of them together.

    Dunnett's comparisons of many treatments with one control (1955), over seeds; NaN where there is a single seed.
    """
    control, *others = options.values()
    interval = [[np.nan] * len(others)] * 2
    if len(control) > 1:
        interval = stats.dunnett(*others, control=control, rng=np.random.default_rng(1)).confidence_interval()
    return {name: (float(values.mean() - control.mean()), float(low), float(high))
            for name, values, low, high in zip(list(options)[1:], others, *interval, strict=True)}


def bands(scores: Scores) -> dict[str, tuple[float, float]]:
    """For every choice, the values of means that do not differ significantly from the first option's."""
    found = {}
    for choice, (reference, *_) in ((choice, list(options.values())) for choice, options in scores.items()):
        reach = max((high - low) / 2 for _, low, high in gains(scores[choice]).values())
        found[choice] = (reference.mean() - reach, reference.mean() + reach)
    return found


def panels(records: list[dict]) -> dict[str, tuple[Scores, dict[str, tuple[float, float]]]]:
    """The scores of a prior sample beside those of the best of ten, each with its `bands`, for `figures.comparison`."""
    columns = {"a prior sample [dB]": "prior_sample", "the best of ten [dB]": "best_of_n"}
    return {words: (scores := by_option(records, column), bands(scores)) for words, column in columns.items()}


def report(records: list[dict], column: str = "prior_sample") -> str:
    """Every option's averages over seeds, and its gain over the first option of its choice, as a Markdown table."""
    names = {**dict.fromkeys(PROTOCOLS, "{:.2f}"), "kl": "{:.3g}"}
    columns, rows = {name: by_option(records, name) for name in names}, []
    for choice, options in columns[column].items():
        gained = gains(options)
        for option in options:
            gain = "reference" if option not in gained else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gained[option])
            rows.append((choice, option, *(text.format(columns[name][choice][option].mean())
                                           for name, text in names.items()), gain))
    return table("choice", "option", *PROTOCOLS.values(), "KL [nats]", f"gain, {PROTOCOLS[column]} [dB]", rows=rows)
