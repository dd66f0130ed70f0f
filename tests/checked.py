"""Configs whose keys have been checked, as every entry point does first."""

from diffalign.methods.checks import check_keys
from diffalign.methods.config import TrainConfig


def checked(config: TrainConfig) -> TrainConfig:
    """Return the config, or raise what its keys deserve."""
    check_keys(config)
    return config
