"""A reward head as the trainer sees a model."""

from __future__ import annotations

from dataclasses import dataclass

from diffalign.rewards.heads.networks import RewardHead


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A head on frozen embeddings, as the trainer sees a model."""

    network: RewardHead
    embeds: str  # fingerprint of those embeddings; the model that made them has left the memory
    name: str
    beta: float  # on rewards, to make logits of them
    component: str = "reward_head"
    lora_targets: tuple[str, ...] = ()

    def beta_in_words(self, beta: float) -> str:
        """Return `beta` and its unit."""
        return f"beta {beta:g} on rewards: with it, their differences are logits"

    def park(self) -> None:
        """Do nothing: embeddings are computed before training."""

    def fingerprint(self) -> str:
        """Return that of the embeddings."""
        return self.embeds
