"""PAL (2406.08469): a reward model that knows users, each a mixture of a few prototypes; a new one is a few numbers."""

from __future__ import annotations

from dataclasses import replace

from diffalign.methods.reward_bt import REWARD_BT
from diffalign.objectives.base import Source

REWARD_PAL = replace(
    REWARD_BT,
    paper="2406.08469",
    source=Source("release", ("hand",), "of its losses the cross-entropy"),
    about="pairs of images with their user; the result is a scorer for each user",
)
