"""DDIM-InPO (Lu et al., 2503.18454): Diffusion-DPO on latents that the network itself inverts, with a little added noise.

The release ends at a time of a fixed grid (end "grid", label "source", driver "policy"), noisier than the time it then tells the
network, and a trial on another toy model had exact landing lower the win rate. On the embedded model it does not: `python -m
scripts.ablate_inversion` (off-policy pairs, taste "high", 120 steps of 16, learning rate 1e-3, beta 500, seed 0, 100 prompts) gave
0.90 to 0.91 for exact landing with source labels, 0.85 with destination labels, 0.80 to 0.88 for the grid, 0.69 for Diffusion-DPO;
intervals are +-0.05. Moves (5 or 10) and eta (0 or 0.1) make no difference where the landing is exact; on the grid more moves help.
What differs is the error that is there to begin with: 0.011 on exactly inverted points, 0.018 (10 moves) and 0.078 (5 moves) on the
grid, where most of it is the mismatch of noise and label, 0.024 under plain noise. A margin of 1/beta is a larger part of a smaller
error, so the same beta lets the network move further: held-out log-ratios under plain noise fell by 2.0e-3 (preferred) and 2.9e-3
after exact landing, 0.3e-3 and 0.5e-3 after Diffusion-DPO. Hence the gain, and hence the risk the trial met: with too many steps or
too large a rate both candidates' errors rise. A larger beta holds it (exact, beta 5000: 0.81, 0.3e-3 and 0.7e-3; 50000: 0.65), so
tune beta, not the landing. With the reference as driver (0.91) points can be cached; the policy as driver (0.85) was no better.
"""

from __future__ import annotations

from diffalign.methods.base import Method, spec

INPO = Method(
    paper="2503.18454",
    objective=spec("dpo", beta=2000.0),
    trajectory=spec("ddim_inversion", steps=10, eta=0.1, end="exact", driver="reference"),
    reference="policy_start",
    transforms=(spec("pairs"), spec("drop_ties"), spec("orient")),
    about="pairs of images; the reference inverts both, once if `trajectory_cache` is set",
    paper_batch=1024,
)
