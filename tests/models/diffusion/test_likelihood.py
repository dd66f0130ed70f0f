"""The likelihood draws once, scores without drawing, and gives -1/2 of the mean squared error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffalign.core.types import Batch, Noised, Query
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import FlowPath, VPPath
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.reference import AdapterOff, Frozen

PATH = VPPath.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})


class Scale(nn.Module):
    """A denoiser with one weight that notes what it is asked."""

    def __init__(self, value=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))
        self.asked = []

    def forward(self, x, t, condition):
        self.asked.append((x, t, condition, torch.is_grad_enabled()))
        return self.weight.to(x.dtype) * x + condition["prompt"].to(x).view(-1, 1, 1, 1)


def call(model, x, t, condition):
    return model(x, t, condition)


def likelihood(path=PATH, trajectory=forward, **options):
    return DiffusionLikelihood(path, call, trajectory, **options)


def batch(count, candidates=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(count, candidates, 4, 2, 2, generator=generator).to(dtype)
    prompt = torch.arange(1.0, count + 1.0).view(-1, 1)
    return Batch(x0, {"prompt": prompt}, {"prompt": torch.zeros(1, 1)}, torch.ones(count))


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def query(x_t, target, weight, dtype=torch.float32):
    """Return a query of (B, K, 1, 1, 2) latents at t = 0 with the prompt 0."""
    points = Noised(torch.tensor(x_t, dtype=dtype), torch.zeros(len(x_t), dtype=torch.int64), torch.tensor(target, dtype=dtype), weight)
    return Query(points, {"prompt": torch.zeros(len(x_t), 1)})


def test_a_score_is_minus_half_the_weighted_mean_squared_error():
    x_t = [[[[[2.0, 4.0]]], [[[6.0, 0.0]]]]]
    target = [[[[[0.0, 5.0]]], [[[3.0, 2.0]]]]]
    # outputs 0.5 x = (1, 2) and (3, 0); squared errors (1, 9) and (0, 4), means 5 and 2, times -1/2 and the weight 3
    assert likelihood().score(Scale(0.5), query(x_t, target, torch.tensor([3.0]))).tolist() == [[-7.5, -3.0]]


def test_a_perfect_network_scores_zero():
    x_t = [[[[[2.0, 4.0]]]]]
    assert likelihood().score(Scale(1.0), query(x_t, x_t, torch.ones(1))).tolist() == [[0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_are_squared_in_float32_at_least(dtype):
    # error 300: its square, 90000, is above the largest float16 number, 65504
    score = likelihood().score(Scale(0.0), query([[[[[1.0, 1.0]]]]], [[[[[300.0, 300.0]]]]], torch.ones(1), dtype))
    assert score.dtype == torch.float32
    assert score.item() == -45000.0


def test_float64_stays_float64():
    score = likelihood().score(Scale(0.0), query([[[[[1.0, 1.0]]]]], [[[[[1.0, 2.0]]]]], torch.ones(1), torch.float64))
    assert score.dtype == torch.float64


@pytest.mark.parametrize("path", [PATH, FlowPath()])
@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_there_is_a_score_for_every_candidate(path, candidates):
    own = likelihood(path)
    scores = own.score(Scale(), own.prepare(None, batch(4, candidates), torch.Generator().manual_seed(0)))
    assert scores.shape == (4, candidates)
    assert scores.requires_grad


def test_both_candidates_are_asked_with_their_records_time_and_prompt():
    model, own = Scale(), likelihood()
    asked = own.prepare(None, batch(3), seeded(1, 2, 3))
    own.score(model, asked)
    x, t, condition, _ = model.asked[0]
    assert torch.equal(x.view(3, 2, 4, 2, 2), asked.noised.x_t)
    assert torch.equal(t.view(3, 2), asked.noised.t[:, None].expand(3, 2))
    assert condition["prompt"].flatten().tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_every_candidate_is_asked_with_its_own_frame():
    model, own, frames = Scale(), likelihood(prompt_dropout=1.0), torch.arange(36.0).view(3, 2, 6)
    asked = own.prepare(None, replace(batch(3), frames=frames), seeded(1, 2, 3))
    assert torch.equal(asked.frames, frames)  # a dropped prompt is no dropped frame
    own.score(model, asked)
    condition = model.asked[0][2]
    assert torch.equal(condition["frames"], frames.view(6, 6))
    assert not condition["prompt"].any()


@pytest.mark.parametrize("empty", [False, True])
def test_a_trajectory_is_asked_with_the_frames_under_either_prompt(empty):
    def asking(x0, predict, path, generator):
        predict(x0, torch.zeros(len(x0)), empty=empty)
        return forward(x0, predict, path, generator)

    driver, frames = Scale(), torch.arange(24.0).view(2, 2, 6)
    likelihood(trajectory=asking).prepare(driver, replace(batch(2), frames=frames), seeded(1, 2))
    condition = driver.asked[0][2]
    assert torch.equal(condition["frames"], frames.view(4, 6))
    assert condition["prompt"].any() != empty


@pytest.mark.parametrize(("candidates", "told"), [(0, None), (1, [0, 1]), (2, [0, 2])])
def test_a_picture_of_the_models_own_has_the_frame_of_candidate_0_if_there_is_one(candidates, told):
    def made(x0, predict, path, generator):
        x = torch.zeros(len(x0), 1, *x0.shape[2:])
        predict(x, torch.zeros(len(x0)))
        return forward(x, predict, path, generator)

    driver, own = Scale(), likelihood(trajectory=made)
    frames = torch.arange(2.0 * candidates).view(2, candidates, 1).expand(-1, -1, 6)  # each is its image's number
    own.score(driver, own.prepare(driver, replace(batch(2, candidates), frames=frames), seeded(1, 2)))
    for _, _, condition, _ in driver.asked:
        assert (condition["frames"][:, 0].tolist() if "frames" in condition else None) == told


def test_a_batch_takes_its_frames_and_its_querys_along():
    frames, place = torch.zeros(2, 2, 6), torch.device("meta")
    whole = replace(batch(2), frames=frames)
    whole = replace(whole, query=likelihood().prepare(None, whole, seeded(1, 2)))
    moved = whole.to(place)
    assert moved.frames.device == moved.query.frames.device == place
    assert batch(2).to(place).frames is None


def test_scoring_draws_nothing():
    own, model = likelihood(prompt_dropout=0.5), Scale()
    asked = own.prepare(None, batch(4), torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert torch.equal(own.score(model, asked), own.score(model, asked))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_batch_scores_like_its_records_one_by_one(dropout):
    own, model, whole = likelihood(prompt_dropout=dropout), Scale(), batch(5)
    together = own.score(model, own.prepare(None, whole, seeded(*range(5))))
    for i in range(5):
        part = Batch(whole.x0[i : i + 1], {"prompt": whole.condition["prompt"][i : i + 1]}, whole.empty, whole.prob[i : i + 1])
        alone = own.score(model, own.prepare(None, part, seeded(i)))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reference", [Frozen, lambda model: AdapterOff(model, torch.no_grad)])
def test_policy_and_reference_are_asked_at_the_same_point(reference):
    own, policy, base = likelihood(prompt_dropout=0.5), Scale(0.5), Scale(0.1)
    asked = own.prepare(None, batch(6), seeded(*range(6)))
    reference(base).score(own, asked)
    own.score(policy, asked)
    (x, t, condition, _), (x_base, t_base, condition_base, _) = policy.asked[0], base.asked[0]
    assert torch.equal(x, x_base)
    assert torch.equal(t, t_base)
    assert torch.equal(condition["prompt"], condition_base["prompt"])


def inverted(x0, predict, path, generator):
    """Ask the driver once, as an inversion does."""
    end = forward(x0, predict, path, generator)
    return Noised(predict(end.x_t, end.t), end.t, end.target, end.weight)


def test_preparing_keeps_no_gradient_although_the_driver_is_asked():
    driver = Scale()
    asked = likelihood(trajectory=inverted).prepare(driver, batch(2), seeded(0, 1))
    assert [gradient for *_, gradient in driver.asked] == [False]
    assert not asked.noised.x_t.requires_grad
    assert torch.is_grad_enabled()


def test_the_driver_is_told_the_prompts_that_are_left():
    driver = Scale()
    asked = likelihood(trajectory=inverted, prompt_dropout=0.5).prepare(driver, batch(8), seeded(*range(8)))
    told = driver.asked[0][2]["prompt"].view(8, 2)
    assert torch.equal(told, asked.condition["prompt"].expand(8, 2))
    assert 0 < (told[:, 0] == 0).sum() < 8


def test_gradients_reach_the_policy():
    own, model = likelihood(), Scale(0.5)
    own.score(model, query([[[[[2.0, 4.0]]]]], [[[[[0.0, 5.0]]]]], torch.ones(1))).sum().backward()
    # score = -1/4 ((2w - 0)^2 + (4w - 5)^2); at w = 0.5: -1/2 (1 * 2 + (-3) * 4) = 5
    assert model.weight.grad.item() == pytest.approx(5.0)


def told(condition, empty, share):
    """Return the condition of a query whose prompts are dropped with a chance."""
    count = len(next(iter(condition.values())))
    records = Batch(torch.zeros(count, 1, 1, 1, 1), condition, empty, torch.ones(count))
    return likelihood(prompt_dropout=share).prepare(None, records, torch.Generator().manual_seed(0)).condition


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_prompts_are_dropped(share):
    kept = told(batch(50).condition, batch(1).empty, share)["prompt"]
    assert torch.equal(kept, batch(50).condition["prompt"] * (1.0 - share))


def test_the_share_of_dropped_prompts_is_as_asked():
    count, share = 4000, 0.2
    kept = told(batch(count).condition, batch(1).empty, share)["prompt"]
    # standard error sqrt(0.2 * 0.8 / 4000) = 0.0063
    assert (kept == 0).double().mean().item() == pytest.approx(share, abs=0.025)
    assert torch.equal(kept[kept != 0], batch(count).condition["prompt"][kept != 0])


def test_a_prompt_is_dropped_from_all_parts_of_its_condition():
    condition = {
        "embeds": torch.ones(300, 3, 2),
        "pooled": torch.ones(300, 5, dtype=torch.float16),
        "mask": torch.ones(300, 3, dtype=torch.int64),
    }
    empty = {"embeds": torch.zeros(1, 3, 2), "pooled": torch.zeros(1, 5), "mask": torch.zeros(1, 3, dtype=torch.int64)}
    kept = told(condition, empty, 0.5)
    assert {name: (value.shape, value.dtype) for name, value in kept.items()} == {n: (v.shape, v.dtype) for n, v in condition.items()}
    marks = [value.flatten(1).double().mean(dim=1) for value in kept.values()]
    assert all(torch.equal(mark, marks[0]) for mark in marks)
    assert set(marks[0].tolist()) == {0.0, 1.0}


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators for 3 records"):
        likelihood(prompt_dropout=0.5).prepare(None, batch(3), seeded(0, 1))


def test_a_trajectory_may_ask_for_some_of_the_records():
    def asking(x0, predict, path, generator):
        predict(x0[[2, 0]], torch.zeros(2, dtype=torch.long), rows=torch.tensor([2, 0]))
        return forward(x0, predict, path, generator)

    driver, frames, own = Scale(), torch.arange(36.0).view(3, 2, 6), batch(3)
    likelihood(trajectory=asking).prepare(driver, replace(own, frames=frames), seeded(1, 2, 3))
    condition = driver.asked[0][2]
    assert torch.equal(condition["frames"], frames[[2, 0]].view(4, 6))
    for name, value in own.condition.items():
        assert torch.equal(condition[name], value[[2, 2, 0, 0]])
