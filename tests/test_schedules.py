"""The schedules rise and fall as the handout draws them."""

import numpy as np
import pytest

from lab5.config import preset
from lab5.schedules import kl_weight, learning_rate, teacher_forcing_ratio

PROGRESS = np.linspace(0, 1, 1001)


def test_monotonic_annealing_rises_from_0_to_1_and_stays():
    config = preset("full", kl_schedule="monotonic", kl_ramp=0.4)
    weight = kl_weight(config, PROGRESS)
    assert weight[0] == 0 and weight.max() == 1
    assert (np.diff(weight) >= 0).all()
    assert (weight[PROGRESS >= 0.4] == 1).all() and weight[200] == pytest.approx(0.5)


def test_cyclical_annealing_starts_again_in_each_cycle_and_ends_at_1():
    config = preset("full", kl_schedule="cyclical", kl_cycles=3, kl_ramp=0.5)
    weight = kl_weight(config, PROGRESS)
    assert (np.diff(weight) < -0.5).sum() == 2                  # two returns to 0 within three cycles
    assert weight[0] == 0 and weight[-1] == 1
    assert kl_weight(config, 1 / 6) == pytest.approx(1) and kl_weight(config, 1 / 12) == pytest.approx(0.5)


def test_constant_and_zero_do_not_change_and_a_start_at_0_never_forces():
    assert (kl_weight(preset("full", kl_schedule="constant"), PROGRESS) == 1).all()
    assert (kl_weight(preset("full", kl_schedule="zero"), PROGRESS) == 0).all()
    assert (teacher_forcing_ratio(preset("full", tf_start=0.0, tf_min=0.2), PROGRESS) == 0).all()


def test_teacher_forcing_holds_then_falls_to_its_lower_bound():
    config = preset("full", tf_start=1.0, tf_hold=0.2, tf_end=0.6, tf_min=0.1)
    ratio = teacher_forcing_ratio(config, PROGRESS)
    assert (ratio[PROGRESS <= 0.2] == 1).all() and (ratio[PROGRESS >= 0.6] == pytest.approx(0.1))
    assert teacher_forcing_ratio(config, 0.4) == pytest.approx(0.55)


def test_the_learning_rate_warms_up_and_decays_to_0():
    config = preset("full", lr=2e-3, lr_warmup=0.1)
    rate = learning_rate(config, PROGRESS)
    assert rate[0] == 0 and rate.max() == pytest.approx(2e-3) and rate.argmax() == 100 and rate[-1] == pytest.approx(0)
    assert (learning_rate(config.replace(lr_schedule="constant"), PROGRESS)[100:] == 2e-3).all()
