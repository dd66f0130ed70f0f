"""Which pair is asked about next: the one whose answer tells most."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.special import expit
from scipy.stats import entropy, norm

from diffalign.infer.users.next_pair import Belief, information, posterior


def test_before_the_first_choice_a_taste_is_standard_normal():
    belief = posterior(np.zeros((0, 3)))
    assert belief.mean.tolist() == [0.0, 0.0, 0.0]
    assert belief.covariance == pytest.approx(np.eye(3))


def test_the_belief_after_one_choice_is_where_prior_and_answer_balance():
    # In one dimension with difference 2 the most probable taste m solves m = 2 (1 - sigmoid(2 m)); the curvature there is 1 + 4 p (1 - p).
    belief = posterior(np.array([[2.0, 0.0]]))
    (mean, other), prob = belief.mean, expit(2.0 * belief.mean[0])
    assert mean == pytest.approx(2.0 * (1.0 - prob), abs=1e-5)
    assert other == pytest.approx(0.0, abs=1e-8)
    assert belief.covariance == pytest.approx(np.diag([1.0 / (1.0 + 4.0 * prob * (1.0 - prob)), 1.0]), abs=1e-5)


def test_choices_that_contradict_leave_the_mean_and_narrow_the_belief():
    belief = posterior(np.array([[2.0], [-2.0]]))
    assert belief.mean == pytest.approx([0.0], abs=1e-6)
    assert belief.covariance == pytest.approx(np.array([[1.0 / 3.0]]), abs=1e-6)  # 1 + 2 * 4 * 1/4


@pytest.mark.parametrize("scale", [0.2, 1.0, 20.0])
def test_information_is_the_mutual_information_of_answer_and_taste(scale):
    belief = Belief(np.array([0.3, 0.0]), np.diag([1.5, 0.5]))
    (nats,) = information(belief, scale * np.array([[1.0, 2.0]]))
    middle, spread = 0.3 * scale, scale * np.sqrt(1.5 + 4.0 * 0.5)

    def mean_of(function) -> float:
        grid = np.linspace(middle - 9 * spread, middle + 9 * spread, 200_001)
        return float(trapezoid(norm.pdf(grid, middle, spread) * function(expit(grid)), grid))

    mean = mean_of(lambda prob: prob)
    assert nats == pytest.approx(float(entropy([mean, 1.0 - mean])) - mean_of(lambda prob: entropy([prob, 1.0 - prob])), abs=1e-6)


def test_information_knows_no_order_and_lies_between_nothing_and_one_bit():
    rng = np.random.default_rng(0)
    belief, pairs = posterior(rng.normal(size=(3, 4))), rng.normal(size=(50, 4)) * 3.0
    nats = information(belief, pairs)
    assert nats == pytest.approx(information(Belief(belief.mean, belief.covariance), -pairs), abs=1e-9)
    assert (nats >= 0.0).all()
    assert (nats <= np.log(2.0)).all()
    assert information(belief, np.zeros((1, 4))) == pytest.approx([0.0], abs=1e-9)


def test_a_pair_that_was_answered_tells_less_than_a_new_direction():
    pairs = np.eye(3) * 2.0
    nats = information(posterior(pairs[:1]), pairs)
    assert nats.argmin() == 0
    assert nats[1] == pytest.approx(nats[2])
