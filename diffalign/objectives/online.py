"""Objectives of the advantages of images that the model drew itself: on clean latents noised anew, or on stored sampler steps.

The column `advantage` says by how much a candidate's reward exceeds what is usual for its prompt (`data.advantages`). E is the denoising
error, -2 times the score, without the one-half. A record's loss is the mean over its candidates. Neither `prob` nor `offset` is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.core.errors import ConfigError
from diffalign.objectives.base import column, require_reference, token_field, tokens_of, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores, Steps, Tokens

LARGEST = 80.0  # exponent, beyond which float32 overflows
Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
Level = Literal["element", "sequence"]
Normaliser = Literal["own", "batch", "fixed"]
Trust = Literal["clip", "guard", "gate"]
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


@weighted
def clipped_ratio(
    s: Scores,
    *,
    low: float,
    high: float | None = None,
    trust: Trust = "clip",
    threshold: float = 1e-5,
    over_duration: bool = False,
    kl: float = 0.0,
    kl_times_duration: bool = False,
    level: Level = "element",
    normaliser: Normaliser = "own",
    length: int | None = None,
) -> Tensor:
    """Return the mean of max(-A r, -A clip(r, 1 - low, 1 + high)) + kl * KL over sampler steps of images or tokens of texts; r = new / old.

    `high` is `low` where it is not set. Of images (DDPO 2305.13301, Flow-GRPO 2505.05470, DanceGRPO 2505.07818, MixGRPO, BranchGRPO: low
    1e-4, 1e-3 or 1e-5): the KL is that of the Gaussian steps from the reference's, `kl_times_duration` as Flow-GRPO's release has it.
    `trust` "guard" is GRPO-Guard (2510.22319; low 2e-6 or 4e-6, with `over_duration`, which divides by the step's duration): the log-ratio
    gets the divergence from the old step, so that its mean is zero, times the step's std; "gate" is Flow-DPPO (2606.11025): nothing is
    clipped, and a step is left out whose divergence is at least `threshold` and whose ratio has moved in its advantage's direction.
    Of texts (GRPO 2402.03300 as in TRL: low 0.2): the KL is exp(q - p) - (q - p) - 1 (TRL 1.16 multiplies it by r unless told not to).
    `level` "sequence" is GSPO (2507.18071): one ratio of the mean log-ratio. `normaliser` is the text's own length (GRPO), the mean length
    in the batch ("batch": TRL's dapo), or `length` ("fixed": Dr. GRPO 2503.20783, with advantages of spread none).
    """
    advantage, x = _advantages(s), tokens_or_steps(s)
    mask = x.policy.new_ones(x.policy.shape) if s.tokens is None else s.tokens.mask.to(x.policy)
    moved = x.policy - (x.policy.detach() if x.old is None else x.old)
    if level == "sequence":
        moved = _mean(moved, mask)[:, :, None].expand_as(moved)
    if trust == "gate":
        losses = _gated(steps_of(s), moved, advantage, threshold)
    else:
        ratio = _guarded(steps_of(s), moved) if trust == "guard" else moved
        losses = clipped_surrogate(ratio, advantage, low, low if high is None else high)
    if over_duration:
        losses = losses / step_field(steps_of(s).duration, "duration")
    if kl:
        losses = losses + kl * (_token_kl(s) if s.steps is None else _step_kl(s.steps, kl_times_duration))
    return _normalised(losses, mask, normaliser, length)


def _advantages(s: Scores) -> Tensor:
    """Return the steps' own advantages (B, K, S), or those (B, K, 1) of the candidates."""
    own = None if s.steps is None else s.steps.advantage
    return column(s, "advantage")[:, :, None] if own is None else own


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, K) of x (B, K, L) over a completion's tokens."""
    return (x * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1.0)


def _normalised(losses: Tensor, mask: Tensor, normaliser: Normaliser, length: int | None) -> Tensor:
    """Return the loss (B,) of each record, of those (B, K, L) of steps or tokens."""
    if normaliser == "own":
        return _mean(losses, mask).mean(dim=1)
    totals = (losses * mask).sum(dim=2)
    if normaliser == "batch":
        return totals.sum(dim=1) * len(totals) / mask.sum()
    if length is None:
        raise ConfigError("clipped_ratio: `normaliser` is fixed, and there is no `length`; set it to the longest completion's tokens")
    return (totals / length).mean(dim=1)


def tokens_or_steps(s: Scores) -> Steps | Tokens:
    """Return the sampler steps of images, or the tokens of texts. Raises ValueError for scores with neither."""
    x = s.tokens if s.steps is None else s.steps
    if x is None:
        raise ValueError("this objective reads stored sampler steps or the log-probability of every token, and these scores have none")
    return x


def steps_of(s: Scores) -> Steps:
    """Return the stored sampler steps. Raises ValueError for scores without."""
    if s.steps is None:
        raise ValueError("this objective reads stored sampler steps, and these scores have none: they are of texts, or of clean latents")
    return s.steps


def step_field(x: Tensor | None, name: str) -> Tensor:
    """Return the field `name` of `Steps`, whose value is x. Raises ValueError if the likelihood did not compute it."""
    if x is None:
        raise ValueError(f"this objective reads `{name}` of every sampler step, and the likelihood does not give it")
    return x


def _guarded(steps: Steps, log_ratio: Tensor) -> Tensor:
    """Return GRPO-Guard's log-ratio (B, K, S), whose mean is zero and whose size is alike at all steps."""
    return (log_ratio + step_field(steps.divergence, "divergence")) * step_field(steps.std, "std")


def _gated(steps: Steps, log_ratio: Tensor, advantage: Tensor, threshold: float) -> Tensor:
    """Return the loss (B, K, S) of every step through Flow-DPPO's gate."""
    far = step_field(steps.divergence, "divergence").detach() >= threshold
    losses = -advantage * log_ratio.clamp(max=LARGEST).exp()
    return losses.masked_fill(far & (log_ratio.detach() * advantage > 0.0), 0.0)


def _step_kl(steps: Steps, times_duration: bool) -> Tensor:
    """Return the KL (B, K, S) of steps from the reference's, in closed form."""
    kl = step_field(steps.kl, "kl")
    return kl * step_field(steps.duration, "duration") if times_duration else kl


def _token_kl(s: Scores) -> Tensor:
    """Return an estimate (B, K, L) of the KL of tokens from the reference (k3), which is never below zero."""
    require_reference(s)
    tokens = tokens_of(s)
    difference = token_field(tokens.reference, "reference") - tokens.policy
    return difference.exp() - difference - 1.0
