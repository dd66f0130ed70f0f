"""What a config means: each part of a method with its constants."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from diffalign.core.specs import bind
from diffalign.data.view import View
from diffalign.methods.build import speed
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.base import Settings
from diffalign.models.diffusion.likelihood import ERRORS
from diffalign.models.diffusion.trajectory import TRAJECTORIES
from diffalign.objectives import OBJECTIVES

DTYPES = speed.DTYPES


def objective(config: TrainConfig) -> functools.partial[Tensor]:
    """Return the objective of `config` with its constants."""
    return bind("objective", OBJECTIVES, config.part("objective"))


def beta_of(bound: Callable[..., Any]) -> float | None:
    """Return the beta of an objective with its constants, by its default where none is given; None where it has none."""
    beta = inspect.signature(bound).parameters.get("beta")
    return None if beta is None or beta.default is beta.empty else float(beta.default)


def trajectory(config: TrainConfig) -> functools.partial[Any]:
    """Return the trajectory of `config` with its constants."""
    return bind("trajectory", TRAJECTORIES, config.part("trajectory"))


def error(config: TrainConfig) -> Callable[..., Tensor]:
    """Return the error of `config` with its constants."""
    return bind("error", ERRORS, config.part("error"))


def driver(config: TrainConfig) -> str:
    """Return which network runs the trajectory: policy, reference or ema."""
    parameter = inspect.signature(trajectory(config)).parameters.get("driver")
    return "policy" if parameter is None else str(parameter.default)


def settings(config: TrainConfig) -> Settings:
    """Return what `config` says about the backbone."""
    flow = {"density": config.weighting_scheme, "transport": config.transport} | {
        name: getattr(config, name) for name in ("logit_mean", "logit_std", "mode_scale")
    }
    if config.shift is not None:
        flow["shift"] = config.shift
    # A dynamic shift follows the size of the pictures.
    side = config.resolution or (round(max(height * width for height, width in config.buckets) ** 0.5) if config.buckets else None)
    return Settings(side, config.max_sequence_length, config.guidance_scale, flow)


def cache_root(config: TrainConfig, view: View) -> Path:
    """Return the folder that caches lie in."""
    return Path(config.cache_dir) if config.cache_dir else view.table.path / "cache"
