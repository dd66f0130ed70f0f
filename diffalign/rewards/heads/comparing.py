"""Heads that compare otherwise than by a difference of rewards: by levels of quality, by a whole ranking, by skew-symmetric embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from diffalign.rewards.heads.networks import HeadSizes, JointHead, Targets, log_loss, mlp
from diffalign.rewards.heads.settings import GpmSettings, OrdinalSettings, RankListSettings

NEVER = -1e4  # whose exponential is zero; minus infinity has no gradient


class OrdinalHead(JointHead):
    """OPRM (2602.12660): an image has a distribution over levels of quality, 1 to `levels`; its reward is the mean level.

    Of two independent draws, one from each of a pair, P(first higher), P(second higher) and P(equal) are sums over the joint table.
    The loss of a preference is -log P(higher); the paper does not say what becomes of ties, and here the loss of a tie is -log P(equal).
    Region flooding, reconstructed: with a score `band` the sum is over the levels of the candidates' bands alone, which are equal parts
    of the levels; a pair whose bands contradict its label is summed over all levels.
    """

    def __init__(self, settings: OrdinalSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes, settings.levels)
        self.ordinal = settings

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return mean levels (B, K)."""
        chances = self.joint(images, prompts).softmax(dim=2)
        return chances @ torch.arange(1, self.ordinal.levels + 1, device=chances.device, dtype=chances.dtype)

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs."""
        own = self.joint(images, prompts).log_softmax(dim=2)
        table = own[:, 0, :, None] + own[:, 1, None, :]  # (B, level of the first, level of the second)
        if self.ordinal.band is not None:
            table = table + self._outside(targets.columns[self.ordinal.band], targets.prob)
        higher, equal, lower = _sums(table)
        strict = -(targets.prob * higher + (1.0 - targets.prob) * lower)
        return strict if self.ordinal.ties == "half" else torch.where(targets.prob == 0.5, -equal, strict)

    def pair_logits(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return (B, K, K): the log odds of being higher, where half of P(equal) counts for each."""
        own = self.joint(*self.standard(images, prompts)).log_softmax(dim=2)
        higher, equal, lower = _sums(own[:, :, None, :, None] + own[:, None, :, None, :])
        half = equal - torch.log(torch.tensor(2.0))
        return torch.logaddexp(higher, half) - torch.logaddexp(lower, half)

    def _outside(self, bands: Tensor, prob: Tensor) -> Tensor:
        """Return (B, L, L): `NEVER` outside the bands of a pair, 0 within and where bands contradict the label."""
        levels = torch.arange(self.ordinal.levels, device=bands.device) * self.ordinal.bands // self.ordinal.levels
        first, second = (bands[:, k, None] == levels for k in (0, 1))
        apart = (bands[:, 0] - bands[:, 1]) * (prob - 0.5).sign()
        agrees = torch.where(prob == 0.5, bands[:, 0] == bands[:, 1], apart >= 0)
        inside = (first[:, :, None] & second[:, None, :]) | ~agrees[:, None, None]
        return torch.zeros_like(inside, dtype=prob.dtype).masked_fill(~inside, NEVER)


def _sums(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logs of the sums below, on and above the diagonal of log chances (..., L, L): first higher, equal, first lower."""
    ones = torch.ones(table.shape[-2:], dtype=torch.bool, device=table.device)
    parts = (ones.tril(-1), ones.tril() & ones.triu(), ones.triu(1))
    higher, equal, lower = (table.flatten(-2)[..., part.flatten()].logsumexp(dim=-1) for part in parts)
    return higher, equal, lower


class RankListHead(JointHead):
    """RankList (2508.09826), reconstructed from its abstract: a ranking of K as comparisons of neighbours and of those further apart.

    The loss is the mean logistic loss over all pairs of a ranking that are 1 to `skip` places apart; those of equal rank are half a vote
    for each. With skip K - 1 these are all pairs, with 1 the neighbours alone. The log-sum-exp approximation and the schedule that adds
    longer skips are not reproduced. The ranking is by the column `gains`; the candidates may come in any order.
    """

    def __init__(self, settings: RankListSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.skip = settings.skip

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of rankings."""
        gains, order = targets.columns["gains"].sort(dim=1, descending=True, stable=True)
        rewards = self.joint(images, prompts).squeeze(-1).gather(1, order)
        terms = []
        for apart in range(1, min(self.skip, rewards.shape[1] - 1) + 1):
            tied = gains[:, :-apart] == gains[:, apart:]
            terms.append(log_loss(rewards[:, :-apart] - rewards[:, apart:], torch.where(tied, 0.5, 1.0)))
        return torch.cat(terms, dim=1).mean(dim=1)


class GpmHead(JointHead):
    """GPM (2410.02197, released code): preferences that may run in circles, by embeddings of pairs of numbers.

    An image has an embedding v of length 1 and 2 L numbers; the logit of preferring x to y is sum_l c_l (v_2l(x) v_2l+1(y) - v_2l+1(x)
    v_2l(y)) / tau, so it changes its sign with the order, and L planes may each turn in a circle. The weights c_l of the planes are 1, or
    with `scale_hidden` a softplus of two layers on the prompt (the paper's scale gate, reconstructed). A picture alone has no reward;
    beside others it is half the mean logit over these, so that rewards of a pair differ by its logit.
    """

    def __init__(self, settings: GpmSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes, 2 * settings.planes)
        self.gpm = settings
        if settings.scale_hidden:
            self.scale = mlp(sizes.prompt, settings.scale_hidden, settings.planes)

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return rewards (B, K) beside each other."""
        others = max(1, images.shape[1] - 1)
        return self._logits(images, prompts).sum(dim=2) / (2 * others)  # an image against itself is zero

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor:
        """Return the losses (B,) of pairs."""
        return log_loss(self._logits(images, prompts)[:, 0, 1], targets.prob)

    def pair_logits(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return (B, K, K)."""
        return self._logits(*self.standard(images, prompts))

    def _logits(self, images: Tensor, prompts: Tensor) -> Tensor:
        even, odd = normalize(self.joint(images, prompts), dim=2).unflatten(2, (self.gpm.planes, 2)).unbind(dim=3)  # (B, K, planes)
        weight = softplus(self.scale(prompts)) if self.gpm.scale_hidden else torch.ones_like(even[:, 0])
        turned = torch.einsum("bip,bjp,bp->bij", even, odd, weight)
        return (turned - turned.transpose(1, 2)) / self.gpm.tau
