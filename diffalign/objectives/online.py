"""Objectives of the advantages of images that the model drew itself: on clean latents noised anew, or on stored sampler steps.

The column `advantage` says by how much a candidate's reward exceeds what is usual for its prompt (`data.advantages`). E is the denoising
error, -2 times the score, without the one-half. A record's loss is the mean over its candidates. Neither `prob` nor `offset` is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import column, require_reference, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

LARGEST = 80.0  # exponent, beyond which float32 overflows
Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
Space = Literal["output", "x0", "adaptive"]


def errors(scores: Tensor) -> Tensor:
    """Return the denoising errors of scores."""
    return -2.0 * scores


def old_scores(s: Scores) -> Tensor:
    """Return the scores (B, K) of the policy that drew the images; those of the policy as it is, without gradient, where none are kept."""
    return s.policy.detach() if s.old is None else s.old


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Return max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(log-ratio): PPO's loss (1707.06347 eq. 7), of any shape."""
    ratio = log_ratio.clamp(max=LARGEST).exp()
    return -(advantage * ratio).minimum(advantage * ratio.clamp(1.0 - low, 1.0 + high))


@weighted
def awm(
    s: Scores, *, weighting: Weighting = "ghuber", power: float = 0.25, clip: float = 1.0, kl: float = 1e-3, reference_kl: float = 1.0
) -> Tensor:
    """Return the mean of max(-A r, -A clip(r)) with r = exp(l - l_old), plus kl * drift and reference_kl * deviation; l falls with E.

    AWM (2509.25050 as released; the release divides advantages that are clipped at 5 by 5). l is -E times 1, t or t^2 (`weighting`), or a
    Huber form, -(sqrt(E + 1e-10) - 1e-5) t, or -((E + 1e-10)^p - 1e-10^p) t / p with p the `power` (all released configs). l_old is that of
    the policy that drew the images; where none is kept, the policy's own, and then the gradient is that of A l. The drift is measured from
    the start model; the reference is a moving average of the policy (`reference: old_policy`, decay min(0.3, 0.001 step)), whose term is
    the only brake in effect, as a `clip` of 1 never holds (our reading).
    """
    advantage, sigma = column(s, "advantage"), s.compared_outputs.sigma[:, None].to(s.policy)

    def likelihood(scores: Tensor) -> Tensor:
        e = errors(scores)
        if weighting == "huber":
            return -((e + 1e-10).sqrt() - 1e-5) * sigma
        if weighting == "ghuber":
            return -((e + 1e-10).pow(power) - 1e-10**power) * sigma / power
        return -e * sigma ** {"uniform": 0, "t": 1, "t2": 2}[weighting]

    surrogate = clipped_surrogate(likelihood(s.policy) - likelihood(old_scores(s)), advantage, clip, clip)
    return (surrogate + kl * s.drift + reference_kl * s.deviation).mean(dim=1)


@weighted
def dgpo(s: Scores, *, beta: float = 100.0, clip: float | None = None, kl: float = 1e-3) -> Tensor:
    """Return w * mean of A E + kl * mean deviation, with w = sigmoid(beta * mean of A (E - E_ref)) without gradient.

    DGPO (2510.08425 as released; beta 100, 10 for PickScore). Its gradient is that of -log sigmoid(-beta * mean A (E - E_ref)) / beta: DPO
    on the group, weighted by advantages; 1/beta keeps learning rates comparable. All candidates share time and noise. With `clip` the
    errors of candidates have no gradient that have moved further than it in the direction of their advantage since they were drawn
    (1e-2 to 1e-5 as released).
    """
    advantage, error = column(s, "advantage"), errors(s.policy)
    weight = (beta * (advantage * (error - errors(require_reference(s)))).mean(dim=1)).detach().sigmoid()
    if clip is not None:
        ratio = (errors(old_scores(s)) - error).detach().clamp(max=LARGEST).exp()
        beyond = ((ratio > 1.0 + clip) & (advantage > 0.0)) | ((ratio < 1.0 - clip) & (advantage < 0.0))
        error = error.detach().where(beyond, error)
    loss = weight * (advantage * error).mean(dim=1)
    return loss + kl * s.deviation.mean(dim=1) if kl else loss


@weighted
def diffusion_nft(s: Scores, *, beta: float = 1.0, advantage_clip: float = 5.0, kl: float = 1e-4, space: Space = "output") -> Tensor:
    """Return the mean of c/beta [r E+ + (1 - r) E-] + kl * drift: towards what is better than the old policy, away from what is worse.

    DiffusionNFT (2509.16117). c is `advantage_clip`; r = (A clipped to [-c, c]) / (2 c) + 1/2. The reference is the policy that drew the
    images, which follows the policy (`reference: old_policy`, `old_policy_decay`); E+ is the error of beta * policy + (1 - beta) *
    reference, E- that of its mirror image on the other side of the reference. beta 1, or 0.1 for OCR and several rewards, which goes
    further. `space` "output" is the paper's form, "x0" times sigma^2, and "adaptive" the release's: there each error is divided by its
    mean absolute error (without gradient, at least 1e-5), both in the space of x0, which for velocities and v is the output times sigma.
    Outputs of other kinds are treated alike, which nobody has tried. Learning rates do not carry over from one space to another.
    """
    share = (column(s, "advantage") / (2.0 * advantage_clip)).clamp(-0.5, 0.5) + 0.5
    own, e, e_old, deviation = s.compared_outputs, errors(s.policy), errors(require_reference(s)), s.deviation

    def error(blend: float) -> Tensor:
        """Return the error of blend * policy + (1 - blend) * reference: scalars suffice, as its square is a quadratic form."""
        value = blend * e + (1.0 - blend) * e_old - blend * (1.0 - blend) * deviation
        if space == "output":
            return value
        sigma = own.sigma[:, None].to(value)
        if space == "x0" or own.reference is None:
            return sigma**2 * value
        missed = (blend * own.policy.detach() + (1.0 - blend) * own.reference).abs().flatten(2).mean(dim=2)
        return sigma**2 * value / (sigma * missed).clamp(min=1e-5)

    policy_loss = advantage_clip / beta * (share * error(beta) + (1.0 - share) * error(-beta))
    return (policy_loss + kl * s.drift).mean(dim=1)
