"""A language model as it would be trained, from its config file alone; no weight is loaded."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from diffalign.core.errors import CheckpointError
from diffalign.methods.builders import text as builder
from diffalign.methods.builders.common import DTYPES
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models.adapters import trainable
from diffalign.models.backbones.folders import resolve
from diffalign.models.backbones.hub import cache_only
from diffalign.models.backbones.mistaken import CONFIG
from diffalign.models.text.network import LanguageModel
from diffalign.models.weights import UNREADABLE

NOTE = """Left out: activations, which grow with the tokens of a batch (gradient_checkpointing keeps a layer's inputs alone), and working
memory. The reference adds nothing: its log-probabilities are computed before training, or an adapter is switched off for it."""


def outline(config: TrainConfig, recipe: Recipe) -> LanguageModel:
    """Return the model that would be trained, without numbers and adapter. Raises CheckpointError for what is no causal language model."""
    name = config.pretrained_model_name_or_path
    offline = cache_only(name, CONFIG, config.revision)
    try:
        model_config = AutoConfig.from_pretrained(resolve(name), revision=config.revision, local_files_only=offline)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(
                model_config, dtype=DTYPES["no" if recipe.tuning == "full" else config.mixed_precision]
            )
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no causal language model of transformers ({error})") from error
    return LanguageModel(network.requires_grad_(False), None, name, DTYPES[config.mixed_precision])


def described(config: TrainConfig, recipe: Recipe) -> tuple[LanguageModel, list[tuple[str, str]]]:
    """Return the model and what is trained, as rows."""
    builder.aggregation(config)
    model = outline(config, recipe)
    layers = ", ".join(config.lora_layers or model.lora_targets)
    builder.equip(config, recipe, model)
    trained, total = (sum(p.numel() for p in parameters) for parameters in (trainable(model.network), model.network.parameters()))
    base = total if recipe.tuning == "full" else total - trained
    how = "all weights" if recipe.tuning == "full" else f"{recipe.tuning} of rank {config.rank} on {layers}"
    return model, [
        ("model", f"{config.pretrained_model_name_or_path} ({type(model.network).__name__})"),
        ("parameters", f"{base:,}"),
        ("trained", f"{trained:,} ({100 * trained / base:.3g} %): {how}"),
        ("texts", f"up to {config.max_length} tokens of prompt and completion ({config.truncation_mode})"),
    ]
