"""What every reward head is, and the two whose rewards' differences are the logits of Bradley and Terry: `bt` and `pal`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from diffalign.rewards.heads.settings import JointSettings, PalSettings, Settings

NOBODY = -1  # the index of a user who is not known: the mean of all users' logits stands for them
LARGEST = 100.0  # of the factor on cosines, as CLIP holds it
STILL = 1e-3  # a deviation up to which a number of the embeddings does not vary
WIDE = 1e6  # the deviation it gets, so that one that first varies after training, such as a new word's, says nothing


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """What a head is built for besides its settings."""

    image: int  # F
    prompt: int  # D
    users: tuple[str, ...] = ()  # of the training, in the order of their weights


@dataclass(frozen=True, slots=True)
class Targets:
    """What a head with a loss of its own learns from."""

    prob: Tensor  # (B,) in [0, 1]: the chance that candidate 0 is preferred; of lone candidates the share of people who like it
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (B, K) by name: the table's scores that the head reads
    sources: Tensor | None = None  # (B,) int64: which source a record is of


class RewardHead(nn.Module, ABC):
    """Rewards (B, K) of images (B, K, F) under prompts (B, D) for users (B,), their indices or `NOBODY`.

    Embeddings are standardised by mean and deviation of the training's. Unless a head says otherwise a reward is a logit: the sigmoid of
    a difference is the chance that the first image is preferred (times the objective's beta, if that is not 1). Texts take the place of
    images where the embeddings are a language model's.
    """

    parts: tuple[str, ...] = ()  # names of the rewards that one is made of: aspects, groups

    image_mean: Tensor
    image_deviation: Tensor
    prompt_mean: Tensor
    prompt_deviation: Tensor

    def __init__(self, settings: Settings, sizes: HeadSizes) -> None:
        super().__init__()
        self.settings, self.sizes = settings, sizes
        for name, width in (("image", sizes.image), ("prompt", sizes.prompt)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_deviation", torch.ones(width))

    def standardise(self, images: Tensor, prompts: Tensor) -> None:
        """Measure mean and deviation of every number of images (N, F) and prompts (N, D); one that never varies is zero ever after."""
        for name, values in (("image", images), ("prompt", prompts)):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            deviation = values.std(dim=0, correction=0)
            getattr(self, f"{name}_deviation").copy_(torch.where(deviation > STILL, deviation, WIDE))

    def measure_scores(self, columns: Mapping[str, Tensor]) -> None:
        """Measure mean and deviation of the scores that the head predicts, (N, K) by name; most predict none."""

    def forward(self, images: Tensor, prompts: Tensor, users: Tensor, targets: Targets | None = None) -> Any:
        """Return rewards (B, K), or with `targets` the pair of these and the losses (B,), None where the objective makes them."""
        images, prompts = self.standard(images, prompts)
        rewards = self.rewards(images, prompts, users)
        return rewards if targets is None else (rewards, self.losses(images, prompts, targets))

    def standard(self, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return standardised images (B, K, F) and prompts (B, D)."""
        return (images - self.image_mean) / self.image_deviation, (prompts - self.prompt_mean) / self.prompt_deviation

    @abstractmethod
    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:
        """Return rewards (B, K) of standardised embeddings."""

    def losses(self, images: Tensor, prompts: Tensor, targets: Targets) -> Tensor | None:  # noqa: ARG002  # most heads have none
        """Return the losses (B,) of a head that the objective, a function of rewards, does not train; None for one that it does."""
        return None

    def pair_logits(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:
        """Return (B, K, K), without beta: the logit of preferring image i to image j; entry (j, i) is the negative of entry (i, j)."""
        rewards = self(images, prompts, users)
        return rewards[:, :, None] - rewards[:, None, :]

    def part_rewards(self, images: Tensor, prompts: Tensor) -> Tensor:  # noqa: ARG002  # heads of one reward have no parts
        """Return (B, K, P), one for each of `parts`. Raises ValueError for a head of one reward."""
        raise ValueError(f"{type(self).__name__} has one reward; found a call for its parts")

    def groups(self, learning_rate: float) -> list[dict[str, Any]] | None:  # noqa: ARG002  # only some heads have groups
        """Return the optimiser's groups of parameters, None where all learn alike."""
        return None


class JointHead(RewardHead):
    """One hidden layer on image and prompt, to `out` numbers an image; without a hidden layer, a linear map of the image alone."""

    def __init__(self, settings: JointSettings, sizes: HeadSizes, out: int = 1) -> None:
        super().__init__(settings, sizes)
        self.reads_prompts = settings.prompts and settings.hidden > 0
        width = sizes.image + (sizes.prompt if self.reads_prompts else 0)
        self.layers = mlp(width, settings.hidden, out) if settings.hidden else nn.Linear(width, out, bias=False)

    def inputs(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Return what the first layer reads, (B, K, F) or (B, K, F + D)."""
        return torch.cat([images, prompts[:, None].expand(-1, images.shape[1], -1)], dim=2) if self.reads_prompts else images

    def joint(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Return (B, K, out) of standardised embeddings."""
        return self.layers(self.inputs(images, prompts))

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:  # noqa: ARG002  # all users alike
        """Return rewards (B, K)."""
        return self.joint(images, prompts).squeeze(-1)


class BtHead(JointHead):
    """Bradley and Terry (1952): one reward for all users, by one hidden layer on image and prompt."""


class PalHead(RewardHead):
    """PAL (2406.08469): a user's ideal point is a mixture of K prototypes, by the softmax of K numbers.

    Images are mapped by f, two layers. Kind A: the ideal point is f(P w), P the prototypes in the space of embeddings; the reward is
    -|f(x) - f(P w)| (`dist`) or e^tau cos(f(x), f(P w)) (`angle`). Kind B: e^tau cos(f(x), sum_k w_k g_k(prompt)), each g_k two layers.
    e^tau begins at 1 / 0.07 and is held below 100. As released, but for the mean logits that stand for users who are not known.
    """

    def __init__(self, settings: PalSettings, sizes: HeadSizes) -> None:
        super().__init__(settings, sizes)
        self.pal = settings
        self.image = mlp(sizes.image, settings.hidden, settings.width)
        self.logits = nn.Parameter(torch.zeros(max(1, len(sizes.users)), settings.prototypes))
        if settings.kind == "A":
            self.prototypes = nn.Parameter(torch.randn(settings.prototypes, sizes.image))
        else:
            self.prompts = nn.ModuleList(mlp(sizes.prompt, settings.hidden, settings.width) for _ in range(settings.prototypes))
        if settings.score == "angle":
            self.sharpness = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))

    def rewards(self, images: Tensor, prompts: Tensor, users: Tensor) -> Tensor:
        """Return rewards (B, K)."""
        listed = (users != NOBODY)[:, None]
        return self.by_logits(images, prompts, torch.where(listed, self.logits[users.clamp_min(0)], self.logits.mean(dim=0)))

    def by_logits(self, images: Tensor, prompts: Tensor, logits: Tensor) -> Tensor:
        """Return rewards (B, K) of standardised embeddings for users given by their logits (B, P)."""
        weights, seen = logits.softmax(dim=1), self.image(images)
        if self.pal.kind == "A":
            ideal = self.image(weights @ self.prototypes)
        else:
            ideal = torch.stack([weights[:, k, None] * reads(prompts) for k, reads in enumerate(self.prompts)]).sum(dim=0)
        if self.pal.score == "dist":
            return -(seen - ideal[:, None]).square().sum(dim=2).add(1e-12).sqrt()  # whose gradient is finite at zero
        cosines = (normalize(seen, dim=2) * normalize(ideal, dim=1)[:, None]).sum(dim=2)
        return self.sharpness.exp().clamp(max=LARGEST) * cosines

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the networks at the learning rate, and prototypes and users' numbers at `user_rate` times it, without decay."""
        quick = [p for name, p in self.named_parameters() if name in ("logits", "prototypes")]
        slow = [p for name, p in self.named_parameters() if name not in ("logits", "prototypes")]
        return [{"params": slow}, {"params": quick, "lr": self.pal.user_rate * learning_rate, "weight_decay": 0.0}]


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return two layers with a GELU between."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def log_loss(logits: Tensor, prob: Tensor) -> Tensor:
    """Return the logistic loss, elementwise: -prob log sigmoid(logit) - (1 - prob) log sigmoid(-logit)."""
    return prob * softplus(-logits) + (1.0 - prob) * softplus(logits)
