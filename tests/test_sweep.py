"""The sweep: equal settings are one run, every difference is paired, and nothing is trained twice."""

import numpy as np
import pytest
from scipy import stats

from lab5 import sweep
from lab5.config import preset
from lab5.workbook import Workbook

GROUPS = {"KL schedule": {"none": {"kl_schedule": "zero"}, "monotonic": {"kl_schedule": "monotonic"}},
          "Extras": {"none": {}, "all four": dict.fromkeys(sweep.EXTRAS, True)}}


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
    assert results[1].run == results[2].run and np.array_equal(results[1].sampled, results[2].sampled)
    assert len(list((book.run / "variants").iterdir())) == 3
    assert results[3].run.config.hierarchical and results[3].run.config.epochs == 1


def test_a_second_sweep_trains_nothing(swept):
    book, results = swept
    before = {path: path.stat().st_mtime_ns for path in book.run.rglob("last.safetensors")}
    again = sweep.sweep(book, GROUPS, share=0.5)
    assert {path: path.stat().st_mtime_ns for path in book.run.rglob("last.safetensors")} == before
    assert all(np.array_equal(a.sampled, b.sampled) for a, b in zip(again, results, strict=True))


def result(sampled, book):
    return sweep.Result("", "", book, sampled, sampled, [0.0], False)


def test_differences_are_paired(swept):
    """Sequences differ by many dB, options by little: only within a sequence can that be seen."""
    generator = np.random.default_rng(0)
    hard = generator.normal(20, 3, (1, 40))
    gain = generator.normal(0.3, 0.1, (1, 40))
    a, b = result(hard, swept[0]), result(hard + gain, swept[0])
    mean, half = b.difference(a)
    low, high = stats.ttest_rel(b.sampled[0], a.sampled[0]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half < 0.05 < a.interval()[1]


def test_with_three_seeds_the_interval_is_over_seeds(swept):
    generator = np.random.default_rng(0)
    by_seed = np.array([0.1, 0.4, 0.7])[:, None]
    a = generator.normal(20, 3, (3, 40))
    mean, half = result(a + by_seed, swept[0]).difference(result(a, swept[0]))
    assert mean == pytest.approx(0.4)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / np.sqrt(3))


def test_every_option_of_every_sweep_is_a_configuration():
    for groups in sweep.SWEEPS.values():
        for options in groups.values():
            for changes in options.values():
                preset("quick", **changes)
