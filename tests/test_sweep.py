"""The comparisons: equal settings are one run, nothing is trained twice, and intervals are Dunnett's."""

import numpy as np
import pytest
from scipy import stats

from lab5.config import preset
from lab5.evaluation import Evaluation
from lab5.handin.paper import PAPER
from lab5.workbook import sweep
from lab5.workbook.run import Run

CHOICES = {"KL weight": {"monotonic": {}, "zero": {"kl_schedule": "zero"}},
           "Extras": {"none": {}, "all four": dict.fromkeys(sweep.EXTRAS, True)}}


@pytest.fixture(scope="module")
def swept(tiny_root, tmp_path_factory):
    lab = Run(preset("smoke", precision="float32"), tmp_path_factory.mktemp("sweep") / "run", tiny_root)
    return lab, sweep.sweep(lab, CHOICES, share=0.5, seeds=2)


def test_every_option_is_scored_under_every_seed_and_equal_settings_are_one_run(swept):
    lab, records = swept
    assert sorted((r["choice"], r["option"], r["seed"]) for r in records) == sorted(
        (choice, option, seed) for choice, options in CHOICES.items() for option in options for seed in (1, 2))
    assert len(list((lab.folder / "variants").iterdir())) == len({r["configuration"] for r in records}) == 6
    for record in records:
        folder = lab.folder / "variants" / record["configuration"]
        scores = Evaluation.load(folder / "evaluation" / "test")
        assert record["best_of_n"] == pytest.approx(scores.average("best_of_n")[0], abs=1e-3)
        assert record["kl"] == pytest.approx(scores.rate["kl"].mean(), abs=1e-3)
        assert record["windows"] == 6


def test_a_second_sweep_trains_nothing_and_what_is_written_is_read(swept, tmp_path):
    lab, records = swept
    before = {path: path.stat().st_mtime_ns for path in lab.folder.rglob("last.safetensors")}
    again = sweep.sweep(lab, CHOICES, share=0.5, seeds=2)
    assert {path: path.stat().st_mtime_ns for path in lab.folder.rglob("last.safetensors")} == before
    assert [r["prior_sample"] for r in again] == pytest.approx([r["prior_sample"] for r in records], abs=1e-3)
    sweep.write(tmp_path / "sweep.csv", records)
    assert sweep.read(tmp_path / "sweep.csv") == records


def test_gains_have_dunnetts_intervals():
    """Three treatments and a control, three values each, pooled variance 19: 2.88 is Dunnett's table for 8 degrees."""
    control, one, two, three = ([55, 47, 48], [55, 64, 64], [55, 49, 52], [50, 44, 41])
    found = sweep.gains({"control": np.array(control, float), "one": np.array(one, float),
                         "two": np.array(two, float), "three": np.array(three, float)})
    assert {name: round(gain) for name, (gain, *_) in found.items()} == {"one": 11, "two": 2, "three": -5}
    for gain, low, high in found.values():
        assert (gain - low, high - gain) == pytest.approx([2.88 * (19 * 2 / 3) ** 0.5] * 2, abs=0.1)
    (gain, low, high), = sweep.gains({"a": np.array(control, float), "b": np.array(one, float)}).values()
    paired = stats.ttest_ind(one, control).confidence_interval()        # with one option it is the t-test
    assert (low, high) == pytest.approx((paired.low, paired.high), abs=0.1)
    assert np.isnan(sweep.gains({"a": np.array([1.0]), "b": np.array([2.0])})["b"][1:]).all()


def test_every_option_of_every_sweep_is_a_configuration():
    for changes in (changes for choices in sweep.SWEEPS.values() for options in choices.values()
                    for changes in options.values()):
        preset("quick", **changes)


def test_what_08_says_of_the_extras_stands_in_the_recorded_runs():
    """Each claim of section 8.3, of every option's mean over seeds."""
    records = sweep.read(sweep.RECORDED / "comparison_extras.csv")
    found = {column: sweep.by_option(records, column) for column in (*sweep.PROTOCOLS, "kl")}
    mean = {column: {option: values.mean() for options in choices.values() for option, values in options.items()}
            for column, choices in found.items()}
    fixed, learned, hierarchy = (f"calibrated, {name}" for name in ("fixed prior", "learned prior", "hierarchical"))
    told = found["prior_sample"]["Told the action"]
    for option in ("MSE, β = 0.0001", "conditional convolution"):       # of the told task; both tasks have the first
        values = {column: found[column]["Told the action"][option].mean() for column in found}
        assert values["best_of_n"] - values["prior_sample"] < 0.1 and values["two_samples"] > 40
        assert found["kl"]["Told the action"]["calibrated"].mean() > 100 * values["kl"]
    plain, conditional = told["MSE, β = 0.0001"], told["conditional convolution"]
    assert conditional.round(1).tolist() == [22.7, 22.9, 22.7] and plain.round(1).min() == 19.0
    assert plain.round(1).max() == 22.1
    assert mean["prior_sample"][fixed] < mean["repeat_last"][fixed] < mean["prior_sample"][learned]
    assert abs(mean["posterior"][fixed] - mean["posterior"][learned]) < 0.5
    assert mean["kl"][fixed] > 3 * mean["kl"][learned] and mean["kl"][hierarchy] > 10 * mean["kl"][learned]
    assert mean["posterior"][hierarchy] > mean["posterior"][learned] + 2
    assert mean["best_of_n"][learned] - mean["prior_sample"][learned] > 1 > mean["best_of_n"][hierarchy] - mean[
        "prior_sample"][hierarchy]
    gain, low, _ = sweep.gains(found["prior_sample"]["Action-free"])[learned]
    assert gain > low > 0
    text = (sweep.PROJECT / "notebooks" / "08_discussion.ipynb").read_text(encoding="utf-8")
    lab, twin, best, one, two = "MSE, β = 0.0001", "MSE, β = 1", *(mean[name] for name in (
        "best_of_n", "prior_sample", "two_samples"))
    assert [option for option in found["kl"]["Action-free"] if best[option] > best[twin]] == [learned]
    for said in (f"also above its best of ten ({best[twin]:.2f} against {best[lab]:.2f} dB)",
                 f"scores {one[lab] - one[fixed]:.1f} dB more for a sample and {best[lab] - best[fixed]:.1f} dB more "
                 f"for the best of ten, with {mean['kl'][lab]:.0f} nats instead of {mean['kl'][fixed]:.0f}",
                 f"two samples differ as much ({two[hierarchy]:.1f} and {two[learned]:.1f} dB), yet the best of ten "
                 f"gains {best[hierarchy] - one[hierarchy]:.1f} dB over one sample instead of "
                 f"{best[learned] - one[learned]:.1f}"):
        assert said in text


def test_the_twin_without_a_latent_scores_between_a_sample_and_the_best_of_ten():
    records = sweep.read(sweep.RECORDED / "comparison_extras.csv")
    twin, learned = ([record for record in records if (record["choice"], record["option"]) == ("Action-free", option)]
                     for option in ("MSE, β = 1", "calibrated, learned prior"))
    assert len(twin) == len(learned) == 3 and all(record["kl"] < 1e-3 for record in twin)
    assert min(record["prior_sample"] for record in twin) > max(record["prior_sample"] for record in learned)
    assert max(record["best_of_n"] for record in twin) < min(record["best_of_n"] for record in learned)


def test_what_08_says_of_the_schedules_stands_in_the_recorded_runs():
    """Section 8.2: which options differ significantly from the reference, and by what."""
    records = sweep.read(sweep.RECORDED / "comparison_schedules.csv")
    for column in ("prior_sample", "best_of_n"):
        gains = {(choice, option): gain for choice, options in sweep.by_option(records, column).items()
                 for option, gain in sweep.gains(options).items()}
        apart = {names: gain for names, (gain, low, high) in gains.items() if not low < 0 < high}
        assert set(apart) == {("KL weight, action-free", "zero"), ("Learning rate, told", "0.001")}
        assert apart["KL weight, action-free", "zero"] < -2 and round(apart["Learning rate, told", "0.001"], 1) == -0.7
        forced = [gains["Teacher forcing, told", option] for option in ("always", "never")]
        assert all(abs(gain) < 0.03 and -1 / 3 < low < high < 1 / 3 for gain, low, high in forced)
    found = {column: sweep.by_option(records, column) for column in ("kl", "posterior", "prior_sample", "best_of_n")}
    assert np.ptp([values.mean() for values in found["prior_sample"]["KL weight, told"].values()]) < 0.1
    free = {column: found[column]["KL weight, told"]["zero"].mean() for column in found}
    assert round(free["kl"]) == 50 and round(free["posterior"] - free["prior_sample"], 2) == 0.02
    seen = {name: values.mean() for name, values in found["posterior"]["KL weight, action-free"].items()}
    assert f"({seen['zero']:.2f} against {seen['monotonic']:.2f} dB)" in PAPER.read_text(encoding="utf-8")
    best = found["best_of_n"]["KL weight, action-free"]
    assert np.ptp([best[name].mean() for name in ("monotonic", "cyclical", "constant")]) < 0.11
    nats = {name: values.mean() for name, values in found["kl"]["KL weight, action-free"].items()}
    assert 24 < nats["zero"] / nats["monotonic"] < 26 and round(nats["zero"]) == 565
    assert all(21 < nats[name] < 23.5 for name in ("monotonic", "cyclical", "constant"))
    forced = {name: values.mean() for name, values in found["posterior"]["Teacher forcing, action-free"].items()}
    assert forced["never"] < min(forced["always"], forced["decayed"]) - 0.5
    rates = found["posterior"]["Learning rate, action-free"]
    assert np.ptp(found["prior_sample"]["Learning rate, action-free"]["0.01"]) > 2
    assert (rates["0.01"] < rates["0.003"] - 1).all()


def test_readme_quotes_the_recorded_comparison():
    """Columns of the table that the command prints."""
    readme = (sweep.PROJECT / "README.md").read_text(encoding="utf-8").splitlines()
    table = sweep.report(sweep.read(sweep.RECORDED / "comparison_extras.csv")).splitlines()[2:]
    assert len(table) == 9
    for choice, option, sample, _, _, best, posterior, _, _, kl, gain in (line.split(" | ") for line in table):
        assert " | ".join((choice, option, sample, best, posterior, kl, gain)) in readme
