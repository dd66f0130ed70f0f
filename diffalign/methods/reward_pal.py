"""PAL (2406.08469): a reward model that knows users, each a mixture of a few prototypes; a new one is a few numbers."""

from __future__ import annotations

from dataclasses import replace

from diffalign.methods.reward_bt import REWARD_BT

REWARD_PAL = replace(REWARD_BT, paper="2406.08469", about="pairs of images with their user; the result is a scorer for each user")
