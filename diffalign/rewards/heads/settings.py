"""The constants of reward heads. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.specs import bind, single
from diffalign.models.backbones.folders import is_local, resolve

PIXELS = "pixels"


@dataclass(frozen=True, slots=True, kw_only=True)
class BtSettings:
    """Constants of the head `bt`."""

    hidden: int = 256  # width of the one hidden layer; 0: a linear head on the image alone
    prompts: bool = True  # whether the reward may depend on the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PalSettings:
    """Constants of the head `pal`."""

    kind: Literal["A", "B"] = "A"  # A: fixed ideal points; B: ideal points that depend on the prompt
    score: Literal["angle", "dist"] = "angle"  # of kind A; B has angles
    prototypes: int = 2  # K
    hidden: int = 512
    width: int = 512  # of the space that images and ideal points are compared in
    user_rate: float = 50.0  # times `learning_rate`: the rate of prototypes and users' weights


HEADS: dict[str, Any] = {"bt": BtSettings, "pal": PalSettings}
Settings = BtSettings | PalSettings


def settings_of(spec: Any, method: str) -> tuple[str, Settings]:
    """Return name and settings of a `reward_head`, the method's if None. Raises ConfigError for one that cannot be meant."""
    name, _ = single("reward_head", spec or {method.removeprefix("reward_"): {}})
    settings = bind("reward_head", HEADS, spec or name)()
    if name != method.removeprefix("reward_"):
        raise ConfigError(f"`reward_head` is {name}, and `method` is {method}; they go together: choose reward_{name}")
    for constant, least in (("hidden", 0 if name == "bt" else 1), ("prototypes", 1), ("width", 1)):
        if (value := getattr(settings, constant, least)) < least:
            raise ConfigError(f"reward_head `{name}`: `{constant}` is {value}; expected at least {least}")
    if isinstance(settings, PalSettings) and settings.user_rate <= 0.0:
        raise ConfigError(f"reward_head `pal`: `user_rate` is {settings.user_rate}; expected a number above zero")
    if settings == PalSettings(kind="B", score="dist"):
        raise ConfigError("reward_head `pal`: kind B compares by the angle; leave out `score: dist`")
    return name, settings


def check_embeds(name: str) -> None:
    """Raise CheckpointError for what is neither `pixels` nor a CLIP of transformers; of a hub id nothing is known yet."""
    if name == PIXELS or not is_local(resolve(name)):
        return
    file = Path(resolve(name)) / "config.json"
    kind = read_mapping(file, CheckpointError).get("model_type") if file.is_file() else None
    if kind != "clip":
        what = f"a model of type `{kind}`" if kind else "no CLIP"
        raise CheckpointError(f"{name}: {what}; a reward model reads embeddings: give a CLIP of transformers (folder or hub id), or pixels")
