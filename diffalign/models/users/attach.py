"""Puts a user branch and its encoder on a denoiser, and reads texts about users."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffalign.core.types import Condition
from diffalign.models.users import branch
from diffalign.models.users.encoders import UserEncoder

logger = logging.getLogger(__name__)


class TextReader(Protocol):
    """The half of a backbone that reads texts."""

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return what the denoiser is told about each prompt."""
        ...

    def pipeline(self, *, whole: bool = True) -> Any:
        """Return the stock pipeline, whose tokenizers tell how long a text is."""
        ...


def equip(denoiser: Any, encoder: UserEncoder, state: branch.State | None = None, *, seed: int = 0) -> UserEncoder:
    """Put an encoder and a user branch, a new one without `state`, on a denoiser, and return the encoder."""
    branch.attach(denoiser, encoder.width, state, seed=seed)
    denoiser.user_encoder = encoder.to(denoiser.device)
    return encoder


def read_texts(model: TextReader, texts: list[str]) -> Tensor:
    """Return the mean over the tokens of each text, without padding, (N, F), by the model's own text encoders; log texts that are cut."""
    condition = model.encode_prompt(texts)
    words = condition["prompt_embeds"].float().cpu()
    own = _words(model.pipeline(whole=False), texts, words.shape[1])
    mask = condition.get("prompt_attention_mask", own).to(words)[..., None]
    return (words * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)


def _words(pipe: Any, texts: list[str], length: int) -> Tensor:
    """Return which of the positions of prompt embeddings (N, length) hold tokens of the texts."""
    own = [part for name, part in sorted(pipe.components.items()) if name.startswith("tokenizer") and part is not None]
    if "tokenizer_3" not in pipe.components:  # of one or two tokenizers, the last one's tokens are attended to
        return _mask(own[-1], texts, length)
    t5, clips = pipe.tokenizer_3, [part for part in (pipe.tokenizer, pipe.tokenizer_2) if part is not None]
    head = min(clips[0].model_max_length if clips else 77, length)  # CLIPs side by side, T5 behind them
    masks = [
        _mask(part, texts, size) if part else torch.zeros(len(texts), size)
        for part, size in ((clips and clips[0], head), (t5, length - head))
    ]
    return torch.cat(masks, dim=1)


def _mask(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    """Return the attention mask (N, length) of texts; longer ones are cut at their end, and the log says how many."""
    if cut := sum(len(tokens) > length for tokens in tokenizer(texts, truncation=False, verbose=False).input_ids):
        logger.warning(
            "%d of %d texts about users are longer than the %d tokens that the text encoder reads of each", cut, len(texts), length
        )
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").attention_mask


def encoder_of(denoiser: Any) -> UserEncoder:
    """Return the user encoder on a denoiser."""
    return denoiser.user_encoder
