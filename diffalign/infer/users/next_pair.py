"""Which pair to ask about next: the one whose answer is expected to tell most about a user's taste.

A taste is a vector whose inner product with an image's numbers (`Personal.numbers`) is how much the user likes the image. It is believed to
be normal: before the first choice standard normal, then as Laplace's approximation of the posterior under Bradley and Terry's model. A pair
tells as much as its answer and the taste share, in nats (BALD, Houlsby et al., 1112.5745, equation 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import entr, expit

# Of an expectation over a standard normal number. Gauss-Hermite's few nodes would miss how narrow an entropy is where much is unknown.
NODES = np.linspace(-7.0, 7.0, 701)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a taste: a normal distribution with this mean (H,) and covariance (H, H)."""

    mean: np.ndarray
    covariance: np.ndarray


def posterior(differences: np.ndarray) -> Belief:
    """Return what choices say of a taste: `differences` (C, H) are the preferred image's numbers less the other one's, C may be 0.

    The mean is the most probable taste, and the covariance the inverse of the curvature there.
    """

    def loss(taste: np.ndarray) -> tuple[float, np.ndarray]:
        gap = differences @ taste
        return float(np.logaddexp(0.0, -gap).sum() + 0.5 * taste @ taste), taste - differences.T @ expit(-gap)

    found: Any = minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B")
    prob = expit(differences @ found.x)
    curvature = np.eye(len(found.x)) + (differences * (prob * (1.0 - prob))[:, None]).T @ differences
    return Belief(found.x, np.linalg.inv(curvature))


def information(belief: Belief, differences: np.ndarray) -> np.ndarray:
    """Return (P,) how much the answer to each pair is expected to tell about the taste, in nats: at least 0, at most log 2.

    `differences` (P, H) are the first image's numbers less the second one's; the order of the two does not matter.
    """
    middle = differences @ belief.mean
    spread = np.sqrt(np.einsum("ph,hk,pk->p", differences, belief.covariance, differences).clip(min=0.0))
    prob = expit(middle[:, None] + spread[:, None] * NODES)
    return _entropy(prob @ WEIGHTS) - _entropy(prob) @ WEIGHTS


def _entropy(prob: np.ndarray) -> np.ndarray:
    return entr(prob) + entr(1.0 - prob)
