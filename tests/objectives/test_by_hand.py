"""Losses of single pairs, derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.types import Residuals, Scores
from diffalign.objectives import OBJECTIVES, denoise, dpo, hinge, ipo, kto, mapo, margin

EXACT = {"rtol": 1e-12, "atol": 1e-12}
share = st.floats(0.0, 1.0, allow_subnormal=False)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def scores(policy, reference, prob=None):
    return Scores(rows(*policy), rows(*reference), None if prob is None else rows(*prob))


def pair_with_margin(value, prob=None):
    """Return one record whose log-ratios are (value, 0)."""
    return scores([(value, 0.0)], [(0.0, 0.0)], None if prob is None else [prob])


def sigmoid(z):
    return 1.0 / (1.0 + math.exp(-z))


def test_a_tie_of_mapo_pulls_both_errors_down_alike():
    # z = 0: the margin's halves cancel; what is left is (error_0 + error_1) / 2, and an error is -2 scores: -1 each.
    policy = rows((-1.5, -1.5)).requires_grad_()
    (gradient,) = torch.autograd.grad(mapo(Scores(policy, None, rows(0.5))).sum(), policy)
    assert gradient[0].tolist() == pytest.approx([-1.0, -1.0], rel=1e-12)


def test_margin_is_candidate_0_minus_candidate_1():
    assert margin(rows((3.0, 1.0), (2.0, 5.0))).tolist() == [2.0, -3.0]


def test_log_ratio_is_policy_minus_reference():
    assert scores([(3.0, 1.0)], [(0.5, 2.0)]).log_ratio.tolist() == [[2.5, -1.0]]


def test_dpo_is_minus_log_sigmoid_of_beta_times_the_margin():
    # log-ratios (2 - 1, 1 - 3) = (1, -2), margin 3, z = 0.5 * 3 = 1.5, loss = log(1 + e^-1.5) = log 1.22313 = 0.201413
    loss = dpo(scores([(2.0, 1.0)], [(1.0, 3.0)]), beta=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)
    assert loss.item() == pytest.approx(0.201413, abs=1e-6)


def test_dpo_starts_at_log_two_whatever_the_label():
    # z = 0: -p log(1/2) - (1-p) log(1/2) = log 2
    for prob in (0.0, 0.3, 1.0):
        assert dpo(pair_with_margin(0.0, prob), beta=5000.0).item() == pytest.approx(math.log(2.0), rel=1e-12)


def test_dpo_gradient_is_minus_beta_sigmoid_of_minus_z():
    policy = rows((1.0, 0.0)).requires_grad_()
    (gradient,) = torch.autograd.grad(dpo(Scores(policy, torch.zeros_like(policy)), beta=2.0).sum(), policy)
    # z = 2; d loss / d policy_0 = -2 sigmoid(-2) = -0.238406
    assert gradient[0].tolist() == pytest.approx([-2.0 * sigmoid(-2.0), 2.0 * sigmoid(-2.0)], rel=1e-12)


def test_dpo_weighs_both_orders_by_prob():
    # z = 2 * 0.5 = 1, p = 0.7: 0.7 log(1 + e^-1) + 0.3 log(1 + e) = 0.7 * 0.313262 + 0.3 * 1.313262 = 0.613262
    assert dpo(pair_with_margin(2.0, 0.7), beta=0.5).item() == pytest.approx(0.613262, abs=1e-6)


def test_label_smoothing_is_conservative_dpo():
    # smoothing 0.1 on p = 1: 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262
    assert dpo(pair_with_margin(2.0), beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.413262, abs=1e-6)
    # and on p = 0.8: p = 0.8 * 0.8 + 0.1 = 0.74, 0.74 * 0.313262 + 0.26 * 1.313262 = 0.573262
    assert dpo(pair_with_margin(2.0, 0.8), beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.573262, abs=1e-6)


def test_label_smoothing_leaves_a_tie_a_tie():
    even = pair_with_margin(2.0, 0.5)
    torch.testing.assert_close(dpo(even, beta=0.5, label_smoothing=0.3), dpo(even, beta=0.5), **EXACT)


def test_dpo_keeps_the_exact_tails():
    # log(1 + e^-800) underflows to 0, and log(1 + e^800) = 800
    assert dpo(pair_with_margin(800.0), beta=1.0).item() == 0.0
    assert dpo(pair_with_margin(-800.0), beta=1.0).item() == 800.0


def test_ipo_is_the_squared_distance_of_the_margin_from_its_aim():
    # margin 3, aim 1 / (2 * 0.25) = 2: (3 - 2)^2 = 1
    assert ipo(pair_with_margin(3.0), tau=0.25).item() == 1.0
    # p = 0.75: sign 0.5, aim 0.5 * 2 = 1: (3 - 1)^2 = 4;  p = 0: aim -2: (3 + 2)^2 = 25
    assert ipo(pair_with_margin(3.0, 0.75), tau=0.25).item() == 4.0
    assert ipo(pair_with_margin(3.0, 0.0), tau=0.25).item() == 25.0


@given(st.floats(0.01, 100.0, allow_subnormal=False), share)
@settings(deadline=None)
def test_ipo_is_zero_at_its_aim(tau, prob):
    loss = ipo(pair_with_margin((2.0 * prob - 1.0) / (2.0 * tau), prob), tau=tau)
    assert loss.item() == pytest.approx(0.0, abs=1e-20)


def test_hinge_is_zero_beyond_one_and_linear_before():
    # z = 0.5 * margin: 4 -> 2 -> 0;  1 -> 0.5 -> 0.5;  -2 -> -1 -> 2
    assert [hinge(pair_with_margin(m), beta=0.5).item() for m in (4.0, 1.0, -2.0)] == [0.0, 0.5, 2.0]
    # p = 0.75, z = 2: 0.75 * 0 + 0.25 * (1 + 2) = 0.75
    assert hinge(pair_with_margin(4.0, 0.75), beta=0.5).item() == 0.75


def test_denoise_is_half_the_squared_error_of_the_preferred_candidate_alone():
    # score = -1/2 * error, error 0.8 -> loss 0.4, whatever candidate 1, reference or prob
    assert denoise(Scores(rows((-0.4, -9.0)))).tolist() == [0.4]
    assert denoise(scores([(-0.4, 5.0)], [(7.0, 7.0)], [0.1])).tolist() == [0.4]
    assert denoise(Scores(rows((-0.4,)))).tolist() == [0.4]


def test_distil_is_half_the_mean_square_between_the_outputs_for_the_first_candidate_alone():
    # One picture of two numbers, error weight 4, whose root is in the residuals: outputs 1.0 and 0.5 off the reference's give residuals
    # 2.0 and 1.0 apart; half the mean of 4 and 1 is 1.25. The second candidate is 100 away and does not count.
    policy = rows((3.0, 0.5), (100.0, 0.0))[None, :, None, None]
    reference = rows((1.0, -0.5), (0.0, 0.0))[None, :, None, None]
    residuals = Residuals(policy.requires_grad_(), rows(0.5).flatten(), reference)
    s = Scores(rows((-1.0, -2.0)), rows((0.0, 0.0)), residuals=residuals)
    loss = OBJECTIVES["distil"](s)
    assert loss.tolist() == [1.25]
    loss.backward()  # the gradient is (difference) / 2: towards the reference, and nothing of the second candidate
    assert policy.grad[0, :, 0, 0].tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_ktos_anchor_follows_the_policy_without_gradient():
    # Log-ratios (3, 0) and (1, 0): z0 = 1, so the chosen lie 2 and 0 above it, the rejected 1 below. sigmoid' is 0.1049936 at 2, 1/4 at
    # 0 and 0.1966119 at 1; half of each is the gradient. Through the anchor a quarter of the sum would come on top of each.
    policy = rows((3.0, 0.0), (1.0, 0.0)).requires_grad_()
    (gradient,) = torch.autograd.grad(kto(Scores(policy, torch.zeros(2, 2)), beta=1.0).sum(), policy)
    torch.testing.assert_close(gradient, rows((-0.0524968, 0.0983060), (-0.125, 0.0983060)), rtol=0.0, atol=1e-7)


def test_votes_on_one_candidate_raise_the_liked_and_lower_the_disliked():
    # Log-ratios 2 (liked) and 0 (disliked), z0 = 1: both lie 1 on the right side, so sigmoid(-1) = 0.2689414 each; its slope is 0.1966119.
    labels = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for name in ("kto", "diffusion_kto"):
        policy = rows((2.0,), (0.0,)).requires_grad_()
        losses = OBJECTIVES[name](Scores(policy, torch.zeros(2, 1), labels), beta=1.0)
        torch.testing.assert_close(losses, torch.full((2,), 0.2689414, dtype=losses.dtype), rtol=0.0, atol=1e-7)
        (gradient,) = torch.autograd.grad(losses.sum(), policy)
        torch.testing.assert_close(gradient, rows((-0.1966119,), (0.1966119,)), rtol=0.0, atol=1e-7)
    # bco without an offset: log(1 + exp(-2)) = 0.1269280 of the liked, log 2 of the disliked
    losses = OBJECTIVES["bco"](Scores(rows((2.0,), (0.0,)), torch.zeros(2, 1), labels), beta=1.0)
    torch.testing.assert_close(losses, torch.tensor([0.1269280, 0.6931472], dtype=losses.dtype), rtol=0.0, atol=1e-7)
    with pytest.raises(ValueError, match="compares candidates"):
        OBJECTIVES["dpo"](Scores(rows((2.0,)), torch.zeros(1, 1)), beta=1.0)


def test_kto_on_images_is_that_of_the_diffusion_kto_release():
    # Restated from the release (jacklishufan/diffusion-kto): whole errors, beta 1000 (2000 here), the batch's mean gain clamped at zero,
    # the mean of 1 - sigmoid(+-beta (gain - zero point)) over desirable and undesirable images. Rows are (desirable, undesirable).
    error = [(0.4028171754405551, 0.3138785347979815), (0.30513702641037005, 0.45323404015688873)]
    reference = [(0.4024946718202649, 0.3126330539159477), (0.30398660360532487, 0.45294405322156056)]
    policy = (-0.5 * rows(*error)).requires_grad_()
    loss = kto(Scores(policy, -0.5 * rows(*reference)), beta=2000.0).mean()
    assert loss.item() == pytest.approx(0.4977532207955321, rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, policy)
    by_error = rows((60.90262763510982, -43.38464247966895), (45.65349997125287, -61.2042543462203))
    torch.testing.assert_close(gradient, -2.0 * by_error, rtol=1e-9, atol=1e-9)
