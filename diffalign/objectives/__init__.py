"""Objectives by name: pure functions `Scores -> (B,)`, one loss per record, for image and text training alike.

Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean squared error) it is the beta of the Diffusion-DPO
release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger beta keeps the policy closer to the reference. LD-DPO,
LN-DPO and DOVE are the objective `dpo` with other likelihoods: `ld_dpo`, `mean` and `joint`; DNO is `dpo` in `rounds`, each of which has
the last one's result as its reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diffalign.core.specs import Bound, Spec, bind, single
from diffalign.objectives import implicit_reward as reward
from diffalign.objectives.anchored import aot, aot_unpaired, apo_down, apo_zero, bco, clipped_dpo, gpo, kto, sppo
from diffalign.objectives.base import Facts, Objective, Source
from diffalign.objectives.base import margin as margin
from diffalign.objectives.constants import check_constants
from diffalign.objectives.diffusion import denoise, diffusion_kto, distil, dspo, mapo, smpo
from diffalign.objectives.implicit_reward import log_ratio, policy_mean, policy_score, times_beta
from diffalign.objectives.listwise import adpo_list, exo, infonca, lipo, nca, plackett_luce, pro_rank, rank_dpo
from diffalign.objectives.online import awm, clipped_ratio, dgpo, diffusion_nft
from diffalign.objectives.pairwise import adpo, discopop, dpo, dpo_gamma, fdpo, flex_dpo, hinge, inpo_nash, ipo, mmdpo, modpo, robust, spa
from diffalign.objectives.reference_free import asft, cpo, orpo, poft, simpo, slic, triple_po
from diffalign.objectives.token import sparse_po, tab_po, tdpo, wpo
from diffalign.objectives.with_terms import bide_dpo, bvpo, mapl, rpo, selm, srpo, vpo, xpo

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

PAIR = Facts()  # an objective that needs only the scores of two candidates and a reference
ADVANTAGE = Facts("L", columns=("advantage",), residuals=True)
RATIO = Facts("L", reference=False, columns=("advantage",), tokens=("old",), steps=True, drift="kl")
ADVANTAGE_AND_DRIFT = replace(ADVANTAGE, drift="kl")
PAPER = Source("paper", ("golden",))
RELEASE = Source("release", ("golden",))
TRL = Source("release", ("TRL", "golden"))
RECONSTRUCTED = Source("reconstructed", ("golden",))
MM_DPO = Source("reconstructed", ("golden",), "`form: code` is the release's")
NCA = Source("release", ("TRL", "golden"), "of lists it is reconstructed")
ADPO_LIST = Source("paper", ("golden",), "the target from gains is reconstructed")
NFT = Source("paper", ("golden",), "`space: adaptive` is the release's")
DSPO = Source("release", ("golden",), "`form: sdxl` is the release's for SDXL, another loss than the paper's")
RATIOS = Source("release", ("TRL", "golden"), "of one process")
VARIANT = Source("variant", ("golden",))
CLIPPED = Source("variant", ("golden",), "on kept sampler steps (`rollout`) it is the release's")
BY_HAND = Source("reconstructed", ("hand",))
BIDE_DPO = Source("reconstructed", ("hand",), "whether it balances over the batch is our reading")

OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, PAIR, times_beta, TRL),
    "robust": Objective(robust, PAIR, times_beta, TRL),
    "ipo": Objective(ipo, PAIR, reward.times_tau, TRL),
    "hinge": Objective(hinge, PAIR, times_beta, TRL),
    "discopop": Objective(discopop, PAIR, times_beta, TRL),
    "dpo_gamma": Objective(dpo_gamma, PAIR, reward.dpo_gamma, RELEASE),
    "flex_dpo": Objective(flex_dpo, PAIR, reward.times_beta_plus, RECONSTRUCTED),
    "modpo": Objective(modpo, Facts(columns=("margin",)), reward.modpo, RELEASE),
    "fdpo": Objective(fdpo, Facts(columns=("hallucinated",)), times_beta, RELEASE),
    "mmdpo": Objective(mmdpo, Facts(columns=("gains",)), times_beta, MM_DPO),
    "spa": Objective(spa, PAIR, times_beta, VARIANT),
    "adpo": Objective(adpo, PAIR, reward.over_tau, BY_HAND),
    "inpo_nash": Objective(inpo_nash, Facts(columns=("previous",)), reward.times_tau, RECONSTRUCTED),
    "bco": Objective(bco, Facts(unpaired=True), times_beta, TRL),
    "sppo": Objective(sppo, Facts(optional=("gains",), chances=True), times_beta, TRL),
    "gpo": Objective(gpo, Facts(columns=("gains",)), times_beta, RECONSTRUCTED),
    "apo_zero": Objective(apo_zero, PAIR, times_beta, TRL),
    "apo_down": Objective(apo_down, PAIR, times_beta, TRL),
    "clipped_dpo": Objective(clipped_dpo, Facts(of_steps=True), times_beta, CLIPPED),
    "aot": Objective(aot, Facts(coupled=True, of_ranks=True), times_beta, TRL),
    "aot_unpaired": Objective(aot_unpaired, Facts(coupled=True, of_ranks=True), times_beta, TRL),
    "kto": Objective(kto, Facts(mismatched=True, unpaired=True, coupled=True), times_beta, TRL),
    "rpo": Objective(rpo, Facts("V+"), times_beta, RELEASE),
    "selm": Objective(selm, Facts(candidates=3), times_beta, RELEASE),
    "xpo": Objective(xpo, Facts("V+", candidates=3), times_beta, RELEASE),
    "vpo": Objective(vpo, Facts(candidates=3), times_beta, RECONSTRUCTED),
    "bvpo": Objective(bvpo, Facts(candidates=4), times_beta, Source("paper", ("hand",), "the default of alpha is ours")),
    "bide_dpo": Objective(bide_dpo, Facts(candidates=4, coupled=True), times_beta, BIDE_DPO),
    "mapl": Objective(mapl, Facts(candidates=4), times_beta, BY_HAND),
    "srpo": Objective(srpo, Facts("N", candidates=6), times_beta, BY_HAND),  # texts only: an image is not drawn as a revision of another
    "simpo": Objective(simpo, Facts("R", reference=False), policy_mean, TRL),
    "cpo": Objective(cpo, Facts("R", reference=False), reward.cpo, TRL),
    "triple_po": Objective(triple_po, Facts("R", reference=False, candidates=3), reward.triple_po, RELEASE),
    "slic": Objective(slic, Facts("R", reference=False), policy_score, RELEASE),
    "orpo": Objective(orpo, Facts("N", reference=False, tokens=("prompt",)), policy_mean, RELEASE),
    "asft": Objective(asft, Facts("N", reference=False), policy_mean, RECONSTRUCTED),
    "poft": Objective(poft, Facts("R", reference=False, candidates=1, columns=("teacher",)), reward.poft, RELEASE),
    "exo": Objective(exo, Facts("L", optional=("gains",), lists=True), times_beta, TRL),
    "nca": Objective(nca, Facts("L", optional=("gains",), lists=True), times_beta, NCA),
    "infonca": Objective(infonca, Facts("L", columns=("gains",)), times_beta, RECONSTRUCTED),
    "adpo_list": Objective(adpo_list, Facts("L", columns=("gains",)), reward.over_tau, ADPO_LIST),
    "plackett_luce": Objective(plackett_luce, Facts("L", optional=("gains",)), times_beta, PAPER),
    "lipo": Objective(lipo, Facts("L", columns=("gains",), chances=True), times_beta, RECONSTRUCTED),
    "pro_rank": Objective(pro_rank, Facts("R", reference=False, columns=("gains",)), policy_mean, RELEASE),
    "tdpo": Objective(tdpo, Facts("N", tokens=("kl",), sums=True), reward.tdpo, RELEASE),
    "wpo": Objective(wpo, Facts("N", tokens=("collision",)), times_beta, TRL),
    "sparse_po": Objective(sparse_po, Facts("N", tokens=("reference", "kl", "activation"), sums=True), times_beta, RECONSTRUCTED),
    "tab_po": Objective(tab_po, Facts("N", tokens=("reference", "activation"), sums=True), times_beta, BY_HAND),
    "smpo": Objective(smpo, PAIR, times_beta, RELEASE),
    "mapo": Objective(mapo, Facts("R", reference=False), policy_score, RELEASE),
    "denoise": Objective(denoise, Facts("V", reference=False, candidates=1), policy_score, Source("paper", ("TRL", "golden"))),
    "distil": Objective(distil, Facts("V", candidates=1, residuals=True), log_ratio, Source("variant", ("hand",))),
    "dspo": Objective(dspo, Facts("V", residuals=True), times_beta, DSPO),
    "diffusion_kto": Objective(diffusion_kto, Facts("V", unpaired=True, coupled=True), times_beta, RELEASE),
    "awm": Objective(awm, replace(ADVANTAGE_AND_DRIFT, old="clip"), log_ratio, RELEASE),
    "dgpo": Objective(dgpo, replace(ADVANTAGE, old="clip"), times_beta, RELEASE),
    "diffusion_nft": Objective(diffusion_nft, ADVANTAGE_AND_DRIFT, log_ratio, NFT),
    "clipped_ratio": Objective(clipped_ratio, RATIO, policy_score, RATIOS),
    "rank_dpo": Objective(rank_dpo, Facts("L", columns=("gains",), chances=True), times_beta, RECONSTRUCTED),
}


# Of older configs and runs. D3PO clips log-densities of denoising steps, which the scores of pairs are not, and DNO is `dpo` in rounds.
RENAMED = {"d3po": "clipped_dpo", "dno": "dpo"}


def bind_objective(spec: Spec) -> Bound:
    """Return the loss that `spec` names, with its constants; a former name stands for the new one (`RENAMED`).

    Raises ConfigError for an unknown name or constant, and for a constant outside its range.
    """
    name, written = single("objective", spec)
    losses = {name: objective.loss for name, objective in OBJECTIVES.items()}
    bound = bind("objective", losses, {RENAMED.get(name, name): written})
    check_constants(bound.name, bound.constants)
    return bound


def implicit_rewards(objective: Bound, s: Scores) -> Tensor:
    """Return the implicit rewards (B, K) of an objective, without gradient."""
    return OBJECTIVES[objective.name].reward(s, objective.constants).detach()
