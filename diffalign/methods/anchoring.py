"""Checks of the anchor, which keeps a model where it is on prompts that the preferences are not about. Nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError, check_name
from diffalign.core.keys import Kind, require
from diffalign.core.specs import Spec, single
from diffalign.methods.conditioning import CONTROLNET
from diffalign.objectives import bind_objective

if TYPE_CHECKING:
    from diffalign.methods.base import Method
    from diffalign.methods.config import TrainConfig

ANCHORS = ("distil", "denoise")


def check_anchor(config: TrainConfig, method: Method, tuning: str) -> None:
    """Raise ConfigError where the keys of the anchor are not meant, or not together."""
    if config.anchor_dataset_name is None:
        require("anchor_weight", config.anchor_weight, lambda _: False, "nothing without `anchor_dataset_name`, the anchor's data")
        require("anchor_objective", config.anchor_objective, lambda _: False, "nothing without `anchor_dataset_name`, the anchor's data")
        return
    if config.anchor_weight is None:
        raise ConfigError("`anchor_dataset_name` has no `anchor_weight`; for images a fifth of `beta` is a beginning")
    if config.anchor_objective is not None:
        check_name("anchor_objective", single("anchor_objective", config.anchor_objective)[0], ANCHORS)
        bind_objective(config.anchor_objective)
    if config.reference == "old_policy" and single("anchor_objective", config.anchor_objective or "distil")[0] == "distil":
        raise ConfigError(
            "`anchor_objective` distil keeps the model at its reference, and `reference: old_policy` is another one in each stage of the "
            "`curriculum`; set anchor_objective to denoise"
        )
    if tuning in ("user", CONTROLNET) or method.inference == "reward" or config.prompts:
        what = "`prompts` that are drawn while training" if config.prompts else f"`train_method` {tuning} of `{config.method}`"
        raise ConfigError(f"`anchor_dataset_name` goes with pictures or texts of a dataset, and not with {what}; leave it out")


def anchor_objective(config: TrainConfig, kind: Kind) -> Spec:
    """Return the objective of the anchor: the config's own, else `distil` of images and `denoise` of texts."""
    return config.anchor_objective or ("distil" if kind == "image" else "denoise")
