"""What every objective promises, and hand-derived losses of each."""

from __future__ import annotations

import functools
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.objectives import OBJECTIVES, denoise, dpo, facts, hinge, ipo, mapo, margin
from diffalign.types import Scores

REFERENCE_FREE = {name for name in OBJECTIVES if not facts(name).reference}
BETA = 0.5  # every constant without a default takes this in the contracts
SILENT_TIES = {"smpo"}  # a tie has no gradient at all
WITHOUT_LABEL = {"denoise"}  # looks at candidate 0 alone; all others compare two candidates under a soft label
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def bound(name):
    """Return the objective `name` with some value for every constant that needs one."""
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return functools.partial(OBJECTIVES[name], **dict.fromkeys(needed, BETA))


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def scores(policy, reference, prob=None):
    return Scores(rows(*policy), rows(*reference), None if prob is None else rows(*prob))


def pair_with_margin(value, prob=None):
    """Return one record whose log-ratios are (value, 0)."""
    return scores([(value, 0.0)], [(0.0, 0.0)], None if prob is None else [prob])


def sigmoid(z):
    return 1.0 / (1.0 + math.exp(-z))


every = pytest.mark.parametrize("name", sorted(OBJECTIVES))
soft = pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - WITHOUT_LABEL))
compared = pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - REFERENCE_FREE))
number = st.floats(-20.0, 20.0, allow_subnormal=False)  # a trainer in the same process flushes them
share = st.floats(0.0, 1.0, allow_subnormal=False)
columns = st.lists(st.tuples(number, number, number, number, share), min_size=1, max_size=5)


def drawn(values):
    table = torch.tensor(values, dtype=torch.float64)
    return Scores(table[:, :2].clone(), table[:, 2:4].clone(), table[:, 4].clone())


@every
def test_constants_are_keyword_only(name):
    first, *rest = inspect.signature(OBJECTIVES[name]).parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)


@every
@given(values=columns)
@settings(deadline=None, max_examples=40)
def test_there_is_one_finite_loss_a_record(name, values):
    s = drawn(values)
    for prob in (s.prob, None):
        losses = bound(name)(Scores(s.policy, s.reference, prob))
        assert losses.shape == (len(values),)
        assert losses.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_stay_finite_at_extreme_scores(name, dtype):
    ends = torch.tensor([-1e4 * BETA, -1.0, 0.0, 1.0, 1e4 * BETA], dtype=dtype)
    policy = torch.cartesian_prod(ends, ends).requires_grad_()
    for prob in (0.0, 0.3, 0.5, 1.0):
        losses = bound(name)(Scores(policy, -policy.detach(), torch.full((25,), prob)))
        (gradient,) = torch.autograd.grad(losses.sum(), policy)
        assert losses.dtype == dtype
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@every
@given(values=columns)
@settings(deadline=None, max_examples=40)
def test_a_loss_does_not_depend_on_the_other_records(name, values):
    s = drawn(values)
    together = bound(name)(s)
    for i in range(len(values)):
        alone = bound(name)(Scores(s.policy[i : i + 1], s.reference[i : i + 1], s.prob[i : i + 1]))
        torch.testing.assert_close(alone, together[i : i + 1], **EXACT)


@every
def test_a_missing_reference_is_named_where_one_is_needed(name):
    s = Scores(rows((1.0, 2.0)))
    if name in REFERENCE_FREE:
        assert bound(name)(s).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"compares with a reference.*set `reference`"):
            bound(name)(s)


@every
def test_the_gradient_is_the_derivative(name):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    prob = rows(0.0, 0.25, 0.5, 1.0)
    assert torch.autograd.gradcheck(lambda p: bound(name)(Scores(p, reference, prob)), policy.requires_grad_())


@soft
@given(values=columns)
@settings(deadline=None, max_examples=40)
def test_exchanging_the_candidates_and_the_label_leaves_the_loss(name, values):
    s = drawn(values)
    exchanged = Scores(s.policy.flip(1), s.reference.flip(1), 1.0 - s.prob)
    torch.testing.assert_close(bound(name)(exchanged), bound(name)(s), **EXACT)


@soft
@given(values=columns)
@settings(deadline=None, max_examples=40)
def test_prob_zero_is_the_pair_the_other_way_round(name, values):
    s = drawn(values)
    against = bound(name)(Scores(s.policy, s.reference, torch.zeros_like(s.prob)))
    exchanged = bound(name)(Scores(s.policy.flip(1), s.reference.flip(1)))
    torch.testing.assert_close(against, exchanged, **EXACT)


@soft
@given(values=columns)
@settings(deadline=None, max_examples=40)
def test_no_prob_means_prob_one(name, values):
    s = drawn(values)
    certain = bound(name)(Scores(s.policy, s.reference, torch.ones_like(s.prob)))
    torch.testing.assert_close(bound(name)(Scores(s.policy, s.reference)), certain, **EXACT)


def gradient_at_tie(name, policy):
    policy = rows(policy).requires_grad_()
    s = Scores(policy, torch.zeros_like(policy), rows(0.5))
    return torch.autograd.grad(bound(name)(s).sum(), policy)[0][0].tolist()


@compared
def test_a_tie_has_no_gradient_where_the_log_ratios_are_equal(name):
    assert gradient_at_tie(name, (1.5, 1.5)) == [0.0, 0.0]


@compared
@pytest.mark.parametrize("ahead", [3.0, -3.0])
def test_a_tie_pulls_unequal_log_ratios_together_or_is_silent(name, ahead):
    # |z| = 0.5 * 3 = 1.5 lies beyond the flat part of the hinge, |z| < 1.
    first, second = gradient_at_tie(name, (ahead, 0.0))
    if name in SILENT_TIES:
        assert (first, second) == (0.0, 0.0)
        return
    assert math.copysign(1.0, first) == math.copysign(1.0, ahead)
    assert second == -first


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
