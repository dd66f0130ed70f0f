"""A curriculum whose reference is the policy as each stage began (Curry-DPO): what turns are for data that are drawn in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffalign.core.specs import bind
from diffalign.core.types import Reference
from diffalign.data.curriculum import CURRICULA
from diffalign.methods.config import TrainConfig
from diffalign.train.online.policies import Policies


@dataclass(frozen=True, slots=True)
class Renewals:
    """Makes the policy its own reference before the first step that takes samples of a later stage alone."""

    config: TrainConfig
    policies: Policies
    steps: frozenset[int]  # before which it does
    stopped: None = None

    @classmethod
    def of(cls, config: TrainConfig, reference: Reference) -> Renewals | None:
        """Return the renewals of a run, None where its reference stays what it is, or follows turns."""
        if config.curriculum is None or config.reference != "old_policy":
            return None
        stages = bind("curriculum", CURRICULA, config.curriculum).constants["stages"]
        firsts = frozenset(-(-stage * config.max_train_steps // stages) for stage in range(1, stages))
        return cls(config, Policies.of(config, reference), firsts)

    def begin(self, step: int) -> None:
        """Do nothing: nothing was drawn."""

    def turn(self, step: int, drawing: Any, loss: Any) -> dict[str, float]:  # noqa: ARG002  # the protocol's
        """Renew the reference if a stage begins at `step`."""
        if step in self.steps:
            self.policies.begin(self.config, step)
        return {}

    def pace(self) -> dict[str, str]:
        """Return nothing to show."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the reference as it is."""
        return self.policies.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the reference of a checkpoint."""
        self.policies.restore(state)

    def finish(self, step: int) -> dict[str, Any]:  # noqa: ARG002  # the protocol's
        """Return nothing to add to run.json."""
        return {}
