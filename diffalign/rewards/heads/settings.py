"""The constants of reward heads. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.core.specs import bind, single
from diffalign.models.backbones.folders import is_local, resolve

PIXELS = "pixels"


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSettings:
    """Constants of heads that are one hidden layer on image and prompt."""

    hidden: int = 256  # width of the one hidden layer; 0: a linear head on the image alone
    prompts: bool = True  # whether the reward may depend on the prompt

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the scores of the table that the head reads."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BtSettings(JointSettings):
    """Constants of the head `bt`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PalSettings:
    """Constants of the head `pal`."""

    kind: Literal["A", "B"] = "A"  # A: fixed ideal points; B: ideal points that depend on the prompt
    score: Literal["angle", "dist"] = "angle"  # of kind A; B has angles
    prototypes: int = 2  # K
    hidden: int = 512
    width: int = 512  # of the space that images and ideal points are compared in
    user_rate: float = 50.0  # times `learning_rate`: the rate of prototypes and users' weights

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the scores of the table that the head reads: none."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdinalSettings(JointSettings):
    """Constants of the head `ordinal`."""

    levels: int = 9  # of quality
    ties: Literal["level", "half"] = "level"  # a tie is one level for both, or half a vote for each
    band: str | None = None  # a score of the table, 0 to bands - 1: which band of levels a candidate is in (region flooding)
    bands: int = 3

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the score of bands, if there is one."""
        return () if self.band is None else (self.band,)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankListSettings(JointSettings):
    """Constants of the head `ranklist`."""

    skip: int = 2  # how many places apart two candidates of a ranking are compared, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmoSettings(JointSettings):
    """Constants of the head `armo`."""

    aspects: list[str]  # scores of the table
    hidden: int = 0  # linear, as released
    gate_hidden: int = 256
    temperature: float = 10.0  # of the gate's softmax, as released
    decorrelate: str | None = None  # the aspect that the others are freed of, such as verbosity; it counts nothing itself
    threshold: float = 0.03  # the rank correlation with it that is left at most, as released

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the aspects."""
        return tuple(self.aspects)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSettings(JointSettings):
    """Constants of the heads `micro` and `maxmin`."""

    mixture: int = 2  # rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroSettings(MixtureSettings):
    """Constants of the head `micro`."""

    router_hidden: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxMinSettings(MixtureSettings):
    """Constants of the head `maxmin`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpmSettings(JointSettings):
    """Constants of the head `gpm`."""

    planes: int = 2  # the preference embedding has twice as many numbers
    tau: float = 0.1  # as released
    scale_hidden: int = 64  # of the network that weighs the planes by the prompt; 0: all weigh one


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionSettings(JointSettings):
    """Constants of the head `bt_then_regression`."""

    score: str  # of the table, which is predicted
    start: str | None = None  # folder of a run of reward_bt with as large a head, to go on from

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the score."""
        return (self.score,)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreSettings(JointSettings):
    """Constants of the head `more`."""

    by: str = "source"  # what tells sources apart: source (the dataset a record came from), user, or a column of the table


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaSettings(JointSettings):
    """Constants of the head `meta`."""

    shifted: str  # the source of the records to be told apart, whose votes are not read
    by: str = "source"  # what tells sources apart, as for `more`
    ascent: float = 0.1  # how far the step goes that tells them further apart


@dataclass(frozen=True, slots=True, kw_only=True)
class LikeSettings(JointSettings):
    """Constants of the head `like`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorSettings:
    """Constants of the head `orchestrator`, which reads scores in place of images."""

    scores: list[str]  # of the table, which are weighed
    hidden: int = 256
    learn: Literal["scores", "votes"] = "scores"  # from the preferred candidates' scores, as in the paper, or from the votes themselves
    temperature: float = 1.0  # of the softmax that makes weights of scores

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the scores."""
        return tuple(self.scores)


HEADS: dict[str, Any] = {
    "bt": BtSettings,
    "pal": PalSettings,
    "ordinal": OrdinalSettings,
    "ranklist": RankListSettings,
    "armo": ArmoSettings,
    "micro": MicroSettings,
    "maxmin": MaxMinSettings,
    "gpm": GpmSettings,
    "bt_then_regression": RegressionSettings,
    "more": MoreSettings,
    "like": LikeSettings,
    "meta": MetaSettings,
    "orchestrator": OrchestratorSettings,
}
Settings = JointSettings | PalSettings | OrchestratorSettings
BY_OBJECTIVE = ("bt", "pal")  # whose loss is the config's objective, a function of rewards; the others bring their own
LEAST = {"hidden": 0, "prototypes": 1, "width": 1, "levels": 2, "bands": 2, "skip": 1, "mixture": 2, "planes": 1}
LEAST |= {"gate_hidden": 1, "router_hidden": 1, "scale_hidden": 0}
POSITIVE = ("user_rate", "temperature", "tau", "ascent")


def settings_of(spec: Any, method: str) -> tuple[str, Settings]:
    """Return name and settings of a `reward_head`, the method's if None. Raises ConfigError for one that cannot be meant."""
    name, _ = single("reward_head", spec or {method.removeprefix("reward_"): {}})
    settings = bind("reward_head", HEADS, spec or name)()
    if name != method.removeprefix("reward_"):
        raise ConfigError(f"`reward_head` is {name}, and `method` is {method}; they go together: choose reward_{name}")
    for constant, least in LEAST.items():
        least = 1 if constant == "hidden" and name in ("pal", "orchestrator") else least
        if (value := getattr(settings, constant, least)) < least:
            raise ConfigError(f"reward_head `{name}`: `{constant}` is {value}; expected at least {least}")
    for constant in POSITIVE:
        if (value := getattr(settings, constant, 1.0)) <= 0.0:
            raise ConfigError(f"reward_head `{name}`: `{constant}` is {value}; expected a number above zero")
    if settings == PalSettings(kind="B", score="dist"):
        raise ConfigError("reward_head `pal`: kind B compares by the angle; leave out `score: dist`")
    for constant in ("aspects", "scores"):
        listed = getattr(settings, constant, None)
        if listed is not None and (len(set(listed)) < 2 or len(set(listed)) < len(listed)):
            raise ConfigError(f"reward_head `{name}`: `{constant}` are {listed}; expected two or more scores of the table")
    if isinstance(settings, ArmoSettings) and settings.decorrelate not in (None, *settings.aspects):
        hint = did_you_mean(str(settings.decorrelate), settings.aspects)
        raise ConfigError(f"reward_head `armo`: `decorrelate` is {settings.decorrelate}, and none of the `aspects`.{hint}")
    if isinstance(settings, OrdinalSettings) and settings.levels < settings.bands:
        raise ConfigError(f"reward_head `ordinal`: {settings.levels} `levels` make no {settings.bands} `bands`; raise `levels`")
    return name, settings


def check_own_loss(head: str, beta: Any, transforms: Sequence[str]) -> None:
    """Raise ConfigError for a beta or offsets of records where a head brings its own loss, which has neither."""
    if head not in BY_OBJECTIVE and beta != 1.0:
        raise ConfigError(f"reward_head `{head}` brings its own loss, and `beta` {beta} is not of it; leave it out")
    if head not in BY_OBJECTIVE and "offset_by" in transforms:
        raise ConfigError(f"reward_head `{head}` brings its own loss, which has no offset; leave out the transform `offset_by`")


def reads_texts(name: str) -> bool:
    """Return whether `name` is the folder of a causal language model, whose hidden states a head of texts reads."""
    file = Path(resolve(name)) / "config.json"
    if name == PIXELS or not is_local(resolve(name)) or not file.is_file():
        return False
    kinds = read_mapping(file, CheckpointError).get("architectures") or []
    return any(str(kind).endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def check_embeds(name: str) -> None:
    """Raise CheckpointError for what is neither `pixels`, a CLIP nor a language model of transformers; of a hub id nothing is known yet."""
    if name == PIXELS or not is_local(resolve(name)) or reads_texts(name):
        return
    file = Path(resolve(name)) / "config.json"
    kind = read_mapping(file, CheckpointError).get("model_type") if file.is_file() else None
    if kind != "clip":
        what = f"a model of type `{kind}`" if kind else "no CLIP"
        raise CheckpointError(
            f"{name}: {what}; a reward model reads embeddings: give a CLIP of transformers (folder or hub id), or pixels, or for texts the "
            "folder of a language model"
        )
