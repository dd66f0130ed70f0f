"""Watches a run: skips steps that would destroy it, stops when they do not end, and warns where the loss looks fine and is not."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffalign.core.errors import TrainingError

logger = logging.getLogger(__name__)
WINDOW, LEAST = 64, 16  # losses in the running median; how many before a spike can be told
DISPLACED_STEPS = 50
LEAST_ACTIVE = 0.05  # share of a posterior's dimensions
MOST_OVERFLOWS = 30  # the scale of fp16 halves at each: from 65536 to nothing


@dataclass(slots=True)
class Guard:
    """State of the watch; `state()` and `restore()` carry it through checkpoints."""

    max_bad_steps: int
    spike_factor: float
    recent: list[float] = field(default_factory=list)
    initial: float | None = None  # the usual loss of the first steps
    bad_in_a_row: int = 0
    skipped: int = 0
    displaced: int = 0
    overflows: int = 0
    collapsed: int = 0

    def allows(self, loss: float, grad_norm: float, step: int) -> bool:
        """Return whether the step may be taken. Raises TrainingError after `max_bad_steps` bad ones in a row."""
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self.bad_in_a_row = 0
            self.recent = [*self.recent, loss][-WINDOW:]
            if len(self.recent) == LEAST and self.initial is None:
                self.initial = statistics.median(self.recent)
            return True
        self.bad_in_a_row += 1
        self.skipped += 1
        logger.warning("step %d skipped: %s", step, reason)
        if self.bad_in_a_row >= self.max_bad_steps:
            raise TrainingError(
                f"step {step}: {self.bad_in_a_row} bad steps in a row, the last one: {reason}. The last checkpoint is whole: go on "
                "from it with --resume_from_checkpoint latest and a lower --learning_rate. A larger beta, or mixed_precision bf16 rather "
                "than fp16, needs a new output_dir."
            )
        return False

    def _reason(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return f"loss {loss}, gradient norm {grad_norm}: not finite"
        if self.spike_factor and len(self.recent) >= LEAST:
            # Not below where the run began: late in training the median is tiny, and an ordinary hard batch is many times it.
            usual = max(statistics.median(self.recent), self.initial or 0.0)
            # A multiple says nothing where the usual loss is zero (a hinge that is won) or below (a likelihood).
            if usual > 0 and loss > self.spike_factor * usual:
                return f"loss {loss:.4g} is above {self.spike_factor:g} times the usual {usual:.4g}"
        return None

    def watch_overflow(self, skipped: bool, step: int) -> None:
        """Count steps that the fp16 scaler skipped. A few are its search for a scale; raises TrainingError when they do not end."""
        self.overflows = self.overflows + 1 if skipped else 0
        if self.overflows >= MOST_OVERFLOWS:
            raise TrainingError(f"step {step}: {self.overflows} steps in a row overflowed in fp16; use mixed_precision bf16 or no")

    def watch(self, facts: Mapping[str, float], step: int) -> None:
        """Look at the scalars of a step for what its loss does not show."""
        if "log_ratio/chosen" in facts:
            self.watch_displacement(facts["log_ratio/chosen"], step)
        if "user/active" in facts:
            self.watch_posterior(facts["user/active"], step)

    def watch_displacement(self, chosen_log_ratio: float, step: int) -> bool:
        """Return whether the preferred candidates have been explained worse than by the reference for 50 more steps; warns then."""
        self.displaced = self.displaced + 1 if chosen_log_ratio < 0 else 0
        if self.displaced == 0 or self.displaced % DISPLACED_STEPS:
            return False
        logger.warning(
            "step %d: for %d steps the PREFERRED candidates have been less likely than under the reference (log_ratio/chosen %.3g). "
            "The loss may fall and the accuracy rise all the same. Look at what the validation prompts give; a lower learning_rate, a "
            "larger beta or fewer steps helps.",
            step,
            self.displaced,
            chosen_log_ratio,
        )
        return True

    def watch_posterior(self, active: float, step: int) -> bool:
        """Return whether a variational user encoder has said the same of all users for 50 more steps (posterior collapse); warns then."""
        self.collapsed = self.collapsed + 1 if active < LEAST_ACTIVE else 0
        if self.collapsed == 0 or self.collapsed % DISPLACED_STEPS:
            return False
        logger.warning(
            "step %d: for %d steps %.0f %% of the user encoder's dimensions have told users apart: the posterior has collapsed to the "
            "prior, and pictures will not be personal. Lower kl_weight, or set variational to false.",
            step,
            self.collapsed,
            100 * active,
        )
        return True

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("recent", "initial", "bad_in_a_row", "skipped", "displaced", "collapsed")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
