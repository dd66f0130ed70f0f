"""Objectives of one margin: how far the log-ratio of the preferred candidate lies above that of the dispreferred.

All use `prob` and `offset` through the pairwise kernel unless the docstring says otherwise. Beta multiplies nats for texts (near 0.1) and
half a mean squared error for images (thousands), so it has no default in objectives that serve both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    Divergence,
    both_orders,
    column,
    hinge_loss,
    length_normalized,
    log_ratios,
    log_sigmoid,
    margin,
    minus_offset,
    neg_log_sigmoid,
    pairwise,
    policy_scores,
    prob_of,
    reference_scores,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


@weighted
def dpo(s: Scores, *, beta: float, label_smoothing: float = 0.0, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return -p log sigmoid(z) - (1-p) log sigmoid(-z) with z = beta * margin of the log-ratios.

    DPO (2305.18290 eq. 7; beta 0.1 for texts), Diffusion-DPO (2311.12908 eq. 14 as released: errors are means over the latent, halved;
    beta 5000). p is `prob`, smoothed by `label_smoothing`; a tie (p = 1/2) pulls z to zero. With smoothing it is conservative DPO
    (Mitchell 2023), with a soft `prob` from judges the soft preference learning of 2405.14103 (reconstructed from its description), with a
    length-normalised likelihood LN-DPO (2407.15229; beta 5 in Tulu 3), with a `divergence` f-DPO (2309.16240).
    """
    return pairwise(s, beta * margin(log_ratios(s, divergence, coefficient)), prob=prob_of(s, label_smoothing))


@weighted
def adpo(s: Scores, *, tau: float) -> Tensor:
    """Return `dpo` with beta = 1 / tau: the cross-entropy of the soft label `prob` and the log-ratios divided by the temperature tau.

    ADPO for pairs (2510.18913; the paper has the form over lists, from which the form over pairs and all defaults are reconstructed).
    """
    return pairwise(s, margin(log_ratios(s)) / tau)


@weighted
def robust(
    s: Scores, *, beta: float, label_smoothing: float = 0.1, divergence: Divergence = "reverse_kl", coefficient: float = 0.5
) -> Tensor:
    """Return [(1-e) S(z) - e S(-z)] / (1-2e), S = -log sigmoid: an unbiased estimate of DPO's loss if a share e of labels is flipped.

    Robust DPO (2403.00409 as in TRL; e 0.1 in the paper). e is `label_smoothing`, in [0, 1/2). It is `dpo` with p replaced by
    (p - e) / (1 - 2e), which may leave [0, 1]: above 1 the loss has no lower bound, and falls as the margin grows.
    """
    prob = (prob_of(s) - label_smoothing) / (1.0 - 2.0 * label_smoothing)
    return pairwise(s, beta * margin(log_ratios(s, divergence, coefficient)), prob=prob)


@weighted
def ipo(s: Scores, *, tau: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, centred: bool = True) -> Tensor:
    """Return (margin - (2p - 1) / (2 tau))^2, the squared distance of the margin of the log-ratios from a target (2310.12036 eq. 17).

    With a diffusion likelihood tau 5000 sets the same target as `beta_dpo` 2500 in the diffusers script; the script's loss is four times
    this one, because its errors are not halved. With a length-normalised likelihood it is TRL's (tau 0.1). `centred` decides whether a
    `divergence` is zero at equal likelihoods (as in TRL since 1.16) or not (as before). `offset` is not used, because tau sets the target.
    """
    sign = 2.0 * prob_of(s) - 1.0
    return (margin(log_ratios(s, divergence, coefficient, centred=centred)) - sign / (2.0 * tau)) ** 2


@weighted
def hinge(s: Scores, *, beta: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return p relu(1 - z) + (1-p) relu(1 + z), z = beta * margin of the log-ratios (SLiC, 2305.10425, on log-ratios; RSO 2309.06657).

    The loss is zero from a margin of 1 / beta on; RSO has beta 0.05 for texts.
    """
    return pairwise(s, beta * margin(log_ratios(s, divergence, coefficient)), hinge_loss)


@weighted
def discopop(s: Scores, *, beta: float, tau: float = 0.05, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return (1-g) S(z) + g exp(-z), S = -log sigmoid, z = beta * margin, g = sigmoid(z / tau): a loss discovered by a search.

    DiscoPOP (2406.08414 eq. 5; beta and tau 0.05 there). g exp(-z) is computed as one exponential, finite for tau below 1.
    """

    def loss(z: Tensor) -> Tensor:
        return (-z / tau).sigmoid() * neg_log_sigmoid(z) + (log_sigmoid(z / tau) - z).exp()

    return pairwise(s, beta * margin(log_ratios(s, divergence, coefficient)), loss)


@weighted
def dpo_gamma(s: Scores, *, beta: float, gamma: float) -> Tensor:
    """Return `dpo` with the reference's margin multiplied by `gamma`: 1 is DPO, 0 ignores the reference.

    2405.19534 (as released: z = beta * [(policy margin) - gamma * (reference margin)]; gamma from 0 to 2 is swept there).
    """
    return pairwise(s, beta * (margin(policy_scores(s)) - gamma * margin(reference_scores(s))))


@weighted
def flex_dpo(s: Scores, *, beta_plus: float, beta_minus: float) -> Tensor:
    """Return -log sigmoid(beta_plus * u_w - beta_minus * u_l), u log-ratios: a small beta_minus lowers the dispreferred candidate less.

    Flex-DPO (2406.07327; the form is reconstructed from memory, as are its usual values 0.1 and 0.05).
    """
    u = log_ratios(s)
    return both_orders(
        s, lambda first, second: neg_log_sigmoid(minus_offset(s, beta_plus * u[:, first] - beta_minus * u[:, second], first))
    )


@weighted
def modpo(s: Scores, *, beta: float, own_weight: float, loss_type: Literal["sigmoid", "hinge"] = "sigmoid") -> Tensor:
    """Return -log sigmoid(z), or relu(1 - z) if `loss_type` is hinge, of z = margin of (beta * log-ratio - `margin`) / w_0.

    MODPO (2310.03708 as released). The column `margin` holds, for each candidate, sum_k w_k * (reward k) over the other objectives;
    w_0 = `own_weight` is the weight of the objective by which the pairs are labelled.
    """
    z = margin(beta * log_ratios(s) - column(s, "margin")) / own_weight
    return pairwise(s, z, neg_log_sigmoid if loss_type == "sigmoid" else hinge_loss)


@weighted
def fdpo(s: Scores, *, beta: float, delta: float = 10.0) -> Tensor:
    """Return -log sigmoid(beta * [margin - delta * (h_l - h_w)]); h, the column `hallucinated`, is 1 for a hallucinated candidate, else 0.

    F-DPO (2601.03027 as released; it tries delta from 0 to 100, and 10 is in the middle). Pairs of which only the preferred candidate is
    hallucinated must be swapped before, by the transform `by_factuality`.
    """
    return pairwise(s, beta * (margin(log_ratios(s)) + delta * margin(column(s, "hallucinated"))))


@weighted
def mmdpo(s: Scores, *, beta: float, form: Literal["paper", "code"] = "paper", w: float | None = None, k: float = 0.5) -> Tensor:
    """Return `dpo` whose beta grows with the gap d of the reward model's `gains`, preferred minus dispreferred.

    MM-DPO (2502.10391). `form` paper: beta * (1 + w (1 - e^(-k d))), w = k = 0.5 (reconstructed from memory). `form` code: beta *
    (1 + w d), w = 0.1, as released, without the release's factor for the whole batch and without its NLL term. In both the factor is at
    least 1e-3, which matters for pairs whose label contradicts their gains.
    """
    u, gains = log_ratios(s), column(s, "gains")
    share = (0.5 if form == "paper" else 0.1) if w is None else w

    def loss(first: int, second: int) -> Tensor:
        d = gains[:, first] - gains[:, second]
        growth = share * d if form == "code" else -share * (-k * d).clamp(max=80.0).expm1()
        return neg_log_sigmoid(minus_offset(s, beta * (1.0 + growth).clamp(min=1e-3) * (u[:, first] - u[:, second]), first))

    return both_orders(s, loss)


@weighted
def spa(s: Scores, *, beta: float, alpha: float = 0.1, threshold: float = 0.0) -> Tensor:
    """Return SPA's loss with constants: `dpo` with label smoothing `alpha` for pairs whose beta * margin is at most `threshold`.

    SPA (2406.04412 as released, for its mixing factor 1). In the release the threshold is a running quantile (0.1) of the last fifty
    margins, and alpha is 0 for the first fifth of the steps; here both are constants, because a loss has no state. Extrapolated logits
    (a mixing factor above 1) would need token distributions.
    """

    def loss(z: Tensor) -> Tensor:
        smoothing = alpha * (z.detach() <= threshold).to(z)
        return (1.0 - smoothing) * neg_log_sigmoid(z) + smoothing * neg_log_sigmoid(-z)

    return pairwise(s, beta * margin(log_ratios(s)), loss)


@weighted
def inpo_nash(s: Scores, *, eta: float, tau: float) -> Tensor:
    """Return (h - (2p-1) / (2 eta))^2, h = policy margin - (tau/eta) reference margin - (1 - tau/eta) previous margin.

    INPO (2407.00617, reconstructed from memory). The column `previous` holds log-probabilities under the previous iterate; if that is the
    reference itself, the loss is IPO with tau = eta. `offset` is not used, because eta sets the target. This is not Diffusion-InPO, which
    is a trajectory.
    """
    share, previous = tau / eta, length_normalized(s, column(s, "previous"))
    h = margin(policy_scores(s) - share * reference_scores(s) - (1.0 - share) * previous)
    return (h - (2.0 * prob_of(s) - 1.0) / (2.0 * eta)) ** 2
