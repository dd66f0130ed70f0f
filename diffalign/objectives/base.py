"""What objectives share: the pairwise kernel, both orders of a soft label, divergences, lengths, and what each needs besides two scores.

Nothing here imports torch before it computes, so that names and constants of a config are checked in milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores, Tokens

Loss = Callable[..., "Tensor"]  # (Scores, *, constants) -> (B,)
Reward = Callable[["Scores", Mapping[str, Any]], "Tensor"]  # (Scores, all constants of the loss) -> (B, K)
Constants = ParamSpec("Constants")
# How an objective carries over to images, where the log-ratio is half a difference of denoising errors. V: as it is. V+: with the
# denoising error as negative log-likelihood. R: without a reference, so its constants are of another scale. L: a list, under one noise.
# N: not at all; it needs token distributions, lengths or probabilities.
Diffusion = Literal["V", "V+", "R", "L", "N"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an objective needs besides the policy's scores of two candidates."""

    diffusion: Diffusion = "V"
    reference: bool = True
    candidates: int = 2  # at least so many
    columns: tuple[str, ...] = ()  # of `Scores.columns`, filled from the table's named scores
    optional: tuple[str, ...] = ()  # columns that it reads where they are asked for
    chances: bool = False  # `gains` are chances of winning, in [0, 1]
    lists: bool = False  # more than two candidates need `gains`
    tokens: tuple[str, ...] = ()  # fields of `Tokens`
    sums: bool = False  # sums over tokens of its own: for the likelihoods `sum` and `joint` alone
    mismatched: bool = False  # of texts, the last candidate is another record's answer (KTO); of images the batch serves instead
    coupled: bool = False  # a record's loss depends on the other records of the batch
    of_ranks: bool = False  # losses belong to ranks within the batch: records can have no weight or offset


@dataclass(frozen=True, slots=True)
class Objective:
    """One line of the table of objectives."""

    loss: Loss
    facts: Facts
    reward: Reward  # the implicit reward that the loss trains, for reports

    def __call__(self, s: Scores, **constants: Any) -> Tensor:
        """Return the loss (B,) of each record."""
        return self.loss(s, **constants)

    @property
    def __signature__(self) -> inspect.Signature:
        """Return the signature of the loss."""
        return inspect.signature(self.loss)


def weighted(loss: Callable[Concatenate[Scores, Constants], Tensor]) -> Callable[Concatenate[Scores, Constants], Tensor]:
    """Return the loss with each record's value multiplied by `Scores.weight`: the one place where weights are honoured."""

    @functools.wraps(loss)
    def losses(s: Scores, *args: Constants.args, **constants: Constants.kwargs) -> Tensor:
        values = loss(s, *args, **constants)
        return values if s.weight is None else s.weight.to(values) * values

    return losses


def margin(x: Tensor) -> Tensor:
    """Return candidate 0 minus candidate 1 of (B, K): (B,)."""
    return x[:, 0] - x[:, 1]


def log_sigmoid(z: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(z)


def surprise(z: Tensor) -> Tensor:
    """Return -log sigmoid(z)."""
    return -log_sigmoid(z)


def hinged(z: Tensor) -> Tensor:
    """Return max(0, 1 - z)."""
    return (1.0 - z).relu()


def prob_of(s: Scores, label_smoothing: float = 0.0) -> Tensor:
    """Return the chance (B,) that candidate 0 is preferred, mixed with its opposite by `label_smoothing`."""
    prob = s.policy[:, 0].new_ones(len(s.policy)) if s.prob is None else s.prob.to(s.policy)
    return prob * (1.0 - 2.0 * label_smoothing) + label_smoothing


def ahead(s: Scores, z: Tensor, preferred: int = 0) -> Tensor:
    """Return the lead z (B,) of the preferred candidate less the record's offset, which is the lead that candidate 0 is asked for."""
    if s.offset is None:
        return z
    return z + s.offset.to(z) if preferred else z - s.offset.to(z)


def pairwise(s: Scores, z: Tensor, loss: Callable[[Tensor], Tensor] = surprise, prob: Tensor | None = None) -> Tensor:
    """Return p f(z - offset) + (1-p) f(-(z - offset)): the kernel of losses of one margin z (B,), beta already in it."""
    prob = prob_of(s) if prob is None else prob
    z = ahead(s, z)
    return prob * loss(z) + (1.0 - prob) * loss(-z)


def both_orders(s: Scores, loss: Callable[[int, int], Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Return p f(0, 1) + (1-p) f(1, 0), f being told the places of the preferred and of the dispreferred candidate."""
    prob = prob_of(s, label_smoothing)
    return prob * loss(0, 1) + (1.0 - prob) * loss(1, 0)


def per_token(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) over the candidates' lengths; x itself where they have none."""
    return x if s.lengths is None else x / s.lengths.to(x)


def comparable(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) as scores are compared: per token under a length-normalised likelihood."""
    return per_token(s, x) if s.normalized else x


def own(s: Scores) -> Tensor:
    """Return the policy's scores (B, K) as they are compared."""
    return comparable(s, s.policy)


def given_reference(s: Scores) -> Tensor:
    """Return the reference's scores (B, K). Raises ValueError where the method has none."""
    return s.log_ratio if s.reference is None else s.reference  # the former says what is missing


def reference_of(s: Scores) -> Tensor:
    """Return the reference's scores (B, K) as they are compared."""
    return comparable(s, given_reference(s))


def compared(s: Scores, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, *, centred: bool = True) -> Tensor:
    """Return g(log-ratio) (B, K) as it is compared, g being the map of a divergence."""
    return comparable(s, diverged(s.log_ratio, divergence, coefficient, centred=centred))


def diverged(u: Tensor, divergence: Divergence, coefficient: float = 0.5, *, centred: bool = True) -> Tensor:
    """Return g(u) = f'(e^u) of an f-divergence (2309.16240 table 1), for log-ratios u.

    reverse_kl: u; forward_kl: 1 - e^-u; js: log 2 + log sigmoid(u); alpha: (e^((a-1)u) - 1) / (a-1), a the `coefficient` (1 gives u).
    g(0) = 0, as in TRL 1.16; without `centred` the constants 1, log 2 and -1/(a-1) are left out, as TRL did before. They matter only
    where g is not compared with another g of the same length. The authors' repository has a' = 1 - a. Exponents are clamped at 80
    (11 in float16) as in TRL, which clamps those of `alpha` alone. Squares of g, as in `ipo`, overflow float32 from an exponent of 44 on.
    """
    import torch

    if divergence == "reverse_kl" or (divergence == "alpha" and abs(coefficient - 1.0) < 1e-6):
        return u
    if divergence == "js":
        return log_sigmoid(u) + (math.log(2.0) if centred else 0.0)
    rate = -1.0 if divergence == "forward_kl" else coefficient - 1.0
    power = (rate * u).clamp(max=11.0 if u.dtype == torch.float16 else 80.0)
    return (power.expm1() if centred else power.exp()) / rate


def nll(s: Scores, candidate: int = 0) -> Tensor:
    """Return a candidate's negative log-likelihood (B,): the mean over its tokens, or half the denoising error of an image."""
    return -per_token(s, s.policy)[:, candidate]


def column(s: Scores, name: str) -> Tensor:
    """Return the named numbers (B, K), in the policy's dtype. Raises ValueError where the table's scores do not give them."""
    if name not in s.columns:
        raise ValueError(f"this objective reads `{name}` of every candidate, and there is none: set `scores` to {{{name}: NAME}}")
    return s.columns[name].to(s.policy)


def need(s: Scores, candidates: int, what: str) -> None:
    """Raise ValueError for records of fewer candidates, naming what the further ones would be."""
    if s.policy.shape[1] < candidates:
        raise ValueError(f"this objective needs {what}, {candidates} candidates in all; found {s.policy.shape[1]}")


def tokens_of(s: Scores) -> Tokens:
    """Return what is said of every token. Raises ValueError for scores of images, or of a likelihood that keeps sums alone."""
    if s.tokens is None:
        raise ValueError("this objective reads the log-probability of every token, and these scores have none: it is for texts")
    return s.tokens


def summed(s: Scores) -> Scores:
    """Return the scores. Raises ValueError under a length-normalised likelihood, whose means sums over tokens do not go with."""
    if s.normalized:
        raise ValueError("this objective adds sums over tokens to log-ratios, which `likelihood: mean` divides by lengths: leave it at sum")
    return s


def of_tokens(x: Tensor | None, name: str) -> Tensor:
    """Return a field of `Tokens`. Raises ValueError where the likelihood was not asked for it."""
    if x is None:
        raise ValueError(f"this objective reads `{name}` of every token, and the likelihood does not give it")
    return x
