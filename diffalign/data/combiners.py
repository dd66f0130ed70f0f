"""Several rewards made one. Each is (G, K), by name: G prompts, K candidates; so is the result, of which `data.advantages` takes groups.

`COMBINERS` has them by the name that a config gives, with their constants as fields. One that learns is replaced: `lagrange` by what
`updated` returns after every set of drawn pictures, `gradient` by what `followed` returns before. The others stay as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from diffalign.core.errors import ConfigError, shortened
from diffalign.data.advantages import advantages, checked

Rewards = Mapping[str, Any]  # (G, K) each
Numbers = Mapping[str, float]  # a constant by the name of its reward
Sense = Literal["at_least", "at_most"]
Scope = Literal["image", "prompt", "all"]


class Combiner(ABC):
    """What every combiner does."""

    __slots__ = ()

    @property
    def scope(self) -> Scope:
        """Return whose rewards a combined one depends on: the candidate's own (image), its prompt's, or those of all prompts."""
        return "image"

    @abstractmethod
    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return one reward (G, K). Raises ConfigError for rewards that it has no constants for, or constants of no reward."""

    def under(self, rewards: Rewards, prompts: Sequence[str]) -> np.ndarray:  # noqa: ARG002  # of one that reads them
        """Return one reward (G, K) of candidates to G prompts; most combiners do not read these."""
        return self.combine(rewards)

    def updated(self, rewards: Rewards) -> Combiner:  # noqa: ARG002  # of those that learn
        """Return the combiner of the next set of pictures, of what the rewards of this one are."""
        return self

    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError for constants that do not fit rewards of these names, before there are any."""
        self.combine({name: np.ones((1, 2)) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(Combiner):
    """The sum of the rewards, each times its weight, 1 where none is named: the reward of the largest spread leads.

    Flow-GRPO's `multi_score`.

    >>> Weighted(weights={"b": 0.1}).combine({"a": [[1.0, 2.0]], "b": [[10.0, 0.0]]})
    array([[2., 2.]])
    """

    weights: Numbers | None = None

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the sum (G, K)."""
        tables = tables_of(rewards)
        weights = _constants("weights", self.weights, tables, 1.0)
        return np.sum([weights[name] * table for name, table in tables.items()], axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardised(Combiner):
    """The sum of the rewards after each has been standardised within its prompt, so that no reward's scale counts.

    MixGRPO's `advantage_aggr` and Pref-GRPO: ddof 1, eps 1e-8. The result is the advantage: `advantages` with spread none leaves it. A
    reward that is equal in a group but for noise is blown up to the size of the others.
    """

    weights: Numbers | None = None
    ddof: int = 1
    eps: float = 1e-8
    floor: float = 0.0

    @property
    def scope(self) -> Scope:
        """Return that a reward is one among those of its prompt."""
        return "prompt"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the sum (G, K) of standardised rewards."""
        tables = tables_of(rewards)
        return Weighted(weights=self.weights).combine({name: self._standardised(table) for name, table in tables.items()})

    def _standardised(self, table: np.ndarray) -> np.ndarray:
        return advantages(table, spread="group", ddof=self.ddof, eps=self.eps, floor=self.floor, clip=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gdpo(Combiner):
    """The sum of rewards that are standardised within their prompt, standardised once more over all prompts.

    Flow-Factory's GDPO (ddof 0, deviations of at least 1e-6). The result is the advantage: `advantages` with spread none leaves it.
    """

    weights: Numbers | None = None

    @property
    def scope(self) -> Scope:
        """Return that a reward is one among those of all prompts."""
        return "all"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the standardised sum (G, K)."""
        total = Standardised(weights=self.weights, ddof=0, eps=0.0, floor=1e-6).combine(rewards)
        return (total - total.mean()) / max(total.std(), 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSigmoid(Combiner):
    """The sum over the rewards of weight * log sigmoid((reward - centre) / temperature): good rewards count ever less.

    Transform and combine (2402.00742): the log of the chance that all are good, led by the worst. A centre is a number, or one a prompt
    (G,), such as the `quantile` of what the untrained model draws. Temperature 1 supposes rewards that are logits of preference; a cosine
    needs its own scale (temperatures and weights are ours). A reward without a centre has the `share` quantile of its prompt's own
    candidates, and then, unless it has a temperature, that of their spread, so that no scale decides (both ours):

    >>> rows = LogSigmoid().combine({"a": [[100.0, 300.0]], "b": [[0.03, 0.01]]})  # log sigmoid(-1) + log sigmoid(1), twice
    >>> rows.round(6).tolist()
    [[-1.626523, -1.626523]]
    """

    centres: Mapping[str, Any] | None = None
    temperatures: Numbers | None = None
    weights: Numbers | None = None
    share: float = 0.5

    @property
    def scope(self) -> Scope:
        """Return whether rewards have centres of their own, or are among those of their prompt."""
        return "prompt" if self.centres is None else "image"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the sum (G, K) of utilities."""
        tables = tables_of(rewards)
        temperatures = _constants("temperatures", self.temperatures, tables, 1.0, above=0.0)
        if self.centres is None:
            centres = {name: quantile(table, self.share) for name, table in tables.items()}
            temperatures = {name: _spread(table) for name, table in tables.items()} | dict(self.temperatures or {})
        else:
            centres = _constants("centres", self.centres, tables)
        # A number serves all prompts; one a prompt stands beside its candidates.
        utilities = {
            name: -np.logaddexp(0.0, (np.reshape(centres[name], (-1, 1)) - table) / temperatures[name]) for name, table in tables.items()
        }
        return Weighted(weights=self.weights).combine(utilities)


def _spread(table: np.ndarray) -> float:
    """Return the root of the mean variance within a prompt, 1 where nothing differs."""
    return float(np.sqrt(table.var(axis=1).mean())) or 1.0


def quantile(rewards: Any, share: float = 0.5) -> np.ndarray:
    """Return for each prompt (G,) the reward that a `share` of its draws (G, M) does not exceed, interpolated."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"`share` is {share}; expected a number in [0, 1]")
    return np.quantile(checked(rewards), share, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(Combiner):
    """The product of the rewards, each to the power of its weight, 1 where none is named: a picture must be good in all of them.

    A reward's scale changes all products alike, and so no order. Rewards below zero have no product, and are refused (a plain form, ours).

    >>> Product().combine({"a": [[0.5, 1.0]], "b": [[80.0, 20.0]]})
    array([[40., 20.]])
    """

    weights: Numbers | None = None

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the product (G, K)."""
        tables = tables_of(rewards)
        weights = _constants("weights", self.weights, tables, 1.0)
        if below := sorted(name for name, table in tables.items() if (table < 0.0).any()):
            raise ConfigError(f"`product` of rewards below zero, such as {below[0]}, has no meaning; use log_sigmoid or standardised")
        return np.prod([table ** weights[name] for name, table in tables.items()], axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagrange(Combiner):
    """The reward without a threshold plus, for every other, multiplier * (reward - threshold), minus for sense `at_most`.

    A multiplier begins at 0 and grows by `rate` times what its reward's mean lacks of the threshold, within [0, top]. `normalised` divides
    by one plus the multipliers, which keeps the scale. A plain form of ours of constrained rewards (2310.04373, where each is kept from
    exceeding the value at which it ceases to agree with people: `at_most`).
    """

    thresholds: Numbers
    sense: Sense = "at_least"
    rate: float = 0.1
    top: float = 10.0
    normalised: bool = True
    multipliers: Numbers | None = None

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the reward (G, K) under the multipliers as they are."""
        tables = tables_of(rewards)
        main, multipliers = tables[_main(tables, self.thresholds)], _constants("multipliers", self.multipliers, self.thresholds, 0.0)
        terms = [self._sign * factor * (tables[name] - self.thresholds[name]) for name, factor in multipliers.items()]
        total = main + np.sum(terms, axis=0)
        return total / (1.0 + sum(multipliers.values())) if self.normalised else total

    def updated(self, rewards: Rewards) -> Lagrange:
        """Return the combiner with its multipliers one step further, by the means of these rewards."""
        tables, multipliers = tables_of(rewards), _constants("multipliers", self.multipliers, self.thresholds, 0.0)
        lacks = {name: self._sign * (threshold - tables[name].mean()) for name, threshold in self.thresholds.items()}
        moved = {name: float(np.clip(multipliers[name] + self.rate * lack, 0.0, self.top)) for name, lack in lacks.items()}
        return replace(self, multipliers=moved)

    @property
    def _sign(self) -> float:
        return 1.0 if self.sense == "at_least" else -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cfo(Combiner):
    """The reward without a threshold, minus `cfo_multiplier` wherever another is below its threshold.

    The multiplier is that of Flow-GRPO's release (its `compute_lambda`); that it is subtracted from violating candidates is our reading.
    """

    thresholds: Numbers
    alpha: float = 0.5
    tolerance: float = 0.1

    @property
    def scope(self) -> Scope:
        """Return that the multiplier is of all candidates that are there, at least those of a prompt."""
        return "prompt"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the reward (G, K)."""
        tables = tables_of(rewards)
        main = tables[_main(tables, self.thresholds)]
        safe = np.all([tables[name] >= threshold for name, threshold in self.thresholds.items()], axis=0)
        return main - cfo_multiplier(main, safe, alpha=self.alpha, tolerance=self.tolerance) * ~safe


def cfo_multiplier(rewards: Any, safe: Any, *, alpha: float = 0.5, tolerance: float = 0.1) -> float:
    """Return the dual of a chance constraint in closed form: alpha max(0, log((1 - b) A / (b B))), b the `tolerance`.

    A and B are sums of exp(reward / alpha) over violating and safe candidates; 10 alpha where none is safe. The release adds 1e-10 to b B.

    Only logs of the sums are taken, which large rewards leave finite:

    >>> cfo_multiplier([[2000.0, 1000.0]], [[False, True]], alpha=1.0, tolerance=0.5)
    1000.0
    """
    if not alpha > 0.0 or not 0.0 < tolerance < 1.0:
        raise ConfigError(f"`cfo`: alpha is {alpha} and tolerance {tolerance}; expected above 0, and between 0 and 1")
    table, good = np.asarray(rewards, dtype=np.float64) / alpha, np.asarray(safe, dtype=bool)
    if not good.any():
        return 10.0 * alpha
    if good.all():
        return 0.0
    violating, meeting = (float(np.logaddexp.reduce(table[part])) for part in (~good, good))
    needed = np.logaddexp(math.log(tolerance) + meeting, math.log(1e-10))
    return alpha * max(0.0, float(math.log(1.0 - tolerance) + violating - needed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Maxmin(Combiner):
    """The reward whose mean is the smallest: of groups of people, the worst-off (MaxMin-RLHF, 2402.08925, in our plain form).

    Rewards of one unit are compared as they are. Of others each is taken less its `centres`, over its `scales` (ours), such as mean and
    deviation of what the untrained model draws: the worst-off is then the reward that has gained least.
    """

    centres: Numbers | None = None
    scales: Numbers | None = None

    @property
    def scope(self) -> Scope:
        """Return that the choice is by the means over all prompts."""
        return "all"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return that reward (G, K)."""
        tables = tables_of(rewards)
        centres, scales = _constants("centres", self.centres, tables, 0.0), _constants("scales", self.scales, tables, 1.0, above=0.0)
        return min(((table - centres[name]) / scales[name] for name, table in tables.items()), key=lambda table: float(table.mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervolume(Combiner):
    """The sum of the rewards by the gradient of the hypervolume, the product of mean - reference: what has risen least counts most.

    Weights that follow the hypervolume, as dynamic reward weighting has them, in a plain form of ours: each reward over (mean -
    reference), so that no scale decides. `reference` is what every mean should exceed, such as what the untrained model reaches; a mean
    that does not, or hardly, counts as `floor` deviations above it.

    >>> Hypervolume(reference={"a": 0.0, "b": 0.0}).combine({"a": [[1.0, 3.0]], "b": [[300.0, 100.0]]})  # means 2 and 200
    array([[2., 2.]])
    """

    reference: Numbers
    floor: float = 0.1

    @property
    def scope(self) -> Scope:
        """Return that the weights are by the means over all prompts."""
        return "all"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the weighted sum (G, K)."""
        tables = tables_of(rewards)
        reference = _constants("reference", self.reference, tables)
        leads = {
            name: max(float(table.mean()) - reference[name], self.floor * (float(table.std()) or 1.0)) for name, table in tables.items()
        }
        return np.sum([table / leads[name] for name, table in tables.items()], axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient(Combiner):
    """The sum of the rewards, standardised within their prompt, by weights that grow where a reward's gradient helps all rewards.

    Dynamic reward weighting (2509.11452, released code): before a turn is trained on, each weight is multiplied by exp(rate * influence),
    and all are divided by their sum. The influence of a reward is <g_i, sum_j g_j>, g_i the gradient of the loss by that reward alone.
    `rate` stands for the release's learning rate over regularisation, 1e-6 / 1e-5. That the rewards are standardised is ours: the release
    adds up shares between 0 and 1 as they are. Without `weights` all begin alike.

    >>> Gradient(rate=1.0, weights={"a": 0.5, "b": 0.5}).followed({"a": 0.0, "b": np.log(3.0)}).weights
    {'a': 0.25, 'b': 0.75}
    """

    rate: float = 0.1
    weights: Numbers | None = None

    @property
    def scope(self) -> Scope:
        """Return that the weights follow the gradients of a whole turn."""
        return "all"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the weighted sum (G, K)."""
        return Standardised(weights=_constants("weights", self.weights, rewards, 1.0 / max(len(rewards), 1))).combine(rewards)

    def followed(self, influences: Numbers) -> Gradient:
        """Return the combiner with its weights one step further. Raises ConfigError for a weight that is not above zero."""
        weights = _constants("weights", self.weights, influences, 1.0 / len(influences))
        if none := sorted(name for name, weight in weights.items() if not weight > 0.0):
            raise ConfigError(f"`gradient`: the weight of `{none[0]}` is {weights[none[0]]}; expected a number above zero")
        logs = {name: np.log(weight) + self.rate * influences[name] for name, weight in weights.items()}
        whole = np.logaddexp.reduce(list(logs.values()))
        return replace(self, weights={name: float(np.exp(value - whole).round(15)) for name, value in logs.items()})


COMBINERS: dict[str, Callable[..., Combiner]] = {
    "weighted": Weighted,
    "standardised": Standardised,
    "gdpo": Gdpo,
    "log_sigmoid": LogSigmoid,
    "product": Product,
    "lagrange": Lagrange,
    "cfo": Cfo,
    "maxmin": Maxmin,
    "hypervolume": Hypervolume,
    "gradient": Gradient,
}


def tables_of(rewards: Rewards) -> dict[str, np.ndarray]:
    """Return the rewards as float64 (G, K). Raises ConfigError where there is none, or where they are of unlike shapes."""
    tables = {name: checked(table) for name, table in rewards.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) != 1:
        raise ConfigError(f"rewards of one shape (prompts, candidates) are combined; found {sorted(shapes) or 'none'}")
    return tables


def _constants(
    constant: str, values: Mapping[str, Any] | None, names: Mapping[str, Any], usual: float | None = None, *, above: float = -math.inf
) -> dict[str, Any]:
    """Return a constant for each of `names`.

    Raises ConfigError for one of no reward, for what is no finite number `above` another, and for a missing one where none is usual.
    """
    values = values or {}
    if wrong := next((name for name, value in values.items() if not _above(value, above)), None):
        expected = "a finite number" if above == -math.inf else f"a number above {above:g}"
        raise ConfigError(f"`{constant}`: that of `{wrong}` is {shortened(repr(values[wrong]))}; expected {expected}")
    if odd := sorted(values.keys() - names.keys()):
        raise ConfigError(f"`{constant}` names `{odd[0]}`, which is no reward; there are {sorted(names)}")
    if usual is None and (missing := sorted(names.keys() - values.keys())):
        raise ConfigError(f"`{constant}` has no number for the reward `{missing[0]}`")
    return {name: values.get(name, usual) for name in names}


def _above(value: Any, least: float) -> bool:
    """Return whether a value is a finite number above `least`, or a list of such."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str) and bool(np.isfinite(numbers).all() and (numbers > least).all())


def _main(tables: Rewards, thresholds: Numbers) -> str:
    """Return the one reward that has no threshold. Raises ConfigError for none or several."""
    _constants("thresholds", thresholds, tables, 0.0)
    free = sorted(tables.keys() - thresholds.keys())
    if len(free) != 1 or not thresholds:
        raise ConfigError(f"`thresholds` leave out one reward, the one to raise, and no other; here they leave out {free or 'none'}")
    return free[0]
