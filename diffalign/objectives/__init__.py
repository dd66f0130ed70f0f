"""Objectives by name: pure functions `Scores -> (B,)`, one loss a record, averaged by the caller (never before the log-sigmoid).

They serve image and text training alike. Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean
squared error) it is the beta of the Diffusion-DPO release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger
beta keeps the policy closer to the reference.
"""

from __future__ import annotations

from diffalign.objectives.base import Facts, Objective
from diffalign.objectives.base import margin as margin
from diffalign.objectives.diffusion import denoise, mapo, smpo
from diffalign.objectives.pairwise import dpo, hinge, ipo

OBJECTIVES: dict[str, Objective] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "smpo": smpo,
    "mapo": mapo,
    "denoise": denoise,
}
FACTS: dict[str, Facts] = {  # of those that need more, or less, than two scores and a reference
    "mapo": Facts("R", reference=False),
    "denoise": Facts("V", reference=False, candidates=1),
}


def facts(name: str) -> Facts:
    """Return what the objective `name` needs."""
    return FACTS.get(name, Facts())
