"""Beta as other programs count it. Here it multiplies differences of -1/2 * mean squared error, as in the Diffusion-DPO release."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffalign.core.errors import ConfigError, check_name


@dataclass(frozen=True, slots=True)
class Convention:
    """What a program's beta multiplies."""

    where: str  # the program
    half: bool  # one half of the squared error, as here
    summed: bool = False  # over the latent, where it is the mean here


CONVENTIONS: dict[str, Convention] = {
    "diffusion_dpo": Convention("Diffusion-DPO, SmPO and InPO releases: --beta_dpo", half=True),
    "diffusers_sdxl": Convention("diffusers train_diffusion_dpo_sdxl.py: --beta_dpo", half=True),
    "diffusers_sd15": Convention("diffusers train_diffusion_dpo.py: --beta_dpo", half=False),
    "diffusion_npo": Convention("Diffusion-NPO release: --beta_dpo", half=False),
    "flow_grpo": Convention("flow_grpo train_sd3_dpo.py: train.beta", half=True),
    "simpletuner": Convention("SimpleTuner flow_dpo: beta, norm_type sum (its default)", half=True, summed=True),
    "simpletuner_mean": Convention("SimpleTuner flow_dpo: beta, norm_type mean", half=True),
    "sum": Convention("a sum over the latent without one half", half=False, summed=True),
}


def convert(beta: float, convention: str, latent_shape: tuple[int, int, int] | None = None) -> float:
    """Return the beta that means here what `beta` means in another program.

    Args:
        beta: the other program's.
        convention: a key of `CONVENTIONS`.
        latent_shape: (C, H, W) of the latent, for the conventions that sum over it: pixels divided by 8 on either side, and 4 channels
            for Stable Diffusion 1.x, 2.x and XL, 16 for 3, 3.5 and Flux.

    Raises ConfigError for a convention that is none, and for a sum without `latent_shape`.

    Examples:
        >>> convert(2500, "diffusers_sd15"), convert(0.305, "simpletuner", (4, 64, 64))
        (5000, 4997.12)
    """
    check_name("convention", convention, CONVENTIONS)
    rule = CONVENTIONS[convention]
    if rule.summed and latent_shape is None:
        raise ConfigError(f"convention `{convention}` sums over the latent; give its latent_shape, (4, 64, 64) for SD1.5 at 512 pixels")
    size = math.prod(latent_shape) if rule.summed and latent_shape is not None else 1
    return beta * (1 if rule.half else 2) * size
