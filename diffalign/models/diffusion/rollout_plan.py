"""How a rollout with noise draws: which steps have noise, which are kept and trained, and where a tree splits (BranchGRPO, 2509.06040)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from operator import mul
from typing import ClassVar, Literal

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.sde import Kind
from diffalign.models.diffusion.window import window


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one rollout, numbered from 0, the one from pure noise.

    A rollout is a tree. Its root is a draw of pure noise; step k leads from the nodes of depth k to those of depth k + 1, and gives each
    node `splits[k]` children, or one. Its leaves are finished pictures. A plain rollout has no splits, and one leaf.
    """

    kind: Kind
    level: float
    steps: int
    noisy: Sequence[int]  # the steps with noise; the others are deterministic
    kept: Sequence[int]  # the noisy steps that are trained
    splits: Mapping[int, int] = field(default_factory=dict)  # children of each node, by step
    noise_scale: float = 1.0  # of the noise where a node has several children; densities do not know of it

    @property
    def widths(self) -> list[int]:
        """Return the number of nodes at each depth, 0 to `steps`."""
        return list(accumulate((self.splits.get(k, 1) for k in range(self.steps)), mul, initial=1))

    @property
    def leaves(self) -> int:
        """Return the number of pictures that a tree ends in."""
        return self.widths[-1]

    @property
    def evaluations(self) -> int:
        """Return how often a tree asks the network, without guidance: once a node that is no leaf."""
        return sum(self.widths[:-1])

    @property
    def parents(self) -> list[int]:
        """Return the parent of each node, -1 of the root; nodes are numbered by depth, and siblings lie side by side."""
        first, parents = 0, [-1]
        for width, following in zip(self.widths, self.widths[1:], strict=False):
            parents += [first + place * width // following for place in range(following)]
            first += width
        return parents


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """A plain rollout: `level` of noise in the steps of a window, which is trained, and none in the others.

    `size` is how many steps the window has, all but the last if None; it moves on by `move` after every `stay` updates, and begins at
    `start`.
    """

    kind: ClassVar[Kind] = "ode"
    level: float = 0.0
    size: int | None = None
    start: int = 0
    stay: int = 25
    move: int = 1

    def plan(self, update: int, steps: int, last: int = 1) -> Plan:
        """Return the plan of a rollout of so many `steps` that is drawn at an update; the `last` ones have no noise.

        The very last step is never trained: little or no noise is left there. Raises ConfigError where a rollout has no other.
        """
        trained = self._trained(update, require_steps(steps, last) - last)
        return Plan(self.kind, self.level, steps, noisy=trained, kept=trained)

    def _trained(self, update: int, top: int) -> range:
        if self.size is None:
            return range(top)
        own = window(update, top=top, size=self.size, stay=self.stay, move=self.move, start=self.start, roll_back=True)
        return own or window(0, top=top, size=self.size, stay=self.stay, move=self.move, start=self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cps(Noisy):
    """Coefficients-preserving sampling (2509.05952), on any path: the noise level stays the schedule's."""

    kind: ClassVar[Kind] = "cps"
    level: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddim(Noisy):
    """DDIM with eta `level` (2010.02502), on any path, as DDPO draws."""

    kind: ClassVar[Kind] = "ddim"
    level: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSde(Noisy):
    """Flow-GRPO's sampler (2505.05470), for flow models."""

    kind: ClassVar[Kind] = "flow_sde"
    level: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Dance(Noisy):
    """DanceGRPO's sampler (2505.07818), for flow models."""

    kind: ClassVar[Kind] = "dance"
    level: float = 0.3


PLAIN: dict[str, type[Noisy]] = {"cps": Cps, "ddim": Ddim, "flow_sde": FlowSde, "dance": Dance}


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A tree for each prompt (BranchGRPO, 2509.06040). All steps but the last have noise; the last is never trained.

    A step has the depth of the nodes that it leads to: 1 for the first, from pure noise. Differences from the release are in
    docs/methods/online.md.

    Args:
        kind: cps or ddim, for every model; flow_sde or dance (as released), for flow models.
        level: of noise; the sampler's own default if None.
        splits: the steps at which every node has several children.
        children: how many, at all splits or at each.
        noise_scale: what the noise of splits is multiplied by; 4 as released. Densities do not know of it. The default is 1: otherwise
            children are no draws of the policy, and have more noise than the schedule has at their time.
        values: what an inner node is worth: the mean of the rewards of the leaves below it, or the mean of its children weighted by how
            likely they are (softmax).
        depth_pruning: depths that are not trained.
        stay: updates after which the pruned depths move up by one; they never move if None.
        stop_depth: where the first of them stops; the depth of the nodes that split last if None.
        width_pruning: which leaves are trained behind the last split: the better half of each node's children ("best"), or of all leaves
            the best quarter and the worst one ("extremes"); all if None.
    """

    kind: Literal["cps", "ddim", "flow_sde", "dance"] = "cps"
    level: float | None = None
    splits: Sequence[int] = (0, 3, 6, 9)
    children: int | Sequence[int] = 2
    noise_scale: float = 1.0
    values: Literal["mean", "softmax"] = "mean"
    depth_pruning: Sequence[int] = ()
    stay: int | None = None
    stop_depth: int | None = None
    width_pruning: Literal["best", "extremes"] | None = None

    def plan(self, update: int, steps: int, last: int = 1) -> Plan:
        """Return the plan of a rollout of so many `steps` that is drawn at an update; the `last` ones have no noise.

        `check` says whether there is one.
        """
        level = PLAIN[self.kind]().level if self.level is None else self.level
        whole = Plan(self.kind, level, steps, range(steps - last), (), self.children_at, self.noise_scale)
        pruned, widths = self._pruned(update), whole.widths
        kept = [k for k in whole.noisy if widths[k + 1] > 1 and k + 1 not in pruned]  # the advantage of a node alone is zero
        return Plan(self.kind, level, steps, whole.noisy, kept, self.children_at, self.noise_scale)

    @property
    def children_at(self) -> dict[int, int]:
        """Return the children of each node, by step."""
        return dict(zip(self.splits, self._children, strict=False))

    @property
    def _children(self) -> Sequence[int]:
        return [self.children] * len(self.splits) if isinstance(self.children, int) else self.children

    def check(self, steps: int, leaves: int, last: int = 1) -> None:
        """Raise ConfigError for constants that make no tree of `steps` steps with so many leaves, or leave nothing of it to train."""
        noisy = require_steps(steps, last) - last
        self._check_splits(noisy)
        if (product := prod(self._children)) != leaves:
            split = " x ".join(map(str, self._children))
            raise ConfigError(
                f"`images_per_prompt` is {leaves}, and the tree of `rollout` ends in {split} = {product} leaves; make them equal"
            )
        if self.noise_scale <= 0.0 or (self.level is not None and self.level <= 0.0):
            raise ConfigError(f"rollout `branch`: level {self.level}, noise_scale {self.noise_scale}; expected numbers above zero")
        self._check_pruning(noisy)

    def _check_splits(self, noisy: int) -> None:
        splits, children = list(self.splits), list(self._children)
        if not splits or splits != sorted(set(splits)) or not all(0 <= k < noisy for k in splits):
            raise ConfigError(
                f"rollout `branch`: `splits` is {splits}; expected steps in order, from 0 to {noisy - 1}, the last one with noise"
            )
        if len(children) != len(splits) or min(children) < 2:
            raise ConfigError(f"rollout `branch`: `children` is {children} for {len(splits)} splits; expected 2 or more for each of them")

    def _check_pruning(self, last: int) -> None:
        depths, first = sorted(self.depth_pruning), self.splits[0] + 1
        if not all(first <= depth <= last for depth in depths):
            raise ConfigError(
                f"rollout `branch`: `depth_pruning` is {depths}; expected depths from {first} to {last}, those of trained steps"
            )
        if self.stay is not None and (self.stay < 1 or not depths or not first <= self._stop_depth <= depths[0]):
            raise ConfigError(
                f"rollout `branch`: `stay` is {self.stay}, `stop_depth` {self._stop_depth}, `depth_pruning` {depths}; expected a `stay` of "
                f"1 or more, and depths that begin at `stop_depth` or behind it, which is {first} or more"
            )
        if len(set(depths)) == last - first + 1:
            raise ConfigError("rollout `branch`: `depth_pruning` leaves no step to train; name fewer depths")

    @property
    def _stop_depth(self) -> int:
        return max(self.splits) if self.stop_depth is None else self.stop_depth

    def _pruned(self, update: int) -> set[int]:
        """Return the depths that are not trained at an update."""
        if self.stay is None:
            return set(self.depth_pruning)
        moved = min(update // self.stay, min(self.depth_pruning) - self._stop_depth)
        return {depth - moved for depth in self.depth_pruning}


ROLLOUTS: dict[str, type[Noisy] | type[Branch]] = {**PLAIN, "branch": Branch}


def require_steps(steps: int, last: int = 1) -> int:
    """Return the number of steps. Raises ConfigError where the `last` ones, which are not trained, are all of them."""
    if steps <= last:
        raise ConfigError(
            f"`num_inference_steps` is {steps}; expected at least {last + 1} with `rollout`, for the last step, and those of "
            "`start_model_steps`, are not trained"
        )
    return steps
