"""Methods by name. A method only names its parts; the parts and the trainer know no method."""

from __future__ import annotations

from diffalign.methods.base import Method
from diffalign.methods.diffusion_dpo import DIFFUSION_DPO

METHODS: dict[str, Method] = {
    "diffusion_dpo": DIFFUSION_DPO,
}
