"""Objectives by name: pure functions `Scores -> (B,)`, one loss per record, for image and text training alike.

Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean squared error) it is the beta of the Diffusion-DPO
release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger beta keeps the policy closer to the reference. LD-DPO,
LN-DPO and DOVE are the objective `dpo` with other likelihoods: `ld_dpo`, `mean` and `joint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.core.specs import Bound, Spec, bind
from diffalign.objectives import implicit_reward as reward
from diffalign.objectives.anchored import aot, aot_unpaired, apo_down, apo_zero, bco, d3po, gpo, kto, sppo
from diffalign.objectives.base import Facts, Objective
from diffalign.objectives.base import margin as margin
from diffalign.objectives.diffusion import denoise, mapo, smpo
from diffalign.objectives.implicit_reward import policy_mean, policy_score, times_beta
from diffalign.objectives.listwise import adpo_list, exo, infonca, lipo, nca, plackett_luce, pro_rank
from diffalign.objectives.pairwise import adpo, discopop, dpo, dpo_gamma, fdpo, flex_dpo, hinge, inpo_nash, ipo, mmdpo, modpo, robust, spa
from diffalign.objectives.reference_free import asft, cpo, orpo, poft, simpo, slic, triple_po
from diffalign.objectives.token import sparse_po, tab_po, tdpo, wpo
from diffalign.objectives.with_terms import bvpo, mapl, rpo, selm, srpo, vpo, xpo

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

PAIR = Facts()  # an objective that needs only the scores of two candidates and a reference

OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, PAIR, times_beta),
    "robust": Objective(robust, PAIR, times_beta),
    "ipo": Objective(ipo, PAIR, reward.times_tau),
    "hinge": Objective(hinge, PAIR, times_beta),
    "discopop": Objective(discopop, PAIR, times_beta),
    "dpo_gamma": Objective(dpo_gamma, PAIR, reward.dpo_gamma),
    "flex_dpo": Objective(flex_dpo, PAIR, reward.times_beta_plus),
    "modpo": Objective(modpo, Facts(columns=("margin",)), reward.modpo),
    "fdpo": Objective(fdpo, Facts(columns=("hallucinated",)), times_beta),
    "mmdpo": Objective(mmdpo, Facts(columns=("gains",)), times_beta),
    "spa": Objective(spa, PAIR, times_beta),
    "adpo": Objective(adpo, PAIR, reward.over_tau),
    "inpo_nash": Objective(inpo_nash, Facts(columns=("previous",)), reward.times_tau),
    "bco": Objective(bco, PAIR, times_beta),
    "sppo": Objective(sppo, Facts(optional=("gains",), chances=True), times_beta),
    "gpo": Objective(gpo, Facts(columns=("gains",)), times_beta),
    "apo_zero": Objective(apo_zero, PAIR, times_beta),
    "apo_down": Objective(apo_down, PAIR, times_beta),
    "d3po": Objective(d3po, PAIR, times_beta),
    "aot": Objective(aot, Facts(coupled=True, of_ranks=True), times_beta),
    "aot_unpaired": Objective(aot_unpaired, Facts(coupled=True, of_ranks=True), times_beta),
    "kto": Objective(kto, Facts(mismatched=True, coupled=True), times_beta),
    "rpo": Objective(rpo, Facts("V+"), times_beta),
    "selm": Objective(selm, Facts(candidates=3), times_beta),
    "xpo": Objective(xpo, Facts("V+", candidates=3), times_beta),
    "vpo": Objective(vpo, Facts(candidates=3), times_beta),
    "bvpo": Objective(bvpo, Facts(candidates=4), times_beta),
    "mapl": Objective(mapl, Facts(candidates=4), times_beta),
    "srpo": Objective(srpo, Facts("N", candidates=6), times_beta),  # texts only: an image is not drawn as a revision of another
    "simpo": Objective(simpo, Facts("R", reference=False), policy_mean),
    "cpo": Objective(cpo, Facts("R", reference=False), reward.cpo),
    "triple_po": Objective(triple_po, Facts("R", reference=False, candidates=3), reward.triple_po),
    "slic": Objective(slic, Facts("R", reference=False), policy_score),
    "orpo": Objective(orpo, Facts("N", reference=False, tokens=("prompt",)), policy_mean),
    "asft": Objective(asft, Facts("N", reference=False), policy_mean),
    "poft": Objective(poft, Facts("R", reference=False, candidates=1, columns=("teacher",)), reward.poft),
    "exo": Objective(exo, Facts("L", optional=("gains",), lists=True), times_beta),
    "nca": Objective(nca, Facts("L", optional=("gains",), lists=True), times_beta),
    "infonca": Objective(infonca, Facts("L", columns=("gains",)), times_beta),
    "adpo_list": Objective(adpo_list, Facts("L", columns=("gains",)), reward.over_tau),
    "plackett_luce": Objective(plackett_luce, Facts("L", optional=("gains",)), times_beta),
    "lipo": Objective(lipo, Facts("L", columns=("gains",), chances=True), times_beta),
    "pro_rank": Objective(pro_rank, Facts("R", reference=False, columns=("gains",)), policy_mean),
    "tdpo": Objective(tdpo, Facts("N", tokens=("kl",), sums=True), reward.tdpo),
    "wpo": Objective(wpo, Facts("N", tokens=("collision",)), times_beta),
    "sparse_po": Objective(sparse_po, Facts("N", tokens=("reference", "kl", "activation"), sums=True), times_beta),
    "tab_po": Objective(tab_po, Facts("N", tokens=("reference", "activation"), sums=True), times_beta),
    "smpo": Objective(smpo, PAIR, times_beta),
    "mapo": Objective(mapo, Facts("R", reference=False), policy_score),
    "denoise": Objective(denoise, Facts("V", reference=False, candidates=1), policy_score),
    "dno": Objective(dpo, PAIR, times_beta),  # the previous iterate is its reference
    "rank_dpo": Objective(lipo, Facts("L", columns=("gains",), chances=True), times_beta),  # LiPO on images
}


def bind_objective(spec: Spec) -> Bound:
    """Return the loss that `spec` names, with its constants. Raises ConfigError for an unknown name or constant."""
    return bind("objective", {name: objective.loss for name, objective in OBJECTIVES.items()}, spec)


def implicit_rewards(objective: Bound, s: Scores) -> Tensor:
    """Return the implicit rewards (B, K) of an objective, without gradient."""
    return OBJECTIVES[objective.name].reward(s, objective.constants).detach()
