"""A personalised run in use: the stock pipeline with its user branch, and the encoder that turns a user's choices into tokens."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.core.runs import Run
from diffalign.data.records import Record
from diffalign.infer.users.mixture import fit_weights
from diffalign.infer.users.pipeline import UserPipeline, at_strength, shortlist
from diffalign.methods.builders.image import settings
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.backbones.folders import resolve
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.table import BACKBONES, component_of, family_of
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.features import Features, features
from diffalign.models.users import branch
from diffalign.models.users.attach import equip, read_texts
from diffalign.models.users.choices import Choice, contradictions, read_choices
from diffalign.models.users.encoders import MixtureEncoder, OneHotEncoder, PairsEncoder, SliderEncoder, UserEncoder
from diffalign.models.users.layout import parameters
from diffalign.models.users.settings import PairsSettings, ProfileSettings, VectorSettings, VlmSettings
from diffalign.models.users.store import BRANCH, ENCODER, load_encoder, load_tokens
from diffalign.models.users.vlm import VlmStates, cached

logger = logging.getLogger(__name__)
Who = str | Path | Tensor | Mapping[str, float | None] | Iterable[Choice | Record | tuple[str, Any, Any]] | None


class Personal:
    """What `diffalign.load` returns for a personalised run. `pipe` is the stock pipeline, its user branch attached, on the run's base.

    Called by itself `pipe` needs `ip_adapter_image_embeds`, as with any IP-Adapter; what `for_user` returns passes them on.
    Raises CheckpointError where the folder's branch and encoder are missing, or not of one run.
    """

    def __init__(self, pipe: Any, run: Run, *, guided_by: Path | None = None) -> None:
        self.pipe, self.folder, self.run = pipe, run.folder, run
        self.guided_by = guided_by  # the run whose negative guidance is attached
        state, self.encoder = _weights(run.folder)
        self.fingerprint = self.encoder.fingerprint()
        denoiser = getattr(pipe, component_of(pipe))
        dtype = denoiser.dtype
        equip(denoiser, self.encoder, state)
        denoiser.requires_grad_(False)
        if family_of(pipe) != "pixart":  # whose words are cast when they are appended
            for part in parameters(denoiser).values():
                for parameter in part.values():
                    parameter.data = parameter.data.to(dtype)

    def for_user(self, who: Who = None, *, profile: str | None = None) -> UserPipeline:
        """Return the pipeline of a user, or of nobody (None), which draws as the base does.

        Args:
            who: pairs of the user's choices, as (prompt, preferred image, dispreferred image) or as records of a dataset; or tokens
                (U, D) or a file of them; or the id of a training user (encoders one_hot and mixture); or a vector (F,) (encoder vector);
                or values in [0, 1] of sliders, by name (encoder slider): those left out, or None, are off, and with all off it is nobody.
            profile: instead, a text about the user (encoder profile).

        Raises ConfigError for what this run's encoder does not read, and where there are no pairs; RecordError for an image that does
        not decode; CheckpointError for a file without tokens of this run.

        Example:
            >>> mine = personal.for_user([("a red star", liked, disliked)])  # doctest: +SKIP
            >>> mine("a blue ring").images[0]  # doctest: +SKIP
            >>> personal.for_user({"brightness": 0.8})("a blue ring").images[0]  # doctest: +SKIP
        """
        if profile is not None:
            return self._drawing(self._profile(profile, who))
        if who is None:
            return self._drawing(None)
        if isinstance(who, Tensor):
            return self._drawing(self._described(who) if who.dim() == 1 else self._checked(who))
        if isinstance(who, str | Path):
            return self._drawing(self._named(who))
        if isinstance(who, Mapping):
            return self._drawing(self._slid(who))
        if not isinstance(who, Iterable):
            raise ConfigError(f"found {type(who).__name__}; expected a user's pairs, tokens, a file of tokens, a user's id, or None")
        return self._drawing(self._tokens_of(who))

    @property
    def sees_images(self) -> bool:
        """Return whether the encoder puts images into numbers, as `numbers` and `liking` need."""
        return isinstance(self.encoder, PairsEncoder)

    def numbers(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, H) numbers of images, whose inner product with a taste (H,) is how much it likes each image, in log-odds.

        Raises ConfigError for a run whose encoder is not `pairs`.
        """
        encoder = self._pairs_encoder()
        return encoder.numbers(self._features(images).to(encoder.mean)).cpu()

    def liking(self, pairs: Iterable[Choice | Record | tuple[str, Any, Any]], numbers: Tensor) -> Tensor:
        """Return (N,) how much somebody with these choices likes the images of `numbers` (N, H), in log-odds. Raises as `numbers` does.

        Example:
            >>> numbers = personal.numbers(images)  # doctest: +SKIP
            >>> best = images[personal.liking([("a red star", liked, disliked)], numbers).argmax()]  # doctest: +SKIP
        """
        encoder, device = self._pairs_encoder(), next(self.encoder.parameters()).device
        evidence = {name: value[None].to(device) for name, value in self._evidence(read_choices(pairs)).items()}
        return numbers @ encoder.taste(evidence)[0].cpu()

    def _pairs_encoder(self) -> PairsEncoder:
        if not isinstance(self.encoder, PairsEncoder):
            raise ConfigError(f"{self.folder}: its user encoder does not put images into numbers; expected a run with user_encoder pairs")
        return self.encoder

    def _drawing(self, tokens: Tensor | None) -> UserPipeline:
        return UserPipeline(self.pipe, self.fingerprint, tokens)

    def _checked(self, tokens: Tensor) -> Tensor:
        expected = (self.encoder.tokens, self.encoder.width)
        if tuple(tokens.shape) != expected:
            raise ConfigError(f"tokens of shape {tuple(tokens.shape)}; this run's users have {expected}")
        if not tokens.isfinite().all():
            raise ConfigError("the tokens are not finite; expected those of `for_user`")
        return tokens.detach().float().cpu()

    def _described(self, numbers: Tensor) -> Tensor:
        """Return the tokens of a user whom a vector describes."""
        if not isinstance(self.encoder.settings, VectorSettings) or len(numbers) != self.encoder.sizes.features:
            wanted = (
                f" of {self.encoder.sizes.features} numbers" if isinstance(self.encoder.settings, VectorSettings) else " (U, D) of tokens"
            )
            raise ConfigError(f"a tensor of {len(numbers)} numbers; expected one{wanted}")
        if not numbers.isfinite().all():
            raise ConfigError("the numbers of this user are not finite")
        return self._encoded({"user": numbers.float()})

    def _slid(self, values: Mapping[Any, float | None]) -> Tensor | None:
        """Return the tokens of sliders, None where all are off. Raises ConfigError for values that are none of this run's sliders."""
        if not isinstance(self.encoder, SliderEncoder):
            raise ConfigError(f"{self.folder}: has no sliders to set; expected a run with user_encoder slider")
        user = self.encoder.set_to(values)
        return self._encoded({"user": user}) if user.isfinite().any() else None

    def _named(self, who: str | Path) -> Tensor:
        """Return the tokens of a training user, or those in a file."""
        users = self.encoder.sizes.users if isinstance(self.encoder, MixtureEncoder | OneHotEncoder) else ()
        if isinstance(who, str) and who in users:
            return self._encoded({"user": torch.tensor(users.index(who))})
        if isinstance(who, Path) or os.path.isfile(who) or who.endswith(".safetensors"):  # noqa: PTH113  # Path's raises for long names
            return self._checked(load_tokens(Path(who), self.fingerprint))
        if users:
            near = did_you_mean(who, shortlist(who, users))
            raise ConfigError(f"user {_short(who)!r} is none of the {len(users)} users of the training.{near} {self._instead()}")
        raise ConfigError(
            f"{_short(who)!r} is no file of tokens, and this run keeps no list of its users; expected the user's pairs or tokens"
        )

    def _instead(self) -> str:
        """Return what serves a user who was not trained on."""
        if isinstance(self.encoder, MixtureEncoder):
            return "Give the pairs of a new user."
        return "A one_hot run serves nobody else; train with user_encoder pairs, vlm or mixture for new users."

    def _profile(self, profile: str, who: Who) -> Tensor:
        if who is not None:
            raise ConfigError("`profile` describes the user by itself; leave out the other argument")
        if not isinstance(self.encoder.settings, ProfileSettings):
            raise ConfigError("`profile` is for runs with user_encoder profile; this run's encoder does not read texts")
        if not profile.strip():
            raise ConfigError("`profile` is empty; expected a text about the user, or no `profile` for nobody")
        return self._encoded({"user": read_texts(self.model, [profile])[0]})

    def _tokens_of(self, pairs: Iterable[Any]) -> Tensor:
        """Return the tokens of a user's pairs; few or contradicting ones are used, with a line in the log."""
        if isinstance(self.encoder, OneHotEncoder):
            raise ConfigError(
                f"a run with user_encoder one_hot cannot serve users it was not trained on, and reads no pairs. {self._instead()}"
            )
        if isinstance(self.encoder.settings, ProfileSettings):
            raise ConfigError("a run with user_encoder profile reads no pairs; give `profile`, a text about the user")
        if isinstance(self.encoder, SliderEncoder):
            names = ", ".join(self.encoder.attributes)
            raise ConfigError(f"a run with user_encoder slider reads no pairs; give {{name: value in [0, 1]}}, of the sliders {names}")
        if isinstance(self.encoder.settings, VectorSettings):
            raise ConfigError(f"a run with user_encoder vector reads no pairs; give a tensor of {self.encoder.sizes.features} numbers")
        choices = read_choices(pairs)
        if len(choices) == 1:
            logger.info("one pair of this user: it tells little of a taste; four or more tell much more")
        if against := contradictions(choices):
            numbers = ", ".join(f"{i} and {j}" for i, j in against)
            logger.warning("pairs %s (counted from 0) prefer the same two images both ways, and cancel out", numbers)
        if alike := [str(number) for number, choice in enumerate(choices) if choice.preferred.tobytes() == choice.dispreferred.tobytes()]:
            logger.warning("the two images of pair %s (counted from 0) are the same, which tells nothing of a taste", ", ".join(alike))
        if isinstance(self.encoder, MixtureEncoder):
            return self._fitted(self.encoder, choices)
        return self._read(choices)

    def _read(self, choices: Sequence[Choice]) -> Tensor:
        """Return the tokens of a user whose pairs an encoder reads."""
        encoder = self.encoder.settings
        if isinstance(encoder, VlmSettings):
            if len(choices) > encoder.shots:
                logger.info("the first %d of %d pairs are read: the encoder has learnt from so many at once", encoder.shots, len(choices))
            return self._encoded({"user": cached(self._states, _cache(), "", choices[: encoder.shots])})
        return self._encoded(self._evidence(choices))

    def _evidence(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Return what the encoder `pairs` reads of a user's choices."""
        images = self._features([image for choice in choices for image in (choice.preferred, choice.dispreferred)])
        return {"user": images.unflatten(0, (len(choices), 2)), "user_mask": torch.ones(len(choices))}

    def _fitted(self, encoder: MixtureEncoder, choices: Sequence[Choice]) -> Tensor:
        if self.guided_by is not None:
            raise ConfigError(
                f"a new user of {self.folder} is fitted without guidance, and {self.guided_by} steers it here; fit the user with "
                "diffalign.load of the personalised run alone, save the tokens, and give their file"
            )
        recipe, model = recipe_of(self.config), self.model
        likelihood = DiffusionLikelihood(model.path, model.predict, forward, error=recipe.error, residuals=recipe.residuals)
        with at_strength(model.denoiser, 1.0):
            weights = fit_weights(model, encoder, choices, likelihood, recipe.objective, compares=recipe.compares)
        logger.info("weights of the prototypes: %s", ", ".join(f"{weight:.2f}" for weight in weights.tolist()))
        return self._encoded({"user_weights": weights})

    @torch.no_grad()
    def _encoded(self, evidence: Mapping[str, Tensor]) -> Tensor:
        """Return the tokens (U, D) of one user's evidence."""
        device = next(self.encoder.parameters()).device
        return self.encoder({name: value[None].to(device) for name, value in evidence.items()}, 1)[0].float().cpu()

    @functools.cached_property
    def config(self) -> TrainConfig:
        """Return the config that the run was trained with."""
        names = {item.name for item in fields(TrainConfig)}
        return TrainConfig(**{name: value for name, value in self.run.facts.items() if name in names})

    @functools.cached_property
    def model(self) -> Pretrained:
        """Return the backbone around the pipeline; its VAE computes in float32, as in training."""
        pipe = self.pipe
        if pipe.vae.dtype != torch.float32:
            other, kind = self.run.facts.get("vae"), cast("Any", AutoencoderKL)
            place: dict[str, Any] = {} if other else {"subfolder": "vae", "revision": self.run.facts.get("revision")}
            vae = kind.from_pretrained(resolve(other or self.run.base), use_safetensors=True, **place).to(pipe.vae.device)
            pipe = type(pipe)(**(pipe.components | {"vae": vae}))
        denoiser = getattr(pipe, component_of(pipe))
        return BACKBONES[family_of(pipe)](pipe, self.run.base, denoiser.dtype, settings(self.config))

    @functools.cached_property
    def _features(self) -> Features:
        """Return the features of images that the encoder `pairs` reads. Raises CheckpointError if it is not what it was trained with."""
        name = cast("PairsSettings", self.encoder.settings).features
        extractor = features(name, self.model, device=self.model.device)
        self._check_source(f"the VAE of {self.run.base}" if name == "latents" else name, extractor.source)
        return extractor

    @functools.cached_property
    def _states(self) -> VlmStates:
        """Return the vision-language model. Raises CheckpointError if it is not the one of the training."""
        encoder = cast("VlmSettings", self.encoder.settings)
        states = VlmStates(encoder.model, encoder.revision, device=self.model.device, max_new_tokens=encoder.max_new_tokens)
        self._check_source(encoder.model, states.source)
        return states

    def _check_source(self, name: str, fingerprint: str) -> None:
        if fingerprint != self.encoder.sizes.source:
            raise CheckpointError(
                f"{name}: not the network that the user encoder of {self.folder} was trained with (found {fingerprint[:12]}, "
                f"expected {self.encoder.sizes.source[:12]}); its features would mean something else"
            )


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _cache() -> Path:
    """Return the folder of this machine's user that states of a vision-language model are kept in; a run folder may be given away."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffalign" / "users"


def _weights(folder: Path) -> tuple[branch.State, UserEncoder]:
    """Return a run's branch and encoder. Raises CheckpointError where they are missing, or not of one run."""
    for name in (BRANCH, ENCODER):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: the run's weights are missing; expected {name}")
    state, facts = branch.read(folder / BRANCH)
    encoder = load_encoder(folder / ENCODER)
    if facts.get("encoder") not in (None, encoder.fingerprint()):
        raise CheckpointError(f"{folder / BRANCH}: trained with the user encoder {facts['encoder']}; {ENCODER} is {encoder.fingerprint()}")
    return state, encoder


def restore(denoiser: Any, folder: Path) -> None:
    """Put a run's branch and encoder into a denoiser that was built for pairs of other users, to judge them by.

    Raises ConfigError for users whom an encoder with a row for each has not learnt; CheckpointError where another network made the
    features of these users, or they stand in another file, and for weights that are not of one run.
    """
    (state, encoder), built = _weights(folder), denoiser.user_encoder.sizes
    if isinstance(encoder, MixtureEncoder | OneHotEncoder):
        rows, names = (encoder.logits if isinstance(encoder, MixtureEncoder) else encoder.table), encoder.sizes.users
        if strange := [name for name in built.users if name not in names]:
            raise ConfigError(
                f"user {strange[0]!r} ({len(strange)} of {len(built.users)} users) is not among the {len(names)} of the training, and a "
                "mixture or one_hot has a row for each of these; leave out their pairs, or train with user_encoder pairs or vlm"
            )
        rows.weight.data = rows.weight.data[[names.index(name) for name in built.users]]
    elif encoder.sizes.source != built.source:
        raise CheckpointError(
            f"{folder / ENCODER}: the features of these users are of {built.source[:12]}, and it has learnt from "
            f"{encoder.sizes.source[:12]}: another network, or a file `vectors` or `profiles` that has changed since"
        )
    equip(denoiser, encoder, state)
