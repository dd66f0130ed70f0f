"""The user encoders of personalised training by name, with their constants. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from diffalign.core.errors import ConfigError, check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEncoderSettings:
    """What all encoders share: a user becomes `tokens` tokens of `width` numbers."""

    of_users: ClassVar[bool] = True  # else of single pictures, whoever made or chose them

    tokens: int = 4
    width: int = 128

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if item.type == "float" else 1
            if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
                raise ConfigError(f"`user_encoder`: `{item.name}` is {value}; expected at least {least}")

    @property
    def least(self) -> int:
        """Return how many pairs a user must have in training."""
        return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsSettings(UserEncoderSettings):
    """A learned set encoder over image features of the pairs, trained with the objective; for new users from one pair on."""

    features: str = "latents"  # "latents" of the model's own VAE, a CLIP's folder or hub id, or open_clip:ARCHITECTURE:WEIGHTS
    hidden: int = 64
    max_shots: int = 32  # pairs of a user that are read at once
    fit_steps: int = 1000  # before the training, of predicting users' choices from their other ones: the denoiser is not needed for it
    fit_batch: int = 256
    preference_weight: float = 1.0  # of that prediction beside the objective
    variational: bool = False  # VPL (2408.10075): a normal distribution over what the pairs say, sampled in training
    kl_weight: float = 3e-6
    kl_cycles: int = 4  # the weight's cosine anneals from zero so many times in a run


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmSettings(UserEncoderSettings):
    """Hidden states of a vision-language model's last generated token, over all layers (PPD); `tokens` is their number."""

    model: str
    revision: str | None = None
    shots: int = 4
    per_user: int = 20  # chunks of `shots` pairs a user gives
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        UserEncoderSettings.__post_init__(self)
        if self.per_user < 2:
            raise ConfigError(f"`user_encoder`: `per_user` is {self.per_user}; expected at least 2, one to learn from and one as evidence")

    @property
    def least(self) -> int:
        """Return the pairs of two chunks: one to learn from, one as evidence."""
        return 2 * self.shots


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings(UserEncoderSettings):
    """PAL's few prototypes: a user is their weights, fitted for a new one with everything else frozen."""

    prototypes: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHotSettings(UserEncoderSettings):
    """A learned embedding of each training user, the paper's baseline: it cannot serve anybody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings(UserEncoderSettings):
    """A text about each user, read by the model's own text encoder, the paper's other baseline."""

    profiles: str  # a JSON file {user: text}


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSettings(UserEncoderSettings):
    """Numbers that are known of each user, such as the weights of the rewards that stand for one (the paper's synthetic users)."""

    vectors: str  # a JSON file {user: [number, ...]}


@dataclass(frozen=True, slots=True, kw_only=True)
class SliderSettings(UserEncoderSettings):
    """Sliders (AttriCtrl, 2508.02151): scores of a picture, each by `tokens` tokens of its own; no users are told apart."""

    of_users: ClassVar[bool] = False

    attributes: Sequence[str]  # scores of the table, one slider each
    frequency: float = 4.0  # radians of a value's fastest sinusoid; AttriCtrl's release has 1000, by which near values are far apart
    dropout: float = 0.3  # share of pictures in whose training a slider is off, for each by itself, so that every subset of them works

    def __post_init__(self) -> None:
        UserEncoderSettings.__post_init__(self)
        names = self.attributes
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"`user_encoder`: `attributes` is {names!r}; expected a list of the table's scores, as [brightness, size]")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"`user_encoder`: `attributes` names `{twice[0]}` twice; a score has one slider")
        if self.frequency <= 0.1:
            raise ConfigError(f"`user_encoder`: `frequency` is {self.frequency}; expected more than 0.1, the slowest sinusoid's")
        if self.dropout >= 1.0:
            raise ConfigError(f"`user_encoder`: `dropout` is {self.dropout}; expected a share below 1, or no slider is ever on")


def check_sliders(values: Mapping[str, float | None], attributes: Sequence[str]) -> None:
    """Raise ConfigError for a name that is none of a run's sliders, and for a value outside [0, 1]."""
    for name, value in values.items():
        check_name("slider", name, attributes)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0):
            raise ConfigError(f"slider `{name}` is {value!r}; expected a number from 0, lowest, to 1, highest, or None for off")


USER_ENCODERS: dict[str, Callable[..., Any]] = {
    "pairs": PairsSettings,
    "vlm": VlmSettings,
    "mixture": MixtureSettings,
    "one_hot": OneHotSettings,
    "profile": ProfileSettings,
    "vector": VectorSettings,
    "slider": SliderSettings,
}
