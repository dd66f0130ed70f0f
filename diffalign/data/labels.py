"""What the objective reads of a batch's records besides the preference, as tensors: weights, offsets and columns of scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffalign.core.types import Labels
from diffalign.data.view import Entry, View


def labels_of(view: View, entries: Sequence[Entry]) -> Labels:
    """Return the weights and offsets (B,) of entries, each None where no entry has any, and the view's columns (B, K); float32."""
    columns = {name: torch.tensor([entry.columns[i] for entry in entries]) for i, name in enumerate(view.columns)}
    return Labels(_numbers([e.weight for e in entries], 1.0), _numbers([e.offset for e in entries], 0.0), columns)


def _numbers(values: Sequence[float | None], default: float) -> Tensor | None:
    if all(value is None for value in values):
        return None
    return torch.tensor([default if value is None else value for value in values])
