"""DDIM-InPO (Lu et al., 2503.18454) with our inversion: Diffusion-DPO on latents that the network inverts, with a little added noise.

In the release the policy inverts, and ends at a time of a fixed grid, which is noisier than the time that the network then gets:
{ddim_inversion: {steps: 10, eta: 0.1, end: grid, label: source, driver: policy}}. Here the reference inverts, so that points can be cached,
and lands exactly at the drawn time. On the embedded model that wins more often (0.90 to 0.91 against 0.80 to 0.88, and 0.69 of
Diffusion-DPO; `python -m scripts.ablate_inversion`, all rows in docs/methods/inpo.md). The error on exactly inverted points is small,
so the same beta lets the network move further: with too many steps or too large a rate both candidates' errors rise. A larger beta
holds it.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

INPO = Method(
    paper="2503.18454",
    source=Source("variant", ("golden",), "end and driver of the inversion differ from the release"),
    objective=spec("dpo", beta=2000.0),
    trajectory=spec("ddim_inversion", steps=10, eta=0.1, end="exact", driver="reference"),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of images; the reference inverts both, once if `trajectory_cache` is set",
    paper_batch=1024,
)
