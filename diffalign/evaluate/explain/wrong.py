"""Corrections of the votes that an explanation finds least likely."""

from __future__ import annotations

from pathlib import Path

from diffalign.core.errors import ConfigError
from diffalign.data.corrections import Corrections
from diffalign.evaluate.explain.report import Explanation

TURNED = {1.0: "right", -1.0: "left"}  # of a vote for the first, for the second


def check_corrections(path: Path) -> None:
    """Raise ConfigError where there are corrections already: they would be mixed with those to come."""
    if path.exists():
        raise ConfigError(f"`corrections`: {path} exists already; choose another file, or remove it")


def write_corrections(explanation: Explanation, path: Path, *, share: float, turn: bool = False) -> int:
    """Write corrections that remove the label of a `share` of the decided votes, the least likely first, or with `turn` turn it around.

    Returns how many these are. Raises ConfigError for rankings, whose votes have no label of their own, and where too few prompts let
    nothing be predicted.
    """
    votes = explanation.votes
    if not explanation.unlikely:
        raise ConfigError("`corrections`: these votes are of too few prompts, or differ in nothing, to say which look wrong")
    if len(set(votes.ids)) < len(votes):
        raise ConfigError("`corrections`: rankings give several votes a record; only labels of pairs can be turned around")
    check_corrections(path)
    chosen = explanation.unlikely[: max(1, round(share * len(explanation.unlikely)))]
    file = Corrections(path)
    for vote in chosen:
        file.add(votes.ids[vote], "data explain", TURNED[float(votes.sign[vote])] if turn else None)
    return len(chosen)
