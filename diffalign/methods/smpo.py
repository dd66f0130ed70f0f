"""SmPO-Diffusion (Lu et al., 2506.02698): soft labels from a reward weigh beta, on latents inverted with one renoise estimate.

The release orders pairs by the reward and drops ties of the human label. Its constants (min 0.11543526500463486, max
0.28201571106910706 of PickScore's cosines over Pick-a-Pic v2) are `low` and `high` of soft_label; without them those of the
table's manifest count.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec

SMPO = Method(
    paper="2506.02698",
    objective=spec("smpo", beta=2000.0, scale=10.0),
    trajectory=spec("ddim_inversion", steps=5, renoise=1, end="exact", driver="reference"),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("soft_label", score="pickscore"), spec("orient")),
    about="pairs of images with a reward's score for each",
    paper_batch=1024,
)
