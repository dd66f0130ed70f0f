"""SmPO-Diffusion (Lu et al., 2506.02698) with our inversion: soft labels from a reward weigh beta, on latents inverted with one renoise.

In the release the policy inverts, and ends at a time of a fixed grid: {ddim_inversion: {steps: 5, renoise: 1, end: grid, label: source,
driver: policy}}, ten steps for SDXL (the paper's text says nine). Here the reference inverts, exactly to the drawn time. The release orders
pairs by the reward and drops ties of the human label. Its range of PickScore's cosines over Pick-a-Pic v2, 0.11543526500463486 to
0.28201571106910706, are the constants `low` and `high` of soft_label; without them the range in the table's manifest counts.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

SMPO = Method(
    paper="2506.02698",
    source=Source("variant", ("golden",), "end and driver of the inversion differ from the release"),
    objective=spec("smpo", beta=2000.0, scale=10.0),
    trajectory=spec("ddim_inversion", steps=5, renoise=1, end="exact", driver="reference"),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("soft_label", score="pickscore"), spec("orient")),
    about="pairs of images with a reward's score for each",
    paper_batch=1024,
)
