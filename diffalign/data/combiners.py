"""Several rewards made one. Each is (G, K), by name: G prompts, K candidates; so is the result, of which `data.advantages` takes groups.

`COMBINERS` has them by the name that a config gives, with their constants as fields. One that learns is replaced: `lagrange` by what
`updated` returns after every set of drawn pictures, `gradient` by what `followed` returns before. The others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffalign.core.errors import ConfigError
from diffalign.data.advantages import advantages, checked
from diffalign.data.combining import Combiner, Numbers, Rewards, Scope, constants_of, tables_of
from diffalign.data.constraints import Cfo, Lagrange


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
        weights = constants_of("weights", self.weights, tables, 1.0)
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
        temperatures = constants_of("temperatures", self.temperatures, tables, 1.0, above=0.0)
        if self.centres is None:
            centres = {name: quantile(table, self.share) for name, table in tables.items()}
            temperatures = {name: _spread(table) for name, table in tables.items()} | dict(self.temperatures or {})
        else:
            centres = constants_of("centres", self.centres, tables)
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
        weights = constants_of("weights", self.weights, tables, 1.0)
        if below := sorted(name for name, table in tables.items() if (table < 0.0).any()):
            raise ConfigError(f"`product` of rewards below zero, such as {below[0]}, has no meaning; use log_sigmoid or standardised")
        return np.prod([table ** weights[name] for name, table in tables.items()], axis=0)


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
        centres, scales = constants_of("centres", self.centres, tables, 0.0), constants_of("scales", self.scales, tables, 1.0, above=0.0)
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
        reference = constants_of("reference", self.reference, tables)
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
    adds up shares between 0 and 1 as they are. Without `weights` all begin alike; none falls below 1e-12, so that it can come back.

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
        return Standardised(weights=constants_of("weights", self.weights, rewards, 1.0 / max(len(rewards), 1), above=0.0)).combine(rewards)

    def followed(self, influences: Numbers) -> Gradient:
        """Return the combiner with its weights one step further. Raises ConfigError for a weight that is not above zero."""
        weights = constants_of("weights", self.weights, influences, 1.0 / len(influences), above=0.0)
        logs = {name: np.log(weight) + self.rate * influences[name] for name, weight in weights.items()}
        whole = np.logaddexp.reduce(list(logs.values()))
        return replace(self, weights={name: max(1e-12, float(np.exp(value - whole).round(15))) for name, value in logs.items()})


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
