"""Makes training personal: evidence of each record's user, the encoder that reads it, and the user branch on the denoiser."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from diffalign.core.errors import ConfigError
from diffalign.data.users import Users
from diffalign.data.view import View
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models.backbones.base import Backbone
from diffalign.models.features import clip_width, features
from diffalign.models.users.attach import equip, read_texts
from diffalign.models.users.encoders import PairsEncoder, Sizes, SliderEncoder, UserEncoder, make
from diffalign.models.users.evidence import (
    ChoicesEvidence,
    IndexEvidence,
    SliderEvidence,
    StatesEvidence,
    VectorEvidence,
    contents,
    read_profiles,
    read_vectors,
)
from diffalign.models.users.pretrain import fit
from diffalign.models.users.settings import (
    PairsSettings,
    ProfileSettings,
    SliderSettings,
    UserEncoderSettings,
    VectorSettings,
    VlmSettings,
)
from diffalign.models.users.vlm import VlmStates, vlm_sizes

logger = logging.getLogger(__name__)
UserEvidence = ChoicesEvidence | StatesEvidence | IndexEvidence | VectorEvidence | SliderEvidence


def encoder_settings(recipe: Recipe) -> UserEncoderSettings:
    """Return the settings of the recipe's user encoder. Raises ValueError where users are not told apart."""
    if recipe.users is None:
        raise ValueError("this recipe tells no users apart")
    return recipe.users()


def attach(config: TrainConfig, recipe: Recipe, model: Backbone, evidence: UserEvidence | Sizes) -> UserEncoder:
    """Put a new user branch and its encoder on a denoiser, and make these two all that is trained; return the encoder.

    With the evidence itself, not its sizes alone, an encoder of pairs is fitted to it, and one of sliders has the quantiles of its scores.
    """
    torch.manual_seed(config.seed)
    encoder = make(encoder_settings(recipe), evidence if isinstance(evidence, Sizes) else evidence.sizes)
    if isinstance(evidence, ChoicesEvidence) and isinstance(encoder, PairsEncoder):
        fit(encoder, evidence, encoder.known, config.seed)
    if isinstance(evidence, SliderEvidence) and isinstance(encoder, SliderEncoder):
        encoder.quantiles.copy_(evidence.quantiles)
    return equip(model.denoiser, encoder, seed=config.seed)


def evidence(recipe: Recipe, model: Backbone, view: View, users: Users | None, root: Path) -> UserEvidence:
    """Return what is known of the training users (None: of the pictures), computed now or read from the caches under `root`."""
    device = next(model.denoiser.parameters()).device
    settings = encoder_settings(recipe)
    if users is None:
        assert isinstance(settings, SliderSettings)  # all others are of users
        return SliderEvidence(view, settings)
    if isinstance(settings, PairsSettings):
        return ChoicesEvidence(view, users, features(settings.features, model, device=device), settings, root)
    if isinstance(settings, VlmSettings):
        states = VlmStates(settings.model, settings.revision, device=device, max_new_tokens=settings.max_new_tokens)
        return StatesEvidence(view, users, states, settings, root)
    if isinstance(settings, ProfileSettings):
        return VectorEvidence(users, read_texts(model, read_profiles(settings.profiles, users.names)), contents(settings.profiles))
    if isinstance(settings, VectorSettings):
        return VectorEvidence(users, read_vectors(settings.vectors, users.names), contents(settings.vectors))
    return IndexEvidence(users)


def expected_sizes(recipe: Recipe, model: Backbone, users: tuple[str, ...]) -> Sizes:
    """Return the sizes of the encoder, from config files alone. Raises ConfigError where only the evidence itself can tell."""
    settings = encoder_settings(recipe)
    if isinstance(settings, PairsSettings) and settings.features == "latents":
        channels, height, width = model.latent_shape(model.resolution, model.resolution)
        return Sizes(users, channels * min(8, height) * min(8, width))
    if isinstance(settings, PairsSettings):
        return Sizes(users, clip_width(settings.features))
    if isinstance(settings, SliderSettings):
        return Sizes()
    if isinstance(settings, VlmSettings):
        rows, width = vlm_sizes(settings.model, settings.revision)
        return Sizes(users, width, rows)
    if isinstance(settings, ProfileSettings | VectorSettings):
        spec = recipe.users and recipe.users.spec
        raise ConfigError(f"`user_encoder` {spec}: its size is that of what is known of users, which --dry_run does not read")
    return Sizes(users)
