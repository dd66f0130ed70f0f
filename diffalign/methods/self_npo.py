"""Self-NPO (Wang et al., 2505.11777) in our reading: fine-tuning on the model's own unguided estimates, for guidance to lead away from.

Paper and release differ: the paper is free of data (it rolls out from pure noise), the release noises real images and takes five
solver steps ({self_rollout: {start: image, steps: 5}} with the transforms [orient, preferred]). We begin at pure noise, with a list of
prompts. Five steps of 25 from there would train the noisiest fifth of the times alone, so 1 to 24 are drawn: our reading.
`guidance` -1 asks for the unconditional estimate (the release for SD1.5); it takes -5 for SDXL.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec
from diffalign.objectives.base import Source

SELF_NPO = Method(
    paper="2505.11777",
    source=Source("variant", ("golden",), "begins at noise, as the paper; how far it goes is our reading"),
    objective=spec("denoise"),
    trajectory=spec("self_rollout", start="noise", steps=24, guidance=-1.0),
    reference="none",
    transforms=(spec("prompt_only"),),
    about="prompts alone; trains what to steer away from",
    error=spec("pseudo_huber", c=1e-3),
    inference="negative_guidance",
    paper_batch=20,
)
