"""The sweep: equal settings are one run, every difference is paired, and nothing is trained twice."""

import numpy as np
import pytest
from scipy import stats

from lab5.config import preset
from lab5.workbook import sweep
from lab5.workbook.run import Run

GROUPS = {"KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"}},
          "Extras": {"none": {}, "all four": sweep.ALL_FOUR}}


@pytest.fixture(scope="module")
def swept(tiny_root, tmp_path_factory):
    lab = Run(preset("smoke", precision="float32"), tmp_path_factory.mktemp("sweep") / "run", tiny_root)
    return lab, sweep.sweep(lab, GROUPS, share=0.5)


def test_every_option_is_scored_and_the_reference_stands_in_every_group(swept):
    lab, results = swept[0], swept[1].results
    assert [(r.group, r.option, r.is_reference) for r in results] == [
        ("KL schedule", "none", False), ("KL schedule", "monotonic", True),
        ("Extras", "none", True), ("Extras", "all four", False)]
    assert all(r.prior_sample.shape == (1, 4) for r in results)
    assert results[1].runs == results[2].runs and np.array_equal(results[1].prior_sample, results[2].prior_sample)
    assert len(list((lab.folder / "variants").iterdir())) == 3
    assert results[3].runs[0].config.hierarchical and results[3].runs[0].config.epochs == 1


def test_a_second_sweep_trains_nothing(swept):
    lab, results = swept[0], swept[1].results
    before = {path: path.stat().st_mtime_ns for path in lab.folder.rglob("last.safetensors")}
    again = sweep.sweep(lab, GROUPS, share=0.5).results
    assert {path: path.stat().st_mtime_ns for path in lab.folder.rglob("last.safetensors")} == before
    assert all(np.array_equal(a.prior_sample, b.prior_sample) for a, b in zip(again, results, strict=True))


def swept_by(*sampled):
    """A sweep of made-up scores (seeds, sequences), the first of which is the reference's."""
    return sweep.Sweep([sweep.Result("", str(number), number == 0, scores, scores, np.zeros(len(scores)),
                                     np.ones(len(scores))) for number, scores in enumerate(sampled)], {})


def test_with_one_seed_differences_are_paired_over_sequences():
    """Sequences differ by many dB, options by little: only within a sequence can that be seen."""
    generator = np.random.default_rng(0)
    hard = generator.normal(20, 3, (1, 40))
    gained = hard + generator.normal(0.3, 0.1, (1, 40))
    made = swept_by(hard, gained)
    mean, half = made.gain(made.results[1])
    low, high = stats.ttest_rel(gained[0], hard[0]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half < 0.05 < 1.96 * stats.sem(hard[0])
    assert made.gain(*reversed(made.results)) == pytest.approx((mean, half))
    assert sweep.signed(-mean, half) == f"−{mean:.2f} ± {half:.2f} dB"


def test_with_two_options_the_noise_over_seeds_is_that_of_a_paired_test():
    """Randomised blocks with two treatments are the paired t-test."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(20, 1, (2, 5, 40)).mean(axis=2, keepdims=True)
    made = swept_by(a, b)
    mean, half = made.gain(made.results[1])
    low, high = stats.ttest_rel(b[:, 0], a[:, 0]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_the_noise_is_what_options_and_seeds_leave():
    """Options and seeds that add up leave none; added chance of 0.5 dB is found, in two seeds' reach of it."""
    options, seeds = np.linspace(18, 22, 30)[:, None], np.array([0.0, 1.0, -0.5])
    additive = [scores[:, None] for scores in options + seeds]
    assert swept_by(*additive).noise[0] == pytest.approx(0, abs=1e-9) and swept_by(*additive).noise[1] == 58
    chance = np.random.default_rng(1).normal(0, 0.5, (30, 3))
    made = swept_by(*(scores[:, None] for scores in options + seeds + chance))
    assert made.noise[0] == pytest.approx(0.5, rel=0.25)
    clear = [abs(gain) > half for gain, half in map(made.gain, made.results[1:])]
    assert not clear[0] and clear[-1]


def test_a_table_that_was_written_says_what_the_sweep_said(swept, tmp_path):
    lab, made = swept
    made.write(tmp_path / "sweep.csv")
    again = sweep.Sweep.read(tmp_path / "sweep.csv")
    assert [(r.group, r.option, r.is_reference) for r in again.results] == [
        (r.group, r.option, r.is_reference) for r in made.results]
    for new, old in zip(again.results, made.results, strict=True):
        assert new.prior_sample.mean() == pytest.approx(old.prior_sample.mean(), abs=1e-4)
        assert new.kl == pytest.approx(old.kl, rel=1e-5)
    assert again.facts["sequences"] == "6" and again.facts["data"] == lab.pack("test").data_sha
    assert [line.split(" | ")[:2] for line in again.table().splitlines()[2:]] == [
        line.split(" | ")[:2] for line in made.table().splitlines()[2:]]


@pytest.mark.parametrize("choices", ["full", "extras"])
def test_the_recorded_sweep_has_three_seeds_of_every_option(choices):
    results = sweep.Sweep.read(sweep.RECORDED / f"sweep_{choices}.csv").results
    assert [(r.group, r.option) for r in results] == [
        (group, option) for group, options in sweep.SWEEPS[choices].items() for option in options]
    assert all(len(r.prior_sample) >= 3 for r in results)


def test_readme_quotes_the_recorded_numbers():
    recorded = sweep.Sweep.read(sweep.RECORDED / "sweep_extras.csv")
    text = (sweep.PROJECT / "README.md").read_text(encoding="utf-8")
    for r in recorded.results:
        gain = "reference" if r.is_reference else sweep.signed(*recorded.gain(r)).removesuffix(" dB")
        row = next(line for line in text.splitlines() if line.startswith(f"| {r.option} |"))
        cells = (r.option, *(f"{scores.mean():.2f}" for scores in (r.prior_sample, r.prior_mean)), gain,
                 f"{r.seconds.mean() / 60:.1f}")
        assert row.replace("*", "") == f"| {' | '.join(cells)} |"
    assert f"{int(recorded.facts['sequences']):,} sequences per run" in text


def test_every_option_of_every_sweep_is_a_configuration():
    for groups in sweep.SWEEPS.values():
        for options in groups.values():
            for changes in options.values():
                preset("quick", **changes)
