"""The explanation of a set of votes, as facts for JSON and as the votes that a page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffalign.core.intervals import LEAST_PROMPTS, share_interval
from diffalign.data.shortcuts import LEAST_PAIRS
from diffalign.evaluate.explain.contradictions import Contradictions, contradictions
from diffalign.evaluate.explain.origin import predicted
from diffalign.evaluate.explain.regression import (
    GROUP_PRIOR,
    Design,
    Weights,
    by_prompt,
    chances,
    design,
    likelihood,
    needed,
    redrawn,
    right,
    weights,
)
from diffalign.evaluate.explain.votes import Floats, Votes

GROUPS, GROUP_RESAMPLES = 20, 200  # users or sources that are fitted apart, those with most votes
LISTED = 200  # votes that the facts list of each kind
ALIKE = 0.9  # cosine of two attributes' differences from which they measure much the same
CARRIED, AGAINST = 3, 1  # pairs that carry a finding, and that speak against it

Differences = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What votes reward: `facts` are all numbers, the rest are positions of votes to look at."""

    facts: dict[str, Any]
    votes: Votes
    carried: Mapping[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    """By finding: the votes that carry it, and those against it."""
    unlikely: Sequence[int] = ()
    contradictions: Contradictions = field(default_factory=Contradictions)
    disagreed: Sequence[int] = ()
    """Votes on which another judge says the opposite, the plainest first."""


def explain(
    votes: Votes,
    differences: Differences,
    *,
    other: tuple[str, Votes, Differences] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Explanation:
    """Return what votes reward.

    Args:
        votes: of a table or file.
        differences: attributes (P,) of each vote: that of the first thing minus that of the second.
        other: name, votes and differences of another judge, to say where the two differ.
        resamples: redraws of the prompts for the intervals.
        seed: of redraws and of the parts that are held out.
    """
    made = design(votes, differences, position=not votes.oriented)
    everybody = _weights(made, votes, resamples, seed)
    chance = chances(made, votes, seed=seed) if made.names else None
    against = contradictions(votes)
    facts: dict[str, Any] = {
        "votes": _counts(votes) | {"needed": needed(made)},
        "attributes": _attributes(made, votes, everybody, resamples, seed),
        "held_out": _held_out(chance, votes, seed),
        "users": _groups(made, votes, votes.users, everybody, seed),
        "sources": _groups(made, votes, votes.sources, everybody, seed),
        "origin": [asdict(one) | {"warns": one.warns} for one in predicted(votes, seed)],
        "contradictions": _contradictions(votes, against),
    }
    unlikely: list[int] = []
    if chance is not None:
        likely = likelihood(chance, votes.prob)
        unlikely = [int(i) for i in np.argsort(likely, kind="stable") if votes.prob[i] != 0.5]
        facts["unlikely"] = [described(votes, i) | {"likelihood": float(likely[i])} for i in unlikely[:LISTED]]
    disagreed: list[int] = []
    if other is not None:
        facts["against"], disagreed = _against(votes, differences, other, resamples, seed)
    carried = {a["name"]: _carried(made, votes, a) for a in facts["attributes"] if a["finding"] and a["name"] in differences}
    return Explanation(facts, votes, carried, unlikely, against, disagreed)


def described(votes: Votes, vote: int) -> dict[str, Any]:
    """Return how the facts call a vote: its record, prompt, user, and which of the two is preferred."""
    side = {1.0: "first", -1.0: "second", 0.0: "tie"}[float(votes.sign[vote])]
    places = [votes.things[number[vote]].place for number in (votes.first, votes.second)]
    return {
        "record": votes.ids[vote],
        "candidates": places,
        "prompt": votes.prompts[votes.group[vote]],
        "user": votes.users[vote],
        "preferred": side,
    }


def _weights(made: Design, votes: Votes, resamples: int, seed: int) -> Weights:
    if not made.names:
        return Weights((), np.zeros(0), np.zeros((0, 0)))
    return weights(made, votes, resamples=resamples if votes.decided.sum() >= needed(made) else 0, seed=seed)


def _counts(votes: Votes) -> dict[str, Any]:
    return {
        "votes": len(votes),
        "decided": int(votes.decided.sum()),
        "ties": int((~votes.decided).sum()),
        "records": len(set(votes.ids)),
        "unlabelled_records": votes.unlabelled,
        "prompts": len(np.unique(votes.group)),
        "users": len({user for user in votes.users if user is not None}),
        "candidates": len(set(votes.first.tolist()) | set(votes.second.tolist())),
    }


def _attributes(made: Design, votes: Votes, everybody: Weights, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return a row for each attribute, findings and the strongest first: its weight, and the share of pairs that it tells alone."""
    decided = votes.decided
    gained = made.matrix * votes.sign[:, None]  # above 0 where the preferred one has more
    alone = 0.5 * (1.0 + np.sign(gained[decided]))
    counts = redrawn(votes.group[decided], resamples, seed) if len(np.unique(votes.group)) >= LEAST_PROMPTS and decided.any() else []
    drawn = np.array([count @ alone / count.sum() for count in counts])
    rows = []
    for place, name in enumerate(made.names):
        ends = np.quantile(drawn[:, place], (0.025, 0.975)).tolist() if len(drawn) else [None, None]
        rows.append(
            {
                "name": name,
                "weight": float(everybody.value[place]),
                "ci95": [float(everybody.low[place]), float(everybody.high[place])],
                "p": float(everybody.p[place]),
                "finding": bool(everybody.sure[place]),
                "typical_difference": float(made.scale[place]),
                "alone": float(alone[:, place].mean()) if decided.any() else None,
                "alone_ci95": ends,
                "missing": made.missing[place],
                "goes_with": _neighbours(made, place),
            }
        )
    return sorted(rows, key=lambda row: (not row["finding"], -abs(row["weight"])))


def _neighbours(made: Design, place: int) -> list[str]:
    """Return the attributes whose differences are nearly those of another, so that their weights cannot be told apart."""
    cosine = (
        made.matrix.T
        @ made.matrix[:, place]
        / np.maximum(np.linalg.norm(made.matrix, axis=0) * np.linalg.norm(made.matrix[:, place]), 1e-12)
    )
    return [name for other, name in enumerate(made.names) if other != place and abs(cosine[other]) >= ALIKE]


def _held_out(chance: Floats | None, votes: Votes, seed: int) -> dict[str, Any] | None:
    """Return how well the weights predict decided votes on prompts that they were not fitted on."""
    if chance is None or not votes.decided.any():
        return None
    decided = votes.decided
    shares = by_prompt(right(chance, votes.prob)[decided], votes.group[decided])
    low, high = share_interval(shares, seed)
    loss = -np.log(np.clip(likelihood(chance, votes.prob)[decided], 1e-12, 1.0))
    return {"accuracy": float(shares.mean()), "ci95": [low, high], "log_loss": float(loss.mean()), "log_loss_of_chance": float(np.log(2.0))}


def _groups(made: Design, votes: Votes, labels: Sequence[str | None], everybody: Weights, seed: int) -> list[dict[str, Any]]:
    """Return the weights of each user or source with enough votes, most votes first; nothing where there is only one.

    They are fitted around everybody's, so that few votes say little of how somebody differs.
    """
    names = np.array([label or "" for label in labels], dtype=object)
    counted = Counter(names[votes.decided].tolist())
    if len(counted) < 2 or not made.names:
        return []
    rows = []
    for name, count in counted.most_common(GROUPS):
        if count < LEAST_PAIRS or not name:
            continue
        kept = names == name
        theirs = weights(
            made.rows(kept), votes.only(kept), centre=everybody.value, spread=GROUP_PRIOR, resamples=GROUP_RESAMPLES, seed=seed
        )
        parts = {
            attribute: {"weight": float(theirs.value[i]), "ci95": [float(theirs.low[i]), float(theirs.high[i])]}
            for i, attribute in enumerate(made.names)
        }
        rows.append({"name": name, "votes": count, "prompts": len(np.unique(votes.group[kept])), "weights": parts})
    return rows


def _contradictions(votes: Votes, these: Contradictions) -> dict[str, Any]:
    """Return the counts of contradictions, and the records of the first of them."""
    return {
        "pairs_repeated_by_one_person": these.repeated,
        "both_ways": len(these.both_ways),
        "circles_of_three": len(these.circles),
        "pairs_shared_by_people": these.shared,
        "pairs_on_which_people_differ": these.between_people,
        "records_both_ways": [[described(votes, i) for i in pair] for pair in these.both_ways[:LISTED]],
        "records_in_circles": [[described(votes, i) for i in circle] for circle in these.circles[:LISTED]],
    }


def _carried(made: Design, votes: Votes, attribute: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the votes with the largest difference in an attribute that go with its weight, and those that go against it."""
    gained = made.matrix[:, made.names.index(attribute["name"])] * votes.sign * np.sign(attribute["weight"])
    order = np.argsort(-gained, kind="stable")
    return _apart(votes, order[gained[order] > 0], CARRIED), _apart(votes, order[::-1][gained[order[::-1]] < 0], AGAINST)


def _apart(votes: Votes, order: np.ndarray, count: int) -> list[int]:
    """Return the first votes of an order, so many, that show no thing twice."""
    chosen: list[int] = []
    shown: set[bytes] = set()
    for vote in order.tolist():
        keys = {votes.things[number[vote]].key for number in (votes.first, votes.second)}
        if not keys & shown:
            chosen.append(vote)
            shown |= keys
        if len(chosen) == count:
            break
    return chosen


def _against(
    votes: Votes, differences: Differences, other: tuple[str, Votes, Differences], resamples: int, seed: int
) -> tuple[dict[str, Any], list[int]]:
    """Return where another judge's votes differ: agreement on pairs of both, and weights in the units of the first votes."""
    name, theirs, their_differences = other
    common = {key: value for key, value in differences.items() if key in their_differences}
    placed = not votes.oriented and not theirs.oriented
    made = design(votes, common, position=placed)
    their_made = design(theirs, {key: their_differences[key] for key in common}, position=placed, like=made)
    mine, other_weights = (_weights(one, of, resamples, seed) for one, of in ((made, votes), (their_made, theirs)))
    rows = _compared(mine, other_weights)
    labels = {_pair(theirs, i)[0]: (i, _pair(theirs, i)[1]) for i in range(len(theirs)) if theirs.prob[i] != 0.5}
    both = [
        (i, labels[key][1] == sign) for i in range(len(votes)) if votes.prob[i] != 0.5 for key, sign in [_pair(votes, i)] if key in labels
    ]
    facts = {"name": name, "votes": len(theirs), "attributes": rows, "pairs_of_both": len(both), "agreement": None, "agreement_ci95": None}
    if both:
        places, same = np.array([i for i, _ in both]), np.array([float(equal) for _, equal in both])
        shares = by_prompt(same, votes.group[places])
        facts |= {"agreement": float(shares.mean()), "agreement_ci95": list(share_interval(shares, seed))}
    return facts, _apart(votes, np.array([i for i, equal in both if not equal], dtype=int), LISTED)


def _compared(mine: Weights, theirs: Weights) -> list[dict[str, Any]]:
    """Return a row for each attribute with both weights and their difference; of the same prompts, both are redrawn together."""
    names = [name for name in mine.names if name in theirs.names]
    rows = []
    for name in names:
        i, j = mine.names.index(name), theirs.names.index(name)
        drawn = theirs.drawn[:, j] - mine.drawn[:, i] if len(mine.drawn) and len(theirs.drawn) else np.zeros(0)
        ends = np.quantile(drawn, (0.025, 0.975)).tolist() if len(drawn) else [None, None]
        value = float(theirs.value[j] - mine.value[i])
        clear = bool(len(drawn)) and bool(np.quantile(drawn, 0.025) > 0.0 or np.quantile(drawn, 0.975) < 0.0)
        rows.append(
            {
                "name": name,
                "weight": float(mine.value[i]),
                "other": float(theirs.value[j]),
                "difference": value,
                "ci95": ends,
                "clear": clear,
            }
        )
    return sorted(rows, key=lambda row: -abs(row["difference"]))


def _pair(votes: Votes, vote: int) -> tuple[tuple[str, bytes, bytes], bool]:
    """Return what a vote compares, whatever the order, and whether the thing with the smaller key is preferred."""
    first, second = (votes.things[number[vote]].key for number in (votes.first, votes.second))
    preferred = votes.prob[vote] > 0.5
    low, high = min(first, second), max(first, second)
    return (votes.prompts[votes.group[vote]], low, high), bool(preferred == (first == low))
