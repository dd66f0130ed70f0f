"""RankDPO (Karthik et al., 2410.18013), reconstructed: whole rankings of K images of a prompt by reward models.

The paper's pipeline was read; the loss is from memory (the objective `rank_dpo`), and so are its constants: beta is that of
Diffusion-DPO here. The gains of a record are the shares of the other images that each one beats: by rank, which `diffalign pairs
generate` writes, and of a labelled pair by its label. For the mean over several reward models, as in the paper, begin the transforms
with {share_beaten: {scores: [NAME, ...]}}. Images share time and noise; as many of them are taken of a record as most records have.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

RANK_DPO = Method(
    paper="2410.18013",
    source=Source("reconstructed", ("golden",)),
    objective=spec("rank_dpo", beta=5000.0),
    trajectory=spec("forward", share_noise=True),
    reference="policy_start",
    transforms=(spec("share_beaten"), spec("list_of", score="gains")),
    about="rankings of K images, or pairs; the reference is the model it starts from",
)
