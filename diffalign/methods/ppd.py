"""PPD (Dang et al., 2501.06655) with our user encoder: Diffusion-DPO with the user as a condition, by decoupled attention to a few tokens.

The reference is the base without a user: the same network with the branch off. The release has no diffusion training; the paper feeds
hidden states of a 7B vision-language model (`user_encoder: {vlm: {model: ...}}`), ours by default learns a set encoder with the loss.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

PPD = Method(
    paper="2501.06655",
    source=Source("variant", ("golden",), "a set encoder that is trained with the loss; `vlm` is the paper's"),
    objective=spec("dpo", beta=2000.0),
    trajectory=spec("forward", share_noise=True),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient"), spec("by_user")),
    about="pairs of images with their user; a few pairs of a new user then change what is drawn for them",
    inference="user",
    paper_batch=768,
    users=spec("pairs"),
)
