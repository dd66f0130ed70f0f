"""Metrics from scores alone, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.types import Scores
from diffalign.objectives.metrics import describe, implicit_accuracy

tables = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=9)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_accuracy_counts_a_tie_one_half():
    # ahead, behind, tie, ahead: (1 + 0 + 0.5 + 1) / 4 = 0.625
    assert implicit_accuracy(rows((2.0, 1.0), (0.0, 1.0), (3.0, 3.0), (-1.0, -2.0))).item() == 0.625


def test_accuracy_of_an_untrained_policy_is_one_half():
    assert implicit_accuracy(torch.zeros(7, 2)).item() == 0.5


@given(tables)
def test_accuracies_of_both_orders_add_to_one(values):
    x = torch.tensor(values, dtype=torch.float64)
    assert (implicit_accuracy(x) + implicit_accuracy(x.flip(1))).item() == pytest.approx(1.0, abs=1e-15)


def test_description_is_the_mean_of_scores_and_log_ratios():
    seen = describe(Scores(rows((-1.0, -2.0), (-3.0, -6.0)), rows((-2.0, -1.0), (-3.0, -4.0))), beta=10.0)
    # log-ratios (1, -1) and (0, -2): means 0.5 and -1.5, margins 2 and 2; rewards are ten times that
    assert {name: value.item() for name, value in seen.items()} == {
        "score/chosen": -2.0,
        "score/rejected": -4.0,
        "implicit_acc": 1.0,
        "log_ratio/chosen": 0.5,
        "log_ratio/rejected": -1.5,
        "rewards/chosen": 5.0,
        "rewards/rejected": -15.0,
        "rewards/margins": 20.0,
        "rewards/accuracies": 1.0,
        "rewards/saturated": 1.0,  # both margins of rewards are 20
        "rewards/margins_p10": 20.0,
        "rewards/margins_p50": 20.0,
        "rewards/margins_p90": 20.0,
        "displaced": 0.0,  # the preferred ones rose by 1 and 0
    }


def test_displacement_is_seen_although_accuracy_and_margin_are_perfect():
    seen = describe(Scores(rows((-2.0, -9.0)), rows((-1.0, -1.0))))
    assert seen["implicit_acc"].item() == 1.0
    assert seen["rewards/margins"].item() == 7.0
    assert seen["log_ratio/chosen"].item() == -1.0
    assert seen["displaced"].item() == 1.0


def test_without_a_reference_only_scores_are_described():
    seen = describe(Scores(rows((-1.0, -2.0), (-3.0, -2.0))))
    assert set(seen) == {"score/chosen", "score/rejected", "implicit_acc"}
    assert seen["implicit_acc"] == 0.5


def test_a_single_candidate_has_no_rejected_one():
    assert set(describe(Scores(rows((-1.0,)), rows((-1.0,))))) == {"score/chosen"}


def test_a_description_carries_no_gradient():
    policy = rows((-1.0, -2.0)).requires_grad_()
    assert not any(value.requires_grad for value in describe(Scores(policy, rows((0.0, 0.0)))).values())


def test_every_scalar_is_a_scalar():
    assert all(value.shape == () for value in describe(Scores(torch.zeros(3, 2), torch.zeros(3, 2))).values())


def test_rounding_between_equal_models_is_a_tie_and_one_step_of_training_is_not():
    policy = torch.tensor([[-616.27, -480.5], [-300.25, -310.5], [-1.5, -2.5]])
    rounded = policy * (1 + torch.tensor([[2.0, -2.0], [-1.0, 1.0], [1.0, 0.0]]) * torch.finfo(torch.float32).eps)
    metrics = describe(Scores(policy, rounded), beta=0.1)
    assert (metrics["implicit_acc"], metrics["rewards/accuracies"], metrics["displaced"]) == (0.5, 0.0, 0.0)
    trained = describe(Scores(policy + torch.tensor([2e-3, -2e-3]), rounded), beta=0.1)
    assert (trained["implicit_acc"], trained["rewards/accuracies"]) == (1.0, 1.0)
