"""Votes that contradict themselves: one pair both ways, and circles of three, by one person under one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from diffalign.evaluate.explain.votes import Votes


@dataclass(frozen=True, slots=True)
class Contradictions:
    """Positions of votes that cannot all be what one person thinks."""

    both_ways: list[tuple[int, int]] = field(default_factory=list)
    """Two votes of one person on one pair, with opposite labels."""
    circles: list[tuple[int, int, int]] = field(default_factory=list)
    """Three votes of one person: a is preferred to b, b to c, and c to a."""
    between_people: int = 0
    """Pairs on which two people differ: no contradiction, but no agreement either."""
    repeated: int = 0
    """Pairs on which one person voted more than once."""
    shared: int = 0
    """Pairs on which more than one person voted."""


def contradictions(votes: Votes) -> Contradictions:
    """Return the contradictions of all votes that prefer one of two; votes without a user count as those of one person."""
    opinions: dict[tuple[str | None, int], dict[tuple[int, int], int]] = {}
    by_pair: dict[tuple[int, int], dict[str | None, set[bool]]] = {}
    both_ways, repeated = [], set()
    for place, (first, second, sign) in enumerate(zip(votes.first.tolist(), votes.second.tolist(), votes.sign.tolist(), strict=True)):
        if not sign:
            continue
        edge, user = (first, second) if sign > 0 else (second, first), votes.users[place]
        opinion = opinions.setdefault((user, int(votes.group[place])), {})
        if edge in opinion or edge[::-1] in opinion:
            repeated.add((user, tuple(sorted(edge))))
        if edge[::-1] in opinion:
            both_ways.append((opinion[edge[::-1]], place))
        opinion.setdefault(edge, place)
        pair = (min(edge), max(edge))
        by_pair.setdefault(pair, {}).setdefault(user, set()).add(edge == pair)
    shared = [answers for answers in by_pair.values() if len(answers) > 1]
    differ = sum(len(set.union(*answers.values())) > 1 and _disagree(answers) for answers in shared)
    circles = [circle for opinion in opinions.values() for circle in _circles(opinion)]
    return Contradictions(both_ways, circles, differ, len(repeated), len(shared))


def _disagree(answers: Mapping[str | None, set[bool]]) -> bool:
    """Return whether two people, each of one mind, are of different minds."""
    return len({next(iter(answer)) for answer in answers.values() if len(answer) == 1}) > 1


def _circles(opinion: Mapping[tuple[int, int], int]) -> Iterator[tuple[int, int, int]]:
    """Yield every circle of three once, beginning at its smallest thing; a pair that is there both ways is in none."""
    clear = {edge: place for edge, place in opinion.items() if edge[::-1] not in opinion}
    beaten: dict[int, list[int]] = {}
    for better, worse in clear:
        beaten.setdefault(better, []).append(worse)
    for a, lower in beaten.items():
        for b in lower:
            for c in beaten.get(b, ()) if a < b else ():
                if a < c and (c, a) in clear:
                    yield clear[a, b], clear[b, c], clear[c, a]
