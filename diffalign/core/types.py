"""Values that travel between the layers. Axis letters: B records, K candidates, N = B*K, C H W latent, L tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

Generator = torch.Generator | Sequence[torch.Generator]  # one for all draws, or one a record (as diffusers' pipelines take it)
Condition = Mapping[str, Tensor]  # what the denoiser is told besides x and t; first axis B


class Predict(Protocol):
    """The network as a trajectory sees it: the prompts of the batch are already in it."""

    def __call__(self, x: Tensor, label: Tensor, /, *, empty: bool = False, rows: Tensor | None = None) -> Tensor:
        """Return the output like x (B,K,C,H,W) at time label (B,); with `empty`, under the empty prompt.

        `rows` (B,) are the numbers of the records that x and label are of, where these are not the whole batch.
        """
        ...


def _require_shape(tensors: Mapping[str, Tensor | None], shape: torch.Size, axes: str) -> None:
    """Raise ValueError for the first tensor of another shape, with its name and what the axes are."""
    for name, x in tensors.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"`{name}` is of shape {tuple(x.shape)}; expected {axes} = {tuple(shape)}, as `policy` has")


def _widen(owner: Any, names: Sequence[str]) -> None:
    """Turn the fields of a frozen dataclass that are in half precision to float32, where products with a large beta stay finite."""
    for name in names:
        x = getattr(owner, name)
        if x is not None and x.dtype in (torch.float16, torch.bfloat16):
            object.__setattr__(owner, name, x.float())


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a language model says of every scored token, in nats; zero where a completion has ended. L is the longest completion's."""

    policy: Tensor  # (B, K, L) log-probabilities, with gradient
    mask: Tensor  # (B, K, L) bool: which positions are tokens of the completion, end of text included
    reference: Tensor | None = None  # (B, K, L), without gradient
    kl: Tensor | None = None  # (B, K, L): KL(reference || policy) of the next-token distributions
    collision: Tensor | None = None  # (B, K, L): log sum_v p_v^2 of the policy, without gradient
    prompt: Tensor | None = None  # (B, K, P): the policy's log-probabilities of the prompt's tokens but the first
    prompt_mask: Tensor | None = None  # (B, K, P) bool
    activation: Tensor | None = None  # (B, K, L) in [0, 1]: size of the reference's last hidden state, over the largest of the completion
    old: Tensor | None = None  # (B, K, L), of the policy that wrote the completions, without gradient; the policy as it is where None

    def without_last(self) -> Tokens:
        """Return what is said of the tokens of all candidates but the last."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: value[:, :-1] for name, value in values.items() if value is not None})

    def __post_init__(self) -> None:
        """Widen half precision to float32. Raises ValueError for shapes that do not fit together."""
        if self.policy.ndim != 3:
            raise ValueError(f"`policy` of tokens is of shape (records, candidates, tokens); found {tuple(self.policy.shape)}")
        names = ("mask", "reference", "kl", "collision", "activation", "old")
        _require_shape({name: getattr(self, name) for name in names}, self.policy.shape, "(records, candidates, tokens)")
        _widen(self, ("policy", "reference", "kl", "collision", "prompt", "activation", "old"))


@dataclass(frozen=True, slots=True)
class Steps:
    """How likely stored sampler steps are, S of them an image (`models.diffusion.sde`)."""

    policy: Tensor  # (B, K, S) log-densities, with gradient
    old: Tensor | None = None  # (B, K, S), of the policy that drew the images, without gradient; the policy as it is where None
    std: Tensor | None = None  # (B, K, S) standard deviation of the steps' noise
    duration: Tensor | None = None  # (B, K, S) how much of the whole time a step takes
    divergence: Tensor | None = None  # (B, K, S) from the old policy's step, with the policy's gradient
    kl: Tensor | None = None  # (B, K, S) divergence from the start model's step, or the reference's, with the policy's gradient
    advantage: Tensor | None = None  # (B, K, S) where steps of one image have unlike ones, as those of a tree

    def __post_init__(self) -> None:
        """Raise ValueError for shapes that do not fit together."""
        names = ("old", "std", "duration", "divergence", "kl", "advantage")
        _require_shape({name: getattr(self, name) for name in names}, self.policy.shape, "(records, candidates, steps)")


@dataclass(frozen=True, slots=True)
class Residuals:
    """What denoisers' outputs miss the target by, times the root of the path's weight: the mean square is -2 times the score.

    Differences of them are differences of outputs, so what two networks differ by costs no further pass.
    """

    policy: Tensor  # (B, K, C, H, W), with gradient
    sigma: Tensor  # (B,) noise level of the point; of flows it is the time
    reference: Tensor | None = None  # like policy, without gradient
    start: Tensor | None = None  # like policy: of the model that training began with, where the reference is another one

    def __post_init__(self) -> None:
        """Widen half precision to float32. Raises ValueError for shapes that do not fit together."""
        _require_shape({"reference": self.reference, "start": self.start}, self.policy.shape, "(records, candidates, ...)")
        _require_shape({"sigma": self.sigma}, self.policy.shape[:1], "(records,)")
        _widen(self, ("policy", "reference", "start"))


@dataclass(frozen=True, slots=True)
class Compared:
    """What several networks say of a query, as a likelihood's `score` returns it."""

    reference: Any
    start: Any = None  # of the model that training began with
    old: Any = None  # of the policy that drew the images


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-likelihoods up to constants, higher is better, of shape (records, candidates): (B, K). Candidate 0 is the preferred one.

    `prob` is the chance that it is: 1 where None. `reference` is None for objectives that need none. Half precision is widened to float32,
    because beta multiplies small differences of scores. Raises ValueError for shapes that do not fit together.

    >>> Scores(torch.zeros(4, 2), torch.zeros(4, 2)).log_ratio.shape  # four pairs
    torch.Size([4, 2])
    """

    policy: Tensor  # (B, K), float32 or wider, with gradient; of texts the sum over tokens
    reference: Tensor | None = None  # (B, K), without gradient
    prob: Tensor | None = None  # (B,) in [0, 1]
    weight: Tensor | None = None  # (B,) on the loss; 1 where None
    offset: Tensor | None = None  # (B,) subtracted inside the sigmoid; 0 where None
    lengths: Tensor | None = None  # (B, K) scored tokens; None where candidates have no length (images)
    normalized: bool = False  # a length-normalised likelihood: scores are divided by `lengths` wherever they are compared
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (B, K) by name: what an objective reads of the table's scores
    tokens: Tokens | None = None  # only for objectives of tokens
    old: Tensor | None = None  # (B, K), of the policy that drew the images, without gradient; the policy as it is where None
    residuals: Residuals | None = None  # only for objectives that compare the outputs of networks
    steps: Steps | None = None  # only for objectives of stored sampler steps
    neighbour: Tensor | None = None  # (B, K) log-ratios under the prompt of the batch's next record, without gradient
    mismatched: bool = False  # of texts: the last candidate is an answer to another prompt (KTO)
    losses: Tensor | None = None  # (B,), weighted, of a model whose loss is no function of its scores; the objective's where None
    rationale: Tensor | None = None  # (B,) of texts: log-probability of why candidate 0 was preferred, with gradient; 0 where none is given

    def __post_init__(self) -> None:
        """Widen half precision to float32. Raises ValueError for shapes that do not fit together."""
        if self.policy.ndim != 2:
            raise ValueError(f"`policy` of scores is of shape (records, candidates); found {tuple(self.policy.shape)}")
        of_candidates = {"reference": self.reference, "lengths": self.lengths, "old": self.old, "neighbour": self.neighbour, **self.columns}
        _require_shape(of_candidates, self.policy.shape, "(records, candidates)")
        of_records = ("prob", "weight", "offset", "losses", "rationale")
        _require_shape({name: getattr(self, name) for name in of_records}, self.policy.shape[:1], "(records,)")
        if self.tokens is not None and self.tokens.policy.shape[:2] != self.policy.shape:
            found, expected = tuple(self.tokens.policy.shape), tuple(self.policy.shape)
            raise ValueError(f"`tokens` are of shape {found}; expected (records, candidates, tokens) with {expected} first")
        _widen(self, ("policy", "reference", "prob", "weight", "offset", "old", "neighbour"))

    @property
    def log_ratio(self) -> Tensor:
        """Return log policy - log reference, (B, K), never length-normalised. Raises ValueError without a reference."""
        if self.reference is None:
            raise ValueError("this objective compares with a reference, and the method has none: set `reference`")
        return self.policy - self.reference

    @property
    def deviation(self) -> Tensor:
        """Return the weighted mean square of policy minus reference output, (B, K), with the policy's gradient.

        Raises ValueError without a reference, and for scores without residuals.
        """
        own = self.compared_outputs
        if own.reference is None:
            return self.log_ratio  # which raises the error
        return _mean_square(own.policy - own.reference)

    @property
    def drift(self) -> Tensor:
        """Return the same of policy minus start model, (B, K); where no other start was scored, the reference is the start."""
        own = self.compared_outputs
        return self.deviation if own.start is None else _mean_square(own.policy - own.start)

    @property
    def compared_outputs(self) -> Residuals:
        """Return the residuals. Raises ValueError for scores without: of texts, or by a likelihood that was not told to keep them."""
        if self.residuals is None:
            raise ValueError("this objective compares the outputs of denoisers, and these scores have no residuals: it is for images")
        return self.residuals


def _mean_square(x: Tensor) -> Tensor:
    """Return the mean square (B, K) over all further axes."""
    return x.square().flatten(2).mean(dim=2)


@dataclass(frozen=True, slots=True)
class Noised:
    """Where a trajectory ends: the network's input, its time and the output that would be right."""

    x_t: Tensor  # (B, K, C, H, W)
    t: Tensor  # (B,)
    target: Tensor  # like x_t
    weight: Tensor  # (B,) on the squared error

    def to(self, device: torch.device) -> Noised:
        """Return the point on `device`."""
        return Noised(self.x_t.to(device), self.t.to(device), self.target.to(device), self.weight.to(device))


@dataclass(frozen=True, slots=True)
class Query:
    """Everything a step draws at random, drawn once: policy and reference are scored at the same point."""

    noised: Noised
    condition: Condition  # (B, ...) each, prompts already dropped
    dropped: Tensor | None = None  # (B,) which prompts were
    frames: Tensor | None = None  # (B, K, 6), as the batch's
    conditioning: Tensor | None = None  # (B, K, 3, h, w), as the batch's

    @property
    def x(self) -> Tensor:
        """Return where the network is asked, (B, K, C, H, W)."""
        return self.noised.x_t

    def candidate(self, k: int) -> Query:
        """Return the query of candidate `k` alone."""
        noised, place = self.noised, slice(k, k + 1)
        frames, conditioning = (None if x is None else x[:, place] for x in (self.frames, self.conditioning))
        alone = replace(noised, x_t=noised.x_t[:, place], target=noised.target[:, place])
        return replace(self, noised=alone, frames=frames, conditioning=conditioning)

    def to(self, device: torch.device) -> Query:
        """Return the query on `device`."""
        frames, conditioning = (None if x is None else x.to(device) for x in (self.frames, self.conditioning))
        return Query(self.noised.to(device), _moved(self.condition, device), self.dropped, frames, conditioning)


@dataclass(frozen=True, slots=True)
class StoredSteps:
    """A step of the sampler that drew each candidate, as it was taken."""

    x: Tensor  # (B, K, C, H, W) where it began
    x_to: Tensor  # like x, where it ended
    mean: Tensor  # like x, its mean by the network that drew
    t: Tensor  # (B,) when it began
    to_t: Tensor  # (B,) when it ended
    second: Tensor  # (B,) the second time of the sampler's schedule
    advantage: Tensor | None = None  # (B, K) of the step, where the steps of a picture have unlike ones, as those of a tree

    def to(self, device: torch.device) -> StoredSteps:
        """Return the steps on `device`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Labels:
    """What records say for the objective besides the preference."""

    weight: Tensor | None = None  # (B,)
    offset: Tensor | None = None  # (B,)
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (B, K) each

    def to(self, device: torch.device) -> Labels:
        """Return the labels on `device`."""
        weight, offset = (None if x is None else x.to(device) for x in (self.weight, self.offset))
        return Labels(weight, offset, _moved(self.columns, device))


@dataclass(frozen=True, slots=True)
class Batch:
    """B records ready for the network."""

    x0: Tensor  # (B, K, C, H, W) latents, preferred candidate first
    condition: Condition  # (B, ...)
    empty: Condition  # (1, ...), or (B, ...) where it is each record's own: the condition of the empty prompt
    prob: Tensor  # (B,) in [0, 1]
    ids: tuple[str, ...] = ()
    query: Query | None = None  # drawn before training and kept on disk; None: drawn in the step
    frames: Tensor | None = None  # (B, K, 6) float32: each image's original height, width, crop top, left, target height, width
    labels: Labels = Labels()
    steps: StoredSteps | None = None  # only where steps of a sampler are trained
    conditioning: Tensor | None = None  # (B, K, 3, h, w) in [0, 1]: what a ControlNet reads, in pixels, framed as its picture

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        frames, conditioning = (None if x is None else x.to(device) for x in (self.frames, self.conditioning))
        query = self.query and self.query.to(device)
        prob, condition, empty = self.prob.to(device), _moved(self.condition, device), _moved(self.empty, device)
        labels, steps = self.labels.to(device), self.steps and self.steps.to(device)
        return Batch(self.x0.to(device), condition, empty, prob, self.ids, query, frames, labels, steps, conditioning)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """B records of texts as token ids, ragged: nothing is padded before a layout says how. It is its own query: nothing is random."""

    prompts: tuple[tuple[Tensor, ...], ...]  # B of K of (P,) int64; a record's are equal unless its candidates have prompts of their own
    completions: tuple[tuple[Tensor, ...], ...]  # B of K of (n,) int64, at least one token, end of text included
    prob: Tensor  # (B,) in [0, 1]
    ids: tuple[str, ...] = ()
    reference: Tensor | None = None  # (B, K, L) log-probabilities of the reference, computed before training
    labels: Labels = Labels()
    old: Tensor | None = None  # (B, K, L) log-probabilities of the policy that wrote the completions
    mismatched: bool = False  # the last completion is an answer to another prompt
    rationale: Tensor | None = None  # (B,) bool: whether the last completion, which there is then, says why one was preferred

    def to(self, device: torch.device) -> TextBatch:
        """Return the batch on `device`."""

        def moved(parts: tuple[tuple[Tensor, ...], ...]) -> tuple[tuple[Tensor, ...], ...]:
            return tuple(tuple(ids.to(device) for ids in texts) for texts in parts)

        kept = (self.reference, self.old, self.rationale)
        reference, old, rationale = (None if x is None else x.to(device) for x in kept)
        prompts, completions, prob, labels = moved(self.prompts), moved(self.completions), self.prob.to(device), self.labels.to(device)
        return TextBatch(prompts, completions, prob, self.ids, reference, labels, old, self.mismatched, rationale)


def _moved(condition: Condition, device: torch.device) -> Condition:
    return {name: value.to(device) for name, value in condition.items()}


class Likelihood(Protocol):
    """Turns (model, query) into scores. All randomness is in `prepare`."""

    def prepare(self, driver: Any, batch: Any, generator: Generator) -> Any:
        """Return the query of a batch, without gradient; `driver` is the model that inversions run."""
        ...

    def score(self, model: Any, query: Any) -> Any:
        """Return what a model says of a query, in float32 or wider: scores (B, K), or what `scores` makes them of."""
        ...

    def scores(self, policy: Any, reference: Any, batch: Any) -> Scores:
        """Return what the objective sees, of what policy and reference (or None) say of a batch."""
        ...


class Reference(Protocol):
    """What the policy is compared with."""

    def score(self, likelihood: Likelihood, query: Any) -> Any:
        """Return what the reference says of a query, without gradient, or None for methods that need no reference."""
        ...

    def driving(self) -> AbstractContextManager[Any]:
        """Give the reference network for the block, to run a trajectory with. Raises ConfigError where there is none."""
        ...
