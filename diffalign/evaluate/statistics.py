"""From the scores and looks of several models' pictures to the numbers of `eval.json`: win rates, changes, drift, alarms, ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffalign.evaluate.ratings import Vote, bradley_terry, votes_of_scores
from diffalign.evaluate.win_rate import VISIBLE_MARGIN, win_rate
from diffalign.rewards.drift import Appearance
from diffalign.rewards.hacking import Change, alarm, change, mute, unjudged


@dataclass(frozen=True)
class ScorerResults:
    """One scorer's scores of all models' pictures: `values` are (P, N) for P prompts and N images each, NaN for what it cannot judge."""

    about: Mapping[str, Any]
    """Its name, scale and licence."""
    held_out: bool | None
    """Whether training did not use it; None where that is not known."""
    reward: bool
    """Whether training optimised it."""
    values: Mapping[str, np.ndarray]
    """By model, the base first."""
    chose: bool = False
    """Whether it picked the weights, without being trained on."""
    verdicts: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """Of a judge that compares: by two models, (P, N) chances that the second one's picture is better; `values` are then the mean chances
    of a model against all others."""

    @property
    def name(self) -> str:
        """Return what the score is called."""
        return str(self.about["name"])

    def facts(self) -> dict[str, Any]:
        """Return the row of `scorers` in `eval.json`."""
        about = {key: self.about[key] for key in ("name", "scale", "licence")}
        audit = {"audit": self.about["audit"]} if self.about.get("audit") else {}
        return {**about, "held_out": self.held_out, "reward": self.reward, "chose": self.chose, **audit}

    def between(self, base: str, run: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (P, N) of two models that are to be compared: of a judge that compares, their chances against each other."""
        if not self.verdicts:
            return self.values[base], self.values[run]
        chance = self.verdicts[base, run] if (base, run) in self.verdicts else 1.0 - self.verdicts[run, base]
        return 1.0 - chance, chance


def comparison(
    scorers: Sequence[ScorerResults],
    looks: Mapping[str, Appearance],
    prompts: Sequence[str],
    seed: int,
    visible_margin: float = VISIBLE_MARGIN,
) -> dict[str, Any]:
    """Return what scores and looks of pictures tell of several models, as `eval.json` and the page have it.

    Args:
        scorers: the scores of every model's pictures by each scorer.
        looks: how the pictures of each model look, the base first.
        prompts: (P,) the prompts that all models drew.
        seed: of the intervals.
        visible_margin: standard deviations of the base's scores from which a win can be seen.
    """
    base, *runs = looks
    shifts = {run: looks[base].changes(looks[run], prompts, seed) for run in runs}
    rung = {run: alarms(scorers, shifts[run], base, run, prompts, seed) for run in runs}
    facts: dict[str, Any] = {
        "scorers": [one.facts() for one in scorers],
        "scores": {who: {one.name: summarised(one.values[who], prompts, seed) for one in scorers} for who in looks},
        "comparisons": [compared(one, base, run, prompts, seed, visible_margin) for run in runs for one in scorers],
        "drift": {who: look.means() for who, look in looks.items()},
        "drift_changes": {run: [asdict(shift) for shift in changes] for run, changes in shifts.items()},
        "alarm": {run: reasons for run, (reasons, _) in rung.items()},
        "mute": {run: why for run, (_, why) in rung.items() if why is not None},
    }
    if len(runs) > 1:
        facts["ratings"] = {one.name: rated(one, prompts, seed) for one in scorers}
    return facts


def summarised(values: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Return mean with interval by prompt, median, and how many images could not be judged, of scores (P, N)."""
    scores = values.ravel()
    from_zero = change(np.zeros(scores.size).tolist(), scores.tolist(), _rows(prompts, values), "mean", seed)
    finite = scores[~np.isnan(scores)]
    return {
        "mean": from_zero.value,
        "mean_ci95": [from_zero.low, from_zero.high],
        "median": float(np.median(finite)) if finite.size else math.nan,
        "unjudged": int(np.isnan(scores).sum()),
    }


def compared(
    scorer: ScorerResults, base: str, run: str, prompts: Sequence[str], seed: int, visible_margin: float = VISIBLE_MARGIN
) -> dict[str, Any]:
    """Return how a run fares against the base under one scorer, draw by draw; draws that either has no score of are left out."""
    before, after = (values.ravel() for values in scorer.between(base, run))
    there = ~np.isnan(before) & ~np.isnan(after)
    kept = [prompt for prompt, judged_both in zip(_rows(prompts, scorer.values[base]), there, strict=True) if judged_both]
    facts: dict[str, Any] = {"run": run, "base": base, "scorer": scorer.name}
    if not kept:
        counts = dict.fromkeys(("wins", "losses", "ties", "visible_wins", "visible_losses"), 0)
        nothing = dict.fromkeys(("win_rate", "sign_test_p", "visible_margin", "change"), math.nan)
        return facts | nothing | counts | {"ci95": None, "verdict": "unclear", "change_ci95": None}
    won = win_rate(before[there].tolist(), after[there].tolist(), kept, seed, visible_margin=visible_margin)
    gained = _change(scorer, base, run, prompts, seed)
    unseen = dict.fromkeys(("visible_margin", "visible_wins", "visible_losses")) if scorer.verdicts else {}  # a verdict has no size
    return facts | won.facts() | unseen | {"change": gained.value, "change_ci95": [gained.low, gained.high]}


def alarms(
    scorers: Sequence[ScorerResults], shifts: Sequence[Change], base: str, run: str, prompts: Sequence[str], seed: int
) -> tuple[list[str], str | None]:
    """Return the reasons for alarm about a run, and why it could not go off, where it could not.

    `shifts` are the changes of how its pictures look. Scorers that picked the weights, without being trained on, count as held out.
    """
    rewards = [_change(one, base, run, prompts, seed) for one in scorers if one.reward]
    held_out = [_change(one, base, run, prompts, seed) for one in scorers if one.held_out or one.chose]
    reasons = alarm(rewards, held_out, shifts)
    for one in scorers:
        before, now = (int((~np.isnan(one.values[who])).sum()) for who in (base, run))
        reasons += unjudged(one.name, before, now)
    return reasons, mute([*held_out, *shifts])


def rated(scorer: ScorerResults, prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return the Bradley-Terry rating of every model by one scorer, best first; draws that any of them lacks are left out.

    Of a judge that compares, verdicts are the votes, and those that are missing are left out.
    """
    if scorer.verdicts:
        votes = [
            Vote(second, first, float(chance), prompt)
            for (first, second), chances in scorer.verdicts.items()
            for prompt, row in zip(prompts, chances, strict=True)
            for chance in row
            if not math.isnan(chance)
        ]
        met = {(vote.left, vote.right) for vote in votes}
        return [asdict(rating) for rating in bradley_terry(votes, seed=seed)] if len(met) == len(scorer.verdicts) else []
    models = list(scorer.values)
    scores = np.stack([scorer.values[model].ravel() for model in models])
    complete = [bool(np.isfinite(draw).all()) for draw in scores.T]
    kept = [prompt for prompt, whole in zip(_rows(prompts, scorer.values[models[0]]), complete, strict=True) if whole]
    if not kept:
        return []
    votes = votes_of_scores({model: row[complete].tolist() for model, row in zip(models, scores, strict=True)}, kept)
    return [asdict(rating) for rating in bradley_terry(votes, seed=seed)]


def _change(scorer: ScorerResults, base: str, run: str, prompts: Sequence[str], seed: int) -> Change:
    before, after = scorer.between(base, run)
    return change(before.ravel().tolist(), after.ravel().tolist(), _rows(prompts, before), scorer.name, seed)


def _rows(prompts: Sequence[str], values: np.ndarray) -> list[str]:
    """Return the prompt of every score in (P, N), row by row."""
    return [prompt for prompt in prompts for _ in range(values.shape[1])]
