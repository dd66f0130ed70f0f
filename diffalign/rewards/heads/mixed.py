"""Heads of several rewards: aspects weighed by the prompt (ArmoRM), and mixtures of voters (MiCRo, MaxMin)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffalign.rewards.heads.networks import HeadSizes, JointHead, Targets, log_loss, mlp
from diffalign.rewards.heads.settings import ArmoSettings, MaxMinSettings, MicroSettings, MixtureSettings


class ArmoHead(JointHead):
    """ArmoRM (2406.12845, released code): aspects by regression, weighed by a gate that reads the prompt alone.

    The reward is s * sum_a softmax(gate(prompt) / temperature)_a r_a(x), s a learnt factor that begins at 1. The aspects r_a learn the
    table's scores, standardised, by mean squared error; the gate learns the preferences by the logistic loss, through which nothing
    reaches the aspects. The release trains the two one after the other, here they learn at once. Its correction for verbosity, which
    texts need, is left out.
    """

    aspect_mean: Tensor
    aspect_deviation: Tensor

    def __init__(self, settings: ArmoSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes, len(settings.aspects))
        self.parts, self.temperature = tuple(settings.aspects), settings.temperature
        self.gate = mlp(sizes.prompt, settings.gate_hidden, len(settings.aspects))
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("aspect_mean", torch.zeros(len(settings.aspects)))
        self.register_buffer("aspect_deviation", torch.ones(len(settings.aspects)))

    def measure_scores(self, columns: Mapping[str, Tensor]) -> None:
        """Measure mean and deviation of every aspect."""
        values = torch.stack([columns[name].flatten() for name in self.parts])
        self.aspect_mean.copy_(values.mean(dim=1))
        self.aspect_deviation.copy_(values.std(dim=1, correction=0).clamp_min(1e-3))

    @property
    def measured(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (A,) of the aspects in the table."""
        return self.aspect_mean, self.aspect_deviation

    def weights(self, prompts: Tensor) -> Tensor:
        """Return the weights (B, A) of the aspects under standardised prompts, which add up to 1."""
        return (self.gate(prompts) / self.temperature).softmax(dim=1)

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
    """MiCRo (2505.24846), its first stage, reconstructed: a mixture whose shares a router reads from the prompt.

    The reward is the mean by these shares. The second stage, which moves the router by a user's further context, is not reproduced.
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
