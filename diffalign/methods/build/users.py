"""Makes training personal: evidence of each record's user, the encoder that reads it, and the user branch on the denoiser."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from diffalign.core.errors import ConfigError
from diffalign.data.users import Users
from diffalign.data.view import View
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.base import Backbone
from diffalign.models.features import clip_width, features
from diffalign.models.users.attach import encoder_settings, equip, read_texts
from diffalign.models.users.encoders import PairsEncoder, Sizes, UserEncoder, make
from diffalign.models.users.evidence import (
    ChoicesEvidence,
    IndexEvidence,
    StatesEvidence,
    VectorEvidence,
    contents,
    read_profiles,
    read_vectors,
)
from diffalign.models.users.pretrain import fit
from diffalign.models.users.settings import PairsSettings, ProfileSettings, VectorSettings, VlmSettings
from diffalign.models.users.vlm import VlmStates, vlm_sizes

logger = logging.getLogger(__name__)
UserEvidence = ChoicesEvidence | StatesEvidence | IndexEvidence | VectorEvidence


def attach(config: TrainConfig, model: Backbone, known: UserEvidence | Sizes) -> UserEncoder:
    """Put a new user branch and its encoder on a denoiser, and make these two all that is trained; return the encoder.

    With the evidence itself, not its sizes alone, an encoder of pairs is fitted to it.
    """
    torch.manual_seed(config.seed)
    encoder = make(encoder_settings(config.users or ""), known if isinstance(known, Sizes) else known.sizes)
    if isinstance(known, ChoicesEvidence) and isinstance(encoder, PairsEncoder):
        fit(encoder, known, encoder.known, config.seed)
    return equip(model.denoiser, encoder, seed=config.seed)


def evidence(config: TrainConfig, model: Backbone, view: View, users: Users, root: Path) -> UserEvidence:
    """Return what is known of the training users, computed now or read from the caches under `root`."""
    device = next(model.denoiser.parameters()).device
    known = encoder_settings(config.users or "")
    if isinstance(known, PairsSettings):
        return ChoicesEvidence(view, users, features(known.features, model, device=device), known, root)
    if isinstance(known, VlmSettings):
        states = VlmStates(known.model, known.revision, device=device, max_new_tokens=known.max_new_tokens)
        return StatesEvidence(view, users, states, known, root)
    if isinstance(known, ProfileSettings):
        return VectorEvidence(users, read_texts(model, read_profiles(known.profiles, users.names)), contents(known.profiles))
    if isinstance(known, VectorSettings):
        return VectorEvidence(users, read_vectors(known.vectors, users.names), contents(known.vectors))
    return IndexEvidence(users)


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
