"""Ten cases of Diffusion-DPO, from latents to gradients, through the public functions, to 1e-9 in float64."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.models.diffusion.path import FlowPath, VPPath, mix, target
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.metrics import describe
from tests.golden.cases import EXACT, SD, Case, load, pairs

CASES, ARRAYS = load("diffusion_dpo")


class Golden(Case):
    def __init__(self, name):
        super().__init__(name, CASES, ARRAYS)

    @property
    def path(self):
        if self.config["pred"] == "flow":
            return FlowPath()
        return VPPath.from_config(SD | {"prediction_type": self.config["pred"], "rescale_betas_zero_snr": "turbo" in self.config})

    def objective(self, scores):
        # Our scores carry the one-half; the diffusers script's do not, so its beta is doubled and its IPO loss is four of ours.
        beta = self.config["beta"] * (1 if self.config["half"] else 2)
        kind = self.config.get("kind", "dpo")
        if kind == "ipo":
            return 4 * OBJECTIVES["ipo"](scores, tau=beta)
        return OBJECTIVES[kind](scores, beta=beta)


@pytest.fixture(params=CASES, ids=str)
def golden(request):
    return Golden(request.param)


def test_mix_gives_the_golden_noisy_latents(golden):
    x = mix(golden.path, pairs(golden["latents"]), pairs(golden["noise"]), golden.t)
    torch.testing.assert_close(x, pairs(golden["noisy_latents"]), **EXACT)


def test_target_is_the_golden_target(golden):
    y = target(golden.path, pairs(golden["latents"]), pairs(golden["noise"]), golden.t)
    torch.testing.assert_close(y, pairs(golden["target"]), **EXACT)


def test_losses_are_the_golden_losses(golden):
    scores = Scores(golden.scores(golden["model_pred"]), golden.scores(golden["ref_pred"]))
    torch.testing.assert_close(-2 * scores.policy, pairs(golden["model_losses"]), **EXACT)
    torch.testing.assert_close(-2 * scores.reference, pairs(golden["ref_losses"]), **EXACT)
    losses = golden.objective(scores)
    torch.testing.assert_close(losses, golden["per_pair_loss"], **EXACT)
    torch.testing.assert_close(losses.mean(), golden["loss"].squeeze(), **EXACT)


def test_gradients_are_the_golden_gradients(golden):
    predictions = golden["model_pred"].clone().requires_grad_()
    loss = golden.objective(Scores(golden.scores(predictions), golden.scores(golden["ref_pred"]))).mean()
    (gradient,) = torch.autograd.grad(loss, predictions)
    torch.testing.assert_close(gradient, golden["grad_model_pred"], **EXACT)


def test_metrics_are_the_golden_metrics(golden):
    scores = Scores(golden.scores(golden["model_pred"]), golden.scores(golden["ref_pred"]))
    seen = describe(scores)
    assert seen["implicit_acc"].item() == pytest.approx(golden["implicit_acc_ties_half"].item(), abs=1e-12)
    scale = golden.config["beta"] * (0.5 if golden.config["half"] else 1.0)
    assert 2 * scale * seen["log_ratio/chosen"].item() == pytest.approx(golden["implicit_reward_w"].mean().item(), rel=1e-9, abs=1e-12)
    assert 2 * scale * seen["log_ratio/rejected"].item() == pytest.approx(golden["implicit_reward_l"].mean().item(), rel=1e-9, abs=1e-12)


def test_displacement_shows_in_the_chosen_log_ratio_and_nowhere_else():
    golden = Golden("eps_displacement")
    scores = Scores(golden.scores(golden["model_pred"]), golden.scores(golden["ref_pred"]))
    seen = describe(scores)
    assert golden.objective(scores).mean() < 1e-5
    assert seen["implicit_acc"] == 1.0
    assert seen["log_ratio/chosen"] < 0
