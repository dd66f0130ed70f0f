"""Objectives by name: pure functions `Scores -> (B,)`, one loss a record, averaged by the caller (never before the log-sigmoid).

They serve image and text training alike. Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean
squared error) it is the beta of the Diffusion-DPO release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger
beta keeps the policy closer to the reference. LD-DPO, LN-DPO and DOVE are likelihoods (`ld_dpo`, `mean`, `joint`) under `dpo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.core.specs import Bound, Spec, bind
from diffalign.objectives import implicit_reward as reward
from diffalign.objectives.anchored import aot, aot_unpaired, apo_down, apo_zero, bco, d3po, gpo, kto, sppo
from diffalign.objectives.base import Facts, Objective
from diffalign.objectives.base import margin as margin
from diffalign.objectives.diffusion import denoise, mapo, smpo
from diffalign.objectives.implicit_reward import log_ratio, policy_mean, policy_score
from diffalign.objectives.listwise import adpo_list, exo, infonca, lipo, nca, plackett_luce, pro_rank
from diffalign.objectives.pairwise import adpo, discopop, dpo, dpo_gamma, fdpo, flex_dpo, hinge, inpo_nash, ipo, mmdpo, modpo, robust, spa
from diffalign.objectives.reference_free import asft, cpo, orpo, poft, simpo, slic, triple_po
from diffalign.objectives.token import sparse_po, tab_po, tdpo, wpo
from diffalign.objectives.with_terms import bvpo, mapl, rpo, selm, srpo, vpo, xpo

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

PAIR = Facts()  # two scores and a reference are enough

OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, PAIR, log_ratio),
    "robust": Objective(robust, PAIR, log_ratio),
    "ipo": Objective(ipo, PAIR, reward.times_tau),
    "hinge": Objective(hinge, PAIR, log_ratio),
    "discopop": Objective(discopop, PAIR, log_ratio),
    "dpo_gamma": Objective(dpo_gamma, PAIR, reward.dpo_gamma),
    "flex_dpo": Objective(flex_dpo, PAIR, reward.times_beta_plus),
    "modpo": Objective(modpo, Facts(columns=("margin",)), reward.modpo),
    "fdpo": Objective(fdpo, Facts(columns=("hallucinated",)), log_ratio),
    "mmdpo": Objective(mmdpo, Facts(columns=("gains",)), log_ratio),
    "spa": Objective(spa, PAIR, log_ratio),
    "adpo": Objective(adpo, PAIR, reward.over_tau),
    "inpo_nash": Objective(inpo_nash, Facts(columns=("previous",)), reward.times_tau),
    "bco": Objective(bco, PAIR, log_ratio),
    "sppo": Objective(sppo, Facts(optional=("gains",), chances=True), log_ratio),
    "gpo": Objective(gpo, Facts(columns=("gains",)), log_ratio),
    "apo_zero": Objective(apo_zero, PAIR, log_ratio),
    "apo_down": Objective(apo_down, PAIR, log_ratio),
    "d3po": Objective(d3po, PAIR, log_ratio),
    "aot": Objective(aot, Facts(coupled=True, of_ranks=True), log_ratio),
    "aot_unpaired": Objective(aot_unpaired, Facts(coupled=True, of_ranks=True), log_ratio),
    "kto": Objective(kto, Facts(mismatched=True, coupled=True), log_ratio),
    "rpo": Objective(rpo, Facts("V+"), log_ratio),
    "selm": Objective(selm, Facts(candidates=3), log_ratio),
    "xpo": Objective(xpo, Facts("V+", candidates=3), log_ratio),
    "vpo": Objective(vpo, Facts(candidates=3), log_ratio),
    "bvpo": Objective(bvpo, Facts(candidates=4), log_ratio),
    "mapl": Objective(mapl, Facts(candidates=4), log_ratio),
    "srpo": Objective(srpo, Facts("N", candidates=6), log_ratio),  # an image written after another one has no meaning
    "simpo": Objective(simpo, Facts("R", reference=False), policy_mean),
    "cpo": Objective(cpo, Facts("R", reference=False), reward.cpo),
    "triple_po": Objective(triple_po, Facts("R", reference=False, candidates=3), reward.triple_po),
    "slic": Objective(slic, Facts("R", reference=False), policy_score),
    "orpo": Objective(orpo, Facts("N", reference=False, tokens=("prompt",)), policy_mean),
    "asft": Objective(asft, Facts("N", reference=False), policy_mean),
    "poft": Objective(poft, Facts("R", reference=False, candidates=1, columns=("teacher",)), reward.poft),
    "exo": Objective(exo, Facts("L", optional=("gains",), lists=True), log_ratio),
    "nca": Objective(nca, Facts("L", optional=("gains",), lists=True), log_ratio),
    "infonca": Objective(infonca, Facts("L", columns=("gains",)), log_ratio),
    "adpo_list": Objective(adpo_list, Facts("L", columns=("gains",)), reward.over_tau),
    "plackett_luce": Objective(plackett_luce, Facts("L", optional=("gains",)), log_ratio),
    "lipo": Objective(lipo, Facts("L", columns=("gains",), chances=True), log_ratio),
    "pro_rank": Objective(pro_rank, Facts("R", reference=False, columns=("gains",)), policy_mean),
    "tdpo": Objective(tdpo, Facts("N", tokens=("kl",), sums=True), reward.tdpo),
    "wpo": Objective(wpo, Facts("N", tokens=("collision",)), log_ratio),
    "sparse_po": Objective(sparse_po, Facts("N", tokens=("reference", "kl", "activation"), sums=True), log_ratio),
    "tab_po": Objective(tab_po, Facts("N", tokens=("reference", "activation"), sums=True), log_ratio),
    "smpo": Objective(smpo, PAIR, log_ratio),
    "mapo": Objective(mapo, Facts("R", reference=False), policy_score),
    "denoise": Objective(denoise, Facts("V", reference=False, candidates=1), policy_score),
    "dno": Objective(dpo, PAIR, log_ratio),  # the previous iterate is its reference
    "rank_dpo": Objective(lipo, Facts("L", columns=("gains",), chances=True), log_ratio),  # of images
}


def bind_objective(spec: Spec) -> Bound:
    """Return the loss that `spec` names, with its constants. Raises ConfigError for a name or a constant that is none."""
    return bind("objective", {name: objective.loss for name, objective in OBJECTIVES.items()}, spec)


def implicit_rewards(objective: Bound, s: Scores) -> Tensor:
    """Return the rewards (B, K) that an objective trains, without gradient."""
    return OBJECTIVES[objective.name].reward(s, objective.constants).detach()
