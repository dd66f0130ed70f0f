"""Models that were distilled to draw in a few steps, or with their guidance built in: told by their configs, for a warning.

A loss on single noise levels, which preferences are trained with, pulls a step-distilled model back towards many steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STEPS, GUIDANCE = "steps", "guidance"
NAMES = re.compile(r"(?:^|[^a-z])(turbo|lightning|lcm|hyper|schnell|dmd2?|few-?step)(?:[^a-z]|$)", re.IGNORECASE)
WARNING = """it was distilled to draw in a few steps, and training on single noise levels takes that away bit by bit: pictures of few
steps get blurred. Keep learning rate and steps low, and look at validation pictures of few steps; or train the model that it was distilled
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
    if scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
        return STEPS, f"its scheduler is {scheduler['_class_name']}"
    if index.get("is_distilled"):
        return STEPS, "`is_distilled` is true in its index"
    if family in ("flux", "flux_kontext", "flux2") and denoiser.get("guidance_embeds"):
        return GUIDANCE, "`guidance_embeds` is true"
    if family == "flux":
        return STEPS, "`guidance_embeds` is false"
    # Models of zero terminal SNR count their times from the end as well; they predict the velocity.
    if scheduler.get("timestep_spacing") == "trailing" and scheduler.get("prediction_type", "epsilon") == "epsilon":
        return (STEPS, "its times are spaced `trailing`") if scheduler.get("_class_name") == "EulerAncestralDiscreteScheduler" else None
    return None


def warning(name: str, pipe: Any, family: str, component: str) -> str | None:
    """Return what to say of a stock pipeline that was distilled in steps, None of any other."""
    scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    kind = distillation(name, family, pipe.config, getattr(pipe, component).config, scheduler)
    if kind is None or kind[0] != STEPS:
        return None
    return f"{name}: {kind[1]}; {' '.join(WARNING.split())}"
