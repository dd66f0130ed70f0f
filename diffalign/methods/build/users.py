"""Makes training personal: evidence of each record's user, the encoder that reads it, and the user branch on the denoiser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.backbones.base import Backbone
from diffalign.conditioning import branch
from diffalign.conditioning.evidence import (
    ChoicesEvidence,
    IndexEvidence,
    StatesEvidence,
    VectorEvidence,
    contents,
    read_profiles,
    read_vectors,
)
from diffalign.conditioning.features import clip_width, features
from diffalign.conditioning.fit import fit
from diffalign.conditioning.settings import USER_ENCODERS, PairsSettings, ProfileSettings, Settings, VectorSettings, VlmSettings
from diffalign.conditioning.users import PairsEncoder, Sizes, UserEncoder, make
from diffalign.conditioning.vlm import VlmStates, vlm_sizes
from diffalign.config import TrainConfig
from diffalign.data.users import Users
from diffalign.data.view import View
from diffalign.errors import ConfigError
from diffalign.specs import bind

logger = logging.getLogger(__name__)
UserEvidence = ChoicesEvidence | StatesEvidence | IndexEvidence | VectorEvidence


def encoder_settings(spec: Any) -> Settings:
    """Return the settings that a `user_encoder` spec means."""
    return bind("user_encoder", USER_ENCODERS, spec)()


def attach(config: TrainConfig, model: Backbone, known: UserEvidence | Sizes) -> UserEncoder:
    """Put a new user branch and its encoder on a denoiser, and make these two all that is trained; return the encoder.

    With the evidence itself, not its sizes alone, an encoder of pairs is fitted to it.
    """
    torch.manual_seed(config.seed)
    encoder = make(encoder_settings(config.users or ""), known if isinstance(known, Sizes) else known.sizes)
    if isinstance(known, ChoicesEvidence) and isinstance(encoder, PairsEncoder):
        fit(encoder, known, encoder.known, config.seed)
    return equip(model.denoiser, encoder, seed=config.seed)


def equip(denoiser: Any, encoder: UserEncoder, state: branch.State | None = None, *, seed: int = 0) -> UserEncoder:
    """Put an encoder and a user branch, a new one without `state`, on a denoiser, and return the encoder."""
    branch.attach(denoiser, encoder.width, state, seed=seed)
    denoiser.user_encoder = encoder.to(denoiser.device)
    return encoder


def evidence(config: TrainConfig, model: Backbone, view: View, users: Users, root: Path) -> UserEvidence:
    """Return what is known of the training users, computed now or read from the caches under `root`."""
    known = encoder_settings(config.users or "")
    if isinstance(known, PairsSettings):
        return ChoicesEvidence(view, users, features(known.features, model, device=_device(model)), known, root)
    if isinstance(known, VlmSettings):
        states = VlmStates(known.model, known.revision, device=_device(model), max_new_tokens=known.max_new_tokens)
        return StatesEvidence(view, users, states, known, root)
    if isinstance(known, ProfileSettings):
        return VectorEvidence(users, read_texts(model, read_profiles(known.profiles, users.names)), contents(known.profiles))
    if isinstance(known, VectorSettings):
        return VectorEvidence(users, read_vectors(known.vectors, users.names), contents(known.vectors))
    return IndexEvidence(users)


def read_texts(model: Backbone, texts: list[str]) -> Tensor:
    """Return the mean over the tokens of each text, without padding, (N, F), by the model's own text encoders; log texts that are cut."""
    condition = model.encode_prompt(texts)
    words = condition["prompt_embeds"].float().cpu()
    own = _words(model.pipeline(whole=False), texts, words.shape[1])
    mask = condition.get("prompt_attention_mask", own).to(words)[..., None]
    return (words * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)


def _words(pipe: Any, texts: list[str], length: int) -> Tensor:
    """Return which of the positions of prompt embeddings (N, length) hold tokens of the texts."""
    own = [part for name, part in sorted(pipe.components.items()) if name.startswith("tokenizer") and part is not None]
    if "tokenizer_3" not in pipe.components:  # the last one is whose tokens are attended to, of one or two
        return _mask(own[-1], texts, length)
    t5, clips = pipe.tokenizer_3, [part for part in (pipe.tokenizer, pipe.tokenizer_2) if part is not None]
    head = min(clips[0].model_max_length if clips else 77, length)  # CLIPs side by side, T5 behind them
    masks = [
        _mask(part, texts, size) if part else torch.zeros(len(texts), size)
        for part, size in ((clips and clips[0], head), (t5, length - head))
    ]
    return torch.cat(masks, dim=1)


def _mask(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    """Return the attention mask (N, length) of texts, cut to their first tokens, which is logged."""
    if cut := sum(len(tokens) > length for tokens in tokenizer(texts, truncation=False, verbose=False).input_ids):
        logger.warning(
            "%d of %d texts about users are longer than the %d tokens that the text encoder reads of each", cut, len(texts), length
        )
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").attention_mask


def expected_sizes(config: TrainConfig, model: Backbone, users: tuple[str, ...]) -> Sizes:
    """Return the sizes of the encoder, from config files alone. Raises ConfigError where only the evidence itself can tell."""
    known = encoder_settings(config.users or "")
    if isinstance(known, PairsSettings) and known.features == "latents":
        channels, height, width = model.latent_shape(model.resolution, model.resolution)
        return Sizes(users, channels * min(8, height) * min(8, width))
    if isinstance(known, PairsSettings):
        return Sizes(users, clip_width(known.features))
    if isinstance(known, VlmSettings):
        rows, width = vlm_sizes(known.model, known.revision)
        return Sizes(users, width, rows)
    if isinstance(known, ProfileSettings | VectorSettings):
        raise ConfigError(f"`user_encoder` {config.users}: its size is that of what is known of users, which --dry_run does not read")
    return Sizes(users)


def encoder_of(model: Backbone) -> UserEncoder:
    """Return the user encoder on a model's denoiser."""
    found: Any = model.denoiser
    return found.user_encoder


def _device(model: Backbone) -> torch.device:
    return next(model.denoiser.parameters()).device
