"""Models that were distilled to draw in a few steps, or with their guidance built in: told by their configs, for a warning.

A loss on single noise levels, which preferences are trained with, pulls a step-distilled model back towards many steps. Turbo UNets are
trained at the few levels alone that they draw from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

STEPS, GUIDANCE = "steps", "guidance"
NAMES = re.compile(r"(?:^|[^a-z])(turbo|lightning|lcm|hyper|schnell|dmd2?|few-?step)(?:[^a-z]|$)", re.IGNORECASE)
WARNING = """it was distilled to draw in a few steps, and training on single noise levels takes that away bit by bit: pictures of few
steps get blurred. Draw with as few steps as it was made for, and without guidance (--guidance_scale 0). Keep learning rate
and steps low, and look at validation pictures of few steps; or train the model that it was distilled
from, and use the LoRA here; or fuse a training adapter, which undoes the distillation, with --base_lora, and use the exported LoRA
without it"""


def distillation(
    name: str, family: str, index: Mapping[str, Any], denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Return what a model was distilled in, `steps` or `guidance`, and by what that is told; None for a model that was not.

    `name` is its folder, file or hub id; `index`, `denoiser` and `scheduler` are the configs of its pipeline and of these parts.

    >>> distillation("stabilityai/sdxl-turbo", "sdxl", {}, {}, {})
    ('steps', 'its name has `turbo`')
    """
    if (match := NAMES.search(name)) is not None:
        return STEPS, f"its name has `{match[1]}`"
    if scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"):
        return STEPS, f"its scheduler is {scheduler['_class_name']}"
    if index.get("is_distilled"):
        return STEPS, "`is_distilled` is true in its index"
    if family in ("flux", "flux_kontext", "flux2") and denoiser.get("guidance_embeds"):
        return GUIDANCE, "`guidance_embeds` is true"
    if family == "flux":
        return STEPS, "`guidance_embeds` is false"
    return (STEPS, "its times are spaced `trailing`") if _is_turbo(scheduler) else None


def _is_turbo(scheduler: Mapping[str, Any]) -> bool:
    """Return whether a scheduler is SDXL-Turbo's. Models of zero terminal SNR count times from the end, too, and predict the velocity."""
    trailing = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("prediction_type", "epsilon") == "epsilon"
    return trailing and scheduler.get("_class_name") == "EulerAncestralDiscreteScheduler"


def turbo_times(name: str, scheduler: Any) -> tuple[int, ...]:
    """Return the four times at which a Turbo UNet is trained, 249, 499, 749 and 999 of 1000; none of any other model.

    They are those of its stock sampler and of Diffusion-DPO's released code, which at these times trains with a table of zero terminal SNR
    instead of the sampler's own: its last one is noise alone, from which no preference is learned.
    """
    match, config = NAMES.search(PurePath(name).name), {**scheduler.config, "_class_name": type(scheduler).__name__}
    if not (_is_turbo(config) or (match is not None and match[1].lower() == "turbo")):
        return ()
    count = int(config["num_train_timesteps"])
    return tuple(count * part // 4 - 1 for part in range(1, 5))


def warning(name: str, pipe: Any, family: str, component: str) -> str | None:
    """Return what to say of a stock pipeline that was distilled in steps, None of any other."""
    scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    kind = distillation(name, family, pipe.config, getattr(pipe, component).config, scheduler)
    if kind is None or kind[0] != STEPS:
        return None
    return f"{name}: {kind[1]}; {' '.join(WARNING.split())}"
