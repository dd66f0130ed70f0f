"""Checks of `rationale_weight`, with which a language model learns why one answer was preferred. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError
from diffalign.core.keys import require

if TYPE_CHECKING:
    from diffalign.methods.config import TrainConfig
    from diffalign.objectives import Facts


def check_rationales(config: TrainConfig, facts: Facts, likelihood: str) -> None:
    """Raise ConfigError where the other parts have no room for rationales; `facts` are those of the objective."""
    if config.rationale_weight is None:
        return
    if facts.mismatched:
        raise ConfigError("`rationale_weight` goes with objectives of pairs, and kto reads answers to other prompts; leave one out")
    require("likelihood", likelihood, lambda v: v != "joint", "sum, mean or ld_dpo: joint would train what is asked about a pair, too")
    if config.prompts:
        raise ConfigError("`rationale_weight` is of a dataset with a column `rationale`, which `prompts` have not; leave it out")
