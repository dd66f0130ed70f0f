"""The combiner that a run of reward_orchestrator or reward_armo is: weights of several rewards, read from the prompt by its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.combining import Combiner, Rewards, tables_of
from diffalign.rewards.combine import check_weighed
from diffalign.rewards.heads.embeds import Embeds
from diffalign.rewards.heads.mixed import ArmoHead
from diffalign.rewards.heads.store import embeds_of, head_of
from diffalign.rewards.heads.weighing import OrchestratorHead


@dataclass(frozen=True, slots=True)
class PromptWeights(Combiner):
    """The sum of the rewards, each standardised as in the run's training and times the weight that the prompt gives it.

    So no scale decides, and a reward of one picture depends on no other picture.
    """

    folder: Path
    head: OrchestratorHead | ArmoHead
    embeds: Embeds
    read: dict[str, np.ndarray] = field(default_factory=dict)  # by prompt, weights (A,)

    def combine(self, rewards: Rewards) -> np.ndarray:  # noqa: ARG002  # as other combiners
        """Raise ConfigError: without prompts there are no weights."""
        raise ConfigError("`prompt_weights` reads its weights from the prompts, and here there are rewards alone")

    def under(self, rewards: Rewards, prompts: Sequence[str]) -> np.ndarray:
        """Return the weighted sum (G, K) of candidates to G prompts. Raises ConfigError for other rewards than those of the training."""
        tables, names = tables_of(rewards), self.head.parts
        check_weighed(self.folder, names, list(tables))
        mean, deviation = (value.double().numpy() for value in self.head.measured)
        standard = [(tables[name] - mean[i]) / deviation[i] for i, name in enumerate(names)]
        return np.einsum("agk,ga->gk", standard, self.weights(prompts))

    @torch.no_grad()
    def weights(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the weights (G, A) under G prompts, in the order of the head's `parts`."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.read]:
            seen = (self.embeds.prompts(new) - self.head.prompt_mean) / self.head.prompt_deviation
            self.read.update(zip(new, self.head.weights(seen).double().numpy(), strict=True))
        return np.stack([self.read[prompt] for prompt in prompts])


def load_prompt_weights(path: str) -> PromptWeights:
    """Return the combiner of a run of reward_orchestrator or reward_armo in the folder `path`.

    Raises CheckpointError for a folder without such a run, and for embeddings that are no longer those of the training.
    """
    run, head, source, _ = head_of(Path(path))
    if not isinstance(head, OrchestratorHead | ArmoHead):
        raise CheckpointError(f"{run.folder}: its weights are of another head than those of {run.method}")
    return PromptWeights(run.folder, head, embeds_of(run, source))
