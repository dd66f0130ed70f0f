"""Attributes that nobody named: directions in which the features of the two things differ, and a sparse code of these differences."""

from __future__ import annotations

import numpy as np

from diffalign.evaluate.explain.votes import Floats

ROUNDS = 30  # of learning a dictionary; it no longer moves by then


def principal(difference: Floats, count: int) -> dict[str, Floats]:
    """Return how far each difference (P, E) reaches in the directions (P,) that hold most of them; their signs are arbitrary.

    A principal component analysis of differences, which have no mean: which of the two is first is arbitrary.
    """
    directions = np.linalg.svd(difference, full_matrices=False)[2][:count]
    return {f"direction {number}": difference @ one for number, one in enumerate(directions, start=1)}


def sparse(difference: Floats, count: int, *, active: int = 4, seed: int = 0) -> dict[str, Floats]:
    """Return the code (P,) of each of `count` features: every difference (P, E) is a sum of at most `active` of them.

    After WIMHF (What's In My Human Feedback), whose sparse autoencoder of embedding differences has the same shape; this is a plain form of
    ours: a dictionary of unit vectors by alternating least squares, the code being the largest `active` projections. A difference the
    other way round has the code with the other sign, so that the order of the two does not matter.
    """
    rng = np.random.default_rng(seed)
    rows = difference[rng.choice(len(difference), size=count, replace=len(difference) < count)]
    dictionary = _unit(rows + 1e-6 * rng.normal(size=rows.shape))
    for _ in range(ROUNDS):
        code = _code(difference, dictionary, active)
        fitted = np.linalg.lstsq(code.T @ code + 1e-6 * np.eye(count), code.T @ difference, rcond=None)[0]
        unused = ~code.any(axis=0)
        residual = difference - code @ dictionary
        worst = np.argsort(-(residual**2).sum(axis=1))[: int(unused.sum())]
        fitted[unused] = residual[worst] + 1e-9 if len(worst) == unused.sum() else fitted[unused] + rng.normal(size=fitted[unused].shape)
        dictionary = _unit(fitted)
    code = _code(difference, dictionary, active)
    return {f"feature {number}": code[:, number - 1] for number in range(1, count + 1)}


def _code(difference: Floats, dictionary: Floats, active: int) -> Floats:
    """Return the projections (P, M) on the features, those beyond the largest `active` of each difference set to zero."""
    projections = difference @ dictionary.T
    if active < projections.shape[1]:
        least = np.partition(np.abs(projections), -active, axis=1)[:, -active, None]
        projections = np.where(np.abs(projections) >= least, projections, 0.0)
    return projections


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
