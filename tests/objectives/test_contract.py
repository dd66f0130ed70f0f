"""What every objective promises, with the exceptions by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.types import Scores, Tokens
from diffalign.objectives import OBJECTIVES
from tests.each import each
from tests.objectives.scored import fitted

REFERENCE_FREE = {name for name in OBJECTIVES if not OBJECTIVES[name].facts.reference}
BETA = 0.5  # every constant without a default takes this in the contracts
SILENT_TIES = {"smpo", "clipped_dpo", "apo_zero", "kto", "diffusion_kto"}  # a tie has no gradient at all
OF_ADVANTAGES = {"awm", "dgpo", "diffusion_nft", "clipped_ratio"}
# Those that look at candidate 0 alone, at gains or the order given, or at ranks in the batch; all others compare under a soft label.
WITHOUT_LABEL = {"gpo", "denoise", "poft", "infonca", "adpo_list", "plackett_luce", "lipo", "rank_dpo", "pro_rank", "aot", "aot_unpaired"}
WITHOUT_LABEL |= OF_ADVANTAGES | {"distil"}
ANCHORED = {"bco", "nca", "sppo"}  # a tie pulls each log-ratio to zero by itself
# A tie pulls further answers or the likelihood of the preferred as well, or lowers both (apo_down).
PULLING = {"rpo", "selm", "xpo", "vpo", "srpo", "tab_po", "apo_down", "dspo"}
STOPPED = {"wpo", "bide_dpo", "kto", "diffusion_kto", *OF_ADVANTAGES}  # the weight, the anchor, the old policy move without gradient
IGNORING_OFFSET = {"ipo", "inpo_nash", "srpo", "sppo", "apo_zero", "kto", "asft", "nca", "plackett_luce", "lipo", "rank_dpo", "pro_rank"}
IGNORING_OFFSET |= {"denoise", "distil", "gpo", "diffusion_kto", *OF_ADVANTAGES}
LABELLED_PAIRS = {"infonca", "adpo_list"}  # of two candidates without gains
OF_RANKS = {"aot", "aot_unpaired"}
OF_SUMS = {
    "rpo",
    "xpo",
    "pro_rank",
    "smpo",
    "mapo",
    "orpo",
    "dspo",
    "distil",
    "diffusion_kto",
    *OF_ADVANTAGES,
}  # some term is not length-normalised
REFUSING = {"tdpo", "sparse_po", "tab_po"}  # a length-normalised likelihood
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def bound(name):
    """Return the objective `name` with some value for every constant that needs one."""
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return functools.partial(OBJECTIVES[name], **dict.fromkeys(needed, BETA))


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


every = each(sorted(OBJECTIVES))
soft = each(sorted(OBJECTIVES.keys() - WITHOUT_LABEL))
tied = each(sorted(OBJECTIVES.keys() - REFERENCE_FREE - WITHOUT_LABEL - ANCHORED - PULLING))
alone = each(sorted(name for name in OBJECTIVES if not OBJECTIVES[name].facts.coupled))
differentiable = each(sorted(OBJECTIVES.keys() - STOPPED))
normalised = each(sorted(OBJECTIVES.keys() - OF_SUMS - REFUSING))
together = each(sorted(name for name in OBJECTIVES if OBJECTIVES[name].facts.coupled))
quick = settings(deadline=None, max_examples=15)
number = st.floats(-20.0, 20.0, allow_subnormal=False)  # a trainer in the same process flushes them
share = st.floats(0.0, 1.0, allow_subnormal=False)
columns = st.lists(st.tuples(number, number, number, number, share), min_size=1, max_size=5)


def drawn(values):
    table = torch.tensor(values, dtype=torch.float64)
    return table[:, :2].clone(), table[:, 2:4].clone(), table[:, 4].clone()


@every
def test_constants_are_keyword_only(name):
    first, *rest = inspect.signature(OBJECTIVES[name]).parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)


@every
@given(values=columns)
@quick
def test_there_is_one_finite_loss_a_record(name, values):
    policy, reference, prob = drawn(values)
    for label in (prob, None):
        losses = bound(name)(fitted(name, policy, reference, label))
        assert losses.shape == (len(values),)
        assert losses.isfinite().all()


@every
def test_loss_and_gradient_stay_finite_at_extreme_scores(name):
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([-1e4 * BETA, -1.0, 0.0, 1.0, 1e4 * BETA], dtype=dtype)
        policy = torch.cartesian_prod(ends, ends).requires_grad_()
        for prob in (0.0, 0.3, 0.5, 1.0):
            losses = bound(name)(fitted(name, policy, -policy.detach(), torch.full((25,), prob)))
            (gradient,) = torch.autograd.grad(losses.sum(), policy)
            assert losses.dtype == dtype
            assert losses.isfinite().all()
            assert gradient.isfinite().all()


@alone
@given(values=columns)
@quick
def test_a_loss_does_not_depend_on_the_other_records(name, values):
    policy, reference, prob = drawn(values)
    together = bound(name)(fitted(name, policy, reference, prob))
    for i in range(len(values)):
        one = bound(name)(fitted(name, policy[i : i + 1], reference[i : i + 1], prob[i : i + 1]))
        torch.testing.assert_close(one, together[i : i + 1], **EXACT)


@together
def test_the_coupled_ones_do_depend_on_the_other_records(coupled):
    policy, reference = rows((3.0, -1.0), (2.0, 5.0)), rows((0.0, 0.0), (0.0, 0.0))
    assert bound(coupled)(fitted(coupled, policy, reference))[0] != bound(coupled)(fitted(coupled, policy[:1], reference[:1]))[0]


@every
def test_a_missing_reference_is_named_where_one_is_needed(name):
    s = fitted(name, rows((1.0, 2.0)))
    if name in REFERENCE_FREE:
        assert bound(name)(s).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"compares with a reference.*set `reference`"):
            bound(name)(s)


@differentiable
def test_the_gradient_is_the_derivative(name):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    prob = rows(0.0, 0.25, 0.5, 1.0)
    assert torch.autograd.gradcheck(lambda p: bound(name)(fitted(name, p, reference, prob)), policy.requires_grad_())


@soft
@given(values=columns)
@quick
def test_exchanging_the_candidates_and_the_label_leaves_the_loss(name, values):
    policy, reference, prob = drawn(values)
    exchanged = bound(name)(fitted(name, policy.flip(1), reference.flip(1), 1.0 - prob))
    torch.testing.assert_close(exchanged, bound(name)(fitted(name, policy, reference, prob)), **EXACT)


@soft
@given(values=columns)
@quick
def test_prob_zero_is_the_pair_the_other_way_round(name, values):
    policy, reference, prob = drawn(values)
    against = bound(name)(fitted(name, policy, reference, torch.zeros_like(prob)))
    exchanged = bound(name)(fitted(name, policy.flip(1), reference.flip(1)))
    torch.testing.assert_close(against, exchanged, **EXACT)


@every
@given(values=columns)
@quick
def test_no_prob_means_prob_one(name, values):
    policy, reference, prob = drawn(values)
    certain = bound(name)(fitted(name, policy, reference, torch.ones_like(prob)))
    torch.testing.assert_close(bound(name)(fitted(name, policy, reference)), certain, **EXACT)


@every
@given(values=columns)
@quick
def test_weight_multiplies_the_loss(name, values):
    policy, reference, prob = drawn(values)
    if name in OF_RANKS:
        with pytest.raises(ValueError, match="can have no weight or offset"):
            bound(name)(fitted(name, policy, reference, prob, weight=prob))
        return
    heavy = bound(name)(fitted(name, policy, reference, prob, weight=3.0 * prob))
    torch.testing.assert_close(heavy, 3.0 * prob * bound(name)(fitted(name, policy, reference, prob)), **EXACT)


@every
def test_an_offset_asks_for_a_larger_lead_or_is_named_as_ignored(name):
    policy, reference = rows((-1.0, -1.2), (-2.0, -1.7)), rows((-1.1, -1.2), (-1.9, -1.8))
    plain = bound(name)(fitted(name, policy, reference))
    if name in OF_RANKS:
        with pytest.raises(ValueError, match="can have no weight or offset"):
            bound(name)(fitted(name, policy, reference, offset=rows(100.0, 0.0)))
        return
    shifted = bound(name)(fitted(name, policy, reference, offset=rows(100.0, 0.0)))
    assert (shifted[0] > plain[0]) == (name not in IGNORING_OFFSET)
    assert (shifted[1] == plain[1]) == (name != "bide_dpo")  # which weighs its two losses by those of the batch
    words = inspect.getdoc(OBJECTIVES[name].loss) + inspect.getdoc(inspect.getmodule(OBJECTIVES[name].loss))
    assert name not in IGNORING_OFFSET or "offset" in words


@normalised
def test_a_length_normalised_likelihood_compares_scores_per_token(name):
    lengths = torch.tensor([[2.0, 5.0, 3.0, 4.0, 7.0, 1.0], [1.0, 1.0, 8.0, 3.0, 2.0, 6.0]], dtype=torch.float64)
    s = fitted(name, rows((-1.0, -1.2), (-2.0, -1.7)), rows((-1.1, -1.2), (-1.9, -1.8)))
    lengths = lengths[:, : s.policy.shape[1]]
    reference = None if s.reference is None else s.reference * lengths
    columns = {key: x * lengths if key == "previous" else x for key, x in s.columns.items()}
    sums = dataclasses.replace(s, policy=s.policy * lengths, reference=reference, columns=columns, lengths=lengths, normalized=True)
    torch.testing.assert_close(bound(name)(sums), bound(name)(s), rtol=1e-12, atol=1e-12)


@every
def test_objectives_of_token_sums_refuse_a_length_normalised_likelihood(name):
    s = fitted(name, rows((-1.0, -1.2)), rows((-1.1, -1.2)))
    normalised = dataclasses.replace(s, lengths=torch.ones_like(s.policy), normalized=True)
    assert OBJECTIVES[name].facts.sums == (name in REFUSING)
    if name in REFUSING:
        with pytest.raises(ValueError, match="`likelihood: mean`"):
            bound(name)(normalised)
    else:
        assert bound(name)(normalised).isfinite().all()


@every
def test_what_an_objective_reads_is_in_its_facts(name):
    needs = OBJECTIVES[name].facts
    assert needs.of_ranks == (name in OF_RANKS)
    assert not {*needs.optional} & {*needs.columns}
    assert not needs.chances or "gains" in (*needs.columns, *needs.optional)


@every
def test_what_an_objective_needs_is_named_where_it_is_missing(name):
    policy = rows((-1.0, -1.2))
    s, needs = Scores(policy, policy), OBJECTIVES[name].facts
    if needs.columns and name not in LABELLED_PAIRS:
        with pytest.raises(ValueError, match=f"reads `{needs.columns[0]}` of every candidate"):
            bound(name)(s)
    elif needs.candidates > 2:
        with pytest.raises(ValueError, match=f"{needs.candidates} candidates in all; found 2"):
            bound(name)(s)
    elif needs.tokens:
        with pytest.raises(ValueError, match="every token, and these scores have none"):
            bound(name)(s)
        empty = Tokens(policy[..., None], torch.ones(1, 2, 1, dtype=torch.bool))
        with pytest.raises(ValueError, match=f"reads `{'|'.join(needs.tokens)}` of every token"):
            bound(name)(dataclasses.replace(s, tokens=empty))
    elif needs.residuals:
        with pytest.raises(ValueError, match="these scores have no residuals"):
            bound(name)(s)
    else:
        assert bound(name)(s).isfinite().all()


@every
def test_an_objective_cites_its_source(name):
    if name in OBJECTIVES.keys() - {"made_up"}:
        assert re.search(r"\d{4}\.\d{5}", inspect.getdoc(OBJECTIVES[name].loss))


def gradient_at_tie(name, policy):
    policy = rows(policy).requires_grad_()
    s = fitted(name, policy, torch.zeros_like(policy), rows(0.5))
    return torch.autograd.grad(bound(name)(s).sum(), policy)[0][0].tolist()


@tied
def test_a_tie_has_no_gradient_where_the_log_ratios_are_equal(name):
    assert gradient_at_tie(name, (1.5, 1.5)) == [0.0, 0.0]


@tied
def test_a_tie_pulls_unequal_log_ratios_together_or_is_silent(name):
    for ahead in (3.0, -3.0):  # |z| = 0.5 * 3 = 1.5 lies beyond the flat part of the hinge, |z| < 1
        first, second = gradient_at_tie(name, (ahead, 0.0))
        if name in SILENT_TIES:
            assert (first, second) == (0.0, 0.0)
            continue
        assert math.copysign(1.0, first) == math.copysign(1.0, ahead)
        assert second == (pytest.approx(-first, rel=1e-15) if name == "exo" else -first)  # a softmax rounds its sides apart


@each(sorted(ANCHORED))
def test_a_tie_pulls_each_log_ratio_to_zero_by_itself(anchored):
    ahead, at_anchor = gradient_at_tie(anchored, (3.0, 0.0))
    assert ahead > 0.0
    assert at_anchor == 0.0
