"""The sweep: equal settings are one run, every difference is paired, and nothing is trained twice."""

import numpy as np
import pytest
from scipy import stats

from lab5 import sweep
from lab5.config import preset
from lab5.workbook import Workbook

GROUPS = {"KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"}},
          "Extras": {"none": {}, "all four": sweep.ALL_FOUR}}


@pytest.fixture(scope="module")
def swept(tiny_root, tmp_path_factory):
    book = Workbook(preset("smoke", precision="float32"), tmp_path_factory.mktemp("sweep") / "run", tiny_root)
    return book, sweep.sweep(book, GROUPS, share=0.5)


def test_every_option_is_scored_and_the_reference_stands_in_every_group(swept):
    book, results = swept
    assert [(r.group, r.option, r.is_reference) for r in results] == [
        ("KL schedule", "none", False), ("KL schedule", "monotonic", True),
        ("Extras", "none", True), ("Extras", "all four", False)]
    assert all(r.sampled.shape == (1, 4) for r in results)
    assert results[1].runs == results[2].runs and np.array_equal(results[1].sampled, results[2].sampled)
    assert len(list((book.run / "variants").iterdir())) == 3
    assert results[3].runs[0].config.hierarchical and results[3].runs[0].config.epochs == 1


def test_a_second_sweep_trains_nothing(swept):
    book, results = swept
    before = {path: path.stat().st_mtime_ns for path in book.run.rglob("last.safetensors")}
    again = sweep.sweep(book, GROUPS, share=0.5)
    assert {path: path.stat().st_mtime_ns for path in book.run.rglob("last.safetensors")} == before
    assert all(np.array_equal(a.sampled, b.sampled) for a, b in zip(again, results, strict=True))


def result(sampled):
    return sweep.Result("", "", False, sampled, sampled, np.zeros(len(sampled)), np.ones(len(sampled)))


def test_differences_are_paired():
    """Sequences differ by many dB, options by little: only within a sequence can that be seen."""
    generator = np.random.default_rng(0)
    hard = generator.normal(20, 3, (1, 40))
    gain = generator.normal(0.3, 0.1, (1, 40))
    a, b = result(hard), result(hard + gain)
    mean, half = b.difference(a)
    low, high = stats.ttest_rel(b.sampled[0], a.sampled[0]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half < 0.05 < 1.96 * stats.sem(hard[0])
    assert b.verdict(a) == f"{mean:+.2f} ± {half:.2f} dB" and a.verdict(b).startswith("−0.3")


def test_with_three_seeds_the_interval_is_over_seeds():
    generator = np.random.default_rng(0)
    by_seed = np.array([0.1, 0.4, 0.7])[:, None]
    a = generator.normal(20, 3, (3, 40))
    moved = result(a + by_seed)
    mean, half = moved.difference(result(a))
    assert mean == pytest.approx(0.4)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / np.sqrt(3))
    assert "within the noise" in moved.verdict(result(a))       # 0.4 ± 0.75


def test_a_table_that_was_written_says_what_the_sweep_said(swept, tmp_path):
    book, results = swept
    sweep.write_csv(results, tmp_path / "sweep.csv")
    again, facts = sweep.read_csv(tmp_path / "sweep.csv")
    assert [(r.group, r.option, r.is_reference) for r in again] == [(r.group, r.option, r.is_reference) for r in results]
    for new, old in zip(again, results, strict=True):
        assert new.difference(again[1])[0] == pytest.approx(old.difference(results[1])[0], abs=2e-4)
        assert new.kl == pytest.approx(old.kl, rel=1e-5)
    assert facts["sequences"] == "6" and facts["data"] == book.pack("test").fingerprint
    assert [line.split(" | ")[:2] for line in sweep.as_table(again).splitlines()[2:]] == [
        line.split(" | ")[:2] for line in sweep.as_table(results).splitlines()[2:]]


@pytest.mark.parametrize("content", ["", "choice,option\n", "choice,option\nKL,none\n",
                                     "torn\x00", ",".join(sweep.COLUMNS) + "\na,b,0,1,x,6,twenty,20,0,1,d,m\n"])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "sweep.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="sweep.csv: not a table"):
        sweep.read_csv(path)


@pytest.mark.parametrize("choices", ["full", "extras"])
def test_the_recorded_sweep_has_three_seeds_of_every_option(choices):
    results, _ = sweep.read_csv(sweep.RECORDED / f"sweep_{choices}.csv")
    assert [(r.group, r.option) for r in results] == [
        (group, option) for group, options in sweep.SWEEPS[choices].items() for option in options]
    assert all(len(r.sampled) >= 3 for r in results)


def test_every_option_of_every_sweep_is_a_configuration():
    for groups in sweep.SWEEPS.values():
        for options in groups.values():
            for changes in options.values():
                preset("quick", **changes)
