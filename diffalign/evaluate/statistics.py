"""What the scores of several models say: win rates, sign tests, changes, ratings and the alarm, as `eval.json` has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffalign.core.intervals import LEAST_PROMPTS
from diffalign.evaluate.ratings import bradley_terry, votes_of_scores
from diffalign.evaluate.win_rate import sign_test, win_rate
from diffalign.rewards.hacking import Change, alarm, change


@dataclass(frozen=True)
class Judged:
    """One scorer's word on all models: `values` are (prompts, images_per_prompt) for each, NaN where an image could not be judged."""

    about: Mapping[str, Any]  # name, scale, licence
    held_out: bool | None  # None where nobody knows any more
    reward: bool  # what training optimised
    values: Mapping[str, np.ndarray]
    chose: bool = False  # itself not trained on, but it picked the weights

    @property
    def name(self) -> str:
        """Return what the score is called."""
        return str(self.about["name"])

    def facts(self) -> dict[str, Any]:
        """Return what is said of the scorer."""
        known = {key: self.about[key] for key in ("name", "scale", "licence")}
        return {**known, "held_out": self.held_out, "reward": self.reward, "chose": self.chose}


@dataclass(frozen=True)
class Drift:
    """How one model's pictures look: `diversity` of each prompt (P,), mean saturation and sharpness, and exact checks if there are any."""

    diversity: np.ndarray
    saturation: float
    sharpness: float
    checks: Mapping[str, float]

    def facts(self) -> dict[str, float]:
        """Return the means over prompts and pictures; diversity is NaN where there is one picture of each prompt."""
        return {"diversity": float(self.diversity.mean()), "saturation": self.saturation, "sharpness": self.sharpness}


def summarised(values: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Return mean with interval by prompt, median, and how many images could not be judged, of scores (P, N)."""
    repeated, found = _rows(prompts, values), values.ravel()
    gained = change(np.zeros(found.size).tolist(), found.tolist(), repeated, "mean", seed)
    judged = found[~np.isnan(found)]
    return {
        "mean": gained.value,
        "mean_ci95": [gained.low, gained.high],
        "median": float(np.median(judged)) if judged.size else math.nan,
        "unjudged": int(np.isnan(found).sum()),
    }


def compared(judged: Judged, base: str, run: str, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what one scorer says of a run beside the base, draw by draw; draws that either could not be judged are left out."""
    name = judged.name
    before, after = (judged.values[who].ravel() for who in (base, run))
    there = ~np.isnan(before) & ~np.isnan(after)
    kept = [prompt for prompt, known in zip(_rows(prompts, judged.values[base]), there, strict=True) if known]
    facts: dict[str, Any] = {"run": run, "base": base, "scorer": name}
    if not kept:
        nothing = dict.fromkeys(("win_rate", "sign_test_p", "change"), math.nan)
        return facts | nothing | {"ci95": None, "wins": 0, "losses": 0, "ties": 0, "change_ci95": None}
    won = win_rate(before[there].tolist(), after[there].tolist(), kept, seed)
    sign = sign_test(before[there].tolist(), after[there].tolist(), kept)
    gained = _change(judged, base, run, prompts, seed)
    facts |= {"win_rate": won.rate, "ci95": [won.low, won.high], "wins": sign.wins, "losses": sign.losses, "ties": sign.ties}
    return facts | {"sign_test_p": sign.p, "change": gained.value, "change_ci95": [gained.low, gained.high]}


def alarmed(
    judges: Sequence[Judged], drift: Mapping[str, Drift], base: str, run: str, prompts: Sequence[str], seed: int
) -> tuple[list[str], str | None]:
    """Return the reasons for alarm about a run, by each reward that training optimised; and why it could not go off, where it could not."""
    changes = {judged.name: _change(judged, base, run, prompts, seed) for judged in judges}
    held_out = [changes[judged.name] for judged in judges if judged.held_out or judged.chose]
    spread = change(drift[base].diversity.tolist(), drift[run].diversity.tolist(), prompts, "diversity", seed)
    rewards = [changes[judged.name] for judged in judges if judged.reward]
    if not rewards:
        return [], "no score is known as what training optimised; name it with --reward"
    for said, what in ((rewards, "the training reward"), ([*held_out, spread], "any held-out score, or the diversity,")):
        if all(math.isnan(one.low) for one in said):
            return [], f"{what} is known of fewer than {LEAST_PROMPTS} prompts"
    return [reason for reward in rewards for reason in alarm(reward, held_out, spread)], None


def rated(judged: Judged, prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return the Bradley-Terry rating of every model by one scorer, best first; draws that any of them lacks are left out."""
    models = list(judged.values)
    scores = np.stack([judged.values[model].ravel() for model in models])
    there = [not np.isnan(draw).any() for draw in scores.T]
    kept = [prompt for prompt, known in zip(_rows(prompts, judged.values[models[0]]), there, strict=True) if known]
    if not kept:
        return []
    votes = votes_of_scores({model: own[there].tolist() for model, own in zip(models, scores, strict=True)}, kept)
    return [asdict(rating) for rating in bradley_terry(votes, seed=seed)]


def _change(judged: Judged, base: str, run: str, prompts: Sequence[str], seed: int) -> Change:
    before, after = (judged.values[who] for who in (base, run))
    return change(before.ravel().tolist(), after.ravel().tolist(), _rows(prompts, before), judged.name, seed)


def _rows(prompts: Sequence[str], values: np.ndarray) -> list[str]:
    """Return the prompt of every score in (P, N), row by row."""
    return [prompt for prompt in prompts for _ in range(values.shape[1])]
