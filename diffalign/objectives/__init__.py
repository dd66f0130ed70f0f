"""Objectives by name: pure functions `Scores -> (B,)`, one loss a record, averaged by the caller (never before the log-sigmoid).

They serve image and text training alike. Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean
squared error) it is the beta of the Diffusion-DPO release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger
beta keeps the policy closer to the reference. LD-DPO, LN-DPO and DOVE are likelihoods (`ld_dpo`, `mean`, `joint`) under `dpo`.
"""

from __future__ import annotations

from diffalign.objectives.anchored import aot, aot_unpaired, apo_down, apo_zero, bco, d3po, gpo, kto, sppo
from diffalign.objectives.base import Facts, Objective
from diffalign.objectives.base import margin as margin
from diffalign.objectives.diffusion import denoise, mapo, smpo
from diffalign.objectives.listwise import adpo_list, exo, infonca, lipo, nca, plackett_luce, pro_rank
from diffalign.objectives.pairwise import adpo, discopop, dpo, dpo_gamma, fdpo, flex_dpo, hinge, inpo_nash, ipo, mmdpo, modpo, robust, spa
from diffalign.objectives.reference_free import asft, cpo, orpo, poft, simpo, slic, triple_po
from diffalign.objectives.token import sparse_po, tab_po, tdpo, wpo
from diffalign.objectives.with_terms import bvpo, mapl, rpo, selm, srpo, vpo, xpo

OBJECTIVES: dict[str, Objective] = {
    "dpo": dpo,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "discopop": discopop,
    "dpo_gamma": dpo_gamma,
    "flex_dpo": flex_dpo,
    "modpo": modpo,
    "fdpo": fdpo,
    "mmdpo": mmdpo,
    "spa": spa,
    "adpo": adpo,
    "inpo_nash": inpo_nash,
    "bco": bco,
    "sppo": sppo,
    "gpo": gpo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "d3po": d3po,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "kto": kto,
    "rpo": rpo,
    "selm": selm,
    "xpo": xpo,
    "vpo": vpo,
    "bvpo": bvpo,
    "mapl": mapl,
    "srpo": srpo,
    "simpo": simpo,
    "cpo": cpo,
    "triple_po": triple_po,
    "slic": slic,
    "orpo": orpo,
    "asft": asft,
    "poft": poft,
    "exo": exo,
    "nca": nca,
    "infonca": infonca,
    "adpo_list": adpo_list,
    "plackett_luce": plackett_luce,
    "lipo": lipo,
    "pro_rank": pro_rank,
    "tdpo": tdpo,
    "wpo": wpo,
    "sparse_po": sparse_po,
    "tab_po": tab_po,
    "smpo": smpo,
    "mapo": mapo,
    "denoise": denoise,
    "dno": dpo,  # the previous iterate is its reference
    "rank_dpo": lipo,  # of images
}
FACTS: dict[str, Facts] = {  # of those that need more, or less, than two scores and a reference
    "modpo": Facts(columns=("margin",)),
    "fdpo": Facts(columns=("hallucinated",)),
    "mmdpo": Facts(columns=("gains",)),
    "inpo_nash": Facts(columns=("previous",)),
    "sppo": Facts(optional=("gains",), chances=True),
    "gpo": Facts(columns=("gains",)),
    "aot": Facts(coupled=True, of_ranks=True),
    "aot_unpaired": Facts(coupled=True, of_ranks=True),
    "kto": Facts(mismatched=True, coupled=True),
    "rpo": Facts("V+"),
    "selm": Facts(candidates=3),
    "xpo": Facts("V+", candidates=3),
    "vpo": Facts(candidates=3),
    "bvpo": Facts(candidates=4),
    "mapl": Facts(candidates=4),
    "srpo": Facts("N", candidates=6),  # an image written after another one has no meaning
    "simpo": Facts("R", reference=False),
    "cpo": Facts("R", reference=False),
    "triple_po": Facts("R", reference=False, candidates=3),
    "slic": Facts("R", reference=False),
    "orpo": Facts("N", reference=False, tokens=("prompt",)),
    "asft": Facts("N", reference=False),
    "poft": Facts("R", reference=False, candidates=1, columns=("teacher",)),
    "exo": Facts("L", optional=("gains",), lists=True),
    "nca": Facts("L", optional=("gains",), lists=True),
    "infonca": Facts("L", columns=("gains",)),
    "adpo_list": Facts("L", columns=("gains",)),
    "plackett_luce": Facts("L", optional=("gains",)),
    "lipo": Facts("L", columns=("gains",), chances=True),
    "rank_dpo": Facts("L", columns=("gains",), chances=True),
    "pro_rank": Facts("R", reference=False, columns=("gains",)),
    "tdpo": Facts("N", tokens=("kl",), sums=True),
    "wpo": Facts("N", tokens=("collision",)),
    "sparse_po": Facts("N", tokens=("reference", "kl", "activation"), sums=True),
    "tab_po": Facts("N", tokens=("reference", "activation"), sums=True),
    "mapo": Facts("R", reference=False),
    "denoise": Facts("V", reference=False, candidates=1),
}


def facts(name: str) -> Facts:
    """Return what the objective `name` needs."""
    return FACTS.get(name, Facts())
