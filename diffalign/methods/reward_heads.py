"""Reward models whose heads bring their own loss: how near each is to its paper, and which records it learns from.

The objective `simpo` stands for the loss in reports of rewards alone.
"""

from __future__ import annotations

from dataclasses import replace

from diffalign.methods.base import Method, spec
from diffalign.methods.reward_bt import REWARD_BT
from diffalign.objectives.base import Check, Facts, Origin, Source

HAND: tuple[Check, ...] = ("hand",)


def head(paper: str, origin: Origin, about: str, note: str = "") -> Method:
    """Return the method of a head that learns from pairs."""
    return replace(REWARD_BT, paper=paper, source=Source(origin, HAND, note), about=about)


RANKING = head("2508.09826", "reconstructed", "rankings of K images, or pairs", "from its abstract")
LIKES = head("2505.14946", "reconstructed", "likes of single images, or stars; the result is the chance of a like")
AT_ONCE = "both stages at once; the penalties of `decorrelate` are measured on the table"
NORMALISED = "how scores are normalised is reconstructed; learning from votes is ours"

REWARD_HEADS: dict[str, Method] = {
    "reward_ordinal": head("2602.12660", "paper", "pairs and ties; the result is a level", "ties and region flooding are reconstructed"),
    "reward_ranklist": replace(
        RANKING,
        transforms=(spec("share_beaten"), spec("list_of", score="gains")),
        facts=Facts("R", reference=False, columns=("gains",)),
    ),
    "reward_armo": head(
        "2406.12845", "release", "pairs with scores of aspects", "both stages at once; penalties for verbosity of the table's scores"
    ),
    "reward_micro": head("2505.24846", "reconstructed", "pairs of voters who differ by the prompt, without user ids"),
    "reward_maxmin": head("2402.08925", "variant", "pairs of groups of voters, without user ids", "soft shares of votes, not of users"),
    "reward_gpm": head("2410.02197", "release", "pairs whose preferences may run in circles", "the scale gate is reconstructed"),
    "reward_bt_then_regression": head("2410.01257", "paper", "pairs with ratings; begins with a run of reward_bt"),
    "reward_more": head("2312.07401", "reconstructed", "pairs of several datasets, in balance"),
    "reward_meta": head("2405.00438", "reconstructed", "pairs, and pictures of another source without votes"),
    "reward_orchestrator": head("2511.10656", "paper", "pairs with several scores; the result weighs scores by the prompt", NORMALISED),
    "reward_like": replace(LIKES, transforms=(spec("singles"),), facts=Facts("R", reference=False, unpaired=True)),
}
