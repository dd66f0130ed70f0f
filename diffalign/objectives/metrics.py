"""What a step says about itself, and what preference training is known to get wrong: from `Scores` and plain tensors alone.

Definitions of ranking accuracy, its idealised value and the flip threshold: 2405.19534, read in the paper. CHES: 2410.08847, read in
the released code. Of the others the docstring says it where a definition is reconstructed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.special import entr

from diffalign.core.types import Scores
from diffalign.objectives.base import margin, own, reference_of

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}  # of the margins of rewards
SATURATED = 5.0  # beyond this margin of rewards the gradient of the log-sigmoid is below 1 %


def implicit_accuracy(x: Tensor) -> Tensor:
    """Return the share in [0, 1] of rows of (B, K) where candidate 0 scores above candidate 1; ties count one half."""
    gap = margin(x)
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean()


def ranking_accuracy(logps: Tensor) -> Tensor:
    """Return the share of rows of (B, K) where the preferred answer is at least as likely: ties are right (2405.19534, definition 2.3).

    Of log-probabilities divided by the lengths it is the length-normalised ranking accuracy.
    """
    return (margin(logps) >= 0).double().mean()


def reward_accuracy(rewards: Tensor) -> Tensor:
    """Return the share of rows of (B, K) where candidate 0 has the higher reward: ties are wrong, as TRL counts them."""
    return (margin(rewards) > 0).double().mean()


def idealised_ranking_accuracy(reference: Tensor, beta: float, prob: Tensor | None = None) -> Tensor:
    """Return the ranking accuracy of the policy that minimises DPO's loss (2405.19534, corollary 3.3), from the reference's (B, K).

    It ranks a pair rightly where the reference's margin + log(prob / (1 - prob)) / beta is above zero; `prob` (B,), the share of raters
    who prefer candidate 0, is clipped to [1/2, 0.999] (0.999 where None): at 1 every pair would be right.
    """
    gap = margin(reference)
    share = torch.full_like(gap, 1.0) if prob is None else prob.to(gap)
    return (gap + torch.logit(share.clamp(0.5, 1.0 - 1e-3)) / beta > 0).double().mean()


def alignment_gap(s: Scores, beta: float) -> Tensor:
    """Return the idealised minus the observed ranking accuracy (2405.19534), of token means under a length-normalised likelihood.

    Raises ValueError without a reference.
    """
    if s.reference is None:
        raise ValueError("the idealised ranking accuracy is that of a reference, and the scores have none")
    return idealised_ranking_accuracy(reference_of(s), beta, s.prob) - ranking_accuracy(own(s))


def flip_threshold(reference: Tensor, beta: float) -> Tensor:
    """Return the loss (B,) of DPO below which the policy ranks the pair rightly (2405.19534, theorem 4.1)."""
    return softplus(beta * margin(reference))


def displaced(change: Tensor) -> Tensor:
    """Return the share of rows whose preferred answer became less likely though its margin grew: likelihood displacement.

    `change` (B, K) is the log-probability minus that at the start: the log-ratio, where the reference is the start.
    """
    return ((change[:, 0] < 0) & (margin(change) > 0)).double().mean()


def suppression(change: Tensor) -> Tensor:
    """Return the mean change of the dispreferred answers' log-probability over that of the preferred ones (`change` as in `displaced`).

    Below -1 training pushes down faster than it lifts up, as 2406.07327 describes; the ratio is our reconstruction of it. Positive where
    both fall or both rise; not finite at the start.
    """
    return change[:, 1].mean() / change[:, 0].mean()


def ches(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centred hidden embedding similarity of each pair, (B,), and its length-normalised form; large: displacement is likely.

    `sums` (B, K, D) add up the last hidden states, those that enter the output head, at the `counts` (B, K) places that predict the
    answer's tokens: from the prompt's last token to the answer's last but one. Candidates 0 and 1 are compared.
    """
    a, b = sums[:, 0], sums[:, 1]
    means = sums / counts.unsqueeze(-1)
    return _centred(a, b), _centred(means[:, 0], means[:, 1])


def _centred(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) - (a * a).sum(-1)


def top_k(logits: Tensor, k: int = 10) -> dict[str, Tensor]:
    """Return mass and entropy of the k likeliest next tokens, and the entropy of all, for each position of logits (..., V), in nats.

    "entropy" is -sum p log p over the k as they are, "entropy_renormalised" that of the k as a distribution. Mass and entropy falling
    together warn of over-optimisation (2410.11677 names the indicators; the definitions and k are reconstructed).
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    best = logp.topk(min(k, logp.shape[-1]), -1).values
    mass = best.exp().sum(-1)
    entropy = entr(best.exp()).sum(-1)
    named = {"mass": mass, "entropy": entropy, "entropy_renormalised": entropy / mass + mass.log()}
    return named | {"full_entropy": entr(logp.exp()).sum(-1)}


@torch.no_grad()
def describe(s: Scores, beta: float | None = None, rewards: Tensor | None = None) -> dict[str, Tensor]:
    """Return scalars by name. Log-ratios are in units of the score (for diffusion: half a mean squared error; for texts: nats).

    `rewards/*` are as TRL names them, of the implicit rewards (B, K): beta * log-ratio where `rewards` is None; strict accuracies,
    quantiles of the margins, and the share of them that are saturated. Texts have `logps/*` in place of `score/*`.

    `log_ratio/chosen` below zero means that the policy explains the preferred candidate worse than the reference does:
    likelihood displacement, which the loss and the accuracy do not show. `displaced` is the share of such pairs among all.
    """
    kind = "score" if s.lengths is None else "logps"
    if s.policy.shape[1] < 2:
        return {f"{kind}/chosen": s.policy[:, 0].mean()}
    named = {f"{kind}/chosen": s.policy[:, 0].mean(), f"{kind}/rejected": s.policy[:, 1].mean()}
    named["implicit_acc"] = implicit_accuracy(s.policy if s.reference is None else s.log_ratio)  # MaPO: the margin is one of scores
    if s.reference is not None:
        ratio = s.log_ratio
        rewards = (1.0 if beta is None else beta) * ratio if rewards is None else rewards
        named |= {"log_ratio/chosen": ratio[:, 0].mean(), "log_ratio/rejected": ratio[:, 1].mean(), "displaced": displaced(ratio)}
    return named | _of_rewards(rewards) | _of_texts(s, beta)


def _of_rewards(rewards: Tensor | None) -> dict[str, Tensor]:
    if rewards is None:
        return {}
    margins = margin(rewards)
    return {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": reward_accuracy(rewards),
        "rewards/saturated": (margins.abs() > SATURATED).double().mean(),
        **{f"rewards/margins_{name}": torch.quantile(margins, share) for name, share in QUANTILES.items()},
    }


def _of_texts(s: Scores, beta: float | None) -> dict[str, Tensor]:
    if s.lengths is None:
        return {}
    named = {"ranking_acc": ranking_accuracy(s.policy), "ranking_acc_normalized": ranking_accuracy(s.policy / s.lengths)}
    return named if s.reference is None or beta is None else named | {"alignment_gap": alignment_gap(s, beta)}
