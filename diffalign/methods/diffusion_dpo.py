"""Diffusion-DPO (Wallace et al., 2311.12908) as released: DPO on denoising errors at one random time, noise shared by the two images.

Paper and release differ. The paper sums the squared error over the latent, with T and the weight absorbed in beta; the release
takes its mean, with one half: beta 5000 here is 5000 there, 2500 in the diffusers SD1.5 script, and 5000 / (2 C H W) in sum form.
The paper's equation gives each image its own noise, its pseudo-code and all released code share it. We follow the release.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

DIFFUSION_DPO = Method(
    paper="2311.12908",
    source=Source("release", ("golden",)),
    objective=spec("dpo", beta=5000.0),
    trajectory=spec("forward", share_noise=True),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of images; the reference is the model it starts from",
    paper_batch=2048,
)
