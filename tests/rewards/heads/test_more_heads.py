"""Heads with a loss of their own, by arithmetic written out, and what each can learn that Bradley and Terry's reward cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffalign.core.types import Labels
from diffalign.rewards.heads.learning import balanced
from diffalign.rewards.heads.mixed import PENALTIES, penalties
from diffalign.rewards.heads.networks import NOBODY, HeadSizes, Targets
from diffalign.rewards.heads.new_user import fit_groups
from diffalign.rewards.heads.pairs import RewardBatch
from diffalign.rewards.heads.settings import (
    HEADS,
    ArmoSettings,
    BtSettings,
    GpmSettings,
    LikeSettings,
    MaxMinSettings,
    MetaSettings,
    MicroSettings,
    MoreSettings,
    OrchestratorSettings,
    OrdinalSettings,
    RankListSettings,
    RegressionSettings,
)
from diffalign.rewards.heads.table import NETWORKS, make
from tests.each import each

SETTINGS = {
    "armo": ArmoSettings(aspects=["a", "b"]),
    "bt_then_regression": RegressionSettings(score="a", hidden=4),
    "meta": MetaSettings(shifted="b"),
    "orchestrator": OrchestratorSettings(scores=list("abcdef")),
}


class Given(nn.Module):
    """In place of a head's layers: the embeddings themselves are their outputs."""

    def forward(self, x):
        return x


def head_of(settings, image=2, prompt=2):
    """Return a head whose outputs are the embeddings of its images."""
    head = make(settings, HeadSizes(image, prompt))
    head.layers = Given()
    head.reads_prompts = False
    return head


def loss(head, images, prob=1.0, prompts=None, **targets):
    """Return the loss of one record."""
    images = torch.tensor([images])
    prompts = torch.zeros(1, head.sizes.prompt) if prompts is None else torch.tensor([prompts])
    columns = {name: torch.tensor([values]) for name, values in targets.items()}
    _, losses = head(images, prompts, torch.tensor([NOBODY]), Targets(torch.tensor([prob]), columns))
    return losses.item()


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def logs(*chances):
    """Return logits whose softmax the chances are."""
    return [math.log(chance) for chance in chances]


def test_every_head_has_a_network():
    assert set(HEADS) == set(NETWORKS)


@each(HEADS)
def test_heads_compare_without_regard_to_the_order(name):
    torch.manual_seed(0)
    settings = SETTINGS.get(name) or HEADS[name]()
    head = make(settings, HeadSizes(6, 5, ("ann",) if name == "pal" else ()))
    images, prompts, users = torch.randn(3, 4, 6), torch.randn(3, 5), torch.full((3,), NOBODY)
    logits = head.pair_logits(images, prompts, users)
    assert logits.shape == (3, 4, 4)
    torch.testing.assert_close(logits, -logits.transpose(1, 2), atol=1e-5, rtol=0)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head(images[:, order], prompts, users), head(images, prompts, users)[:, order])


def test_a_level_is_drawn_for_each_of_a_pair_and_ties_are_one_level():
    """Chances (0.5, 0.3, 0.2) and (0.6, 0.3, 0.1) of levels 1 to 3: higher 0.3 * 0.6 + 0.2 * 0.9, equal 0.30 + 0.09 + 0.02."""
    pair = [logs(0.5, 0.3, 0.2), logs(0.6, 0.3, 0.1)]
    head = head_of(OrdinalSettings(levels=3), 3)
    assert loss(head, pair) == pytest.approx(-math.log(0.36), rel=1e-5)
    assert loss(head, pair, 0.0) == pytest.approx(-math.log(0.23), rel=1e-5)
    assert loss(head, pair, 0.75) == pytest.approx(-0.75 * math.log(0.36) - 0.25 * math.log(0.23), rel=1e-5)
    assert loss(head, pair, 0.5) == pytest.approx(-math.log(0.41), rel=1e-5)
    half = head_of(OrdinalSettings(levels=3, ties="half"), 3)
    assert loss(half, pair, 0.5) == pytest.approx(-0.5 * math.log(0.36 * 0.23), rel=1e-5)
    nobody, prompts = torch.tensor([NOBODY]), torch.zeros(1, 2)
    torch.testing.assert_close(head(torch.tensor([pair]), prompts, nobody), torch.tensor([[1.7, 1.5]]))
    logit = head.pair_logits(torch.tensor([pair]), prompts, nobody)[0, 0, 1].item()
    assert logit == pytest.approx(math.log((0.36 + 0.205) / (0.23 + 0.205)), rel=1e-4)


def test_bands_confine_the_levels_unless_they_contradict_the_label():
    """Two bands of two levels: with the first in the upper, the second in the lower, P = (0.1 + 0.4) * (0.3 + 0.3)."""
    pair = [logs(0.2, 0.3, 0.1, 0.4), logs(0.3, 0.3, 0.2, 0.2)]
    head = head_of(OrdinalSettings(levels=4, band="q", bands=2), 4)
    assert loss(head, pair, q=[1.0, 0.0]) == pytest.approx(-math.log(0.5 * 0.6), rel=1e-5)
    assert loss(head, pair, q=[0.0, 0.0]) == pytest.approx(-math.log(0.3 * 0.3), rel=1e-5)  # level 2 against level 1
    free = 0.3 * 0.3 + 0.1 * 0.6 + 0.4 * 0.8
    assert loss(head, pair, q=[0.0, 1.0]) == pytest.approx(-math.log(free), rel=1e-5)


def test_a_ranking_is_its_pairs_that_are_at_most_skip_places_apart_in_any_order():
    rewards, gains = [[3.0], [1.0], [0.5], [-1.0]], [3.0, 2.0, 1.0, 0.0]

    def cost(*gaps):
        return sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)

    assert loss(head_of(RankListSettings(skip=1), 1), rewards, gains=gains) == pytest.approx(cost(2.0, 0.5, 1.5), rel=1e-5)
    head = head_of(RankListSettings(skip=2), 1)
    assert loss(head, rewards, gains=gains) == pytest.approx(cost(2.0, 0.5, 1.5, 2.5, 2.0), rel=1e-5)
    shuffled = loss(head, [rewards[i] for i in (2, 0, 3, 1)], gains=[gains[i] for i in (2, 0, 3, 1)])
    assert shuffled == pytest.approx(cost(2.0, 0.5, 1.5, 2.5, 2.0), rel=1e-5)
    tied = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(2.0))) / 2
    assert loss(head_of(RankListSettings(), 1), rewards[:2], gains=[1.0, 1.0]) == pytest.approx(tied, rel=1e-5)


def test_preference_embeddings_turn_a_plane_and_their_logit_changes_its_sign_with_the_order():
    """At angles a and b of one plane of length 1 the logit is sin(b - a) / tau."""
    head = head_of(GpmSettings(planes=1, tau=0.5, scale_hidden=0))
    first, second = ([2.0 * math.cos(a), 2.0 * math.sin(a)] for a in (0.2, 1.1))
    logit = math.sin(0.9) / 0.5
    assert loss(head, [first, second]) == pytest.approx(math.log1p(math.exp(-logit)), rel=1e-5)
    assert loss(head, [second, first]) == pytest.approx(math.log1p(math.exp(logit)), rel=1e-5)
    rewards = head(torch.tensor([[first, second]]), torch.zeros(1, 2), torch.tensor([NOBODY]))
    torch.testing.assert_close(rewards, torch.tensor([[logit / 2, -logit / 2]]))


def test_aspects_learn_their_scores_and_the_gate_alone_the_preference():
    """Aspects (1, 0) and (0, 2) with weights (0.8, 0.2): rewards 0.8 and 0.4. Standardised scores are twice the score less 1."""
    head = head_of(ArmoSettings(aspects=["fit", "look"], temperature=2.0))
    head.gate = Given()
    head.aspect_mean.fill_(0.5)
    head.aspect_deviation.fill_(0.5)
    prompt = [2.0 * math.log(0.8), 2.0 * math.log(0.2)]
    aspects = [[1.0, 0.0], [0.0, 2.0]]
    missed = ((1 - 1) ** 2 + (0 + 1) ** 2 + (0 - 0) ** 2 + (2 - 1) ** 2) / 4
    found = loss(head, aspects, 1.0, prompt, fit=[1.0, 0.5], look=[0.0, 1.0])
    assert found == pytest.approx(missed + math.log1p(math.exp(-0.4)), rel=1e-5)
    images = torch.tensor([aspects], requires_grad=True)
    targets = Targets(torch.ones(1), {"fit": torch.tensor([[1.0, 0.5]]), "look": torch.tensor([[-0.0, 1.0]])})
    head(images, torch.tensor([prompt]), torch.tensor([NOBODY]), targets)[1].backward()
    torch.testing.assert_close(images.grad, torch.tensor([[[0.0, 0.5], [0.0, 0.5]]]))  # of the missed scores alone
    assert head.factor.grad.item() == pytest.approx(-sigmoid(-0.4) * 0.4, rel=1e-4)
    parts = head.part_rewards(torch.tensor([aspects]), torch.zeros(1, 2))
    torch.testing.assert_close(parts, torch.tensor([[[1.0, 0.5], [0.5, 1.5]]]))


def test_a_vote_is_of_each_group_by_its_chance_and_the_least_content_group_is_the_reward():
    pair, weights = [[1.0, -1.0], [0.0, 2.0]], (0.7, 0.3)
    micro = head_of(MicroSettings())
    micro.router = Given()
    chance = weights[0] * sigmoid(1.0) + weights[1] * sigmoid(-3.0)
    assert loss(micro, pair, 1.0, logs(*weights)) == pytest.approx(-math.log(chance), rel=1e-5)
    assert loss(micro, pair, 0.0, logs(*weights)) == pytest.approx(-math.log(1.0 - chance), rel=1e-5)
    share = micro.shares(torch.tensor([pair]), torch.tensor([logs(*weights)]), torch.ones(1))
    torch.testing.assert_close(share[0, 0].item(), weights[0] * sigmoid(1.0) / chance)
    maxmin = head_of(MaxMinSettings())
    assert loss(maxmin, pair) == pytest.approx(-math.log((sigmoid(1.0) + sigmoid(-3.0)) / 2), rel=1e-5)
    rewards = maxmin(torch.tensor([pair]), torch.zeros(1, 2), torch.tensor([NOBODY]))
    assert rewards.tolist() == [[-1.0, 0.0]]


def test_a_rating_is_predicted_in_its_own_units():
    head = head_of(RegressionSettings(score="stars"), 1)
    head.measure_scores({"stars": torch.tensor([[1.0, 5.0]])})  # mean 3, deviation 2
    assert loss(head, [[0.5], [0.0]], stars=[5.0, 1.0]) == pytest.approx(((0.5 - 1) ** 2 + (0 + 1) ** 2) / 2)
    rewards = head(torch.tensor([[[0.5], [0.0]]]), torch.zeros(1, 2), torch.tensor([NOBODY]))
    assert rewards.tolist() == [[4.0, 3.0]]


def test_the_least_norm_is_found_and_weighs_the_losses_of_sources():
    """Gradients (2, 0) and (-1, 0) cancel at weights 1/3 and 2/3; (1, 0) and (2, 1) are least at the first alone."""
    torch.testing.assert_close(balanced(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])), torch.tensor([1 / 3, 2 / 3]))
    torch.testing.assert_close(balanced(torch.tensor([[1.0, 0.0], [2.0, 1.0]])), torch.tensor([1.0, 0.0]))
    triangle = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)])
    torch.testing.assert_close(balanced(triangle), torch.full((3,), 1 / 3))
    head = make(MoreSettings(hidden=0), HeadSizes(1, 2))
    head.layers.weight.data.zero_()  # all chances are a half: the gradient of a pair is -(x_0 - x_1) / 2
    images = torch.tensor([[[2.0], [0.0]], [[2.0], [0.0]], [[0.0], [1.0]]])
    targets = Targets(torch.ones(3), sources=torch.tensor([4, 4, 9]))  # gradients -1, twice, and 1/2: weights 1/3, 2/3
    _, losses = head(images, torch.zeros(3, 2), torch.full((3,), NOBODY), targets)
    torch.testing.assert_close(losses, math.log(2.0) * torch.tensor([0.5, 0.5, 2.0]))
    losses.mean().backward()
    torch.testing.assert_close(head.layers.weight.grad, torch.zeros(1, 1))


def test_a_like_is_a_logistic_regression_of_one_picture():
    head = head_of(LikeSettings(), 1)
    assert loss(head, [[0.8]]) == pytest.approx(math.log1p(math.exp(-0.8)), rel=1e-5)
    assert loss(head, [[0.8]], 0.25) == pytest.approx(0.25 * math.log1p(math.exp(-0.8)) + 0.75 * math.log1p(math.exp(0.8)), rel=1e-5)


def trained(settings, images, prompts, targets, steps=60, rate=0.1):
    """Return a head after full-batch steps of its own loss, or of the logistic loss of its rewards."""
    torch.manual_seed(0)
    head, nobody = make(settings, HeadSizes(images.shape[2], prompts.shape[1])), torch.full((len(images),), NOBODY)
    head.standardise(images.flatten(0, 1), prompts)
    head.measure_scores(targets.columns)
    optimizer = torch.optim.Adam(head.parameters(), rate)
    for _ in range(steps):
        rewards, losses = head(images, prompts, nobody, targets)
        if losses is None:
            losses = nn.functional.softplus(rewards[:, 1] - rewards[:, 0])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return head.eval()


def test_a_preference_that_runs_in_a_circle_is_learnt_by_gpm_and_not_by_one_reward():
    """Three kinds of pictures: the first beats the second, the second the third, the third the first."""
    kinds = torch.eye(3)
    images = torch.stack([torch.stack([kinds[i], kinds[(i + 1) % 3]]) for i in range(3)])
    prompts, targets, nobody = torch.zeros(3, 2), Targets(torch.ones(3)), torch.full((3,), NOBODY)
    circle = trained(GpmSettings(hidden=8, planes=1, scale_hidden=0), images, prompts, targets)
    assert (circle.pair_logits(images, prompts, nobody)[:, 0, 1] > 2.0).all()
    one = trained(BtSettings(hidden=8), images, prompts, targets)
    assert (one.pair_logits(images, prompts, nobody)[:, 0, 1].abs() < 0.1).all()


def test_two_opposed_groups_are_found_without_user_ids():
    """40 % of votes prefer what has more of the first number, the others what has less, by the second: no vote says whose it is."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(400, 2, 2, generator=draw)
    group = torch.rand(400, generator=draw) < 0.4
    utility = torch.where(group[:, None], 3.0 * images[..., 0], 3.0 * images[..., 1])
    prob = (utility[:, 0] > utility[:, 1]).float()
    head = trained(MaxMinSettings(hidden=0), images, torch.zeros(400, 2), Targets(prob), steps=200)
    weights = head.layers.weight.detach()
    first = int(weights[:, 0].abs().argmax())
    assert weights[first, 0] > 3 * weights[first, 1].abs()
    assert weights[1 - first, 1] > 3 * weights[1 - first, 0].abs()
    assert head.share.softmax(dim=0)[first].item() == pytest.approx(0.4, abs=0.08)
    standard = head.standard(images, torch.zeros(400, 2))
    clear = (images[:, 0, 0] > images[:, 1, 0]) != (images[:, 0, 1] > images[:, 1, 1])  # votes that tell the groups apart
    right = (head.shares(*standard, prob)[:, first] > 0.5) == group
    assert right[clear].float().mean().item() > 0.9


def test_the_gate_and_the_router_read_the_prompt():
    """Under the first prompt votes follow the first aspect, under the second the other."""
    draw = torch.Generator().manual_seed(2)
    images, prompts = torch.randn(200, 2, 2, generator=draw), torch.eye(2)[torch.arange(200) % 2]
    utility = (images * prompts[:, None]).sum(dim=2)
    columns = {"fit": 5.0 + images[..., 0], "look": 2.0 * images[..., 1]}
    targets = Targets((utility[:, 0] > utility[:, 1]).float(), columns)
    armo = trained(ArmoSettings(aspects=["fit", "look"], gate_hidden=8, temperature=1.0), images, prompts, targets, steps=150)
    weights = armo.weights(armo.standard(images[:2], prompts[:2])[1])
    assert weights[0, 0].item() > 0.9
    assert weights[1, 1].item() > 0.9
    torch.testing.assert_close(armo.part_rewards(images, prompts)[..., 0], columns["fit"], atol=0.05, rtol=0)
    micro = trained(MicroSettings(hidden=0, router_hidden=8), images, prompts, targets, steps=150)
    shares = micro.log_weights(micro.standard(images[:2], prompts[:2])[1]).exp()
    assert (shares[0] - shares[1]).abs().min().item() > 0.8


def test_ties_pull_levels_together():
    """A tie beside a win: with ties as one level the tied two end nearer each other than the won two; as half votes they do not matter."""
    images = torch.eye(3)[torch.tensor([[0, 1], [2, 1]])]  # picture 0 beats 1; 2 and 1 are tied
    prompts, targets = torch.zeros(2, 2), Targets(torch.tensor([1.0, 0.5]))
    head = trained(OrdinalSettings(hidden=8, levels=5), images, prompts, targets)
    win, tie = head.pair_logits(images, prompts, torch.full((2,), NOBODY))[:, 0, 1].tolist()
    assert win > 2.0
    assert abs(tie) < 0.3
    own = head.joint(*head.standard(images, prompts)).softmax(dim=2)
    assert (own[1, 0] * own[1, 1]).sum().item() > 0.9  # P(equal) of the tied two


def test_an_aspect_is_freed_of_another_by_the_least_penalty_that_leaves_no_rank_correlation():
    """Of (0, 0.3, 0.2, 0.5) - l (0, 1, 2, 3) the ranks follow 0 to 3 up to l = 0.1; at 0.125 they are 2, 4, 1, 3, whose correlation is 0.

    What is the other itself needs more than 0.95, and so 1; what falls where the other rises, and what never varies, need nothing.
    """
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.3, 0.2, 0.5], [0.0, 2.0, 4.0, 6.0], [3.0, 2.0, 1.0, 0.0], [7.0] * 4])
    assert penalties(scores, 0, 0.03) == [1.0, 0.125, 1.0, 0.0, 0.0]
    order = [2, 0, 3, 1]
    assert penalties(scores[:, order], 0, 0.03) == [1.0, 0.125, 1.0, 0.0, 0.0]  # whatever is the order of the pictures
    assert penalties(np.ones((2, 4)), 0, 0.03) == [0.0, 0.0]
    assert (len(PENALTIES), PENALTIES[:9], PENALTIES[-1]) == (24, (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2), 0.95)


def test_armo_counts_each_aspect_without_its_share_of_the_removed_one():
    """Weights 0.6, 0.3 and 0.1, and penalties 0.2, 1 and 0.5: the reward is 0.6 (a - 0.2 v) + 0.1 (c - 0.5 v)."""
    head = head_of(ArmoSettings(aspects=["a", "v", "c"], decorrelate="v", temperature=1.0), 3)
    head.gate = Given()
    head.penalties.copy_(torch.tensor([0.2, 1.0, 0.5]))
    prompts = torch.tensor([logs(0.6, 0.3, 0.1)])
    reward = head.rewards(torch.tensor([[[2.0, 3.0, 5.0]]]), prompts, torch.tensor([NOBODY]))
    assert reward.item() == pytest.approx(0.6 * (2 - 0.2 * 3) + 0.1 * (5 - 0.5 * 3), rel=1e-5)
    values = {"a": [0.0, 0.3, 0.2, 0.5], "v": [0.0, 1.0, 2.0, 3.0], "c": [3.0, 2.0, 1.0, 0.0]}
    head.measure_scores({name: torch.tensor([column]) for name, column in values.items()})
    deviation = {name: torch.tensor(column).std(correction=0).item() for name, column in values.items()}
    ratio = deviation["v"] / deviation["a"]  # of standardised scores the turning point 0.1 is 0.1 * deviation of v / deviation of a
    least = next(penalty for penalty in PENALTIES if penalty > 0.1 * ratio)
    torch.testing.assert_close(head.penalties, torch.tensor([least, 1.0, 0.0]))


def test_a_users_votes_move_the_shares_of_groups_by_bayes_rule():
    """Both groups alike at first. Of two votes the first group foretells 0.9 and 0.8, the second 0.4 and 0.5: 0.72 to 0.20."""
    micro = head_of(MicroSettings(), 2)
    micro.router = Given()
    odds = [[math.log(9.0), math.log(0.4 / 0.6)], [math.log(4.0), 0.0]]
    images = torch.tensor([[own, [0.0, 0.0]] for own in odds])
    no = torch.zeros(2, 2)
    batch = RewardBatch(images, no, torch.full((2,), NOBODY), torch.ones(2), ("a", "b"), Labels())
    logits = fit_groups(micro, batch)
    torch.testing.assert_close(logits.softmax(dim=0), torch.tensor([0.72, 0.20]) / 0.92)
    flipped = replace(batch, images=images.flip(1), prob=torch.zeros(2))  # the same votes, written the other way round
    torch.testing.assert_close(fit_groups(micro, flipped), logits)
    prior = torch.tensor([logs(0.1, 0.9)])  # what the router says of a prompt counts beside the votes: 0.072 to 0.18
    reward = micro.by_logits(torch.tensor([[[1.0, 0.0]]]), prior, logits)
    assert reward.item() == pytest.approx(0.072 / 0.252, rel=1e-5)


def test_votes_teach_meta_where_new_pictures_are_further_apart():
    """Of a linear reward w x with w = 0.5: the new pair lies 2 apart, J = sigmoid(1), its slope 2 s (1 - s) at s = sigmoid(1).

    A step of 0.1 up that slope, the other pair, 3 apart, has the loss log(1 + exp(-3 w')); and its slope there is that of w.
    """
    head = make(MetaSettings(shifted="b", hidden=0, ascent=0.1), HeadSizes(1, 1))
    weight = head.layers.weight
    with torch.no_grad():
        weight.fill_(0.5)
    images, prob = torch.tensor([[[3.0], [0.0]], [[1.0], [3.0]]]), torch.tensor([1.0, 1.0])
    there = 0.5 + 0.1 * 2.0 * sigmoid(1.0) * (1.0 - sigmoid(1.0))

    def losses(sources):
        _, own = head(images, torch.zeros(2, 1), torch.full((2,), NOBODY), Targets(prob, sources=torch.tensor(sources)))
        return own

    own = losses([0, 1])
    assert own[1].item() == 0.0
    assert own.mean().item() == pytest.approx(math.log1p(math.exp(-3.0 * there)), rel=1e-5)  # of the one record with a vote
    own.mean().backward()
    assert weight.grad.item() == pytest.approx(-3.0 * sigmoid(-3.0 * there), rel=1e-5)
    assert losses([0, 0])[0].item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-5)  # Bradley and Terry's
    assert losses([1, 1]).tolist() == [0.0, 0.0]
