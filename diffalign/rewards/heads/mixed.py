"""Heads of several rewards: aspects weighed by the prompt (ArmoRM), and mixtures of voters (MiCRo, MaxMin)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffalign.rewards.heads.networks import HeadSizes, JointHead, Targets, log_loss, mlp
from diffalign.rewards.heads.settings import ArmoSettings, MaxMinSettings, MicroSettings, MixtureSettings


class ArmoHead(JointHead):
    """ArmoRM (2406.12845, released code): aspects by regression, weighed by a gate that reads the prompt alone.

    The reward is s * sum_a softmax(gate(prompt) / temperature)_a r_a(x), s a learnt factor that begins at 1. The aspects r_a learn the
    table's scores, standardised, by mean squared error; the gate learns the preferences by the logistic loss, through which nothing
    reaches the aspects. The release trains the two one after the other, here they learn at once. With `decorrelate`, its correction for
    verbosity, r_a - l_a r_v takes the place of r_a, v the aspect named; the penalties l are measured on the table's scores, where the
    release takes the predicted ones of a reference dataset, and lets its gate learn on the sum without the correction.
    """

    aspect_mean: Tensor
    aspect_deviation: Tensor
    penalties: Tensor  # (A,), of a head that decorrelates

    def __init__(self, settings: ArmoSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes, len(settings.aspects))
        self.parts, self.temperature = tuple(settings.aspects), settings.temperature
        self.gate = mlp(sizes.prompt, settings.gate_hidden, len(settings.aspects))
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("aspect_mean", torch.zeros(len(settings.aspects)))
        self.register_buffer("aspect_deviation", torch.ones(len(settings.aspects)))
        self.removed = None if settings.decorrelate is None else self.parts.index(settings.decorrelate)
        self.threshold = settings.threshold
        if self.removed is not None:
            self.register_buffer("penalties", torch.zeros(len(settings.aspects)))

    def measure_scores(self, columns: Mapping[str, Tensor]) -> None:
        """Measure mean and deviation of every aspect, and by how much it follows the one that is to be removed."""
        values = torch.stack([columns[name].flatten() for name in self.parts])
        self.aspect_mean.copy_(values.mean(dim=1))
        self.aspect_deviation.copy_(values.std(dim=1, correction=0).clamp_min(1e-3))
        if self.removed is not None:
            standard = (values - self.aspect_mean[:, None]) / self.aspect_deviation[:, None]
            self.penalties.copy_(torch.tensor(penalties(standard.double().numpy(), self.removed, self.threshold)))

    @property
    def measured(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (A,) of the aspects in the table."""
        return self.aspect_mean, self.aspect_deviation

    def weights(self, prompts: Tensor) -> Tensor:
        """Return the weights (B, A) of the aspects under standardised prompts.

        They add up to 1; where an aspect is removed, its own is less by all that is taken from the others.
        """
        weights = (self.gate(prompts) / self.temperature).softmax(dim=1)
        if self.removed is None:
            return weights
        taken = torch.zeros_like(weights)
        taken[:, self.removed] = weights @ self.penalties
        return weights - taken

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return rewards (B, K)."""
        return self._gated(self.joint(images, prompts), prompts)

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs: of the aspects, plus of the gate."""
        aspects = self.joint(images, prompts)
        scores = torch.stack([targets.columns[name] for name in self.parts], dim=2)
        missed = (aspects - (scores - self.aspect_mean) / self.aspect_deviation).square().mean(dim=(1, 2))
        rewards = self._gated(aspects.detach(), prompts)
        return missed + log_loss(rewards[:, 0] - rewards[:, 1], targets.prob)

    def part_rewards(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Return the predicted aspects (B, K, A) in the table's units."""
        return self.joint(*self.standard(images, prompts)) * self.aspect_deviation + self.aspect_mean

    def _gated(self, aspects: Tensor, prompts: Tensor) -> Tensor:
        return self.factor * torch.einsum("bka,ba->bk", aspects, self.weights(prompts))


PENALTIES = (0.0, 0.01, 0.025, *(step / 40 for step in range(2, 7)), *(step / 20 for step in range(4, 20)))  # as released


def penalties(scores: np.ndarray, place: int, threshold: float) -> list[float]:
    """Return for each of A scores (A, N) the least penalty l at which score - l * scores[place] hardly follows scores[place].

    Hardly is a rank correlation of at most `threshold`; where none of `PENALTIES` reaches it, l is 1, as it is of the score itself.
    """
    from scipy.stats import spearmanr  # takes a while to import

    def follows(score: np.ndarray) -> bool:
        result: Any = spearmanr(score, removed)
        return float(result.statistic) > threshold

    removed = scores[place]
    if np.ptp(removed) == 0.0:
        return [0.0] * len(scores)
    least = [
        0.0 if np.ptp(score) == 0.0 else next((penalty for penalty in PENALTIES if not follows(score - penalty * removed)), 1.0)
        for score in scores
    ]
    return [1.0 if a == place else penalty for a, penalty in enumerate(least)]


class MixtureHead(JointHead):
    """G rewards, of which each vote follows one that nobody names: P(first) = sum_g w_g sigmoid(r_g(x_0) - r_g(x_1)).

    Its negative log is the loss. The gradient is that of expectation and maximisation: a vote's share in group g is its posterior
    chance, and each reward learns the votes by their shares. Rewards have no zero of their own; here each is zero for the mean image.
    """

    def __init__(self, settings: MixtureSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes, settings.mixture)
        self.parts = tuple(str(group) for group in range(settings.mixture))

    def log_weights(self, prompts: Tensor) -> Tensor:
        """Return the logs of the groups' shares (B, G) under standardised prompts."""
        raise NotImplementedError

    def centred(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Return (B, K, G) of standardised embeddings, less the rewards of the mean image."""
        return self.joint(images, prompts) - self.joint(torch.zeros_like(images[:, :1]), prompts)

    def chances(self, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P(first preferred) and log P(second preferred), (B, K, K), of standardised embeddings."""
        rewards = self.joint(images, prompts)
        apart, weights = rewards[:, :, None] - rewards[:, None, :], self.log_weights(prompts)[:, None, None]
        return (weights + logsigmoid(apart)).logsumexp(dim=3), (weights + logsigmoid(-apart)).logsumexp(dim=3)

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs."""
        first, second = (chance[:, 0, 1] for chance in self.chances(images, prompts))
        return -(targets.prob * first + (1.0 - targets.prob) * second)

    def shares(self, images: Tensor, prompts: Tensor, prob: Tensor) -> Tensor:
        """Return each pair's posterior chances (B, G) of the groups, of standardised embeddings and labels `prob` (B,)."""
        rewards = self.joint(images, prompts)
        likelihood = -log_loss(rewards[:, 0] - rewards[:, 1], prob[:, None])
        return (self.log_weights(prompts) + likelihood).softmax(dim=1)

    def pair_logits(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # nobody is named
        """Return (B, K, K): the log odds of the mixture."""
        first, second = self.chances(*self.standard(images, prompts))
        return first - second

    def part_rewards(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Return the groups' rewards (B, K, G)."""
        return self.centred(*self.standard(images, prompts))


class MicroHead(MixtureHead):
    """MiCRo (2505.24846), reconstructed: a mixture whose shares a router reads from the prompt, and a user's few votes move.

    The reward is the mean by these shares. `heads.new_user.fit_groups` is the second stage: logits of a user, which are added to the
    router's under every prompt.
    """

    def __init__(self, settings: MicroSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.router = mlp(sizes.prompt, settings.router_hidden, settings.mixture)

    def log_weights(self, prompts: Tensor) -> Tensor:
        """Return the logs of the groups' shares (B, G)."""
        return self.router(prompts).log_softmax(dim=1)

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # nobody is named
        """Return rewards (B, K)."""
        return torch.einsum("bkg,bg->bk", self.centred(images, prompts), self.log_weights(prompts).exp())

    def by_logits(self, images: Tensor, prompts: Tensor, logits: Tensor) -> Tensor:
        """Return rewards (B, K) of standardised embeddings for users given by their logits (B, G)."""
        weights = (self.log_weights(prompts) + logits).softmax(dim=1)
        return torch.einsum("bkg,bg->bk", self.centred(images, prompts), weights)


class MaxMinHead(MixtureHead):
    """MaxMin-RLHF's mixture (2402.08925) for votes without user ids; the reward is that of the group that likes an image least.

    The paper assigns users to groups, by the reward that explains their votes best; without ids a vote is a user of its own here, and
    belongs to each group by its posterior chance.
    """

    def __init__(self, settings: MaxMinSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.share = nn.Parameter(torch.zeros(settings.mixture))

    def log_weights(self, prompts: Tensor) -> Tensor:
        """Return the logs of the groups' shares (B, G), of all prompts alike."""
        return self.share.log_softmax(dim=0).expand(len(prompts), -1)

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # nobody is named
        """Return rewards (B, K)."""
        return self.centred(images, prompts).amin(dim=2)
