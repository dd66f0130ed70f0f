"""ImageReward (2304.05977): BLIP large, whose text half reads the image, and a linear head on its first state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from diffalign.core.errors import CheckpointError
from diffalign.models.weights import UNREADABLE
from diffalign.rewards.scorers.clip import linear_head
from diffalign.rewards.scorers.frame import Frame
from diffalign.rewards.scorers.network import Network, fill, frozen, read_weights

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the training pairs' scores, in the authors' code
LONGEST = 35  # tokens
HEAD = 64  # numbers of an attention head, in both halves
# The authors' names of the vision half, and those of transformers.
VISION = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def imagereward(
    *,
    model: str = "zai-org/ImageReward",
    tokenizer: str = "google-bert/bert-base-uncased",
    revision: str | None = None,
    device: str = "cpu",
) -> Network:
    """Return ImageReward: standard deviations above the mean image of its training.

    `model` is a file, or a folder or hub id with ImageReward.pt; the sizes of the network are those of the weights, in heads of 64.
    Raises CheckpointError if it is missing or another model's.
    """
    weights = {key: value.float() for key, value in read_weights(model, "ImageReward.pt", revision).items()}
    vision, text, head = _parts(weights, model)
    for part in (vision, text, head):
        frozen(part, device)
    words = _tokenizer(tokenizer)

    def formula(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = vision(pixel_values=pixels).last_hidden_state
        read = words(list(prompts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt").to(device)
        states = text(read["input_ids"], attention_mask=read["attention_mask"], encoder_hidden_states=seen).last_hidden_state
        return (head(states[:, 0]).squeeze(-1) - MEAN) / STD

    scale = "standard deviations above the mean image of its training, usually -2 to 2; compares images of one prompt"
    frame = Frame(int(vision.config.image_size), "round")
    return Network("imagereward", scale, "Apache-2.0", LONGEST, revision, frame, formula, device, "standard deviations")


def _tokenizer(name: str) -> Any:
    """Return BERT's tokenizer with the two words that BLIP adds to it."""
    try:
        words = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: no tokenizer can be loaded from here: {error}") from error
    words.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return words


def _parts(weights: dict[str, Tensor], name: str) -> tuple[Any, Any, Any]:
    """Return the vision half, the text half and the head, of the sizes that the weights have and filled with them."""
    seen, read, head = (_below(weights, prefix) for prefix in ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."))
    try:
        width, _, patch, _ = seen["patch_embed.proj.weight"].shape
        places, (vocabulary, hidden) = seen["pos_embed"].shape[1], read["embeddings.word_embeddings.weight"].shape
        vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width,
                intermediate_size=len(seen["blocks.0.mlp.fc1.bias"]),
                num_hidden_layers=_layers(seen, "blocks."),
                num_attention_heads=width // HEAD,
                image_size=patch * math.isqrt(places - 1),
                patch_size=patch,
                layer_norm_eps=1e-6,
            )
        )
        text = BlipTextModel(
            BlipTextConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                encoder_hidden_size=width,
                intermediate_size=len(read["encoder.layer.0.intermediate.dense.bias"]),
                num_hidden_layers=_layers(read, "encoder.layer."),
                num_attention_heads=hidden // HEAD,
                max_position_embeddings=len(read["embeddings.position_embeddings.weight"]),
            ),
            add_pooling_layer=False,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{name}: not the weights of ImageReward ({error} is missing)") from error
    predictor = linear_head(hidden)
    fill(vision, {_renamed(key): value for key, value in seen.items()}, name)
    fill(text, read, name, unused=("embeddings.position_ids",))
    fill(predictor, head, name)
    return vision, text, predictor


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _layers(weights: dict[str, Tensor], prefix: str) -> int:
    """Return how many numbered layers there are below `prefix`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def _renamed(key: str) -> str:
    """Return a key of the vision half as transformers names it.

    >>> _renamed("blocks.3.attn.proj.bias"), _renamed("norm.weight")
    ('encoder.layers.3.self_attn.projection.bias', 'post_layernorm.weight')
    """
    for old, new in VISION:
        key = key.replace(old, new)
    return key.replace("norm.", "post_layernorm.") if key.startswith("norm.") else key
