"""The config that most tests of training begin with: a micro model, a few pairs, a small adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffalign.methods.config import TrainConfig


def small_config(model: Path, pairs: Path, output_dir: Path, **values: Any) -> TrainConfig:
    """Return the config of a run on the image model and the pairs in these files."""
    places = {"pretrained_model_name_or_path": str(model), "dataset_name": str(pairs), "output_dir": str(output_dir)}
    return TrainConfig(**{**places, "rank": 2, **values})
