"""What a vote store asks and what it is answered: questions, their pictures, votes, and the pairs that can still be asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Literal

# The chance that the picture on the left is preferred, by answer; a skipped question says nothing.
PROBABILITIES = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
ANSWERS = (*PROBABILITIES, "skip")
SECOND_ANSWERS = ("", "left", "tie", "right")
RANKING = "ranking"
RANKED = 4  # pictures of a ranking
NO_SEED = -1

Order = Literal["balanced", "random"]


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A picture of a question: its file, and what drew it (hidden from voters until they have answered)."""

    id: int
    file: Path
    model: str
    seed: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """Pictures of one prompt that a user is asked to compare: two, the first on the left, or more to be ranked."""

    id: str
    user: str
    prompt: str
    pictures: tuple[ShownPicture, ...]
    repeats: str | None = None  # id of an earlier question with the same pictures, the other way round


@dataclass(frozen=True, slots=True)
class CastVote:
    """The answer to a question: a word of `ANSWERS`, or "ranking" with the rank of each picture, 1 = best.

    `second_answer` is a word of `SECOND_ANSWERS`, to the further question `second_question`; both are empty where there was none.
    """

    question: str
    answer: str
    ranks: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    second_answer: str = ""
    at: float = 0.0  # seconds since 1970
    second_question: str = ""


@dataclass(frozen=True, slots=True)
class OpenPair:
    """Two pictures that a user has not compared yet."""

    id: int
    prompt: str
    first: ShownPicture
    second: ShownPicture


Choose = Callable[[Sequence[OpenPair]], int]  # returns the index of the pair to ask next
Compared = tuple[Path, Path, float]  # two pictures, and the chance that the first is preferred: 1, 0, or 1/2 for a tie


def compared(rows: Iterable[tuple[str, str, str, str]], folder: Path) -> list[Compared]:
    """Return the comparisons of answered questions, given as rows (question, answer, ranks in JSON, picture); the left picture comes first.

    A ranking compares each of its pictures with every other one. A skipped question counts as ties, for it is not asked again.
    """
    result: list[Compared] = []
    for _, group in groupby(rows, lambda row: row[0]):
        shown = list(group)
        answer, ranks, places = shown[0][1], json.loads(shown[0][2]), range(len(shown))
        for first, second in combinations(places, 2):
            if answer == RANKING:
                chance = 0.5 * (1 + (ranks[first] < ranks[second]) - (ranks[first] > ranks[second]))
            else:
                chance = PROBABILITIES.get(answer, 0.5)
            result.append((folder / shown[first][3], folder / shown[second][3], chance))
    return result
