"""Heads of one reward that learn it otherwise: from ratings after votes, from several sources in balance, where new pictures
differ, from likes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from diffalign.rewards.heads.networks import HeadSizes, JointHead, Targets, log_loss
from diffalign.rewards.heads.settings import LikeSettings, MetaSettings, MoreSettings, RegressionSettings

ROUNDS = 50  # of Frank and Wolfe's algorithm


class RegressionHead(JointHead):
    """HelpSteer2-Preference (2410.01257): Bradley and Terry first, then a regression of ratings that begins with that reward.

    Its reward predicts the score in the table's units, gain * r + offset after standardising, and learns by the mean squared error; both
    candidates of a pair count. `start` is the run whose r it begins with: for the paper's scaled Bradley and Terry give that run's
    table a column `weight` with the strength of each preference, 1 to 3.
    """

    score_mean: Tensor
    score_deviation: Tensor

    def __init__(self, settings: RegressionSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.score = settings.score
        self.gain, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.register_buffer("score_mean", torch.tensor(0.0))
        self.register_buffer("score_deviation", torch.tensor(1.0))

    def measure_scores(self, columns: Mapping[str, Tensor]) -> None:
        """Measure mean and deviation of the score."""
        values = columns[self.score]
        self.score_mean.copy_(values.mean())
        self.score_deviation.copy_(values.std(correction=0).clamp_min(1e-3))

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return predicted scores (B, K)."""
        return self._predicted(images, prompts) * self.score_deviation + self.score_mean

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,)."""
        wanted = (targets.columns[self.score] - self.score_mean) / self.score_deviation
        return (self._predicted(images, prompts) - wanted).square().mean(dim=1)

    def _predicted(self, images: Tensor, prompts: Tensor) -> Tensor:
        return self.gain * self.joint(images, prompts).squeeze(-1) + self.offset


class MoreHead(JointHead):
    """MORE (2312.07401): one reward from several sources, weighed so that none pulls against the others; reconstructed.

    The loss is sum_i w_i L_i, L_i the mean logistic loss of a batch's records of source i, and w the weights on the simplex that make
    the norm of sum_i w_i g_i least. g_i is the gradient of L_i with respect to the weights of the last layer, of which the paper takes
    the shared representation's. The weights are found anew in every batch and are not differentiated.
    """

    def __init__(self, settings: MoreSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs, whose mean is the weighted loss. Raises ValueError without sources."""
        if targets.sources is None:
            raise ValueError("the head `more` balances sources, and these targets have none")
        hidden = self.inputs(images, prompts)
        if isinstance(self.layers, nn.Sequential):
            hidden = self.layers[:-1](hidden)
            rewards = self.layers[-1](hidden).squeeze(-1)
        else:
            rewards = self.layers(hidden).squeeze(-1)
        apart = rewards[:, 0] - rewards[:, 1]
        _, source = targets.sources.unique(return_inverse=True)
        member = one_hot(source).to(apart)  # (B, S)
        with torch.no_grad():
            slopes = (apart.sigmoid() - targets.prob)[:, None] * (hidden[:, 0] - hidden[:, 1])  # (B, H)
            weights = balanced((member / member.sum(dim=0)).T @ slopes)
        return log_loss(apart, targets.prob) * (weights / member.sum(dim=0))[source] * len(source)


def balanced(gradients: Tensor) -> Tensor:
    """Return the weights (S,) on the simplex with the least norm of weights @ gradients, for gradients (S, H).

    By Frank and Wolfe with exact steps, as in 1810.04650; of two sources it is exact after one.

    >>> balanced(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor([0.5000, 0.5000])
    """
    products = (gradients @ gradients.T).double()
    weights = torch.full((len(products),), 1.0 / len(products), dtype=torch.float64, device=products.device)
    for _ in range(ROUNDS):
        slopes = products @ weights
        corner = torch.zeros_like(weights)
        corner[slopes.argmin()] = 1.0
        toward = corner - weights
        curvature = toward @ products @ toward
        if curvature <= 0.0:
            break
        weights = weights + (-(toward @ slopes) / curvature).clamp(0.0, 1.0) * toward
    return weights.to(gradients)


class MetaHead(JointHead):
    """MetaRM (2405.00438; Secrets of RLHF II, 2401.06080): votes teach where the reward tells new pictures apart; reconstructed.

    The new pictures are those of one source, such as what a policy draws by now, whose votes are not read. In every batch the weights
    take one step of `ascent` up the gradient of J = mean over records and pairs of sigmoid(|r_i - r_j|), and the gradient of the logistic
    loss of the other records there is what the weights where they were go on by. J as a mean and the size of the step are our reading.
    """

    def __init__(self, settings: MetaSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.ascent = settings.ascent

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs, zero for those of the new source. Raises ValueError without sources."""
        if targets.sources is None:
            raise ValueError("the head `meta` tells sources apart, and these targets have none")
        new, inputs = targets.sources == 1, self.inputs(images, prompts)
        weights: dict[str, Tensor] = dict(self.layers.named_parameters())
        if new.any():
            first, second = torch.triu_indices(images.shape[1], images.shape[1], 1)
            rewards = self.layers(inputs[new]).squeeze(-1)
            difference = (rewards[:, first] - rewards[:, second]).abs().sigmoid().mean()
            slopes = torch.autograd.grad(difference, list(weights.values()), allow_unused=True)
            steps = zip(weights.items(), slopes, strict=True)
            weights = {name: value if slope is None else value + self.ascent * slope for (name, value), slope in steps}
        rewards = functional_call(self.layers, weights, (inputs,)).squeeze(-1)
        losses = log_loss(rewards[:, 0] - rewards[:, 1], targets.prob)
        return torch.where(new, 0.0, losses) * (len(new) / (~new).sum().clamp_min(1))


class LikeHead(JointHead):
    """RLUF's P[Love] (2505.14946): the logit that a user likes one picture, from likes and their absence, without pairs."""

    def __init__(self, settings: LikeSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of lone candidates."""
        return log_loss(self.joint(images, prompts)[:, 0, 0], targets.prob)
