"""What a launch by accelerate asks for besides processes, and what of it is not done here."""

from __future__ import annotations

import logging
import os

from diffalign.core.errors import ConfigError
from diffalign.methods.config import TrainConfig

logger = logging.getLogger(__name__)
# Engines that shard a model: the environment variable by which accelerate's launcher asks for each.
ENGINES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
SETTINGS = {"ACCELERATE_MIXED_PRECISION": "mixed_precision", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps"}


def refuse_engines(config: TrainConfig) -> None:
    """Raise ConfigError for a launch that shards the model; warn of settings of the launcher that the config overrules."""
    for variable, engine in ENGINES.items():
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"accelerate's launcher asks for {engine}, which diffalign does not train with: every process holds the whole model. "
                "Launch without it (`accelerate launch --multi_gpu ...`), and save memory with train_method lora, quantization and "
                "gradient_checkpointing"
            )
    for variable, key in SETTINGS.items():
        value = os.environ.get(variable)
        if value and value != str(getattr(config, key)):
            logger.warning("accelerate's launcher says %s %s, and the config %s: the config counts", key, value, getattr(config, key))
