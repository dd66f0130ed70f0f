"""Makes training personal: evidence of each record's user, the encoder that reads it, and the user branch on the denoiser."""

from __future__ import annotations

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
from diffalign.data.batch import Pairs
from diffalign.data.users import UserPairs, Users
from diffalign.data.view import View
from diffalign.errors import ConfigError
from diffalign.specs import bind

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
    """Return the mean word of each text, (N, F), by the model's own text encoder."""
    condition = model.encode_prompt(texts)
    return condition["prompt_embeds"].float().mean(dim=1).cpu()


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


def user_pairs(config: TrainConfig, pairs: Pairs, users: Users, known: UserEvidence) -> UserPairs:
    """Return the training data with its users' evidence."""
    return UserPairs(pairs, users, known, config.user_dropout)
