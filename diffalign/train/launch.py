"""The accelerator of a run."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration, patch_environment
from torch import nn

from diffalign.core.errors import ConfigError
from diffalign.core.processes import spreads_weights
from diffalign.methods.config import TrainConfig
from diffalign.methods.packages import trackers_of
from diffalign.models.sharded import is_sharded
from diffalign.train.overoptimisation import Watch

logger = logging.getLogger(__name__)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return the accelerator of a run. Raises ConfigError for what a run cannot have, before a model loads."""
    torch.set_flush_denormal(True)
    AcceleratorState._reset_state()  # else a second run in one process could not choose another precision
    Watch.of(config)  # refuses prompts and judges before a model loads
    trackers: Any = trackers_of(config) or None  # of an empty list accelerate warns; its annotation leaves lists out
    # Weights are spread when the model is built (`models.sharded`). accelerate, told of it, would do that a second time, and never on a
    # CPU; and transformers would leave the encoders of all processes but one empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with patch_environment(ACCELERATE_USE_FSDP="false"):
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


def prepared(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Return network and optimiser ready for the processes of a launch; one that is spread over them is, when it is built.

    Raises ConfigError where it should be spread and is not.
    """
    if is_sharded(network):
        return network, accelerator.prepare_optimizer(optimizer)
    if spreads_weights():
        raise ConfigError(f"accelerate's launcher asks for FSDP, and a {type(network).__name__} is not spread over processes here")
    return accelerator.prepare(network, optimizer)
