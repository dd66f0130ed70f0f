"""What a likelihood keeps for objectives that compare the outputs of networks, and what several references say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.reference import Frozen, Several
from diffalign.train.step import one_by_one
from tests.models.diffusion.test_likelihood import Scale, batch, likelihood, seeded


def asked(count=2, **options):
    """Return a likelihood that keeps residuals, a batch and its query."""
    keeping, records = likelihood(FlowPath(), residuals=True, **options), batch(count)
    return keeping, records, keeping.prepare(None, records, seeded(*range(count)))


def test_residuals_change_no_score():
    keeping, _, query = asked()
    plain = replace(keeping, residuals=False).score(Scale(0.3), query)
    kept = keeping.score(Scale(0.3), query)
    assert torch.equal(kept.score, plain)
    torch.testing.assert_close(-0.5 * kept.residual.square().flatten(2).mean(dim=2), plain)
    assert torch.equal(kept.sigma, query.noised.t.float())


def test_a_weighted_path_weighs_residuals_as_it_does_scores():
    keeping, records, _ = asked()
    keeping = replace(keeping, path=FlowPath(transport=True))
    kept = keeping.score(Scale(0.3), keeping.prepare(None, records, seeded(0, 1)))
    torch.testing.assert_close(-0.5 * kept.residual.square().flatten(2).mean(dim=2), kept.score)


def test_deviation_is_the_mean_square_between_two_outputs():
    keeping, records, query = asked()
    policy, reference, start = Scale(0.5), Frozen(Scale(0.2)), Frozen(Scale(0.1))
    said = Several(reference, start, old=Frozen(Scale(0.4))).score(keeping, query)
    s = keeping.scores(keeping.score(policy, query), said, records)
    size = query.noised.x_t.square().flatten(2).mean(dim=2)  # the outputs differ by a multiple of x_t
    torch.testing.assert_close(s.deviation, 0.3**2 * size)
    torch.testing.assert_close(s.drift, 0.4**2 * size)
    assert torch.equal(s.old, replace(keeping, residuals=False).score(Scale(0.4), query))
    s.deviation.sum().backward()
    assert policy.weight.grad.item() == pytest.approx(2.0 * 0.3 * size.sum().item(), rel=1e-5)
    assert len(policy.asked) == len(reference.model.asked) == 1


def test_the_reference_is_the_start_where_there_is_no_other():
    keeping, records, query = asked()
    s = keeping.scores(keeping.score(Scale(0.5), query), Frozen(Scale(0.2)).score(keeping, query), records)
    assert torch.equal(s.drift, s.deviation)


def test_candidates_in_turn_keep_their_residuals():
    keeping, _, query = asked()
    together, in_turn = keeping.score(Scale(0.3), query), one_by_one(keeping, Scale(0.3), query)
    for name in ("score", "residual", "sigma"):
        torch.testing.assert_close(getattr(in_turn, name), getattr(together, name))


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no residuals: it is for images"):
        _ = Scores(torch.zeros(1, 2), torch.zeros(1, 2)).deviation
    keeping, records, query = asked()
    with pytest.raises(ValueError, match="compares with a reference"):
        _ = keeping.scores(keeping.score(Scale(), query), None, records).deviation
    with pytest.raises(ValueError, match="`old` is of shape"):
        Scores(torch.zeros(1, 2), old=torch.zeros(2, 1))
