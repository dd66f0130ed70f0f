"""The guard skips steps that would destroy a run, stops when they do not end, and warns of displacement."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.errors import TrainingError
from diffalign.train.step_guard import DISPLACED_STEPS, LEAST, LEAST_ACTIVE, WINDOW, Guard

NAN, INF = math.nan, math.inf
BAD = [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (0.5, NAN), (0.5, INF)]


def guard(max_bad_steps=3, spike_factor=10.0):
    return Guard(max_bad_steps, spike_factor)


def warmed(loss=0.5, **options):
    """Return a guard that has seen enough steps of one loss to tell a spike."""
    own = guard(**options)
    assert all(own.allows(loss, 1.0, step) for step in range(LEAST))
    return own


@given(st.lists(st.floats(0.1, 0.9, allow_subnormal=False), max_size=100))
def test_an_ordinary_run_is_left_alone(losses):
    own = guard()
    assert all(own.allows(loss, 1.0, step) for step, loss in enumerate(losses))
    assert own.skipped == 0
    assert len(own.recent) <= WINDOW


@pytest.mark.parametrize(("loss", "norm"), BAD)
def test_a_step_that_is_not_finite_is_skipped_and_says_so(loss, norm, caplog):
    own = guard()
    assert not own.allows(loss, norm, 7)
    assert own.skipped == 1
    assert own.recent == []
    assert "step 7 skipped" in caplog.text
    assert "not finite" in caplog.text


def test_a_spike_is_a_loss_above_the_factor_times_the_median():
    # median 0.5, factor 10: 5 is allowed, anything above is not
    assert warmed(0.5).allows(5.0, 1.0, 99)
    assert not warmed(0.5).allows(5.01, 1.0, 99)


def test_the_warning_names_loss_factor_and_median(caplog):
    warmed(0.5).allows(6.0, 1.0, 99)
    assert "loss 6 is above 10 times the usual 0.5" in caplog.text


def test_a_spike_cannot_be_told_before_enough_steps():
    own = guard()
    assert all(own.allows(0.5, 1.0, step) for step in range(LEAST - 1))
    assert own.allows(1e6, 1.0, LEAST)


def test_one_outlier_does_not_move_the_median():
    own = warmed(0.5)
    assert own.allows(4.9, 1.0, 99)
    assert not own.allows(5.1, 1.0, 100)


def test_a_skipped_loss_is_not_taken_into_the_median():
    own = warmed(0.5)
    own.allows(100.0, 1.0, 99)
    assert set(own.recent) == {0.5}


def test_spike_factor_zero_switches_spikes_off_and_nothing_else():
    own = warmed(0.5, spike_factor=0.0)
    assert own.allows(1e9, 1.0, 99)
    assert not own.allows(NAN, 1.0, 100)


@pytest.mark.parametrize("usual", [0.0, -0.3])
def test_where_the_median_is_not_above_zero_no_loss_is_a_spike(usual):
    # hinge is exactly zero once the margin is won; likelihoods may be negative: a multiple of such a median says nothing
    own = warmed(usual)
    assert own.allows(0.2, 1.0, 99)
    assert own.allows(usual, 1.0, 100)


def test_the_run_stops_at_the_last_bad_step_allowed():
    own = guard(max_bad_steps=3)
    assert not own.allows(NAN, 1.0, 1)
    assert not own.allows(NAN, 1.0, 2)
    with pytest.raises(TrainingError, match=r"step 3: 3 bad steps.*not finite.*--learning_rate"):
        own.allows(NAN, 1.0, 3)


def test_a_good_step_starts_the_count_again():
    own = guard(max_bad_steps=2)
    for step in range(0, 20, 2):
        assert not own.allows(NAN, 1.0, step)
        assert own.allows(0.5, 1.0, step + 1)
    assert own.skipped == 10


def test_displacement_is_told_once_in_every_so_many_steps(caplog):
    own = guard()
    told = [step for step in range(1, 3 * DISPLACED_STEPS) if own.watch_displacement(-0.01, step)]
    assert told == [DISPLACED_STEPS, 2 * DISPLACED_STEPS]
    assert len(caplog.records) == 2
    assert "for 50 steps the PREFERRED candidates have been less likely than under the reference" in caplog.text
    assert not any(word in caplog.text for word in ("image", "picture", "denois"))  # texts are watched, too


@pytest.mark.parametrize("relief", [0.0, 0.1])
def test_one_step_without_displacement_starts_the_count_again(relief, caplog):
    own = guard()
    for step in range(DISPLACED_STEPS - 1):
        assert not own.watch_displacement(-0.01, step)
    assert not own.watch_displacement(relief, DISPLACED_STEPS)
    assert not own.watch_displacement(-0.01, DISPLACED_STEPS + 1)
    assert caplog.records == []


def test_a_collapsed_posterior_is_told_once_in_every_so_many_steps_and_a_live_one_never(caplog):
    own = guard()
    told = [step for step in range(1, 3 * DISPLACED_STEPS) if own.watch_posterior(LEAST_ACTIVE / 2, step)]
    assert told == [DISPLACED_STEPS, 2 * DISPLACED_STEPS]
    assert "for 50 steps 2 % of the user encoder's dimensions have told users apart" in caplog.text
    assert "Lower kl_weight" in caplog.text
    caplog.clear()
    assert not any(own.watch_posterior(LEAST_ACTIVE, step) for step in range(3 * DISPLACED_STEPS))
    assert caplog.records == []


def test_one_live_step_starts_the_count_of_a_collapse_again_and_a_checkpoint_carries_it():
    own = guard()
    for step in range(DISPLACED_STEPS - 1):
        assert not own.watch_posterior(0.0, step)
    later = guard()
    later.restore(own.state())
    assert later.watch_posterior(0.0, DISPLACED_STEPS)
    assert not own.watch_posterior(0.5, DISPLACED_STEPS)
    assert not own.watch_posterior(0.0, DISPLACED_STEPS + 1)


def test_a_restored_guard_goes_on_where_it_was(caplog):
    caplog.set_level(logging.CRITICAL)
    losses = [0.5 + 0.01 * i for i in range(40)] + [NAN, 100.0, 0.6, NAN, 0.7]
    whole, first = guard(), guard()
    expected = [(whole.allows(loss, 1.0, i), whole.watch_displacement(-1.0, i)) for i, loss in enumerate(losses)]
    seen = [(first.allows(loss, 1.0, i), first.watch_displacement(-1.0, i)) for i, loss in enumerate(losses[:41])]
    second = guard()
    second.restore(first.state())
    seen += [(second.allows(loss, 1.0, i), second.watch_displacement(-1.0, i)) for i, loss in enumerate(losses[41:], start=41)]
    assert seen == expected
    assert second == whole


def test_a_saved_state_does_not_change_with_the_run():
    own = warmed(0.5)
    state = own.state()
    own.allows(0.9, 1.0, 99)
    own.allows(NAN, 1.0, 100)
    assert state == {"recent": [0.5] * LEAST, "initial": 0.5, "bad_in_a_row": 0, "skipped": 0, "displaced": 0, "collapsed": 0}


def test_an_ordinary_batch_late_in_a_won_run_is_no_spike():
    # The run began at 0.5 and its median fell to 0.001: 0.2 is 200 medians, and far from a loss that blows up.
    guard = warmed(0.5)
    for step in range(200):
        guard.allows(0.001, 1.0, step)
    assert guard.allows(0.2, 1.0, 200)
    assert not guard.allows(5.1, 1.0, 201)
