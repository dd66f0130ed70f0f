"""What LoRA training of a model of published size takes by the dry run's own arithmetic: its config on the meta device, no file needed.

The parts around the denoiser are those of the family's small model, whose folder the arithmetic reads; what they hand over (latents,
prompts) has the published shapes. Counted is what lies on the device in a step: the encoders are not, since their outputs are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffalign.core.types import Condition
from diffalign.methods.builders import dry_run
from diffalign.methods.builders.meta_model import Outline, outline
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.folders import LAYOUTS
from tests.contracts.test_real_dimensions import CONFIGS
from tests.micro_models import write_micro

# Keys by which networks call the width of prompts, and that of pooled ones; of some, `cross_attention_dim` is another one.
WIDTHS = ("joint_attention_dim", "caption_channels", "cap_feat_dim", "text_embed_dim", "text_hidden_dim", "text_in_dim")
WIDTHS += ("encoder_hid_dim", "cross_attention_dim")
POOLED = ("pooled_projection_dim", "text_emb_dim")
PAIR = {"train_batch_size": 1, "mixed_precision": "bf16", "gradient_checkpointing": True, "method": "diffusion_dpo"}


def published_outline(family: str, model: str, latent: tuple[int, ...], work: Path, **options: Any) -> tuple[TrainConfig, Outline]:
    """Return config and outline of a family's model of CONFIGS, with LoRA on it; the folder of the small model is made in `work`."""
    _, kind, config = CONFIGS[model]
    component = next(layout.component for layout in LAYOUTS.values() if layout.family == family)
    folder = work / family
    place = (folder if folder.exists() else write_micro(family, folder)) / component / "config.json"
    with torch.device("meta"):
        network = kind(**config)
    own = TrainConfig(**PAIR | options, pretrained_model_name_or_path=str(folder), dataset_name="pairs")
    small = place.read_text()
    place.write_text(network.to_json_string())
    drawn = outline(own, recipe_of(own), torch.device("cuda"))
    place.write_text(small)
    own_methods, published = vars(drawn.model), partial(_published, config=network.config)
    own_methods["latent_shape"] = lambda *_: latent
    own_methods["encode_prompt"] = published(drawn.model.encode_prompt)
    if drawn.layout.picture != "none":
        own_methods["encode_edit"] = published(drawn.model.encode_edit)
    return own, drawn


def _published(encode: Callable[..., Condition], config: Mapping[str, Any]) -> Callable[..., Condition]:
    """Return an encoder of conditions whose parts have the published shapes."""
    return lambda *prompts: {name: torch.ones(shape_of(name, value.shape, config)) for name, value in encode(*prompts).items()}


def shape_of(name: str, shape: torch.Size, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the published shape of a part of a condition, by the small model's: the same tokens, and the network's width."""
    if name.endswith("mask"):
        return tuple(shape)
    if name.startswith("pooled"):
        added = config.get("projection_class_embeddings_input_dim")  # of SDXL, which has six numbers of the frame in it, too
        pooled = (config[key] for key in POOLED if config.get(key))
        return *shape[:-1], next(pooled, None) or added - 6 * config["addition_time_embed_dim"]
    width = next(config[key] for key in WIDTHS if config.get(key))
    width = width[0] if isinstance(width, list | tuple) else width  # of HiDream, whose encoders are of one width
    if name.endswith("llama3"):  # the layers of the language model, of which each block reads one
        return shape[0], max(config["llama_layers"]) + 1, *shape[2:-1], width
    layers = (config["num_text_layers"],) if len(shape) == 4 else ()  # which Krea 2 reads together
    return *shape[:2], *layers, width


def lora_bytes(family: str, model: str, latent: tuple[int, ...], work: Path, quantization: str | None = None) -> float:
    """Return the bytes of a LoRA step by PAIR on latents of one shape, on a frozen base as it is or quantised."""
    own, drawn = published_outline(family, model, latent, work, quantization=quantization)
    return sum(size for _, size in dry_run.memory(own, recipe_of(own), drawn))
