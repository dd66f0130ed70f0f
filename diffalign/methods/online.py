"""The keys of online training: which they are, and what they have to be together. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.keys import changed, require
from diffalign.core.processes import spreads_weights
from diffalign.core.runs import Run
from diffalign.core.specs import bind, single
from diffalign.data.advantages import advantages
from diffalign.methods.base import Method
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.folders import check_folder, resolve
from diffalign.rewards.combine import check_combiner
from diffalign.rewards.names import called, check_scorer_names

DRAWING = (
    "scorers",
    "combine",
    "advantages",
    "images_per_prompt",
    "prompts_per_turn",
    "updates_per_turn",
    "num_inference_steps",
    "sample_guidance_scale",
    "image_model",
    "max_completion_length",
    "rollout",
    "start_model_steps",
    "rollout_policy",
    "old_policy_decay",
)
# Keys of images that lie on a disk, and of their order.
OF_DATA = (
    "dataset_name",
    "dataset_split_name",
    "reader",
    "generate",
    "max_train_samples",
    "aspect_ratio_buckets",
    "random_crop",
    "random_flip",
    "curriculum",
    "trajectory_cache",
    "dataloader_num_workers",
)
RAMP = ("flat", "uprate", "uphold")
FLOW_ROLLOUTS = ("flow_sde", "dance")  # samplers of flow models alone


def check_online(config: TrainConfig, method: Method, tuning: str) -> None:
    """Raise ConfigError where the keys of online training are not meant, or not together."""
    written = set(changed(config))
    if not config.prompts:
        if odd := [name for name in DRAWING if name in written]:
            raise ConfigError(f"`{odd[0]}` is of pictures that are drawn while training; give the `prompts` to draw, or leave it out")
        _check_stages(config)
        return
    if odd := [name for name in OF_DATA if name in written]:
        raise ConfigError(f"`{odd[0]}` is of a dataset, and with `prompts` the model draws what it trains on; leave one of them out")
    if not config.scorers:
        raise ConfigError("`scorers` is empty, and they judge what is drawn; for example [pickscore, hps]")
    check_scorer_names(config.scorers)
    if config.combine is not None:
        check_combiner(config.combine, [called(scorer) for scorer in config.scorers])
        if single("combiner", config.combine)[0] == "gradient" and (spreads_weights() or len(config.scorers) < 2):
            what = "two or more scorers" if len(config.scorers) < 2 else "weights that are whole in every process, without FSDP"
            raise ConfigError(f"`combine` is gradient, which compares the gradients of rewards; expected {what}")
    bind("function", {"advantages": advantages}, {"advantages": config.advantages})
    if method.inference != "plain" or tuning == "user":
        raise ConfigError(f"`prompts`: `{config.method}` does not learn which of its own images are better; choose another method")
    if config.rollout_policy == "reference" and config.reference != "old_policy":
        raise ConfigError("`rollout_policy` is reference, which would draw with the first model for ever; set `reference` to old_policy")
    if config.rollout_policy == "ema" and not config.use_ema:
        raise ConfigError("`rollout_policy` is ema, and there is no moving average; set `use_ema`")
    if config.start_model_steps >= config.num_inference_steps:
        raise ConfigError(
            f"`start_model_steps` is {config.start_model_steps}; expected fewer than `num_inference_steps`, {config.num_inference_steps}: "
            "the first steps are those of the model that is trained"
        )
    _check_ramp(config)
    _check_turns(config)


def _check_stages(config: TrainConfig) -> None:
    """Raise ConfigError where the reference is to be an older policy, and neither turns nor stages say which."""
    if config.reference != "old_policy":
        return
    require(
        "reference",
        config.reference,
        lambda _: bool(config.curriculum),
        "policy_start or none: `prompts` have turns, a `curriculum` stages",
    )
    kept = config.trajectory_cache
    require("trajectory_cache", kept, lambda v: not v, "0: its points are driven by the reference, which here is another one in each stage")


def check_flow_rollout(config: TrainConfig, flow: bool) -> None:
    """Raise ConfigError for a sampler of flow models where the model is none."""
    name, constants = single("rollout", config.rollout or "cps")
    kind = constants.get("kind", "cps") if name == "branch" else name
    if kind in FLOW_ROLLOUTS and not flow:
        raise ConfigError(f"`rollout`: {kind} is a sampler of flow models, and this is none; choose cps or ddim")


def steps_without_noise(config: TrainConfig) -> int:
    """Return how many of the last steps of a rollout have no noise and are not trained: those of the start model, one at least."""
    return max(1, config.start_model_steps)


def check_online_texts(config: TrainConfig) -> None:
    """Raise ConfigError or CheckpointError where nothing draws what a language model writes online, or its reference is none of texts."""
    if not config.prompts:
        return
    if config.image_model is None:
        raise ConfigError("`image_model` is not set; give the model, or finished run, of images that draws what the language model writes")
    if Run.is_in(config.image_model):
        Run.open(config.image_model, expects="image")
    else:
        check_folder(resolve(config.image_model))
    require(
        "reference",
        config.reference,
        lambda v: v != "old_policy",
        "policy_start or none: the log-probabilities of the policy that wrote are kept with each text",
    )


def _check_ramp(config: TrainConfig) -> None:
    if config.old_policy_decay and config.reference != "old_policy":
        raise ConfigError("`old_policy_decay` is of `reference: old_policy`; set it, or leave the decay out")
    for name, value in config.old_policy_decay.items():
        if name not in RAMP:
            raise ConfigError(f"`old_policy_decay` takes no `{name}`.{did_you_mean(name, RAMP)}")
        require(f"old_policy_decay.{name}", value, lambda v: isinstance(v, int | float) and v >= 0, "a number, zero or more")
    require("old_policy_decay.uphold", config.old_policy_decay.get("uphold"), lambda v: v < 1, "a share in [0, 1)")


def _check_turns(config: TrainConfig) -> None:
    """Raise ConfigError where the updates of a turn would not train on each of its prompts equally often."""
    batch = config.train_batch_size * config.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
    records = config.updates_per_turn * batch
    if records % config.prompts_per_turn:
        raise ConfigError(
            f"`prompts_per_turn` is {config.prompts_per_turn}, and the {config.updates_per_turn} updates of a turn take "
            f"{config.updates_per_turn} x {batch} = {records} records; expected a multiple of `prompts_per_turn`, so that each prompt "
            "is trained on equally often"
        )


def old_policy_decay(ramp: Mapping[str, float], step: int) -> float:
    """Return the decay of the old policy at an optimiser step: min(uprate (step - flat), uphold), and 0 before `flat`.

    >>> old_policy_decay({"uprate": 0.001, "uphold": 0.5}, 200)
    0.2
    """
    return min(ramp.get("uprate", 0.0) * max(0.0, step - ramp.get("flat", 0.0)), ramp.get("uphold", 0.999))
