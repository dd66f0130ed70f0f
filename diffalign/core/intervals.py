"""The interval of a mean over prompts."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import bootstrap

LEAST_PROMPTS = 5  # of fewer no interval is given


def bootstrapped(means: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of (N,) prompts; NaN for fewer than 5, a point where all are alike."""
    if len(means) < LEAST_PROMPTS:
        return math.nan, math.nan
    if np.ptp(means) == 0.0:  # nothing to resample
        return float(means[0]), float(means[0])
    rng = np.random.default_rng(seed)
    low, high = bootstrap((means,), np.mean, n_resamples=9999, method="percentile", rng=rng).confidence_interval
    return float(low), float(high)
