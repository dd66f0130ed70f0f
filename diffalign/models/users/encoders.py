"""User encoders: what is known of a user -> tokens (N, U, D) for the user branch. Trained with the objective, as a part of the denoiser."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.users.settings import (
    MixtureSettings,
    OneHotSettings,
    PairsSettings,
    ProfileSettings,
    SliderSettings,
    UserEncoderSettings,
    VectorSettings,
    VlmSettings,
    check_sliders,
)

LEVELS = 101  # quantiles of a score that are kept
SINUSOIDS = 256  # numbers that a slider's value is read as, of AttriCtrl's release


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an encoder is built for besides its settings."""

    users: tuple[str, ...] = ()  # of the training
    features: int = 0  # numbers that describe an image, a row of hidden states or a word
    rows: int = 0  # rows of hidden states
    source: str = ""  # fingerprint of what made the evidence


class UserEncoder(nn.Module, ABC):
    """Reads a condition's evidence, whose keys begin with "user"; its first axis is N."""

    OWN: ClassVar[tuple[str, ...]] = ()  # weights that are of single users, which no tokens of another depend on

    def __init__(self, settings: UserEncoderSettings, sizes: Sizes) -> None:
        super().__init__()
        self.settings, self.sizes = settings, sizes
        self.tokens, self.width = settings.tokens, settings.width

    def forward(self, condition: Condition, count: int) -> Tensor:
        """Return tokens (N, U, D) for `count` rows: zeros where nobody is known, or "user_kept" (N,) is zero."""
        if not any(name.startswith("user") for name in condition):
            weight = next(self.parameters())
            return weight.new_zeros(count, self.tokens, self.width)
        tokens = self.encode(condition)
        return tokens * condition["user_kept"].to(tokens)[:, None, None] if "user_kept" in condition else tokens

    @abstractmethod
    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, U, D)."""

    def penalty(self, condition: Condition, progress: float) -> dict[str, Tensor]:  # noqa: ARG002  # only some encoders have one
        """Return {"penalty": what is added to the loss, ...: what is logged}, empty without one; `progress` of the run in [0, 1]."""
        return {}

    def fingerprint(self) -> str:
        """Return a hash of all weights but those of single users: tokens are only good with the encoder and branch they were made with."""
        digest = hashlib.sha256(repr((type(self).__name__, self.sizes.source)).encode())
        for name, value in sorted((name, value) for name, value in self.state_dict().items() if name not in self.OWN):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _head(self, width: int, hidden: int) -> nn.Sequential:
        """Return a network without biases: nothing known gives zero tokens."""
        return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, self.tokens * self.width, bias=False))

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.tokens, self.width))


class PairsEncoder(UserEncoder):
    """A permutation-invariant set encoder. "user" (N, S, 2, F) are features of preferred and dispreferred images, "user_mask" (N, S).

    An image becomes H numbers. A pair says the preferred one's less the other's, so that a choice and its opposite cancel; the mean of
    what the pairs say is brought to unit variance, and no bias follows: a user whose pairs cancel is the zero user. The inner product
    with an image's numbers is how much the user likes it (PAL, 2406.08469); it is fitted to the query "user_query" (N, 2, F), whose first
    image was preferred, by Bradley and Terry. With `variational` (VPL, 2408.10075) the pairs give mean and log-variance, both in [-1, 1],
    of a normal distribution, whose sample in training ("user_noise" (N, H) times its deviation added to its mean), else whose mean, is
    scaled to the norm of a standard normal vector; pairs that cancel then give the prior's mean, and not the zero user.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: PairsSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.known, hidden = settings, settings.hidden
        self.register_buffer("mean", torch.zeros(sizes.features))
        self.register_buffer("deviation", torch.ones(sizes.features))
        self.image = nn.Sequential(nn.Linear(sizes.features, hidden), nn.GELU(), nn.Linear(hidden, hidden, bias=False))
        self.refine = nn.Sequential(nn.Linear(hidden, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False))
        self.sharpness = nn.Parameter(torch.tensor(0.0))  # log of how sure a choice is
        self.posterior = nn.Linear(hidden, 2 * hidden) if settings.variational else None
        self.head = self._head(hidden, 256)

    def standardise(self, features: Tensor) -> None:
        """Measure mean and deviation of every number of features (N, F)."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp_min(1e-6))

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, U, D)."""
        return self._shaped(self.head(self.taste(condition)))

    def numbers(self, features: Tensor) -> Tensor:
        """Return (..., H) of images' features (..., F): their inner product with a taste is how much it likes each image, in log-odds."""
        return self._images(features) * (self.sharpness.exp() / math.sqrt(self.known.hidden))

    def penalty(self, condition: Condition, progress: float) -> dict[str, Tensor]:
        """Return the loss of predicting the queries' choices, and of the variational form its KL to the standard normal.

        The KL's weight anneals from zero along half a cosine, `kl_cycles` times a run, in the first half of each cycle (VPL's schedule).
        "user/active" is the share of dimensions whose mean varies by more than 0.01 (active units, 1509.00519) over the batch's users and
        those who would choose the opposite, so that a batch of one can tell.
        """
        liked = (self.numbers(condition["user_query"]) * self.taste(condition)[:, None]).sum(dim=2)
        gap = liked[:, 0] - liked[:, 1]
        facts = {"user/accuracy": (gap.detach() > 0).float().mean()}
        loss = self.known.preference_weight * nn.functional.softplus(-gap).mean()
        if self.posterior is not None:
            mean, log_variance = self._posterior(self._said(condition))
            kl = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(dim=1).mean()
            phase = min(1.0, 2.0 * (progress * self.known.kl_cycles % 1.0))
            loss = loss + self.known.kl_weight * 0.5 * (1.0 - math.cos(math.pi * phase)) * kl
            with torch.no_grad():
                opposite, _ = self._posterior(self._said({**condition, "user": condition["user"].flip(2)}))
                active = (torch.cat([mean, opposite]).var(dim=0, correction=0) > 0.01).float().mean()
            facts |= {"user/kl": kl.detach(), "user/active": active}
        return {"penalty": loss, **facts}

    def _images(self, features: Tensor) -> Tensor:
        return self.image((features.to(self.mean) - self.mean) / self.deviation)

    def _said(self, condition: Condition) -> Tensor:
        """Return what the pairs say together, (N, H)."""
        images, mask = self._images(condition["user"]), condition["user_mask"].to(self.mean)[..., None]
        # In float64, so that the order of the pairs does not show in the sum.
        taste = ((images[:, :, 0] - images[:, :, 1]) * mask).double().sum(dim=1).to(images)
        mean = taste / mask.sum(dim=1).clamp_min(1.0)
        taste = nn.functional.layer_norm(mean, mean.shape[1:])
        return taste + self.refine(taste)

    def taste(self, condition: Condition) -> Tensor:
        """Return what the pairs say of each user's taste, (N, H)."""
        taste = self._said(condition)
        if self.posterior is None:
            return taste
        mean, log_variance = self._posterior(taste)
        noise = condition.get("user_noise") if self.training else None
        drawn = mean if noise is None else mean + (0.5 * log_variance).exp() * noise.to(mean)
        return nn.functional.normalize(drawn, dim=1) * math.sqrt(drawn.shape[1])

    def _posterior(self, taste: Tensor) -> tuple[Tensor, Tensor]:
        assert self.posterior is not None
        mean, log_variance = self.posterior(taste).clamp(-1.0, 1.0).chunk(2, dim=1)
        return mean, log_variance


class VlmEncoder(UserEncoder):
    """A projection of a vision-language model's hidden states, "user" (N, R, F); rows of very different norms are standardised first."""

    def __init__(self, settings: VlmSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.tokens = sizes.rows
        self.project = nn.Linear(sizes.features, self.width, bias=False)

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, R, D)."""
        states = condition["user"].to(self.project.weight)
        return self.project(nn.functional.layer_norm(states, states.shape[-1:]))


class MixtureEncoder(UserEncoder):
    """PAL: a user is softmax weights over a few prototypes, "user" (N,) the index of a training user, or "user_weights" (N, P)."""

    OWN = ("logits.weight",)

    def __init__(self, settings: MixtureSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.logits = nn.Embedding(max(1, len(sizes.users)), settings.prototypes)
        self.prototypes = nn.Parameter(torch.randn(settings.prototypes, self.tokens * self.width) / math.sqrt(self.width))
        nn.init.normal_(self.logits.weight, std=0.5)

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, U, D)."""
        weights = condition["user_weights"] if "user_weights" in condition else self.logits(condition["user"]).softmax(dim=-1)
        return self._shaped(weights.to(self.prototypes) @ self.prototypes)

    def usual(self) -> Tensor:
        """Return the mean logits (P,) of the training users: where the fit of a new one begins."""
        return self.logits.weight.detach().mean(dim=0)


class OneHotEncoder(UserEncoder):
    """A table of tokens; "user" (N,) is the index of a training user."""

    def __init__(self, settings: OneHotSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.table = nn.Embedding(max(1, len(sizes.users)), self.tokens * self.width)

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, U, D)."""
        return self._shaped(self.table(condition["user"]))


class VectorEncoder(UserEncoder):
    """Numbers that describe the user, "user" (N, F), through a small network: a text's mean word, or the weights of rewards."""

    def __init__(self, settings: ProfileSettings | VectorSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.read = nn.Linear(sizes.features, 256, bias=False)
        self.head = self._head(256, 256)

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, U, D)."""
        read = self.read(condition["user"].to(self.read.weight))
        return self._shaped(self.head(nn.functional.layer_norm(read, read.shape[-1:])))


class SliderEncoder(UserEncoder):
    """Values of attributes in [0, 1], "user" (N, A), NaN where a slider is off: each has tokens of its own (AttriCtrl, 2508.02151).

    As in the release, a value becomes sinusoids, of angles from `frequency` times the value down to a tenth of it, a network of two layers
    turns them into one vector, and learned places are added to it, one a token. The release has frequency 1000 (a time step's sinusoids);
    with that the tokens of 0 and 1 came to lie beside each other on the embedded world, so ours is 4. The release appends the tokens to the
    prompt's; here they are a user's, so that all off is the base, and one that is off has zero tokens, whatever the others are. It starts
    the last layer at zero; here the branch's values are what starts there, and places are small beside values.

    `quantiles` (Q, A) are those of the training's scores, which values are levels of (ours; the paper scales each attribute to [0, 1]).
    """

    quantiles: Tensor

    def __init__(self, settings: SliderSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.attributes, self.each, self.frequency = tuple(settings.attributes), settings.tokens, settings.frequency
        self.tokens = self.each * len(self.attributes)
        self.register_buffer("quantiles", torch.linspace(0.0, 1.0, LEVELS)[:, None].repeat(1, len(self.attributes)))
        self.values = nn.ModuleList(
            nn.Sequential(nn.Linear(SINUSOIDS, self.width), nn.SiLU(), nn.Linear(self.width, self.width)) for _ in self.attributes
        )
        self.places = nn.Parameter(0.1 * torch.randn(len(self.attributes), self.each, self.width))

    def encode(self, condition: Condition) -> Tensor:
        """Return tokens (N, A * U, D), those of the first attribute first."""
        values = condition["user"].to(self.places.device, torch.float32)  # in half precision nearby values would be one
        on = values.isfinite()
        angles = self.frequency * values.nan_to_num().flatten()
        waves = get_timestep_embedding(angles, SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=10.0 * self.frequency)  # pyright: ignore[reportArgumentType]  # a number
        waves = waves.to(self.places).unflatten(0, values.shape)
        read = [network(wave) for network, wave in zip(self.values, waves.unbind(dim=1), strict=True)]
        tokens = torch.stack(read, dim=1)[:, :, None] + self.places
        return (tokens * on[..., None, None]).flatten(1, 2)

    def set_to(self, values: Mapping[str, float | None]) -> Tensor:
        """Return "user" (A,) of the sliders `values`; those that are left out or None are off.

        Raises ConfigError for a name that is no slider of this run, and for a value outside [0, 1].
        """
        check_sliders(values, self.attributes)
        return torch.tensor([math.nan if (value := values.get(name)) is None else value for name in self.attributes])


_ENCODERS: dict[type[UserEncoderSettings], type] = {
    PairsSettings: PairsEncoder,
    VlmSettings: VlmEncoder,
    MixtureSettings: MixtureEncoder,
    OneHotSettings: OneHotEncoder,
    ProfileSettings: VectorEncoder,
    VectorSettings: VectorEncoder,
    SliderSettings: SliderEncoder,
}


def make(settings: UserEncoderSettings, sizes: Sizes) -> UserEncoder:
    """Return a new encoder; its weights come from torch's own random state."""
    return _ENCODERS[type(settings)](settings, sizes)
