"""The reward heads by name, and making one."""

from __future__ import annotations

from typing import Any

from diffalign.rewards.heads.comparing import GpmHead, OrdinalHead, RankListHead
from diffalign.rewards.heads.learning import LikeHead, MetaHead, MoreHead, RegressionHead
from diffalign.rewards.heads.mixed import ArmoHead, MaxMinHead, MicroHead
from diffalign.rewards.heads.networks import BtHead, HeadSizes, PalHead, RewardHead
from diffalign.rewards.heads.settings import HEADS, Settings
from diffalign.rewards.heads.weighing import OrchestratorHead

NETWORKS: dict[str, Any] = {
    "bt": BtHead,
    "pal": PalHead,
    "ordinal": OrdinalHead,
    "ranklist": RankListHead,
    "armo": ArmoHead,
    "micro": MicroHead,
    "maxmin": MaxMinHead,
    "gpm": GpmHead,
    "bt_then_regression": RegressionHead,
    "more": MoreHead,
    "like": LikeHead,
    "meta": MetaHead,
    "orchestrator": OrchestratorHead,
}


def name_of(settings: Settings) -> str:
    """Return the name of the head that settings are of."""
    return next(name for name, kind in HEADS.items() if kind is type(settings))


def make(settings: Settings, sizes: HeadSizes) -> RewardHead:
    """Return a new head; its weights come from torch's own random state."""
    return NETWORKS[name_of(settings)](settings, sizes)
