"""The network that drew a turn, to which losses compare from the second update on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffalign.core.types import Batch, Labels, Noised, Query
from diffalign.methods.config import TrainConfig
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.reference import Frozen, Several, Start
from diffalign.objectives import OBJECTIVES
from diffalign.train import align as api
from diffalign.train import trainer
from diffalign.train.online.policies import Policies
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config
from tests.train.online.test_loop import ADVANTAGES
from tests.train.online.test_rollout import POLICY


class Scale(nn.Module):
    """Gives its input times a number, which is trained."""

    def __init__(self, size):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size, dtype=torch.float64))


def compared(drew, size):
    """Return what AWM and DGPO see: a policy of `size`, a frozen reference of 0.5, and the network that drew. The target is zero at x = 1.

    So the error of a network is the square of its number.
    """
    ones = torch.ones(1, 2, 1, 1, 1, dtype=torch.float64)
    query = Query(Noised(ones, torch.ones(1), 0.0 * ones, torch.ones(1, dtype=torch.float64)), {})
    likelihood = DiffusionLikelihood(FlowPath(), lambda model, x, t, condition: model.size * x, forward, residuals=True)
    batch = Batch(ones, {}, {}, torch.ones(1), labels=Labels(columns={"advantage": torch.tensor([[1.0, -1.0]])}))
    others = Several(Frozen(Scale(0.5)), old=drew).score(likelihood, query)
    return likelihood.scores(likelihood.score(size, query), others, batch)


def test_the_second_update_is_compared_with_the_network_that_drew_the_turn():
    policy = Scale(1.0)
    drew = Start.of(policy)
    policies = Policies.of(TrainConfig(), Several(Frozen(Scale(0.5)), old=drew))
    with torch.no_grad():
        policy.size.fill_(1.2)  # an earlier turn
    policies.draw()
    first = compared(drew, policy)
    assert torch.equal(first.old, first.policy.detach())
    with torch.no_grad():
        policy.size.fill_(1.5)  # the first update of this one
    second = compared(drew, policy)
    ratio = math.exp(1.2**2 - 1.5**2)  # exp(E_old - E) = 0.445
    plain = {"weighting": "uniform", "kl": 0.0, "reference_kl": 0.0}
    # max(-A r, -A clip(r, 0.8, 1.2)) is -r at A = 1 and 0.8 at A = -1.
    assert OBJECTIVES["awm"](second, clip=0.2, **plain).item() == pytest.approx((-ratio + 0.8) / 2, abs=1e-12)
    assert OBJECTIVES["awm"](first, clip=0.2, **plain).item() == pytest.approx(0.0, abs=1e-12)
    losses = {clip: OBJECTIVES["dgpo"](second, beta=100.0, clip=clip, kl=0.0) for clip in (None, 0.2)}
    slopes = {clip: torch.autograd.grad(loss.sum(), policy.size, retain_graph=True)[0].item() for clip, loss in losses.items()}
    # w = sigmoid(0) = 1/2, times the mean of A dE / dsize, with dE / dsize = 3; the ratio 0.445 has left 0.8 .. 1.2 for A = -1 alone.
    assert slopes[None] == pytest.approx(0.0, abs=1e-12)
    assert slopes[0.2] == pytest.approx(0.5 * 0.5 * 3.0, abs=1e-12)


RUNS = {
    "awm": {"objective": {"awm": {"weighting": "uniform"}}, "old_policy_decay": {"uprate": 0.5, "uphold": 0.5}},
    "dgpo by its average": {"objective": {"dgpo": {"clip": 0.01}}, "use_ema": True, "ema_decay": 0.5, "rollout_policy": "ema"},
    "dgpo without decay": {"objective": {"dgpo": {"clip": 0.01}}},
    "clipped_ratio": POLICY,
}


def seen(monkeypatch):
    """Return a list that the scores of every forward pass go to."""
    scores, step = [], trainer.preference_step

    def watched(*args, **options):
        loss, own = step(*args, **options)
        scores.append(own)
        return loss, own

    monkeypatch.setattr(trainer, "preference_step", watched)
    return scores


def test_the_ratio_of_a_run_is_one_at_the_first_update_of_a_turn_and_another_number_at_the_second(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    for name, options in RUNS.items():
        with monkeypatch.context() as patch:
            scores = seen(patch)
            api.train(online_config(micro_sd, tmp_path / name, **(ADVANTAGES | options)))
        pairs = [(s.steps.policy, s.steps.old) if s.steps else (s.policy, s.old) for s in scores]
        moved = [float((policy.detach() - old).abs().max()) for policy, old in pairs]
        drawn_by_others = name == "dgpo by its average"
        assert [change > 1e-5 for change in moved] == [False, True, drawn_by_others, True], (name, moved)
        same = [s.old is None or torch.equal(s.old, s.reference) for s in scores]
        assert all(same) == (name in ("dgpo without decay", "clipped_ratio")), name


def test_a_run_goes_on_within_a_turn_with_the_network_that_drew_it(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    config = online_config(micro_sd, tmp_path / "whole", **(ADVANTAGES | RUNS["awm"]))
    whole, part = api.train(config), replace(config, output_dir=str(tmp_path / "part"), max_train_steps=3)
    api.train(part)
    api.train(replace(part, max_train_steps=4, resume_from_checkpoint="latest"))
    assert (whole / "train_log.jsonl").read_text() == (tmp_path / "part" / "train_log.jsonl").read_text()
