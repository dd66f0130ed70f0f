"""Diffusion-NPO (Wang et al., ICLR 2025) as released: Diffusion-DPO on inverted pairs, for the unconditional branch of guidance.

The release counts ties as wins of the first image; they are dropped here. Its beta of 500 multiplies whole errors, and ours multiplies
half of them, so it is 1000.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

DIFFUSION_NPO = Method(
    paper="2505.11245",
    source=Source("release", ("golden",), "ties are dropped"),
    objective=spec("dpo", beta=1000.0),
    trajectory=spec("forward", share_noise=True),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient"), spec("invert")),
    about="pairs of images; trains what to steer away from",
    inference="negative_guidance",
    paper_batch=64,
)
