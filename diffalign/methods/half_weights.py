"""What training weights in bfloat16 (`full_bf16`) does not go with. Nothing here imports torch."""

from __future__ import annotations

from diffalign.core.errors import ConfigError
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe


def check_full_bf16(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError where weights in bfloat16 are not all that is trained, or would have an average."""
    if not config.full_bf16:
        return
    if recipe.tuning != "full" or config.mixed_precision != "bf16":
        raise ConfigError("`full_bf16` is for train_method full with mixed_precision bf16; adapters stay in float32")
    if config.use_ema or recipe.driver == "ema":
        raise ConfigError("`full_bf16` has no moving average: in bfloat16 it would stand still; set use_ema false and another driver")
