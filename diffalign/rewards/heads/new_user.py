"""A new user of a PAL or MiCRo head: everything is frozen, and a few numbers of the user are fitted to their pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.rewards.heads.mixed import MicroHead
from diffalign.rewards.heads.networks import PalHead, log_loss
from diffalign.rewards.heads.pairs import RewardBatch

STEPS = 200
LEAST = 0.1  # deviation of the users' numbers that the prior has at least


def fit_user(head: PalHead, pairs: RewardBatch, beta: float = 1.0) -> Tensor:
    """Return the logits (P,) that explain a user's pairs best: the loss of Bradley and Terry, ties and soft labels included.

    PAL fits by that loss alone. A few pairs that a corner of the simplex explains would push the numbers without end, so the numbers have
    a normal prior with mean and deviation of the training users' numbers (empirical Bayes); without pairs, the mean is the answer.
    """
    with torch.no_grad():
        images, prompts = head.standard(pairs.images, pairs.prompts)
        mean, deviation = head.logits.mean(dim=0), head.logits.std(dim=0, correction=0).clamp_min(LEAST)
    numbers = mean.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        rewards = beta * head.by_logits(images, prompts, numbers.expand(len(images), -1))
        z = rewards[:, 0] - rewards[:, 1]
        value = log_loss(z, pairs.prob).sum() + 0.5 * ((numbers - mean) / deviation).square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]  # LBFGS takes a tensor
    return numbers.detach()


@torch.no_grad()
def fit_groups(head: MicroHead, pairs: RewardBatch) -> Tensor:
    """Return the logits (G,) of a user's groups: of each the log of the chance that it votes as the user did.

    Added to the router's they are the update of Hedge, w_g exp(-loss_g), with rate 1, which is Bayes' rule: without pairs they are zero,
    and pairs that all groups explain alike change nothing. MiCRo's second stage is an online routing of this kind; its formula was not
    read, and this one is ours.
    """
    images, prompts = head.standard(pairs.images, pairs.prompts)
    rewards = head.joint(images, prompts)
    return -log_loss(rewards[:, 0] - rewards[:, 1], pairs.prob[:, None]).sum(dim=0)
