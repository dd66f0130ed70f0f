"""What a reward head can be told, and which keys of a training configuration a reward model knows. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
KNOWN = (  # keys that a reward model knows; any other must be left alone
    *("pretrained_model_name_or_path", "revision", "reward_head", "held_out_share", "held_out_dataset_name", "held_out_split_name"),
    *("dataset_name", "dataset_split_name", "reader", "transforms", "max_train_samples", "skip_bad", "curriculum"),
    *("method", "objective", "beta", "label_smoothing"),
    *("output_dir", "overwrite_output_dir", "seed", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"),
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "optimizer", "use_8bit_adam", "adam_beta1", "adam_beta2"),
    *("adam_weight_decay", "adam_epsilon", "max_grad_norm", "mixed_precision", "use_ema", "ema_decay", "cache_dir"),
    *("dataloader_num_workers", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to", "log_every"),
    *("max_bad_steps", "spike_factor"),
)
OWN = ("reward_head", "held_out_share", "held_out_dataset_name", "held_out_split_name")


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


def check_reward(config: Any, *, trains_reward: bool) -> None:
    """Raise ConfigError for keys of reward models where none is trained and, where one is, for all others; nothing is loaded."""
    changed = {f.name for f in dataclasses.fields(config) if not _default(f, getattr(config, f.name))}
    if not trains_reward:
        if odd := [name for name in OWN if name in changed]:
            raise ConfigError(f"`{odd[0]}` is of reward models; `method` is {config.method}, expected reward_bt or reward_pal")
        return
    if odd := sorted(changed - set(KNOWN)):
        raise ConfigError(f"`{odd[0]}` means nothing to a reward model, a head on frozen embeddings; leave it out")
    settings_of(config.reward_head, config.method)
    if not 0.0 < config.held_out_share < 1.0:
        raise ConfigError(f"`held_out_share` is {config.held_out_share}; expected a share of the prompts, above 0 and below 1")
    if config.held_out_split_name is not None and config.held_out_dataset_name is None:
        raise ConfigError("`held_out_split_name` is of `held_out_dataset_name`, and there is none; name it, or leave both out")
    ((objective, constants),) = config.part("objective").items()
    if objective != "simpo" or constants.get("gamma") != 0 or constants.get("alpha", 0) != 0:
        raise ConfigError(
            "objective of a reward model is {simpo: {beta: BETA, gamma: 0}}: with a margin, or shaped by `alpha`, differences of rewards "
            f"would be no logits of preference; found {{{objective}: {dict(constants)}}}"
        )
    if any(single("transform", spec)[0] == "invert" for spec in config.transforms or ()):
        raise ConfigError("transform `invert` would make a reward of what people do not prefer; leave it out")
    check_embeds(config.pretrained_model_name_or_path)


def _default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether `value` is the default of a field."""
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return value == field.default


def check_embeds(name: str) -> None:
    """Raise CheckpointError for what is neither `pixels` nor a CLIP of transformers; of a hub id nothing is known yet."""
    if name == PIXELS or not is_local(resolve(name)):
        return
    file = Path(resolve(name)) / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    if kind != "clip":
        found = f"a model of type `{kind}`" if kind else "no CLIP"
        raise CheckpointError(
            f"{name}: {found}; a reward model reads embeddings: give a CLIP of transformers (folder or hub id), or pixels"
        )
