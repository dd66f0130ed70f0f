"""DDIM-InPO (Lu et al., 2503.18454): Diffusion-DPO on latents that the network itself inverts, with a little added noise."""

from __future__ import annotations

from diffalign.methods.base import Method, spec

INPO = Method(
    paper="2503.18454",
    objective=spec("dpo", beta=2000.0),
    trajectory=spec("ddim_inversion", steps=10, eta=0.1, end="exact", driver="reference"),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of images; inverts both, 6.4 more network evaluations a step unless cached",
    paper_batch=1024,
)
