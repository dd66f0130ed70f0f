"""Metrics of a training step, computed from `Scores` and plain tensors, and diagnostics of known failures of preference training.

Ranking accuracy, its idealised value and the flip threshold are defined as in 2405.19534 (the paper), CHES as in 2410.08847 (the released
code). Where another definition is reconstructed, its docstring says so.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.special import entr

from diffalign.core.types import Scores
from diffalign.objectives.base import margin, policy_scores, reference_scores

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}  # of the reward margins
ROUNDING = 4.0  # units in the last place of a score by which equal models may differ: sums of tokens in another order differ by two
SATURATED = 5.0  # reward margin above which the gradient of the log-sigmoid is below 1 %


def implicit_accuracy(x: Tensor) -> Tensor:
    """Return the share in [0, 1] of rows of (B, K) where candidate 0 scores above candidate 1; ties count one half."""
    margins = margin(x)
    return ((margins > 0).double() + 0.5 * (margins == 0).double()).mean()


def ranking_accuracy(logps: Tensor) -> Tensor:
    """Return the share of rows of (B, K) where candidate 0 is at least as likely as 1; ties count as correct (2405.19534, definition 2.3).

    With log-probabilities divided by lengths it is the length-normalised ranking accuracy.
    """
    return (margin(logps) >= 0).double().mean()


def reward_accuracy(rewards: Tensor) -> Tensor:
    """Return the share of rows of (B, K) where candidate 0 has the higher reward; ties count as wrong, as in TRL."""
    return (margin(rewards) > 0).double().mean()


def idealised_ranking_accuracy(reference: Tensor, beta: float, prob: Tensor | None = None) -> Tensor:
    """Return the ranking accuracy of the policy that minimises DPO's loss (2405.19534, corollary 3.3), from `reference` scores (B, K).

    That policy ranks a pair correctly if the reference's margin + log(prob / (1 - prob)) / beta is above zero. `prob` (B,), the share of
    raters who prefer candidate 0, is clipped to [1/2, 0.999] (0.999 if None), because with 1 every pair would be ranked correctly.
    """
    margins = margin(reference)
    share = torch.full_like(margins, 1.0) if prob is None else prob.to(margins)
    return (margins + torch.logit(share.clamp(0.5, 1.0 - 1e-3)) / beta > 0).double().mean()


def alignment_gap(s: Scores, beta: float) -> Tensor:
    """Return the idealised minus the observed ranking accuracy (2405.19534), of means over tokens if the likelihood is length-normalised.

    Raises ValueError without a reference.
    """
    if s.reference is None:
        raise ValueError("the idealised ranking accuracy is computed from a reference, and the scores have none")
    return idealised_ranking_accuracy(reference_scores(s), beta, s.prob) - ranking_accuracy(policy_scores(s))


def flip_threshold(reference: Tensor, beta: float) -> Tensor:
    """Return the DPO loss (B,) below which the policy ranks a pair correctly (2405.19534, theorem 4.1)."""
    return softplus(beta * margin(reference))


def displaced(change: Tensor) -> Tensor:
    """Return the share of rows whose preferred answer became less likely although the margin grew: likelihood displacement.

    `change` (B, K) is the log-probability minus its value at the start of training, which is the log-ratio if the reference is that start.
    """
    return ((change[:, 0] < 0) & (margin(change) > 0)).double().mean()


def suppression(change: Tensor) -> Tensor:
    """Return the mean change of dispreferred answers divided by the mean change of preferred answers (`change` as in `displaced`).

    Below -1 the dispreferred answers fall faster than the preferred ones rise, as 2406.07327 describes; the ratio is reconstructed from
    that description. It is positive if both fall or both rise, and not finite at the start of training.
    """
    return change[:, 1].mean() / change[:, 0].mean()


def ches(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centred hidden embedding similarity (B,) of candidates 0 and 1, and its length-normalised form (B,).

    Large values mean that displacement is likely. `sums` (B, K, D) are the sums of the last hidden states (the input of the output head)
    over the `counts` (B, K) positions that predict the answer's tokens: from the prompt's last token to the answer's last but one.
    """
    a, b = sums[:, 0], sums[:, 1]
    means = sums / counts.unsqueeze(-1)
    return _centred(a, b), _centred(means[:, 0], means[:, 1])


def _centred(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) - (a * a).sum(-1)


def top_k(logits: Tensor, k: int = 10) -> dict[str, Tensor]:
    """Return probability mass and entropies (in nats) of the k most probable next tokens, for each position of logits (..., V).

    "mass" is the sum of their probabilities, "entropy" is -sum p log p over them, "entropy_renormalised" is their entropy after dividing
    by the mass, and "full_entropy" is over all V tokens. If mass and entropy fall together, the model may be over-optimised (2410.11677
    names the indicators; the definitions and k are reconstructed).
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    top = logp.topk(min(k, logp.shape[-1]), -1).values
    mass = top.exp().sum(-1)
    entropy = entr(top.exp()).sum(-1)
    metrics = {"mass": mass, "entropy": entropy, "entropy_renormalised": entropy / mass + mass.log()}
    return metrics | {"full_entropy": entr(logp.exp()).sum(-1)}


@torch.no_grad()
def describe(s: Scores, beta: float | None = None, rewards: Tensor | None = None) -> dict[str, Tensor]:
    """Return scalar metrics by name. Log-ratios are in units of the score (for diffusion half a mean squared error, for texts nats).

    `rewards/*` have TRL's names and are computed from the implicit `rewards` (B, K), or from beta * log-ratio if these are None: means,
    strict accuracy, quantiles of the margins, and the share of saturated margins. Texts have `logps/*` instead of `score/*`.

    `log_ratio/chosen` below zero means that the preferred candidate is less likely under the policy than under the reference. This is
    likelihood displacement, which neither loss nor accuracy shows; `displaced` is the share of such pairs.
    """
    kind = "score" if s.lengths is None else "logps"
    if s.policy.shape[1] - s.mismatched < 2:
        return _of_one(s, kind)
    metrics = {f"{kind}/chosen": s.policy[:, 0].mean(), f"{kind}/rejected": s.policy[:, 1].mean()}
    change = s.policy if s.reference is None else _beyond_rounding(s)
    metrics["implicit_acc"] = implicit_accuracy(change)
    if s.reference is not None:
        ratio = s.log_ratio
        rewards = (1.0 if beta is None else beta) * ratio if rewards is None else rewards
        metrics |= {"log_ratio/chosen": ratio[:, 0].mean(), "log_ratio/rejected": ratio[:, 1].mean(), "displaced": displaced(change)}
    return metrics | _reward_metrics(rewards, margin(change) == 0) | _text_metrics(s, beta)


def _of_one(s: Scores, kind: str) -> dict[str, Tensor]:
    """Return the metrics of records with one candidate: with a reference, log-ratios of liked and of disliked ones where there are any."""
    scores = {f"{kind}/chosen": s.policy[:, 0].mean()}
    if s.prob is None or s.reference is None:
        return scores
    ratio, liked = _beyond_rounding(s)[:, 0], s.prob > 0.5
    sides = {"chosen": ratio[liked], "rejected": ratio[s.prob < 0.5]}
    scores[f"{kind}/chosen"] = s.policy[:, 0][liked].mean() if liked.any() else scores[f"{kind}/chosen"]
    return scores | {f"log_ratio/{side}": values.mean() for side, values in sides.items() if len(values)}


def _beyond_rounding(s: Scores) -> Tensor:
    """Return the log-ratios (B, K), zero where they are no more than the rounding of the two scores that they are a difference of."""
    size = torch.maximum(s.policy.abs(), reference_scores(s).abs())
    return torch.where(s.log_ratio.abs() <= ROUNDING * torch.finfo(size.dtype).eps * size, 0.0, s.log_ratio)


def _reward_metrics(rewards: Tensor | None, tied: Tensor) -> dict[str, Tensor]:
    """Return the metrics of rewards (B, K); `tied` (B,) are the rows that are equal but for rounding."""
    if rewards is None:
        return {}
    margins = margin(rewards)
    return {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": reward_accuracy(torch.where(tied.unsqueeze(1), 0.0, rewards)),
        "rewards/saturated": (margins.abs() > SATURATED).double().mean(),
        **{f"rewards/margins_{name}": torch.quantile(margins, share) for name, share in QUANTILES.items()},
    }


def _text_metrics(s: Scores, beta: float | None) -> dict[str, Tensor]:
    if s.lengths is None:
        return {}
    metrics = {"ranking_acc": ranking_accuracy(s.policy), "ranking_acc_normalized": ranking_accuracy(s.policy / s.lengths)}
    metrics |= {} if s.rationale is None else {"logps/rationale": s.rationale.mean()}
    return metrics if s.reference is None or beta is None else metrics | {"alignment_gap": alignment_gap(s, beta)}
