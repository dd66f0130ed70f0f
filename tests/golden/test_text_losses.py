"""The text objectives against data/text_losses.json: losses, gradients and rewards in float64, for every entry of the file.

An entry that is no objective by itself is composed of objectives, as its case shows.
"""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import OBJECTIVES, bind_objective, implicit_rewards
from diffalign.objectives.base import neg_log_sigmoid, nll
from diffalign.objectives.listwise import log_target, ranks
from diffalign.objectives.token import token_ratios
from tests.golden.text_losses import GOLDEN, Pairs, lists, tensor

ENTRIES, LISTS = GOLDEN["pair_losses"], GOLDEN["list_losses"]
EXACT = {"rtol": 1e-9, "atol": 1e-12}
TOLERANCE = {"trl/exo_pair": {"rtol": 1e-6, "atol": 1e-12}}  # TRL keeps its epsilon in float32
CASES = {}


def case(golden, objective, make=Pairs.scores, rest=None, **constants):
    """Say by which objective, on which scores, with what added, an entry is reproduced."""
    CASES[golden] = (objective, make, rest, constants)


def mean(p):
    return p.scores(normalized=True)


for name in ("dpo", "hinge", "nca", "bco", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop"):
    golden = {"dpo": "sigmoid", "nca": "nca_pair", "bco": "bco_pair"}.get(name, name)
    case(f"trl/{golden}", name, beta=0.1)
    if name.startswith("aot"):
        case(f"trl/{golden}_ls", name, beta=0.1, label_smoothing=0.1)
case("trl/ipo", "ipo", mean, tau=0.1)
case("trl/sppo_hard", "sppo", beta=0.1)
case("trl/sigmoid_norm", "dpo", mean, beta=0.1)
case("trl/sigmoid_norm_beta5", "dpo", mean, beta=5.0)
case("trl/exo_pair", "exo", beta=0.1, label_smoothing=1e-3)
case("trl/robust", "robust", beta=0.1, label_smoothing=0.1)
# The file's TRL left the constants of divergences out, which later ones do not; they cancel in margins of sums alone.
for suffix, divergence in {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}.items():
    case(f"trl/sigmoid+{suffix}", "dpo", beta=0.1, divergence=divergence)
    case(f"trl/hinge+{suffix}", "hinge", beta=0.1, divergence=divergence)
    case(f"trl/ipo+{suffix}", "ipo", mean, tau=0.1, divergence=divergence, centred=False)
    case(f"trl/nca_pair+{suffix}", "nca", beta=0.1, divergence=divergence, centred=False)
    case(f"trl/bco_pair+{suffix}", "bco", beta=0.1, divergence=divergence, centred=False)
case("trl/sigmoid+alpha2", "dpo", beta=0.1, divergence="alpha", coefficient=2.0)
case("fdpo_alpha_original0.3", "dpo", beta=0.1, divergence="alpha", coefficient=0.7)


def reweighted(p, name):
    """Return the scores of LD-DPO's likelihood as the entry gives them: policy w, l, reference w, l."""
    sums = tensor(ENTRIES[name]["ld_logps"])
    return p.scores(policy=sums[:, :2], reference=sums[:, 2:])


for name in ("trl/sigmoid+ld_alpha0.0", "trl/sigmoid+ld_alpha0.5"):
    case(name, "dpo", lambda p, name=name: reweighted(p, name), beta=0.1)


def with_collision(p):
    return p.scores(tokens=p.tokens(collision=p.ragged("pi_{}_logcol")))


def with_kl(p):
    return p.scores(tokens=p.tokens(kl=p.ragged("kl_{}_tok")))


def with_masks(p):
    tokens = p.tokens(kl=p.ragged("kl_{}_tok"), activation=(1.0 - 0.5 * (torch.arange(12.0) % 2)).double().expand(8, 2, 12))
    return p.scores(tokens=tokens)


case("trl/sigmoid+use_weighting", "wpo", with_collision, beta=0.1, clamp=False)
case("wpo/original", "wpo", with_collision)
case("tdpo1", "tdpo", with_kl, alpha=None)
case("tdpo2", "tdpo", with_kl)
case("sparsepo", "sparse_po", with_masks)


def batch_sft(p):
    """Return TRL's `sft`: the mean over the batch's preferred tokens, once for every record."""
    n = p.lengths[:, 0]
    return ((nll(p.scores()) * n).sum() / n.sum()).expand(8)


def bco_part(p):
    return 0.2 * OBJECTIVES["bco"](p.scores(), beta=0.1) + batch_sft(p)


case("trl/sft", None, rest=batch_sft, beta=0.1)
case("trl/mpo_sigmoid0.8_bco0.2_sft1", "dpo", lambda p: p.scores(weight=tensor([0.8] * 8)), bco_part, beta=0.1)
case("trl/rpo_recipe", "dpo", rest=lambda p: 0.005 * batch_sft(p), beta=0.01)
case("rpo_original", "rpo", beta=0.01)
case("trl/online_dpo_ipo", "ipo", tau=0.1)
case("ipo_unnormalised", "ipo", tau=0.1)
case("trl/cpo_sigmoid", "cpo", cpo_alpha=0.0)
case("trl/cpo_hinge", "cpo", cpo_alpha=0.0, loss_type="hinge")
case("trl/cpo_ipo", "cpo", cpo_alpha=0.0, loss_type="ipo")
case("trl/cpo_simpo", "simpo")
case("trl/cpo_simpo_alphapo", "simpo", alpha=0.25)


def no_prompt(p):
    return p.scores(tokens=p.tokens(prompt=torch.zeros(8, 2, 0), prompt_mask=torch.zeros(8, 2, 0, dtype=torch.bool)))


def with_gold(p):
    return p.scores(further=[(p["pi_y"], p["ref_y"])], lengths=longer(p))


def longer(p):
    """Return the lengths of the pair and of a third candidate, as long as the first."""
    return torch.cat([p.lengths, p.lengths[:, :1]], dim=1)


case("trl/orpo_ratio_term", "orpo", no_prompt, lambda p: -nll(p.scores()))
case("trl/tpo_sigmoid_contrastive", "triple_po", with_gold, alpha=0.0)
case("trl/tpo_l_contrastive", "triple_po", with_gold, alpha=0.0, loss_type="tpo-l")
case("slic_halos_norm", "slic")
case("asft_align", "asft", sft_weight=0.0)
case("asft_align_beta", "asft", sft_weight=0.0, beta=2.0)
case("poft", "poft", lambda p: p.scores(columns={"teacher": p["teacher_mean_logp"][:, None].expand(8, 2)}))


def mismatched(p):
    return p.scores(further=[(p["kl_logratio"], tensor([0.0] * 8))], lengths=longer(p))


# One side at a time: the other's weight is 0, or its reward is, and its part is a number. Ours is the mean of both sides.
case("trl/kto_desirable_on_w", "kto", lambda p: mismatched(p), lambda p: one_side(p, "desirable"), beta=0.1, undesirable_weight=0.0)
case("trl/kto_undesirable_on_l", "kto", lambda p: mismatched(p), lambda p: one_side(p, "undesirable"), beta=0.1, desirable_weight=0.0)


def one_side(p, side):
    """Return the half that the mean over both sides leaves out."""
    weights = {"desirable_weight": float(side == "desirable"), "undesirable_weight": float(side == "undesirable")}
    return OBJECTIVES["kto"](mismatched(p), beta=0.1, **weights)


DELTA = ENTRIES["trl/bco_first_step_w"]["params"]["delta"]


def shifted(p, place):
    """Return the pairs shifted by the rewards' mean, with one candidate as the reference has it: reward 0."""
    policy = torch.stack([p.w, p["ref_l"]] if place == 0 else [p["ref_w"], p.l], dim=1)
    return p.scores(policy=policy, offset=tensor([DELTA] * 8))


case("trl/bco_first_step_w", "bco", lambda p: shifted(p, 0), lambda p: -neg_log_sigmoid(tensor([DELTA] * 8)), beta=0.1)
case("trl/bco_first_step_l", "bco", lambda p: shifted(p, 1), lambda p: -neg_log_sigmoid(tensor([-DELTA] * 8)), beta=0.1)


def nash_md(p):
    """Return TRL's surrogate: beta * sum sg(log-ratio) log p over tokens - (p_win - 1/2) sum log p, of the preferred."""
    tokens, s = p.tokens(), p.scores(tokens=p.tokens())
    penalty = (token_ratios(s).detach() * tokens.policy * tokens.mask).sum(dim=2)[:, 0]
    return 0.1 * penalty - (p["p_soft"] - 0.5) * p["pi_w"]


case("trl/nash_md", None, rest=nash_md)
case("trl/xpo", "xpo", lambda p: p.scores(further=[(p.l, p["ref_l"])], lengths=longer(p)), beta=0.1)
case("cdpo", "dpo", beta=0.1, label_smoothing=0.1)
case("osp_spce_soft_dpo", "dpo", lambda p: p.scores(prob=p["p_soft"]), beta=0.1)
case("selm", "selm", with_gold, beta=0.01)
case("vpo_online", "vpo", with_gold, beta=0.1, optimistic=True)
case("vpo_offline", "vpo", with_gold, beta=0.1)
case("modpo", "modpo", lambda p: p.scores(columns={"margin": 0.5 * p.both("margin")}), beta=0.1, own_weight=0.5)


def turned(p):
    """Return the pairs with those turned round whose preferred candidate alone is hallucinated, as `by_factuality` does."""
    flip, flags, s = (p["h_w"] > p["h_l"])[:, None], p.both("h"), p.scores()
    policy, reference, flags = (torch.where(flip, x.flip(1), x) for x in (s.policy, s.reference, flags))
    return p.scores(policy=policy, reference=reference, columns={"hallucinated": flags})


def with_gains(p, *gains):
    return p.scores(columns={"gains": torch.stack(gains, dim=1)})


case("f_dpo", "fdpo", turned, beta=0.1)
case(
    "dove",
    "dpo",
    lambda p: p.scores(policy=p.scores().policy + p.both("prompt_pi"), reference=p.both("ref") + p.both("prompt_ref")),
    beta=0.1,
)
case("mm_dpo_code_factor", "mmdpo", lambda p: with_gains(p, p["score_w"], 0.0 * p["score_w"]), beta=0.1, form="code")
case("mm_dpo_paper", "mmdpo", lambda p: with_gains(p, p["score_w"], p["score_l"]), beta=0.1)
case("spa_refine", "spa", beta=0.1, threshold=0.05)
case("sppo_soft", "sppo", lambda p: with_gains(p, p["score_w"], p["score_l"]), beta=1e-3)
case("gpo_sppo_score", "gpo", lambda p: with_gains(p, p["margin_w"], p["margin_l"]), beta=1e-3)
case("biased_nca", "bco", beta=0.1)


def log_of_not_eps(p):
    """Return what log-targets (0, -10) have more than (log(1 - e^-10), -10)."""
    u = p.scores().log_ratio
    return (0.1 * (u[:, 0] - u[:, 1])).sigmoid() * math.log1p(-math.exp(-10.0))


case("exo_pref_original", "exo", rest=log_of_not_eps, beta=0.1, label_smoothing=math.exp(-10.0))
case("dpo_gamma", "dpo_gamma", beta=0.1, gamma=0.5)
case("d3po_clip", "clipped_dpo", mean, beta=0.1)
case("inpo", "inpo_nash", lambda p: p.scores(columns={"previous": p.both("prev")}), eta=0.0125, tau=0.005)
case("sem_dpo", "dpo", lambda p: p.scores(weight=(-5.0 * p["sem_dist"]).exp()), beta=0.1)
case("flex_dpo", "flex_dpo", beta_plus=0.1, beta_minus=0.05)
COVERED = {objective for objective, *_ in CASES.values() if objective} | {
    "lipo",
    "rank_dpo",
    "pro_rank",
    "plackett_luce",
    "infonca",
    "adpo_list",
}


def test_every_golden_entry_has_its_case():
    assert CASES.keys() == ENTRIES.keys()


def test_the_table_calls_reconstructed_what_the_file_has_from_memory_alone():
    statuses = {}
    for name, (objective, *_) in CASES.items():
        statuses.setdefault(objective or "none", set()).add(ENTRIES[name]["status"])
    origins = {name: OBJECTIVES[name].source.origin for name in statuses if name != "none"}
    odd = {name for name, origin in origins.items() if (origin == "reconstructed") != (statuses[name] == {"memory"})}
    assert odd == {"mmdpo"}  # whose default form is from memory, and the other one of its release


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_losses_gradients_and_rewards_of_pairs_are_the_golden_ones(name):
    entry, p, exact = ENTRIES[name], Pairs(), TOLERANCE.get(name, EXACT)
    objective, make, rest, constants = CASES[name]
    losses = sum(([OBJECTIVES[objective](make(p), **constants)] if objective else []) + ([rest(p)] if rest else []))
    torch.testing.assert_close(losses.detach(), tensor(entry["loss"]), **exact)
    for side, leaf in (("w", p.w), ("l", p.l)):
        if f"grad_pi_{side}" in entry:
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
            torch.testing.assert_close(gradient, tensor(entry[f"grad_pi_{side}"]), **exact)
    if "reward_w" in entry:
        rewards = implicit_rewards(bind_objective({objective or "dpo": constants}), make(p))
        torch.testing.assert_close(rewards[:, :2], torch.stack([tensor(entry["reward_w"]), tensor(entry["reward_l"])], dim=1), **exact)


def of_list(objective, **constants):
    return lambda s: OBJECTIVES[objective](s, **constants)[0]


def target(s):
    return log_target(s, 0.5)[0].exp()


def said(s):
    """Return softmax of the log-ratios: what BRAIn weighs samples of the reference by."""
    return s.log_ratio[0].softmax(dim=0)


def every_order(s):
    """Return Tree-PO's released term: over ordered pairs, its diagonal of log 2 included in the sum and not in the count."""
    u, order = s.log_ratio[0], s.columns["gains"][0]
    lead = (u[:, None] - u) * (order[:, None] - order).sign()
    return neg_log_sigmoid(lead).sum() / (len(u) * (len(u) - 1))


LIST_CASES = {
    "lipo_lambda(beta=0.05)": of_list("lipo", beta=0.05),
    "lipo_ranks": lambda s: ranks(s.log_ratio)[0].double(),
    "pro_rank_term": of_list("pro_rank", sft_weight=0.0),
    "pro_sft_term(sft_weight=0.05)": lambda s: of_list("pro_rank")(s) - of_list("pro_rank", sft_weight=0.0)(s),
    "adpo_list_ce(beta_r=0.5,tau=1)": of_list("adpo_list", tau=1.0, temperature=0.5),
    "adpo_list_kl": lambda s: of_list("adpo_list", tau=1.0, temperature=0.5)(s) + (target(s) * target(s).log()).sum(),
    "pl_list_dpo(beta=0.1)": of_list("plackett_luce", beta=0.1),
    "infonca(beta=0.1,alpha=0.5)": of_list("infonca", beta=0.1, temperature=0.5),
    "nca(beta=0.1,alpha=0.5)": of_list("nca", beta=0.1, temperature=0.5),
    "exo_rw(beta_model=0.1,beta_r=0.5)": of_list("exo", beta=0.1, temperature=0.5),
    "brain_alpha": target,
    "brain_beta": said,
    "brain_selfnorm_kl": lambda s: (target(s) * (target(s) / said(s)).log()).sum(),
    "tree_tpo_code_pairwise": every_order,
    "rankdpo(beta=0.1)": of_list("rank_dpo", beta=0.1),
}


def test_every_golden_entry_of_lists_has_its_case():
    assert LIST_CASES.keys() == LISTS[0].keys() == LISTS[1].keys()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", LIST_CASES)
def test_losses_of_lists_are_the_golden_ones(name, place):
    torch.testing.assert_close(LIST_CASES[name](lists(place)).detach(), tensor(LISTS[place][name]), **EXACT)
