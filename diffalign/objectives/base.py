"""What objectives share: the pairwise kernel, the mixture over both orders of a pair, divergences, lengths, and what an objective needs.

torch is imported only inside functions, so that the names and constants of a config can be checked in milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

from diffalign.objectives.constants import check_constants

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores, Tokens

Loss = Callable[..., "Tensor"]  # (Scores, *, constants) -> (B,)
Reward = Callable[["Scores", Mapping[str, Any]], "Tensor"]  # (Scores, all constants of the loss) -> (B, K)
Constants = ParamSpec("Constants")
# How an objective applies to images, where the log-ratio is half a difference of denoising errors. V: unchanged. V+: with the denoising
# error as the negative log-likelihood. R: without a reference, so its constants have another scale. L: on lists, whose images are scored
# under the same noise. N: not at all, because it needs token distributions, lengths or probabilities.
Diffusion = Literal["V", "V+", "R", "L", "N"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
# Where a formula comes from. paper: from the paper, or a text that states its formula. release: from released code, of the authors or of a
# library that the docstring names. reconstructed: by us, from memory or a description. variant: ours; the docstring says what differs.
Origin = Literal["paper", "release", "reconstructed", "variant"]
# What its numbers are compared with. TRL: loss and gradient of TRL's own code on one model. golden: numbers restated in numpy apart from
# this package. hand: arithmetic written out in the test.
Check = Literal["TRL", "golden", "hand"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a formula comes from, and by what it was checked."""

    origin: Origin
    checks: tuple[Check, ...]
    note: str = ""  # which part has another origin


@dataclass(frozen=True, slots=True)
class Facts:
    """What an objective needs besides the policy's scores of two candidates."""

    diffusion: Diffusion = "V"
    reference: bool = True
    candidates: int = 2  # the number that it needs at least
    columns: tuple[str, ...] = ()  # names in `Scores.columns` that it reads; they are filled from the table's scores
    optional: tuple[str, ...] = ()  # columns that it reads only if the config names scores for them
    chances: bool = False  # `gains` are probabilities of winning, in [0, 1]
    lists: bool = False  # needs `gains` if there are more than two candidates
    tokens: tuple[str, ...] = ()  # the fields of `Tokens` that it reads
    sums: bool = False  # adds up tokens itself, so the likelihood must be `sum` or `joint`, which add up tokens too
    mismatched: bool = False  # for texts, the last candidate is another record's answer (KTO); for images the batch serves instead
    unpaired: bool = False  # of a record with one candidate, `prob` is the share of people who like it
    coupled: bool = False  # a record's loss depends on the other records of the batch
    residuals: bool = False  # compares the outputs of denoisers (`Scores.residuals`), so it is for images and the squared error
    steps: bool = False  # of images it reads stored sampler steps (`Scores.steps`)
    of_steps: bool = False  # its scores of images may also be log-densities of sampler steps
    old: str | None = None  # the constant that bounds, where it is not None, how far scores move from those of the policy that drew
    drift: str | None = None  # the constant, if it has one, that weighs the drift from the start model
    of_ranks: bool = False  # losses belong to ranks within the batch, so records can have no weight or offset

    @property
    def least(self) -> int:
        """Return how many candidates a record has at least."""
        return 1 if self.unpaired else self.candidates


@dataclass(frozen=True, slots=True)
class Objective:
    """One line of the table of objectives."""

    loss: Loss
    facts: Facts
    reward: Reward  # the implicit reward that the loss trains, for reports
    source: Source

    def __call__(self, s: Scores, **constants: Any) -> Tensor:
        """Return the loss (B,) of each record.

        Raises ConfigError for a constant outside its range, ValueError for scores of one candidate where two are compared.
        """
        check_constants(self.loss.__name__, constants)
        if s.policy.shape[1] < min(self.facts.least, 2):
            raise ValueError(f"`{self.loss.__name__}` compares candidates; found scores of (records, candidates) = {tuple(s.policy.shape)}")
        return self.loss(s, **constants)

    @property
    def __signature__(self) -> inspect.Signature:
        """Return the signature of the loss."""
        return inspect.signature(self.loss)


def weighted(loss: Callable[Concatenate[Scores, Constants], Tensor]) -> Callable[Concatenate[Scores, Constants], Tensor]:
    """Return a loss that multiplies the values of `loss` by `Scores.weight`. Weights are applied nowhere else."""

    @functools.wraps(loss)
    def losses(s: Scores, *args: Constants.args, **constants: Constants.kwargs) -> Tensor:
        values = loss(s, *args, **constants)
        return values if s.weight is None else s.weight.to(values) * values

    return losses


def margin(x: Tensor) -> Tensor:
    """Return x of candidate 0 minus x of candidate 1, (B,), for x (B, K)."""
    return x[:, 0] - x[:, 1]


def log_sigmoid(z: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(z)


def neg_log_sigmoid(z: Tensor) -> Tensor:
    """Return -log sigmoid(z)."""
    return -log_sigmoid(z)


def hinge_loss(z: Tensor) -> Tensor:
    """Return max(0, 1 - z)."""
    return (1.0 - z).relu()


def prob_of(s: Scores, label_smoothing: float = 0.0) -> Tensor:
    """Return the probability (B,) that candidate 0 is preferred, smoothed: p (1 - e) + (1 - p) e, where e is `label_smoothing`."""
    prob = s.policy[:, 0].new_ones(len(s.policy)) if s.prob is None else s.prob.to(s.policy)
    return prob * (1.0 - 2.0 * label_smoothing) + label_smoothing


def minus_offset(s: Scores, z: Tensor, preferred: int = 0) -> Tensor:
    """Return the margin z (B,) of candidate `preferred` over the other, minus the offset, which is one of candidate 0 over candidate 1."""
    if s.offset is None:
        return z
    return z + s.offset.to(z) if preferred else z - s.offset.to(z)


def pairwise(s: Scores, z: Tensor, loss: Callable[[Tensor], Tensor] = neg_log_sigmoid, prob: Tensor | None = None) -> Tensor:
    """Return p f(z - offset) + (1-p) f(-(z - offset)), the kernel of losses f of one margin z (B,), in which beta is included."""
    prob = prob_of(s) if prob is None else prob
    z = minus_offset(s, z)
    return prob * loss(z) + (1.0 - prob) * loss(-z)


def both_orders(s: Scores, loss: Callable[[int, int], Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Return p f(0, 1) + (1-p) f(1, 0), where f takes the positions of the preferred and of the dispreferred candidate."""
    prob = prob_of(s, label_smoothing)
    return prob * loss(0, 1) + (1.0 - prob) * loss(1, 0)


def per_token(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) divided by the candidates' lengths in tokens; images have none, and x is returned unchanged."""
    return x if s.lengths is None else x / s.lengths.to(x)


def length_normalized(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) per token under a length-normalised likelihood, and unchanged under any other."""
    return per_token(s, x) if s.normalized else x


def policy_scores(s: Scores) -> Tensor:
    """Return the policy's scores (B, K), per token under a length-normalised likelihood."""
    return length_normalized(s, s.policy)


def require_reference(s: Scores) -> Tensor:
    """Return the reference's scores (B, K), never length-normalised. Raises ValueError if the method has no reference."""
    return s.log_ratio if s.reference is None else s.reference  # `log_ratio` raises the error


def reference_scores(s: Scores) -> Tensor:
    """Return the reference's scores (B, K), per token under a length-normalised likelihood. Raises ValueError if there is none."""
    return length_normalized(s, require_reference(s))


def log_ratios(s: Scores, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, *, centred: bool = True) -> Tensor:
    """Return g(log policy - log reference) (B, K), per token under a length-normalised likelihood; g is `divergence_map`."""
    return length_normalized(s, divergence_map(s.log_ratio, divergence, coefficient, centred=centred))


def divergence_map(u: Tensor, divergence: Divergence, coefficient: float = 0.5, *, centred: bool = True) -> Tensor:
    """Return g(u) = f'(e^u) of an f-divergence (2309.16240 table 1), for log-ratios u.

    reverse_kl: u; forward_kl: 1 - e^-u; js: log 2 + log sigmoid(u); alpha: (e^((a-1)u) - 1) / (a-1), a the `coefficient` (1 gives u).
    g(0) = 0, as in TRL 1.16; without `centred` the constants 1, log 2 and -1/(a-1) are left out, as in earlier TRL. The constants cancel
    wherever g of two candidates of one length is subtracted. The authors' repository has a' = 1 - a. Exponents are clamped at 80; TRL
    clamps those of `alpha` only. Squares of g, as in `ipo`, overflow float32 for exponents above 44.
    """
    if divergence == "reverse_kl" or (divergence == "alpha" and abs(coefficient - 1.0) < 1e-6):
        return u
    if divergence == "js":
        return log_sigmoid(u) + (math.log(2.0) if centred else 0.0)
    rate = -1.0 if divergence == "forward_kl" else coefficient - 1.0
    power = (rate * u).clamp(max=80.0)
    return (power.expm1() if centred else power.exp()) / rate


def nll(s: Scores, candidate: int = 0) -> Tensor:
    """Return a candidate's negative log-likelihood (B,): the mean over its tokens, or for an image half its denoising error."""
    return -per_token(s, s.policy)[:, candidate]


def column(s: Scores, name: str) -> Tensor:
    """Return a column of `Scores.columns` (B, K), in the policy's dtype. Raises ValueError if it is missing."""
    if name not in s.columns:
        raise ValueError(f"this objective reads `{name}` of every candidate, and it is missing: set `scores` to {{{name}: NAME}}")
    return s.columns[name].to(s.policy)


def require_candidates(s: Scores, candidates: int, what: str) -> None:
    """Raise ValueError if records have fewer than `candidates`; `what` says in words what the further candidates are."""
    if s.policy.shape[1] < candidates:
        raise ValueError(f"this objective needs {what}, {candidates} candidates in all; found {s.policy.shape[1]}")


def tokens_of(s: Scores) -> Tokens:
    """Return the scores of single tokens. Raises ValueError for images, and for a likelihood that keeps only sums over tokens."""
    if s.tokens is None:
        raise ValueError("this objective reads the log-probability of every token, and these scores have none: it is for texts")
    return s.tokens


def require_sums(s: Scores) -> Scores:
    """Return the scores unchanged. Raises ValueError under a length-normalised likelihood: sums over tokens cannot be added to means."""
    if s.normalized:
        raise ValueError("this objective adds sums over tokens to log-ratios, which `likelihood: mean` divides by lengths: leave it at sum")
    return s


def token_field(x: Tensor | None, name: str) -> Tensor:
    """Return the field `name` of `Tokens`, whose value is x. Raises ValueError if the likelihood did not compute it."""
    if x is None:
        raise ValueError(f"this objective reads `{name}` of every token, and the likelihood does not give it")
    return x
