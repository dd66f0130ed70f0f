"""What a run says before its first step: the scale of beta, the effective batch, and how much is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from diffalign.data.sampler import Sampler
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts

logger = logging.getLogger(__name__)
LEAST_RATE = 1e-7  # below it a warning: the recipes are at 1e-6 or above


def announce(config: TrainConfig, parts: Parts, parameters: Sequence[nn.Parameter], sampler: Sampler) -> None:
    """Log what users of other scripts ask first."""
    recipe, paper = parts.recipe, parts.recipe.method.paper_batch
    logger.info("%d records, %d trainable parameters", len(parts.pairs), sum(p.numel() for p in parameters))
    division = f"{config.train_batch_size} x {config.gradient_accumulation_steps} accumulated x {sampler.processes}"
    division += " process" if sampler.processes == 1 else " processes"
    logger.info("effective batch %d records: %s%s", sampler.effective, division, f" (paper: {paper})" if paper else "")
    if config.learning_rate < LEAST_RATE:
        logger.warning(
            "learning_rate %g: nothing visible is learned at it; 1e-8 in the Diffusion-DPO release is for each of 2048 pairs, together "
            "2.048e-5, and adapters take 1e-5 to 1e-3",
            config.learning_rate,
        )
    if recipe.beta is not None and recipe.compares:
        logger.info("%s", parts.backbone.beta_in_words(recipe.beta))
