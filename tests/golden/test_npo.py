"""Diffusion-NPO's loss and Self-NPO's rollouts, renoising and error, through the public functions, to 1e-8 in float64."""

from __future__ import annotations

import json

import pytest
import torch

from diffalign.core.types import Query, Scores
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms import invert
from diffalign.models.diffusion.likelihood import DiffusionLikelihood, pseudo_huber
from diffalign.models.diffusion.path import FlowPath, VPPath, landed
from diffalign.models.diffusion.self_rollout import guided, renoise, rollout
from diffalign.models.diffusion.trajectory import forward
from diffalign.objectives import denoise, dpo
from diffalign.objectives.metrics import implicit_accuracy
from tests.paths import GOLDENS

GOLDEN = json.loads((GOLDENS / "npo.json").read_text())
TDFT = GOLDEN["tdft_truncated_ddim(eps=0.1*x+(0.05 if cond else -0.02)*(1+t/1000))"]
NAMES = [f"from-{case['start_t']}-w{case['w']:g}" for case in TDFT]
SD = VPPath.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
ROUNDED = {"rtol": 0.0, "atol": 1e-8}
STEPS = 5


def latents(*rows):
    """Rows of numbers -> (B, 1, C, 1, 1)."""
    return torch.tensor(rows, dtype=torch.float64)[:, None, :, None, None]


class Net:
    """The network written in the golden's key; counts its passes under the prompt and under the empty one."""

    def __init__(self):
        self.calls = {"prompt": 0, "empty": 0}

    def __call__(self, x, label, /, *, empty=False):
        self.calls["empty" if empty else "prompt"] += 1
        return 0.1 * x + (-0.02 if empty else 0.05) * (1.0 + label.view(-1, 1, 1, 1, 1) / 1000.0)


def run(cases, net, w):
    """Roll the cases, of one guidance, out as one batch."""
    # The golden's grid begins at 39; ours has the clean end, 0, before it.
    index = torch.tensor([case["start_index"] + 1 for case in cases])
    x = latents(*(case["x_start"] for case in cases))
    return rollout(x, index, torch.full_like(index, STEPS), net, SD, SD.solver_times(25), w)


def check(cases, x, t, clean):
    torch.testing.assert_close(x, latents(*(case["x_end"] for case in cases)), **ROUNDED)
    assert t.tolist() == [case["t_end"] for case in cases]
    torch.testing.assert_close(clean, latents(*(case["x0_target_recomputed_at_t_end"] for case in cases)), **ROUNDED)


def npo_scores():
    """Scores of the golden pairs, candidate 0 the dispreferred one; -1/2 of an error each."""
    numbers = GOLDEN["npo_dpo_loss"]
    pair = Record("r", "p", (Candidate(image=b"preferred"), Candidate(image=b"dispreferred")), prob=1.0)
    order = [candidate.image.decode() for candidate in invert(pair)[0].candidates]
    assert order == ["dispreferred", "preferred"]
    policy, reference = (
        -0.5 * torch.stack([torch.tensor(numbers[f"err_{who}_{which}"], dtype=torch.float64) for which in order], dim=1)
        for who in ("model", "ref")
    )
    return Scores(policy, reference)


def test_npo_is_dpo_on_inverted_pairs_at_twice_the_released_beta():
    numbers = GOLDEN["npo_dpo_loss"]
    # The release multiplies errors, we their halves.
    loss = dpo(npo_scores(), beta=2.0 * numbers["loss_beta_used"]).mean()
    assert loss.item() == pytest.approx(numbers["loss"], abs=1e-8)


def test_the_npo_margins_and_accuracy_are_the_golden_ones():
    numbers, ratio = GOLDEN["npo_dpo_loss"], npo_scores().log_ratio
    logits = numbers["logits=(ref_disp-ref_pref)-(model_disp-model_pref)"]
    assert (2.0 * (ratio[:, 0] - ratio[:, 1])).tolist() == pytest.approx(logits, abs=1e-8)
    assert implicit_accuracy(ratio) == numbers["implicit_acc"]


def test_the_solver_times_and_levels_are_the_golden_schedule():
    schedule = GOLDEN["tdft_schedule"]
    assert SD.solver_times(25).tolist() == [0, *schedule["ddim_timesteps_25"]]
    for t, acp in schedule["alphas_cumprod_at"].items():
        assert SD.alphas_cumprod[int(t)].item() == pytest.approx(acp, abs=1e-8)


@pytest.mark.parametrize("case", TDFT, ids=NAMES)
def test_a_rollout_ends_where_the_release_ends(case):
    net = Net()
    index = SD.solver_times(25).tolist().index(case["start_t"])
    assert index == case["start_index"] + 1
    check([case], *run([case], net, case["w"]))
    assert net.calls["empty"] == case["n_solver_steps"] + 1  # one more for the estimate


@pytest.mark.parametrize("w", sorted({case["w"] for case in TDFT}))
def test_rollouts_in_one_batch_are_the_rollouts_alone(w):
    cases = [case for case in TDFT if case["w"] == w]
    check(cases, *run(cases, Net(), w))


def test_only_at_the_clean_end_the_released_estimate_is_an_older_one():
    official = [latents(case["x0_target_official_single_sample"]) for case in TDFT]
    estimates = [run([case], Net(), case["w"])[2] for case in TDFT]
    off = [(a - b).abs().max().item() > 1e-8 for a, b in zip(official, estimates, strict=True)]
    assert off == [case["t_end"] == 0 for case in TDFT]


@pytest.mark.parametrize(("w", "prompt", "empty"), [(-1.0, 0, 6), (0.0, 6, 0), (-5.0, 6, 6)])
def test_the_pass_that_cancels_is_not_run(w, prompt, empty):
    net = Net()
    run(TDFT[:1], net, w)
    assert net.calls == {"prompt": prompt, "empty": empty}


def test_guidance_zero_is_the_prompt_alone():
    x, t = latents([0.5, -1.0]), torch.tensor([439])
    # 0.1 x + 0.05 * 1.439
    torch.testing.assert_close(guided(x, t, Net(), 0.0), latents([0.05 + 0.07195, -0.1 + 0.07195]), **ROUNDED)


def test_guidance_of_a_flow_model_is_linear_in_the_velocity():
    numbers = GOLDEN["cfg_rf"]
    positive, negative = latents(numbers["v_pos"]), latents(numbers["v_neg"])
    found = guided(positive, torch.tensor([0.5]), lambda x, t, /, *, empty=False: negative if empty else positive, numbers["g"] - 1.0)
    torch.testing.assert_close(found, latents(numbers["v"]), **ROUNDED)


@pytest.mark.parametrize(("key", "path"), [("tdft_renoise_vp", SD), ("tdft_renoise_rf", FlowPath())])
def test_renoised_points_are_the_golden_points(key, path):
    numbers = GOLDEN[key]
    t, later = torch.tensor([numbers["t"]]), torch.tensor([numbers["s"]])
    x = renoise(path, latents(numbers["x_t"]), t, later, latents(numbers["noise"]))
    torch.testing.assert_close(x, latents(numbers["x_s"]), **ROUNDED)


def test_the_target_of_a_renoised_flow_point_is_the_golden_velocity():
    numbers = GOLDEN["tdft_renoise_rf"]
    noised = landed(FlowPath(), latents(numbers["x0_target"]), latents(numbers["x_s"]), torch.tensor([numbers["s"]]))
    torch.testing.assert_close(noised.target, latents(numbers["v_target=(x_s-x0)/s"]), **ROUNDED)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_denoise_under_the_pseudo_huber_error_is_the_golden_loss(prediction):
    numbers, path, t = GOLDEN["pseudo_huber"], VPPath(SD.alphas_cumprod, prediction), torch.tensor([700])
    x = latents([0.3, -1.2, 0.8, 0.1, -0.4, 2.0])  # the error lies in x0: where it is looked for makes no difference
    found, right = (landed(path, latents(numbers[key]), x, t) for key in ("pred", "target"))
    assert numbers["c"] == 1e-3
    likelihood = DiffusionLikelihood(path, lambda *_: found.target.flatten(0, 1), forward, error=pseudo_huber)
    loss = denoise(Scores(likelihood.score(None, Query(right, {}))))
    assert loss.item() == pytest.approx(numbers["loss"], abs=1e-8)
