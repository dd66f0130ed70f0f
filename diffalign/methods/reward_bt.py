"""A reward model by Bradley and Terry (1952), as in 2009.01325 and, of images, 2304.05977: a head on a CLIP's frozen embeddings.

Its loss -log sigmoid(r_w - r_l) is the objective `simpo` with beta 1 and gamma 0, with rewards in place of mean log-probabilities. Soft
labels and ties are soft targets.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

REWARD_BT = Method(
    paper="2009.01325",
    source=Source("paper", ("hand",)),
    objective=spec("simpo", beta=1.0, gamma=0.0),
    trajectory=spec("forward", share_noise=True),  # nothing is noised
    reference="none",
    transforms=(spec("pairs"), spec("orient")),
    about="pairs, rankings and ties of images; the result is a scorer",
    inference="reward",
)
