"""Predicted preferences against labels, with the arithmetic written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffalign.rewards.heads.calibration import bins, calibration, in_words, reliability

SURE = math.log(0.78 / 0.22)  # the logit of 0.78


def test_accuracy_log_loss_brier_and_calibration_error_are_those_by_hand():
    """Right, wrong, right (the second one wins) and a tie that is called one."""
    facts = calibration(np.array([SURE, SURE, -SURE, 0.0]), np.array([1.0, 0.0, 0.0, 0.5]), ["a", "a", "b", "b"])
    assert (facts["pairs"], facts["prompts"], facts["ties"]) == (4, 2, 1)
    assert facts["accuracy"] == pytest.approx(2 / 3)
    assert facts["log_loss"] == pytest.approx((-2 * math.log(0.78) - math.log(0.22) + math.log(2)) / 4)
    assert facts["brier"] == pytest.approx((2 * 0.22**2 + 0.78**2 + 0) / 4)
    # Three predictions of 0.78, of which 2/3 came true; one of 0.5, which came true by half.
    assert facts["calibration_error"] == pytest.approx(3 / 4 * (0.78 - 2 / 3) + 1 / 4 * 0)
    assert [(round(b["low"], 2), b["pairs"]) for b in facts["bins"]] == [(0.5, 1), (0.75, 3)]


def test_turning_a_pair_round_changes_nothing():
    margin, prob, prompts = np.array([0.3, -1.2, 2.0]), np.array([0.7, 1.0, 0.0]), ["a", "b", "c"]
    facts, turned = calibration(margin, prob, prompts), calibration(-margin, 1.0 - prob, prompts)
    for name in ("accuracy", "log_loss", "brier", "calibration_error"):
        assert facts[name] == pytest.approx(turned[name])


def test_soft_labels_count_by_their_share():
    """Three of four raters agree with a prediction of 0.75: perfectly calibrated."""
    facts = calibration(np.array([math.log(3.0)]), np.array([0.75]), ["a"])
    assert facts["calibration_error"] == pytest.approx(0.0)
    assert facts["log_loss"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_bins_hold_their_lower_edge_and_the_last_one_is_closed():
    found = bins(np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.55, 1.0]))
    assert [(b["low"], b["pairs"], b["right"]) for b in found] == [(0.5, 1, 1.0), (0.55, 1, 1.0), (0.95, 1, 0.0)]


@pytest.mark.parametrize("edge", [0.6, 0.7, 0.85])
def test_a_confidence_on_an_edge_as_it_is_written_is_in_the_bin_above(edge):
    (found,) = bins(np.array([1.0]), np.array([edge]))
    assert (found["low"], found["high"]) == pytest.approx((edge, edge + 0.05))


def test_ties_alone_have_no_accuracy_and_say_so():
    facts = calibration(np.array([0.1, -0.1]), np.array([0.5, 0.5]), ["a", "b"])
    assert facts["accuracy"] is None
    assert "no strict pair" in in_words(facts)


def test_the_picture_has_a_bar_as_high_as_the_share_that_came_true():
    """Bins from 0.75 to 0.8 are the sixth of ten: 160 to 192 of 320 pixels behind an edge of 40."""
    image = reliability([{"low": 0.75, "high": 0.8, "pairs": 3, "confidence": 0.99, "right": 0.5}])
    pixels = np.asarray(image)
    assert pixels[195, 216].tolist() == [255, 255, 255]
    assert pixels[205, 216].tolist() == [105, 105, 235]
