"""Whether what `data explain` says of public votes is so, by sums that use nothing of this package.

python -m scripts.check_explain tifa human_annotations_with_scores.json      of Yushi-Hu/tifa, human_annotations/
python -m scripts.check_explain imagereward test.json                        of THUDM/ImageReward, data/

Each line has a statement, what `data explain` gives, and the same recomputed: shares counted pair by pair, weights by BFGS on the loss
written out, held-out shares with other parts.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import auto_cli
from numpy.typing import NDArray
from scipy.optimize import minimize

from diffalign.data.readers.base import Row
from diffalign.evaluate.explain.attributes import attributes
from diffalign.evaluate.explain.report import explain
from diffalign.evaluate.explain.votes import votes_of_rows

SCORES = ("clipscore_vitb32", "meteor", "bleu", "rouge", "spice")
SCORES += ("tifa_vilt", "tifa_git-large", "tifa_ofa-large", "tifa_blip2-flant5xl", "tifa_mplug-large")
Floats = NDArray[np.float64]


def agreeing(values: Floats, votes: Floats) -> Floats:
    """Return 1 where values and votes have one sign, 0 where they have opposite ones, one half where a value is 0."""
    return 0.5 * (1.0 + np.sign(values) * np.sign(votes))


def fitted(gaps: Floats, wins: Floats) -> Floats:
    """Return weights by a logistic regression with the prior of the package, a deviation of 5."""
    return minimize(lambda w: np.sum(np.logaddexp(0.0, gaps @ w) - wins * (gaps @ w)) + w @ w / 50.0, np.zeros(gaps.shape[1])).x


def by_prompt(values: Floats, prompts: NDArray[Any]) -> float:
    """Return the mean over prompts of the mean of each."""
    return float(np.mean([values[prompts == prompt].mean() for prompt in sorted(set(prompts))]))


def say(what: str, theirs: float, ours: float) -> None:
    """Print a statement with both numbers."""
    print(f"{what:58} data explain {theirs:+.3f}   recomputed {ours:+.3f}", flush=True)


def tifa(file: Path, resamples: int) -> None:
    """Check what the scores of TIFA's ratings are worth, and what the name of the model tells."""
    rated = json.loads(file.read_text(encoding="utf-8"))
    rows = [Row({**row, "model": name[len(row["text_id"]) + 1 :]}, f"{file.name} {name}", name) for name, row in rated.items()]
    votes = votes_of_rows(rows, scores=SCORES, origin=["model"], human="human_avg", prompt="text_id")
    facts = explain(votes, attributes(votes), resamples=resamples).facts
    given = {row["name"]: row for row in facts["attributes"]}

    members: dict[str, list[Any]] = {}
    for row in rows:
        members.setdefault(row.value["text_id"], []).append(row.value)
    pairs = [(a, b) for own in members.values() for a, b in combinations(own, 2)]
    gaps = np.array([[a[name] - b[name] for name in SCORES] for a, b in pairs])
    wins = np.array([0.5 * (1.0 + np.sign(a["human_avg"] - b["human_avg"])) for a, b in pairs])
    prompts, decided = np.array([a["text_id"] for a, _ in pairs]), wins != 0.5
    gaps /= np.sqrt((gaps**2).mean(axis=0))
    say("pairs that prefer one", facts["votes"]["decided"], int(decided.sum()))
    for name, weight, values in zip(SCORES, fitted(gaps, wins), gaps.T, strict=True):
        say(f"weight of {name}{' (a finding)' if given[name]['finding'] else ''}", given[name]["weight"], weight)
        say(f"  share of the pairs that {name} alone tells", given[name]["alone"], agreeing(values, wins - 0.5)[decided].mean())
    part = np.array([sorted(members).index(prompt) for prompt in prompts]) % 5
    guess, better = np.zeros(len(pairs)), np.zeros(len(pairs))
    for number in range(5):
        train, test = part != number, np.flatnonzero(part == number)
        guess[test] = gaps[test] @ fitted(gaps[train], wins[train])
        won: dict[str, list[float]] = {}
        for place in np.flatnonzero(train):
            for row, win in zip(pairs[place], (wins[place], 1.0 - wins[place]), strict=True):
                won.setdefault(row["model"], []).append(win)
        better[test] = [np.mean(won[a["model"]]) - np.mean(won[b["model"]]) for a, b in (pairs[place] for place in test)]
    (model,) = [row for row in facts["origin"] if row["column"] == "model"]
    for what, theirs, values in (("scores", facts["held_out"]["accuracy"], guess), ("the model's name", model["share"], better)):
        say(f"held-out votes that {what} predict", theirs, by_prompt(agreeing(values, wins - 0.5)[decided], prompts[decided]))


def imagereward(file: Path, resamples: int) -> None:
    """Check that what stands first in the list of a prompt is preferred more often."""
    ranked = json.loads(file.read_text(encoding="utf-8"))
    pairs = [(item["id"], a, b) for item in ranked for a, b in combinations(item["ranking"], 2)]
    words = {-1: "left", 0: "tie", 1: "right"}
    rows = [Row({"prompt": name, "vote": words[int(np.sign(a - b))]}, file.name, str(n)) for n, (name, a, b) in enumerate(pairs)]
    votes = votes_of_rows(rows, votes="vote")
    facts = explain(votes, attributes(votes), resamples=resamples).facts
    strict = [(a, b) for _, a, b in pairs if a != b]
    (place,) = facts["attributes"]
    say("pairs that prefer one", facts["votes"]["decided"], len(strict))
    say("share of them whose first is preferred", place["alone"], sum(a < b for a, b in strict) / len(strict))
    print(f"interval of that share, prompts redrawn: {place['alone_ci95'][0]:.3f} to {place['alone_ci95'][1]:.3f}")


def main(what: Literal["tifa", "imagereward"], file: Path, resamples: int = 500) -> None:
    """Check the statements of one file.

    Args:
        what: which file it is.
        file: as its repository has it.
        resamples: redraws of prompts, for the intervals.
    """
    {"tifa": tifa, "imagereward": imagereward}[what](file, resamples)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
