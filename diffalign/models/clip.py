"""A CLIP of transformers in a folder or on the hub, frozen: the whole one, or its image half alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection, PretrainedConfig

from diffalign.core.errors import CheckpointError
from diffalign.models.weights import UNREADABLE, whole

CLASSES: dict[str, Any] = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
# image: the image half, also of a whole CLIP; both: a whole one; either: whatever the files are of.
Halves = Literal["image", "both", "either"]


@dataclass(frozen=True, slots=True)
class Clip:
    """The network, and how its embeddings are asked for."""

    network: Any
    device: torch.device

    @classmethod
    def load(cls, name: str, revision: str | None, device: torch.device | str, halves: Halves, *, dtype: torch.dtype | None = None) -> Clip:
        """Return the CLIP `name`; `dtype` is that of its files where None. Raises CheckpointError for one that does not load."""
        try:
            if halves == "either":
                kind = CLASSES[config_of(name, revision).model_type]
            else:
                kind = CLIPVisionModelWithProjection if halves == "image" else CLIPModel
            network = whole(kind, name, revision, **({} if dtype is None else {"dtype": dtype}))
        except UNREADABLE as error:
            raise CheckpointError(f"{name}: no CLIP can be loaded from here: {error}") from error
        return cls(network.to(device).requires_grad_(False).eval(), torch.device(device))

    @property
    def reads_text(self) -> bool:
        """Return whether it has both halves."""
        return isinstance(self.network, CLIPModel)

    @property
    def max_tokens(self) -> int:
        """Return how many tokens the text half reads."""
        return int(self.network.config.text_config.max_position_embeddings)

    def images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (N, D) of pixels (N, 3, h, w) as its image processor makes them."""
        if not self.reads_text:
            return self.network(pixel_values=pixels).image_embeds
        return _embeddings(self.network.get_image_features(pixel_values=pixels))

    def texts(self, tokenizer: Any, texts: Sequence[str], *, padding: bool | str = True) -> Tensor:
        """Return the embeddings (N, D) of texts, cut to `max_tokens`."""
        rules: dict[str, Any] = {"padding": padding, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens = tokenizer(list(texts), **rules)
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return _embeddings(self.network.get_text_features(**inputs))


def load_tokenizer(name: str, revision: str | None) -> Any:
    """Return the tokenizer of a CLIP. Raises CheckpointError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except UNREADABLE as error:
        raise CheckpointError(f"{name}: the CLIP's tokenizer cannot be loaded: {error}") from error


def config_of(name: str, revision: str | None) -> Any:
    """Return the config of a CLIP. Raises CheckpointError for a model of another type; transformers' own errors, UNREADABLE, pass."""
    facts, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    if (kind := facts.get("model_type")) not in CLASSES:
        raise CheckpointError(f"{name}: a model of type `{kind}`; features come from a CLIP ({', '.join(CLASSES)})")
    return CLASSES[kind].config_class.from_dict(facts)


def _embeddings(output: Any) -> Tensor:
    """Return the embeddings in what transformers gives: 4 gave the tensor itself, 5 an output around it."""
    return output if isinstance(output, Tensor) else output.pooler_output
