"""The golden numbers of every objective, restated from the papers in numpy; nothing here imports the package.

`python -m tests.golden.make_objectives` writes data/objectives.json. A new objective needs one formula and one line of constants.
Formulas take policy and reference scores (B, 2) and prob (B,), and give one loss a record. Gradients are complex steps: the imaginary
part of f(x + ih) / h is the derivative to the last digits, because nothing is subtracted. So a formula may not use abs or compare
anything but real parts.
"""

from __future__ import annotations

import json

import numpy as np

from tests.paths import GOLDENS

FILE = GOLDENS / "objectives.json"
STEP = 1e-30

# All scores below zero, as log-likelihoods of a denoiser are; margins of both signs; a certain, a soft, an even and a reversed label.
POLICY = [[-0.31, -0.94], [-1.27, -0.46], [-0.08, -0.73], [-0.62, -0.59], [-2.4, -0.15], [-0.21, -3.3]]
REFERENCE = [[-0.52, -0.87], [-0.98, -0.66], [-0.29, -0.35], [-0.71, -0.64], [-0.44, -0.9], [-0.83, -0.37]]
PROB = [1.0, 0.8, 0.5, 0.37, 0.0, 1.0]


def softplus(z):
    """log(1 + e^z) = -log sigmoid(-z)."""
    return np.log1p(np.exp(z))


def relu(z):
    return np.where(z.real > 0, z, 0)


def margin(policy, reference):
    """log pi(w)/rho(w) - log pi(l)/rho(l)."""
    return (policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1])


def dpo(policy, reference, prob, *, beta, label_smoothing):
    """2305.18290 eq. 7 under the smoothed label of conservative DPO (Mitchell 2023): both orders, weighed by their chances."""
    right = (1 - label_smoothing) * prob + label_smoothing * (1 - prob)
    z = beta * margin(policy, reference)
    return right * softplus(-z) + (1 - right) * softplus(z)


def ipo(policy, reference, prob, *, tau):
    """2310.12036 eq. 17, (h - 1 / (2 tau))^2, with 2p - 1 in place of the certain 1."""
    return (margin(policy, reference) - (2 * prob - 1) / (2 * tau)) ** 2


def hinge(policy, reference, prob, *, beta):
    """2305.10425 eq. 1 with log-ratios in place of log-likelihoods: max(0, 1 - z), both orders weighed by their chances."""
    z = beta * margin(policy, reference)
    return prob * relu(1 - z) + (1 - prob) * relu(1 + z)


def smpo(policy, reference, prob, *, beta, scale):
    """2506.02698 eq. 9: -log sigmoid((2p - 1) gamma beta h)."""
    return softplus(-(2 * prob - 1) * scale * beta * margin(policy, reference))


def mapo(policy, _, prob, *, beta, snr, steps):
    """2406.06424 as released: mse_w - beta log sigmoid(T (phi_w - phi_l)), phi = s m / (e^(s m) - 1), m = mse = -2 score."""
    error = -2 * policy
    phi = snr * error / np.expm1(snr * error)
    z = steps * (phi[:, 0] - phi[:, 1])
    in_order, reversed_ = error[:, 0] + beta * softplus(-z), error[:, 1] + beta * softplus(z)
    return prob * in_order + (1 - prob) * reversed_


def denoise(policy, _, prob):
    """2006.11239 eq. 14 on candidate 0: half the error, which is minus the score."""
    return -policy[:, 0]


FORMULAS = {
    dpo: {"beta": 3.0, "label_smoothing": 0.1},
    ipo: {"tau": 0.7},
    hinge: {"beta": 1.7},
    smpo: {"beta": 0.6, "scale": 4.0},
    mapo: {"beta": 0.3, "snr": 0.5, "steps": 12.0},
    denoise: {},
}


def entry(formula, constants):
    """Return the inputs, losses (B,) and d loss / d policy (B, 2) of one formula, as plain lists."""
    policy, reference, prob = np.array(POLICY), np.array(REFERENCE), np.array(PROB)
    columns = []
    for candidate in range(2):
        moved = policy.astype(complex)
        moved[:, candidate] += 1j * STEP
        columns.append(formula(moved, reference, prob, **constants).imag / STEP)
    return {
        "constants": constants,
        "policy": POLICY,
        "reference": REFERENCE,
        "prob": PROB,
        "loss": formula(policy, reference, prob, **constants).tolist(),
        "grad_policy": np.stack(columns, axis=1).tolist(),
    }


def make():
    """Return {objective: entry}."""
    return {formula.__name__: entry(formula, constants) for formula, constants in FORMULAS.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
