"""What a launch by accelerate may ask for besides processes: the model's weights spread over them (FSDP2), and what does not go with that.

Nothing here imports torch: a launch is refused before a model loads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from diffalign.core.errors import ConfigError
from diffalign.core.processes import is_wanted, spreads_weights
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe

logger = logging.getLogger(__name__)
# Engines that are not trained with: the environment variable by which accelerate's launcher asks for each.
ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
SETTINGS = {"ACCELERATE_MIXED_PRECISION": "mixed_precision", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps"}
INSTEAD = "accelerate launch --use_fsdp --fsdp_version 2 ..."


def check_launch(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError for a launch that trains as diffalign does not; warn of settings of the launcher that the config overrules."""
    for variable, engine in ENGINES.items():
        if is_wanted(variable):
            raise ConfigError(
                f"accelerate's launcher asks for {engine}, which diffalign does not train with; what spreads a model's weights over "
                f"processes here is FSDP2: `{INSTEAD}`"
            )
    if spreads_weights():
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ConfigError(f"accelerate's launcher asks for FSDP 1, which PyTorch no longer develops; launch with FSDP2: `{INSTEAD}`")
        if (odd := next(_odd(config, recipe), None)) is not None:
            raise ConfigError(
                f"{odd}, which does not go with weights spread over processes (FSDP2); launch without --use_fsdp (`accelerate launch "
                "--multi_gpu ...`), where every process holds the whole model"
            )
    for variable, key in SETTINGS.items():
        value = os.environ.get(variable)
        if value and value != str(getattr(config, key)):
            logger.warning("accelerate's launcher says %s %s, and the config %s: the config counts", key, value, getattr(config, key))
    if spreads_weights() and is_wanted("FSDP_ACTIVATION_CHECKPOINTING") and not config.gradient_checkpointing:
        logger.warning(
            "accelerate's launcher says activation checkpointing, and the config gradient_checkpointing false: the config counts"
        )


def _odd(config: TrainConfig, recipe: Recipe) -> Iterator[str]:
    """Yield what a config asks for that FSDP2 cannot do, or that nobody has seen it do here.

    All processes must call the network equally often, or they wait for each other's shares for ever.
    """
    if recipe.kind in ("text", "reward"):
        yield "the model is a language model" if recipe.kind == "text" else "what is trained is a reward"
    if recipe.tuning not in ("lora", "dora", "full"):
        yield f"`train_method` is {recipe.tuning}"
    if config.full_bf16:
        yield "`full_bf16` is true"
    trajectory = next(iter(recipe.trajectory_spec))
    if trajectory != "forward":
        yield f"`trajectory` is {trajectory}: it asks the network as often as its records need, in each process otherwise"
    if config.prompts or config.generate:
        yield f"`{'prompts' if config.prompts else 'generate'}` draws data from the model in training"
    if ";" in (config.aspect_ratio_buckets or ""):
        yield "`aspect_ratio_buckets` make passes of one size each, of which each process has another number"
    if config.optimizer_name != "adamw":
        yield f"`optimizer` is {config.optimizer_name}, whose state is not kept in shares as AdamW's is"
    if config.mixed_precision == "fp16":
        yield "`mixed_precision` is fp16, which needs a scaler of the loss, and bf16 needs none"
    if config.reference == "old_policy":
        yield "`reference` is old_policy, a copy of the weights that moves in training"
    for key in (
        "quantization",
        "train_text_encoder",
        "anchor_dataset_name",
        "eval_prompts",
        "torch_compile",
        "channels_last",
        "sequential_candidates",
    ):
        if getattr(config, key):
            yield f"`{key}` is set"
    if is_wanted("FSDP_OFFLOAD_PARAMS"):
        yield "accelerate's launcher asks for fsdp_offload_params"
