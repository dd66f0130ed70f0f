"""The copies of what is trained that turns move: the old policy, which is the reference, and the network that drew a turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffalign.core.types import Reference
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import old_policy_decay
from diffalign.models.reference import Several, Start


@dataclass(frozen=True, slots=True)
class Policies:
    """Each is None where nothing is compared with it; the second also where it is the reference itself."""

    old: Start | None = None
    drew: Start | None = None

    @classmethod
    def of(cls, config: TrainConfig, compared: Reference) -> Policies:
        """Return the copies among what the policy is compared with."""
        several = compared if isinstance(compared, Several) else Several(compared)
        old = several.reference if config.reference == "old_policy" else None
        drew = None if several.old is several.reference else several.old
        return cls(*(copy if isinstance(copy, Start) else None for copy in (old, drew)))

    def begin(self, config: TrainConfig, step: int) -> None:
        """Let the old policy follow the policy, as a turn begins at `step`."""
        if self.old is not None and step:
            self.old.follow(old_policy_decay(config.old_policy_decay, step))

    def draw(self) -> None:
        """Copy the network as it stands, which draws a turn."""
        if self.drew is not None:
            self.drew.follow(0.0)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: [value.cpu() for value in copy.values] for name, copy in self._copies().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint; one of an earlier version may lack the network that drew."""
        for name, copy in self._copies().items():
            for value, kept in zip(copy.values, state.get(name) or copy.values, strict=True):
                value.copy_(kept)

    def _copies(self) -> dict[str, Start]:
        return {name: copy for name, copy in (("old", self.old), ("drew", self.drew)) if copy is not None}
