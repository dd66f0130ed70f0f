"""DPO (Rafailov et al., 2305.18290) of language models; with `objective` and `likelihood`, the whole family.

Beta multiplies nats: 0.1. The same method trains image models as well, where it is Diffusion-DPO and beta multiplies half a mean squared
error: give 2000 to 5000.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

DPO = Method(
    paper="2305.18290",
    source=Source("paper", ("TRL", "golden")),
    objective=spec("dpo", beta=0.1),
    trajectory=spec("forward", share_noise=True),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of texts for a language model, or of images; the reference is the model it starts from",
)
