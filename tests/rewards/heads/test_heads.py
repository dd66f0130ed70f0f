"""Reward heads by hand: what each formula gives for numbers one can follow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffalign.core.types import Labels
from diffalign.rewards.heads.networks import NOBODY, HeadSizes, PalHead
from diffalign.rewards.heads.new_user import fit_user
from diffalign.rewards.heads.pairs import RewardBatch
from diffalign.rewards.heads.settings import BtSettings, PalSettings
from diffalign.rewards.heads.table import make

PROMPT = torch.zeros(1, 2)


def pal(prototypes=((0.0, 0.0), (4.0, 0.0)), **settings):
    """Return a head in the plane whose map f changes nothing, with three users: undecided, of the second prototype, of the first."""
    head = make(PalSettings(**settings), HeadSizes(2, 2, ("a", "b", "c")))
    assert isinstance(head, PalHead)
    head.image = nn.Identity()
    head.logits.data = torch.tensor([[0.0, 0.0], [-20.0, 20.0], [20.0, -20.0]])
    if settings.get("kind", "A") == "A":
        head.prototypes.data = torch.tensor(prototypes)
    return head.requires_grad_(True)


def test_a_linear_head_is_the_product_with_standardised_images():
    head = make(BtSettings(hidden=0), HeadSizes(2, 2))
    head.standardise(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.zeros(2, 2))  # means 2 and 2, deviations 1 and 2
    head.layers.weight.data = torch.tensor([[10.0, 1.0]])
    rewards = head(torch.tensor([[[3.0, 4.0], [1.0, 2.0]]]), PROMPT, torch.tensor([NOBODY]))
    assert rewards.tolist() == [[10.0 + 1.0, -10.0]]


def test_a_number_that_never_varied_in_training_says_nothing_later():
    head = make(BtSettings(hidden=0), HeadSizes(2, 2))
    head.standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.zeros(2, 2))
    images, prompts = head.standard(torch.tensor([[[3.0, 9.0]]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(images, torch.tensor([[[1.0, 0.0]]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(prompts, torch.zeros(1, 2), atol=1e-4, rtol=0)


def test_a_head_without_prompts_reads_none_and_one_with_them_does():
    for prompts in (True, False):
        head = make(BtSettings(hidden=4, prompts=prompts), HeadSizes(2, 2))
        images, users = torch.ones(2, 1, 2), torch.zeros(2, dtype=torch.int64)
        first, second = head(images, torch.tensor([[0.0, 1.0], [5.0, -3.0]]), users).flatten().tolist()
        assert (first != second) == prompts


def test_kind_a_by_distance_is_minus_the_distance_from_the_users_mixture():
    """Ideal points (2, 0), (4, 0) and (0, 0); images at (2, 3) and (5, 4)."""
    images = torch.tensor([[[2.0, 3.0], [5.0, 4.0]]]).expand(3, -1, -1)
    rewards = pal(score="dist")(images, PROMPT.expand(3, -1), torch.arange(3))
    expected = [[-3.0, -5.0], [-math.sqrt(13), -math.sqrt(17)], [-math.sqrt(13), -math.sqrt(41)]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_kind_a_by_angle_is_the_cosine_times_a_factor_that_begins_at_one_over_007_and_ends_at_100():
    head = pal(prototypes=((3.0, 0.0), (0.0, 5.0)), score="angle")
    images = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    torch.testing.assert_close(head(images, PROMPT, torch.tensor([1])), torch.tensor([[1 / 0.07, 0.0]]), atol=1e-4, rtol=0)
    head.sharpness.data.fill_(9.0)
    torch.testing.assert_close(head(images, PROMPT, torch.tensor([2])), torch.tensor([[0.0, 100.0]]), atol=1e-4, rtol=0)


def test_kind_b_mixes_what_each_prototype_makes_of_the_prompt():
    head = pal(kind="B")
    head.prompts = nn.ModuleList([nn.Identity(), nn.Flatten()])
    head.prompts[1] = nn.Linear(2, 2, bias=False)
    head.prompts[1].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # exchanges the two
    head.sharpness.data.fill_(0.0)
    images, prompt = torch.tensor([[[1.0, 0.0]]]).expand(3, -1, -1), torch.tensor([[2.0, 0.0]]).expand(3, -1)
    rewards = head(images, prompt, torch.arange(3))
    torch.testing.assert_close(rewards.flatten(), torch.tensor([math.sqrt(0.5), 0.0, 1.0]), atol=1e-6, rtol=0)


def test_nobody_is_the_user_of_the_mean_numbers():
    images = torch.tensor([[[2.0, 3.0], [5.0, 4.0]]])
    head = pal(score="dist")
    torch.testing.assert_close(head(images, PROMPT, torch.tensor([NOBODY])), torch.tensor([[-3.0, -5.0]]))


def test_prototypes_and_users_numbers_learn_at_a_rate_of_their_own_without_decay():
    head = make(PalSettings(user_rate=50.0), HeadSizes(2, 2, ("a",)))
    slow, quick = head.groups(1e-4)
    assert quick["lr"] == pytest.approx(5e-3)
    assert (quick["weight_decay"], "lr" in slow) == (0.0, False)
    assert {id(p) for p in quick["params"]} == {id(head.logits), id(head.prototypes)}
    assert len(slow["params"]) + 2 == len(list(head.parameters()))


def test_a_new_users_numbers_balance_their_pairs_against_the_training_users():
    """One pair: the gradient of its loss and that of the normal prior cancel; nothing else of the head has moved."""
    head = pal(score="dist")
    head.logits.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # mean 0, deviation 1
    before = {name: value.clone() for name, value in head.state_dict().items()}
    images = torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])  # the second prototype is preferred to the first
    pairs = RewardBatch(images, PROMPT, torch.tensor([NOBODY]), torch.ones(1), ("x",), Labels())
    first, second = fit_user(head, pairs).tolist()
    assert first == pytest.approx(-second, abs=1e-4)
    # With w the weight of the second, z = -4(1-w) + 4w = 8w - 4 and dw/dsecond = w(1-w): second = sigmoid(-z) * 8 w (1-w).
    w = 1.0 / (1.0 + math.exp(first - second))
    assert second == pytest.approx(8 * w * (1 - w) / (1 + math.exp(8 * w - 4)), abs=1e-3)
    assert second > 0.2
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    tie = RewardBatch(images, PROMPT, torch.tensor([NOBODY]), torch.tensor([0.5]), ("x",), Labels())
    torch.testing.assert_close(fit_user(head, tie), torch.zeros(2))
