"""The head that reads scores in place of images: which reward counts how much is learnt from the prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffalign.core.errors import ConfigError
from diffalign.rewards.heads.networks import HeadSizes, RewardHead, Targets, log_loss, mlp
from diffalign.rewards.heads.settings import OrchestratorSettings


class OrchestratorHead(RewardHead):
    """Preference Orchestrator (2511.10656): weights of A rewards, by the softmax of a network that reads the prompt alone.

    The scores (B, K, A) of candidates take the place of images, standardised by mean and deviation of the training's; the reward is
    s * sum_a w_a(prompt) score_a. With `learn: scores` the loss is KL(w* || w), w* the softmax of the preferred candidate's scores over
    `temperature`, and s is 1; the paper calls its scores normalised, and the standardising is our reading. With `learn: votes` (ours)
    it is the logistic loss of the reward, as ArmoRM's gate learns, and the factor s is learnt. A soft label mixes the losses of both
    candidates.
    """

    def __init__(self, settings: OrchestratorSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.parts, self.votes, self.temperature = tuple(settings.scores), settings.learn == "votes", settings.temperature
        self.gate = mlp(sizes.prompt, settings.hidden, len(settings.scores))
        self.factor = nn.Parameter(torch.tensor(1.0), requires_grad=self.votes)

    def standardise(self, images: Tensor, prompts: Tensor) -> None:
        """Measure scores (N, A) and prompts (N, D). Raises ConfigError for a score that never varies, by which nothing can be learned."""
        super().standardise(images, prompts)
        deviation = images.double().std(dim=0, correction=0)
        for name, score, spread in zip(self.parts, images.T, deviation, strict=True):
            if spread <= 1e-6 * score.abs().max():
                raise ConfigError(f"reward_head `orchestrator`: the score `{name}` is {score[0]:g} for all candidates; leave it out")
        self.image_deviation.copy_(deviation)  # however small: a score of scale 0.01 counts as much as one of scale 100

    @property
    def measured(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (A,) of the scores in the training."""
        return self.image_mean, self.image_deviation

    def weights(self, prompts: Tensor) -> Tensor:
        """Return the weights (B, A) of the rewards under standardised prompts, which add up to 1."""
        return self.gate(prompts).softmax(dim=1)

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return rewards (B, K) of standardised scores."""
        return self.factor * torch.einsum("bka,ba->bk", images, self.weights(prompts))

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs of standardised scores."""
        if self.votes:
            rewards = self.rewards(images, prompts, prompts)
            return log_loss(rewards[:, 0] - rewards[:, 1], targets.prob)
        wanted = (images / self.temperature).log_softmax(dim=2)
        apart = (wanted.exp() * (wanted - self.gate(prompts).log_softmax(dim=1)[:, None])).sum(dim=2)
        return targets.prob * apart[:, 0] + (1.0 - targets.prob) * apart[:, 1]
