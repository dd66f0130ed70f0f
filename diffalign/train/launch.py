"""The accelerator of a run, and what a launch by accelerate asks for besides processes and is not done here."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration

from diffalign.core.errors import ConfigError
from diffalign.methods.config import TrainConfig
from diffalign.methods.packages import trackers_of
from diffalign.train.overoptimisation import Watch

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


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return the accelerator of a run. Raises ConfigError for what a run cannot have, before a model loads."""
    torch.set_flush_denormal(True)
    AcceleratorState._reset_state()  # else a second run in one process could not choose another precision
    refuse_engines(config)
    Watch.of(config)  # refuses prompts and judges before a model loads
    trackers: Any = trackers_of(config) or None  # of an empty list accelerate warns; its annotation leaves lists out
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        # The passes of a step are ours; accelerate's own accumulation, which its launcher may ask for, would divide the gradient again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],  # or each gradient would be there twice
        log_with=trackers,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / "logs")),
    )
    if accelerator.is_main_process:
        logger.info("model %s on %s", config.pretrained_model_name_or_path, accelerator.device)
    return accelerator
