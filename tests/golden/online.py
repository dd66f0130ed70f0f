"""The golden numbers of training online, data/online/*.json: inputs and outputs by the name of the case."""

from __future__ import annotations

import json

import numpy as np
import torch

from tests.paths import GOLDENS


def golden(kind):
    """Return the cases of a file by name."""
    return {case["name"]: case for case in json.loads((GOLDENS / "online" / f"{kind}.json").read_text())["cases"]}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, wanted, rtol=1e-9):
    """Compare with a tolerance of `rtol` of the largest absolute value, plus 1e-12."""
    found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    wanted = np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=rtol * float(np.abs(wanted).max(initial=0.0)) + 1e-12)
