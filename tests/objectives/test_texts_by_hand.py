"""Objectives of texts and of lists, derived by hand: those without golden numbers, and what golden numbers do not show."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diffalign.core.errors import ConfigError
from diffalign.core.types import Scores, Tokens
from diffalign.objectives import (
    OBJECTIVES,
    adpo,
    aot,
    bide_dpo,
    bind_objective,
    bvpo,
    denoise,
    dpo,
    exo,
    gpo,
    implicit_rewards,
    infonca,
    kto,
    lipo,
    mapl,
    mmdpo,
    nca,
    orpo,
    plackett_luce,
    rpo,
    spa,
    srpo,
    tab_po,
    wpo,
)
from diffalign.objectives.base import divergence_map
from diffalign.objectives.listwise import ranks
from diffalign.objectives.reference_free import log_odds

LISTS = ("lipo", "rank_dpo", "infonca", "adpo_list", "plackett_luce", "pro_rank", "exo", "nca")
LOG2 = math.log(2.0)
CLOSE, FAR = 0.313262, 1.313262  # log(1 + e^-1) and log(1 + e)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def ratios(*values, **fields):
    """Return one record with these log-ratios."""
    return Scores(rows(values), torch.zeros(1, len(values), dtype=torch.float64), **fields)


def about(value):
    return pytest.approx(value, abs=2e-6)


def test_former_names_of_objectives_are_still_read():
    assert bind_objective({"dno": {"beta": 0.5}}).function is dpo
    assert bind_objective({"d3po": {"beta": 0.5}}).name == "clipped_dpo"


def test_rank_dpo_is_lipo_of_errors():
    s = ratios(0.5, -0.2, 0.1, columns={"gains": rows((0.2, 1.0, 0.6))})
    assert OBJECTIVES["rank_dpo"](s, beta=0.7).item() == OBJECTIVES["lipo"](s, beta=0.7).item()


def test_adpo_is_dpo_at_the_inverse_temperature():
    # margin 2 over tau 2: z = 1
    assert adpo(ratios(2.0, 0.0), tau=2.0).item() == about(CLOSE)


def test_bvpo_mixes_the_pair_with_traces_and_the_pair_without():
    # beta 1/2: z = 1 and z = -1; 1/4 * 0.313262 + 3/4 * 1.313262 = 1.063262
    assert bvpo(ratios(2.0, 0.0, 0.0, 2.0), beta=0.5, alpha=0.25).item() == about(1.063262)


def test_bide_dpo_weighs_each_kind_of_pair_by_its_share_of_the_loss():
    # beta 1/2. Record 0: z = 1 and -1, losses 0.313262 and 1.313262. Record 1: z = 0 and 2, losses 0.693147 and 0.126928.
    # Means 0.503204 and 0.720095, w = 0.503204 / 1.223299 = 0.411350; 0.411350 * 0.313262 + 0.588650 * 1.313262 = 0.901912,
    # 0.411350 * 0.693147 + 0.588650 * 0.126928 = 0.359842
    u = rows((2.0, 0.0, 0.0, 2.0), (0.0, 0.0, 4.0, 0.0)).requires_grad_()
    loss = bide_dpo(Scores(u, torch.zeros_like(u)), beta=0.5)
    assert loss.tolist() == [about(0.901912), about(0.359842)]
    # w is a constant: d loss / d u of a preferred candidate is -beta w sigmoid(-z). -0.5 * 0.411350 * 0.268941, -0.5 * 0.588650 * 0.731059
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert gradient[0].tolist() == [about(-0.055314), about(0.055314), about(-0.215169), about(0.215169)]
    # Margins of 1000 have no loss in float64, and then no share of it.
    assert bide_dpo(ratios(1000.0, 0.0, 1000.0, 0.0), beta=1.0).item() == 0.0
    # 1/2 each: (0.313262 + 1.313262) / 2, (0.693147 + 0.126928) / 2
    assert bide_dpo(Scores(u, torch.zeros_like(u)), beta=0.5, balanced=False).tolist() == [about(0.813262), about(0.410038)]


def test_mapl_asks_the_pair_of_many_instructions_for_a_larger_margin():
    # margins 2 and 6, beta 1/2: z = 1, then (6 - 2) / 2 = 2 with log(1 + e^-2) = 0.126928: 0.313262 + 0.5 * 0.126928
    assert mapl(ratios(2.0, 0.0, 6.0, 0.0), beta=0.5, inter=0.5).item() == about(0.376726)


def test_the_offset_of_mapl_is_of_its_first_pair_alone():
    # margins 2 and 6, beta 1/2: z = 1 - 2 = -1 with log(1 + e), then (6 - 2) / 2 = 2 as before: 1.313262 + 0.5 * 0.126928
    assert mapl(ratios(2.0, 0.0, 6.0, 0.0, offset=rows(2.0)), beta=0.5, inter=0.5).item() == about(1.376726)
    # p = 1/4 turns both terms round: 0.313262 + 3/4 * 1 and 0.126928 + 3/4 * 2
    soft = mapl(ratios(2.0, 0.0, 6.0, 0.0, prob=rows(0.25)), beta=0.5, inter=0.5)
    assert soft.item() == about(0.313262 + 0.75 + 0.5 * (0.126928 + 1.5))


def test_gpo_regresses_log_ratios_to_scores_over_beta():
    # targets 2 / (1/2) = 4 and -4: ((1 - 4)^2 + (0 + 4)^2) / 2 = 12.5
    assert gpo(ratios(1.0, 0.0, columns={"gains": rows((2.0, -2.0))}), beta=0.5).item() == 12.5


def test_denoise_is_the_sum_over_tokens_or_their_mean():
    s = Scores(rows((-6.0, -4.0)), lengths=rows((3.0, 2.0)))
    assert denoise(s).item() == 6.0
    assert denoise(replace(s, normalized=True)).item() == 2.0


def test_srpo_is_the_squared_distance_from_the_optimum_of_self_improvement():
    # beta 1/2, u of w, l, w|l, l|w, w|w, l|l. Both sides: 1/2 - 1/4 (2 - 0 + 1 + 1) = -1/2, squared 1/4.
    # After the loser: 1/2 - 1/2 (2 - 1) = 0. After the winner: 1/2 + 1/2 (0 - 3) = -1, squared 1. 3/4 * 1/4 + 1/8 * 1 = 0.3125
    loss = srpo(ratios(1.0, -1.0, 2.0, 0.0, 3.0, 1.0), beta=0.5, alpha=0.25)
    assert loss.item() == 0.3125


def of_tokens(policy, **fields):
    """Return one record of (2, L) token log-probabilities, all tokens scored, that equal the reference's."""
    tokens = rows(policy)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    sums, lengths = tokens.sum(dim=2), mask.sum(dim=2)
    return Scores(sums, sums, lengths=lengths, tokens=Tokens(tokens, mask, tokens, **fields))


def test_tab_po_adds_the_surprise_of_unsure_tokens_of_the_preferred():
    # margin 0: log 2. Of p = 0.8 and 0.4 only the latter lies below 1/2: 0.1 * (-log 0.4) / 2 = 0.0458145
    s = of_tokens([[math.log(0.8), math.log(0.4)], [math.log(0.1), math.log(0.1)]])
    assert tab_po(s).item() == about(LOG2 + 0.0458145)


def test_wpo_counts_a_pair_by_how_likely_the_policy_is_to_write_it():
    # mean log p - mean log sum p^2: -1 + 2 = 1 and -2 + 1/2 = -3/2: weight e^(-1/2) = 0.606531; with 3 in place of 2 e^(1/2), held at 1
    for collision, weight in ((-2.0, 0.606531), (-3.0, 1.0)):
        s = of_tokens([[-1.0, -1.0], [-2.0, -2.0]], collision=rows([[collision] * 2, [-0.5] * 2]))
        assert wpo(s).item() == about(weight * LOG2)
    assert wpo(s, clamp=False).item() == about(math.exp(0.5) * LOG2)


def test_orpo_takes_the_likelihood_of_prompt_and_answer_together():
    # prompt -3 of 2 tokens, answer -1 of 2: NLL 4 / 4 = 1; equal odds: 0.1 * log 2
    prompt = rows([[-1.0, -2.0]] * 2)
    s = of_tokens([[-0.5, -0.5], [-0.5, -0.5]], prompt=prompt, prompt_mask=torch.ones_like(prompt, dtype=torch.bool))
    assert orpo(s).item() == about(1.0 + 0.1 * LOG2)


def test_odds_of_a_certain_answer_are_finite():
    policy = rows((0.0, -1e-9)).requires_grad_()
    odds = log_odds(Scores(policy))
    (gradient,) = torch.autograd.grad(odds.sum(), policy)
    assert odds.isfinite().all()
    # log p / (1 - p) with 1 - p = 1e-9: 9 log 10, its slope 1 / (1 - p)
    assert odds[0, 1].item() == pytest.approx(9.0 * math.log(10.0), rel=1e-8)
    assert gradient[0].tolist() == pytest.approx([0.0, 1e9], rel=1e-6)


def test_rpo_weighs_the_mean_or_the_sum():
    s = Scores(rows((-6.0, -4.0)), rows((-6.0, -4.0)), lengths=rows((3.0, 2.0)))
    # mean: 6 / 3 = 2 times 0.1. sum: 6 times 0.1 times beta 1/2
    assert rpo(s, beta=0.5, eta=0.1, scaling="mean").item() == about(LOG2 + 0.2)
    assert rpo(s, beta=0.5, eta=0.1).item() == about(LOG2 + 0.3)


def test_kto_takes_its_anchor_from_mismatched_answers_else_from_the_batch():
    # u = 2 and 0. No mismatched one: z0 = 1, both sides sigmoid(-1) = 0.268941. Mismatched -5: z0 = 0, sigmoid(-2) = 0.119203 and 1/2.
    assert kto(ratios(2.0, 0.0), beta=1.0).item() == about(0.268941)
    texts = {"lengths": rows((1.0, 1.0, 1.0))}
    assert kto(ratios(2.0, 0.0, -5.0, **texts), beta=1.0).item() == about((0.119203 + 0.5) / 2.0)


def test_a_lone_text_has_the_one_term_that_its_label_says_against_the_mismatched_answer():
    # Log-ratio 2, mismatched 1: z0 = 1. Liked: 1 - sigmoid(2 - 1) = 0.268941; disliked, times 3: 3 (1 - sigmoid(1 - 2)) = 3 * 0.731059.
    lone = {"lengths": rows((1.0, 1.0)), "mismatched": True}
    liked, disliked, split = (
        kto(replace(ratios(2.0, 1.0, **lone), prob=torch.tensor([p])), beta=1.0, undesirable_weight=3.0) for p in (1.0, 0.0, 0.5)
    )
    assert liked.item() == about(0.268941)
    assert disliked.item() == about(3 * 0.731059)
    assert split.item() == about((0.268941 + 3 * 0.731059) / 2)


def test_the_last_of_several_images_is_not_a_mismatched_one():
    # images have no lengths: z0 = (2 + 0) / 2 = 1 of the pair that is trained, whatever comes after it
    assert kto(ratios(2.0, 0.0, -5.0), beta=1.0).item() == about(0.268941)
    assert kto(ratios(2.0, 0.0, 9.0), beta=1.0).item() == about(0.268941)


def test_aot_compares_sorted_margins_of_the_batch():
    # policy margins 3, 1 and reference margins 0, 2: sorted differences 1 - 0 and 3 - 2, so z = 1 twice
    s = Scores(rows((3.0, 0.0), (1.0, 0.0)), rows((0.0, 0.0), (2.0, 0.0)))
    assert aot(s, beta=1.0).tolist() == [about(CLOSE), about(CLOSE)]


def test_spa_smooths_only_the_pairs_that_the_policy_doubts():
    # margins 1 and -1: above 0 plain; below 0.9 * 1.313262 + 0.1 * 0.313262 = 1.213262
    assert spa(ratios(1.0, 0.0), beta=1.0).item() == about(CLOSE)
    assert spa(ratios(0.0, 1.0), beta=1.0).item() == about(1.213262)


def test_mmdpo_holds_beta_above_zero_for_a_pair_labelled_against_its_gains():
    s = ratios(2.0, 0.0, columns={"gains": rows((0.0, 30.0))})
    # factor 1e-3: z = 0.002, log(1 + e^-0.002) = log 2 - 0.001 + 5e-7
    assert mmdpo(s, beta=1.0).item() == about(LOG2 - 0.001)


def test_exo_mixes_its_target_from_the_soft_label():
    # q = (1/2, 1/2) against (0.75, 0.25): log 1/2 - (log 0.75 + log 0.25) / 2 = 0.143841
    assert exo(ratios(0.0, 0.0, prob=rows(0.75)), beta=1.0, label_smoothing=1e-9).item() == about(0.143841)


def test_exo_refuses_a_certain_label():
    with pytest.raises(ConfigError, match=r"`label_smoothing` is 0\.0.*\(0, 0\.5\)"):
        exo(ratios(0.0, 0.0), beta=1.0, label_smoothing=0.0)


def test_infonca_of_a_labelled_pair_is_soft_dpo():
    s = ratios(2.0, 0.5, prob=rows(0.7), offset=rows(0.3))
    torch.testing.assert_close(infonca(s, beta=0.4), dpo(s, beta=0.4), rtol=1e-12, atol=0.0)


def test_nca_of_a_list_without_gains_is_refused():
    with pytest.raises(ValueError, match="reads `gains` of every candidate"):
        nca(ratios(0.0, 0.0, 0.0), beta=1.0)


def test_lipo_weighs_pairs_by_gain_and_rank_and_starts_from_the_order_given():
    # gains 1, 1/2, 0: G = 1, 0.414214, 0. All log-ratios 0: ranks 1, 2, 3, 1/D = 1.442695, 0.910239, 0.721348, each term log 2.
    # 0.585786 * 0.532456 + 1 * 0.721348 + 0.414214 * 0.188892 = 1.111495
    s = ratios(0.0, 0.0, 0.0, columns={"gains": rows((1.0, 0.5, 0.0))})
    assert lipo(s, beta=1.0).item() == pytest.approx(1.111495 * LOG2, abs=3e-6)
    assert ranks(rows((0.0, 2.0, 0.0))).tolist() == [[2, 1, 3]]


def test_candidates_of_equal_gain_form_no_pair():
    assert lipo(ratios(3.0, 1.0, columns={"gains": rows((0.5, 0.5))}), beta=1.0).item() == 0.0


def test_plackett_luce_starts_at_the_log_of_the_number_of_orders():
    assert plackett_luce(ratios(0.0, 0.0, 0.0), beta=1.0).item() == pytest.approx(math.log(6.0), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 16])
@pytest.mark.parametrize("name", LISTS)
def test_lists_may_come_in_any_order_where_gains_tell_it(name, count):
    generator = torch.Generator().manual_seed(count)
    policy, reference, gains = torch.rand(3, 2, count, generator=generator, dtype=torch.float64)
    constant = {} if name == "pro_rank" else {"tau": 0.5} if name == "adpo_list" else {"beta": 2.0}
    order = torch.randperm(count, generator=generator)
    given = OBJECTIVES[name](Scores(-policy, -reference, columns={"gains": gains}), **constant)
    shuffled = OBJECTIVES[name](Scores(-policy[:, order], -reference[:, order], columns={"gains": gains[:, order]}), **constant)
    assert given.shape == (2,)
    assert given.isfinite().all()
    torch.testing.assert_close(shuffled, given, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_divergences_are_finite_and_like_reverse_kl_near_equality(divergence):
    assert divergence_map(torch.tensor([-1e4, 1e4]), divergence).isfinite().all()
    # g'(0) = f''(1) is 1 for forward KL and alpha, 1/2 for Jensen-Shannon
    slope = 0.5 if divergence == "js" else 1.0
    assert divergence_map(rows(1e-6), divergence).item() == pytest.approx(slope * 1e-6, rel=1e-5)


def test_rewards_are_beta_times_the_log_ratio_unless_the_objective_has_its_own():
    s = Scores(rows((-6.0, -4.0)), rows((-8.0, -4.0)), lengths=rows((3.0, 2.0)), normalized=True)
    assert implicit_rewards(bind_objective({"dpo": {"beta": 0.5}}), s).tolist() == [[1.0, 0.0]]  # never length-normalised
    assert implicit_rewards(bind_objective({"adpo": {"tau": 4.0}}), s).tolist() == [[0.5, 0.0]]
    assert implicit_rewards(bind_objective({"simpo": {}}), s).tolist() == [[-4.0, -4.0]]  # beta 2 times the means -2
    assert implicit_rewards(bind_objective({"denoise": {}}), s).tolist() == [[-6.0, -4.0]]
    assert implicit_rewards(bind_objective({"rank_dpo": {"beta": 0.5}}), s).tolist() == [[1.0, 0.0]]
