"""Objectives of one margin: a function of how far the preferred candidate's log-ratio lies above the other's.

All honour `prob` and `offset` through the pairwise kernel unless they say otherwise. Beta multiplies nats for texts (near 0.1) and half
a mean squared error for images (thousands), so it has no default where the objective serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    Divergence,
    ahead,
    both_orders,
    column,
    comparable,
    compared,
    hinged,
    log_sigmoid,
    margin,
    own,
    pairwise,
    prob_of,
    reference_of,
    surprise,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


@weighted
def dpo(s: Scores, *, beta: float, label_smoothing: float = 0.0, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return -p log sigmoid(z) - (1-p) log sigmoid(-z) with z = beta * margin of the log-ratios.

    DPO (2305.18290 eq. 7), Diffusion-DPO (2311.12908 eq. 14 as released: mean over the latent and one half, beta 5000).
    `prob` and `label_smoothing` soften the target p; a tie (p = 1/2) pulls z to zero. Smoothing is conservative DPO (Mitchell 2023),
    a judged `prob` the soft preference learning of 2405.14103 (reconstructed from its description). With a length-normalised
    likelihood it is LN-DPO (2407.15229; beta 5 in Tulu 3), with a `divergence` f-DPO (2309.16240). Texts: beta 0.1.

    DNO (2404.03715, reconstructed from memory) is this loss with the previous iterate as reference and win rates as `prob`.
    """
    return pairwise(s, beta * margin(compared(s, divergence, coefficient)), prob=prob_of(s, label_smoothing))


@weighted
def adpo(s: Scores, *, tau: float) -> Tensor:
    """Return `dpo` with beta = 1 / tau: cross-entropy of the soft label `prob` and the log-ratios over the temperature tau.

    ADPO for pairs (2510.18913; the form over lists was read, that over pairs and all defaults are reconstructed).
    """
    return pairwise(s, margin(compared(s)) / tau)


@weighted
def robust(
    s: Scores, *, beta: float, label_smoothing: float = 0.1, divergence: Divergence = "reverse_kl", coefficient: float = 0.5
) -> Tensor:
    """Return [(1-e) S(z) - e S(-z)] / (1-2e), S = -log sigmoid, e the share of flipped labels: unbiased under that noise.

    Robust DPO (2403.00409 as in TRL; e 0.1 in the paper). It is `dpo` with the smoothing undone, p -> (p - e) / (1 - 2e), which leaves
    [0, 1]; so it falls without bound as the margin grows the wrong way round. e lies in [0, 1/2).
    """
    prob = (prob_of(s) - label_smoothing) / (1.0 - 2.0 * label_smoothing)
    return pairwise(s, beta * margin(compared(s, divergence, coefficient)), prob=prob)


@weighted
def ipo(s: Scores, *, tau: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, centred: bool = True) -> Tensor:
    """Return (signed margin - 1/(2 tau))^2, the aim scaled by 2p - 1 (2310.12036 eq. 17). `offset` is not used: the aim is one.

    With a diffusion likelihood tau = 5000 aims at the margin that the diffusers script means by `beta_dpo` 2500, whose squared
    loss is four times this one because its error difference carries no one-half. With a length-normalised likelihood it is TRL's
    (tau 0.1), where `centred` says whether a `divergence` is zero at equal likelihoods (as TRL from 1.16) or not (before).
    """
    sign = 2.0 * prob_of(s) - 1.0
    return (margin(compared(s, divergence, coefficient, centred=centred)) - sign / (2.0 * tau)) ** 2


@weighted
def hinge(s: Scores, *, beta: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return p relu(1 - z) + (1-p) relu(1 + z), z = beta * margin of the log-ratios (SLiC, 2305.10425, on log-ratios; RSO 2309.06657).

    1 / beta is the margin asked for; RSO has beta 0.05 for texts.
    """
    return pairwise(s, beta * margin(compared(s, divergence, coefficient)), hinged)


@weighted
def discopop(s: Scores, *, beta: float, tau: float = 0.05, divergence: Divergence = "reverse_kl", coefficient: float = 0.5) -> Tensor:
    """Return (1-g) S(z) + g exp(-z), S = -log sigmoid, z = beta * margin, g = sigmoid(z / tau): a loss found by search.

    DiscoPOP (2406.08414 eq. 5; beta and tau 0.05 there). g exp(-z) is computed as one exponential, finite for tau below 1.
    """

    def loss(z: Tensor) -> Tensor:
        return (-z / tau).sigmoid() * surprise(z) + (log_sigmoid(z / tau) - z).exp()

    return pairwise(s, beta * margin(compared(s, divergence, coefficient)), loss)


@weighted
def dpo_gamma(s: Scores, *, beta: float, gamma: float) -> Tensor:
    """Return `dpo` with the reference's margin multiplied by `gamma`: 1 is DPO, 0 needs a reference in name only.

    2405.19534 (as released: z = beta * [(policy margin) - gamma * (reference margin)]; gamma from 0 to 2 is swept there).
    """
    return pairwise(s, beta * (margin(own(s)) - gamma * margin(reference_of(s))))


@weighted
def flex_dpo(s: Scores, *, beta_plus: float, beta_minus: float) -> Tensor:
    """Return -log sigmoid(beta_plus * u_w - beta_minus * u_l) of the log-ratios u: a smaller beta_minus suppresses the loser less.

    Flex-DPO (2406.07327; the name and the idea were read, the form is reconstructed from memory; 0.1 and 0.05 would be usual).
    """
    u = compared(s)
    return both_orders(s, lambda first, second: surprise(ahead(s, beta_plus * u[:, first] - beta_minus * u[:, second], first)))


@weighted
def modpo(s: Scores, *, beta: float, own_weight: float, loss_type: Literal["sigmoid", "hinge"] = "sigmoid") -> Tensor:
    """Return -log sigmoid of the margin of R = (beta * log-ratio - `margin`) / w_0; or with relu(1 - z).

    MODPO (2310.03708 as released). The column `margin` holds sum_k w_k * (reward k) over the other objectives, of each candidate;
    w_0 = `own_weight` is the weight of the objective that the pairs were labelled by.
    """
    z = margin(beta * compared(s) - column(s, "margin")) / own_weight
    return pairwise(s, z, surprise if loss_type == "sigmoid" else hinged)


@weighted
def fdpo(s: Scores, *, beta: float, delta: float = 10.0) -> Tensor:
    """Return -log sigmoid(beta * [margin - delta * (h_l - h_w)]) with h = 1 for a hallucinated candidate, column `hallucinated`.

    F-DPO (2601.03027 as released; delta of 0 to 100 is swept there, 10 is from its middle). A pair whose preferred candidate alone is
    hallucinated has to be turned round before: the transform `by_factuality`.
    """
    return pairwise(s, beta * (margin(compared(s)) + delta * margin(column(s, "hallucinated"))))


@weighted
def mmdpo(s: Scores, *, beta: float, form: Literal["paper", "code"] = "paper", w: float | None = None, k: float = 0.5) -> Tensor:
    """Return `dpo` whose beta grows with the gap d of the reward model's `gains`, preferred minus dispreferred.

    MM-DPO (2502.10391). paper: beta * (1 + w (1 - e^(-k d))), w = k = 0.5 (reconstructed from memory). code: beta * (1 + w d), w = 0.1,
    the factor at least 1e-3 (as released; its default, another factor for the whole batch, and its NLL term are left out). The factor is
    held at 1e-3 in both, for pairs labelled against their gains.
    """
    u, gains = compared(s), column(s, "gains")
    share = (0.5 if form == "paper" else 0.1) if w is None else w

    def loss(first: int, second: int) -> Tensor:
        d = gains[:, first] - gains[:, second]
        growth = share * d if form == "code" else -share * (-k * d).clamp(max=80.0).expm1()
        return surprise(ahead(s, beta * (1.0 + growth).clamp(min=1e-3) * (u[:, first] - u[:, second]), first))

    return both_orders(s, loss)


@weighted
def spa(s: Scores, *, beta: float, alpha: float = 0.1, threshold: float = 0.0) -> Tensor:
    """Return `dpo` with smoothing `alpha` for the pairs whose own implicit margin, beta * margin, is not above `threshold`.

    SPA (2406.04412 as released, for its mixing factor 1). The released threshold is a running quantile (0.1) of the last fifty margins,
    and alpha is 0 for the first fifth of the steps; both are constants here, as a loss remembers nothing. Extrapolated logits
    (mixing factor above 1) would need token distributions.
    """

    def loss(z: Tensor) -> Tensor:
        smoothing = alpha * (z.detach() <= threshold).to(z)
        return (1.0 - smoothing) * surprise(z) + smoothing * surprise(-z)

    return pairwise(s, beta * margin(compared(s)), loss)


@weighted
def inpo_nash(s: Scores, *, eta: float, tau: float) -> Tensor:
    """Return (h - (2p-1) / (2 eta))^2, h = policy margin - (tau/eta) reference margin - (1 - tau/eta) previous margin.

    INPO (2407.00617, reconstructed from memory). `previous` is the column of log-probabilities under the previous iterate; where that
    is the reference itself it is IPO with tau = eta. `offset` is not used: the aim is one. Not Diffusion-InPO, which is a trajectory.
    """
    share, previous = tau / eta, comparable(s, column(s, "previous"))
    h = margin(own(s) - share * reference_of(s) - (1.0 - share) * previous)
    return (h - (2.0 * prob_of(s) - 1.0) / (2.0 * eta)) ** 2
