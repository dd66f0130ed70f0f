"""The invariant of every policy gradient: before a turn's first update, policy and the policy that drew are the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from diffalign.core.errors import TrainingError
from diffalign.core.types import Batch, Likelihood, TextBatch
from diffalign.methods.config import TrainConfig
from diffalign.models.diffusion.rollout import StepLikelihood
from diffalign.models.reference import eval_mode
from diffalign.objectives.online import tokens_or_steps

FULL, HALF = 1e-5, 1e-2  # how far the log-ratio may be from zero: kernels round otherwise in batches of other sizes
Replay = tuple[Likelihood, AbstractContextManager[Any]]


def check_ratio(likelihood: Likelihood, network: nn.Module, batch: Batch | TextBatch, config: TrainConfig, turn: int) -> None:
    """Raise TrainingError where the ratio of a batch's steps or tokens is not one, with what has broken it as far as a replay tells."""
    tolerance = FULL if config.mixed_precision == "no" else HALF
    batch = batch.to(next(network.parameters()).device)
    largest = log_ratio(likelihood, network, batch)
    if largest <= tolerance:
        return
    cause = "its network, prompts, times or precision are not those of the rollout"
    for words, (other, block) in _causes(likelihood, network, config).items():
        with block:
            if log_ratio(other, network, batch) <= tolerance:
                cause = words
                break
    what = "steps" if isinstance(batch, Batch) else "tokens"
    raise TrainingError(
        f"turn {turn}: before its first update the policy is the one that drew, so the log-ratio of its {what} has to be 0; found "
        f"{largest:.3g}, more than {tolerance:g}: {cause}"
    )


def _causes(likelihood: Likelihood, network: nn.Module, config: TrainConfig) -> dict[str, Replay]:
    """Return what may have broken the ratio, each with the replay in which it would be one."""
    causes: dict[str, Replay] = {
        "the network replays in training mode, with `lora_dropout` or another layer that is random there": (likelihood, eval_mode(network)),
    }
    if isinstance(likelihood, StepLikelihood):
        wanted = replace(likelihood, w=config.sample_guidance_scale - 1.0)
        causes |= {
            "the replay is guided, and the rollout was not": (replace(likelihood, w=0.0), nullcontext()),
            "the rollout had the guidance of `sample_guidance_scale`, and the replay has another": (wanted, nullcontext()),
        }
    return causes


@torch.no_grad()
def log_ratio(likelihood: Likelihood, network: nn.Module, batch: Batch | TextBatch) -> float:
    """Return the largest absolute log-ratio of a batch's stored steps or tokens under a network as it stands."""
    scores = likelihood.scores(likelihood.score(network, likelihood.prepare(None, batch, [])), None, batch)
    replayed = tokens_or_steps(scores)
    assert replayed.old is not None  # what was drawn keeps it
    return float((replayed.policy - replayed.old).abs().max())
