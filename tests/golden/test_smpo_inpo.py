"""SmPO and InPO, from clean latents to policy gradients, through the public functions, to 1e-9 in float64."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms import soft_label
from diffalign.models.diffusion.path import FlowPath
from diffalign.objectives import dpo, smpo
from diffalign.objectives.metrics import implicit_accuracy
from tests.golden.standin import END, EXACT, Golden, Net

SMPO, INPO = Golden("smpo"), Golden("inpo")
SINGLE = [f"{kind}_N{steps}" for kind in ("d020", "cur", "derived_exact") for steps in (5, 10)]
T0 = SMPO["t0"].tolist()


def constants(name):
    kind, steps = name.rsplit("_N", 1)
    return {"steps": int(steps), "renoise": 1, **END[kind]}


def draws(x0):
    """The golden noise of InPO, one a move, the same for every record."""
    noises = iter(INPO["z"])
    return lambda: next(noises).expand_as(x0)


def check_step(golden, prefix, noised, policy, reference, losses, i, rows):
    """Compare every stored number of golden step i with row `rows` of a batch, the gradients of its loss included."""
    name = {"xinv": noised.x_t[rows], "tau": noised.target[rows], "model_losses": -2 * policy[rows], "ref_losses": -2 * reference[rows]}
    for key, value in name.items():
        torch.testing.assert_close(value, golden[f"{prefix}_{key}"][i], **EXACT)
    torch.testing.assert_close(losses[rows], golden[f"{prefix}_loss"][i], **EXACT)
    weight, bias = torch.autograd.grad(losses[rows], (golden.policy.weight, golden.policy.bias), retain_graph=True)
    torch.testing.assert_close(weight, golden[f"{prefix}_grad_W"][i], **EXACT)
    torch.testing.assert_close(bias, golden[f"{prefix}_grad_b"][i], **EXACT)


@pytest.mark.parametrize("name", SINGLE)
def test_thirteen_smpo_steps_in_one_batch_are_the_thirteen_golden_steps(name):
    t = SMPO["t0"]
    noised, policy, reference = SMPO.scores(SMPO.invert(t, **constants(name)), t)
    losses = smpo(Scores(policy, reference, SMPO["probs"]), beta=2000.0, scale=10.0)
    for i in range(len(T0)):
        check_step(SMPO, name, noised, policy, reference, losses, i, i)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("i", range(len(T0)), ids=T0)
def test_a_smpo_step_alone_asks_the_network_as_often_as_the_release(name, i):
    t = SMPO["t0"][i : i + 1]
    net = Net(SMPO.arrays, "pol")
    x = SMPO.invert(t, net=net, **constants(name))
    torch.testing.assert_close(x[0], SMPO[f"{name}_xinv"][i], **EXACT)
    released = name.replace("derived_exact", "d020")
    assert net.calls == SMPO[f"{released}_unet_forwards"][i] - 2
    assert net.calls == 2 * SMPO[f"{released}_K"][i]


@pytest.mark.parametrize("kind", ["d020", "cur"])
@pytest.mark.parametrize("eta", [0.1, 0.0])
def test_thirteen_inpo_steps_in_one_batch_are_the_thirteen_golden_steps(kind, eta):
    prefix = f"{kind}_eta0{'1' if eta else ''}"
    # The release with diffusers from 0.22 raises for t above 901 (it asks for alphas_cumprod[1001]); its numbers are NaN there.
    rows = [i for i, t in enumerate(T0) if kind == "d020" or t <= 901]
    t = INPO["t0"][rows]
    x = INPO.invert(t, draw=draws(INPO.x0(len(t))), steps=10, eta=eta, **END[kind])
    noised, policy, reference = INPO.scores(x, t)
    losses = dpo(Scores(policy, reference), beta=2000.0)
    for row, i in enumerate(rows):
        check_step(INPO, prefix, noised, policy, reference, losses, i, row)
        assert implicit_accuracy((policy - reference)[row : row + 1]) == INPO[f"{prefix}_implicit_acc"][i]


def test_the_error_of_x0_is_the_error_of_the_noise_times_its_share():
    x = INPO.invert(INPO["t0"], draw=draws(INPO.x0(13)), steps=10, eta=0.1)
    noised, policy, _ = INPO.scores(x, INPO["t0"])
    alpha, sigma = INPO.path.level(noised.t)
    torch.testing.assert_close((sigma / alpha).square()[:, None] * -2 * policy, INPO["d020_eta01_x0_losses"], **EXACT)


def test_the_soft_label_is_the_golden_probability():
    low, high = SMPO.facts["ps_min"], SMPO.facts["ps_max"]
    for first, second, prob in zip(SMPO["score_w"].tolist(), SMPO["score_l"].tolist(), SMPO["probs"].tolist(), strict=True):
        pair = Record("r", "p", tuple(Candidate(image=b"", scores={"pickscore": s}) for s in (first, second)))
        assert soft_label(pair, score="pickscore", low=low, high=high)[0].prob == pytest.approx(prob, rel=1e-12)


def test_a_flow_model_is_inverted_by_heun_and_scored_on_its_velocity():
    flow, sigma = FlowPath(), SMPO["derived_flow_sigma"]
    nets = tuple(Net(SMPO.arrays, kind, scale=1000.0) for kind in ("pol", "ref"))
    x = SMPO.invert(sigma, path=flow, net=nets[0], steps=5, renoise=1, end="exact", label="own")
    torch.testing.assert_close(x, SMPO["derived_flow_xinv"], **EXACT)
    prob = 0.5 + SMPO["derived_flow_scale"] / (-2000.0 * 10.0)
    for i in range(len(sigma)):
        noised, policy, reference = SMPO.scores(x[i : i + 1], sigma[i : i + 1], flow, nets)
        losses = smpo(Scores(policy, reference, prob), beta=2000.0)
        torch.testing.assert_close(noised.target[0], SMPO["derived_flow_u_target"][i], **EXACT)
        torch.testing.assert_close(-2 * policy[0], SMPO["derived_flow_model_losses"][i], **EXACT)
        torch.testing.assert_close(-2 * reference[0], SMPO["derived_flow_ref_losses"][i], **EXACT)
        torch.testing.assert_close(losses[0], SMPO["derived_flow_loss"][i], **EXACT)
        weight, bias = torch.autograd.grad(losses[0], (nets[0].weight, nets[0].bias))
        torch.testing.assert_close(weight, SMPO["derived_flow_grad_W"][i], **EXACT)
        torch.testing.assert_close(bias, SMPO["derived_flow_grad_b"][i], **EXACT)
